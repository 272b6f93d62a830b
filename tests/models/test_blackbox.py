"""Models that are functions: valid outputs, the methods that can explain them, and their manifest."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.errors import ExplainerError, ModelError
from xaieval.explainers import LIBRARY_METHODS, METHODS
from xaieval.explainers.adapters.captum import Captum
from xaieval.explainers.adapters.shap import Shap
from xaieval.explainers.perturbation import RISE, Occlusion
from xaieval.explainers.sensitivity import HSIC, Sobol
from xaieval.models import BlackBox, as_module, fpn_scenes, load_model

IDENTITY = xaieval.Protocol(confidence="identity")
CAPTUM = "captum:Occlusion, captum:FeatureAblation, captum:Lime, captum:KernelShap, captum:ShapleyValueSampling"
ABLE = (
    f"rise, occlusion, sobol, hsic, d-rise, d-close, random, uniform, center, edges, fake-cam, {CAPTUM}, shap:Partition, "
    "precomputed:DIR"
)
WORKING = [RISE(n_masks=64), Occlusion(), "random", "uniform", "center", "edges", "fake-cam"]


def brightness(images: Tensor) -> np.ndarray:
    """How red, green and blue an image is, as probabilities."""
    return images.numpy().mean(axis=(2, 3)).astype(np.float64) + 0.1


def test_a_function_is_scored_by_what_needs_nothing_inside():
    images = torch.rand(3, 3, 28, 28)
    scores = xaieval.score(brightness, [images], methods=WORKING, protocol=IDENTITY, progress=False)
    assert len(scores.rows) == 3 * len(WORKING)
    assert (scores.rows["status"] == "ok").sum() >= 3 * (len(WORKING) - 1)  # of "uniform" the map is constant
    expected = brightness(images)
    rows = scores.rows[scores.rows["method"] == "rise"]
    np.testing.assert_array_equal(rows["predicted"].astype(int), expected.argmax(axis=1))
    np.testing.assert_allclose(rows["confidence"], expected.max(axis=1))


def test_a_function_around_a_network_scores_as_the_network():
    model, images = fpn_scenes().eval(), torch.rand(2, 3, 64, 64)
    methods = [RISE(n_masks=32), Occlusion(32, 32)]

    def session(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(pixels)).numpy()

    inside = xaieval.score(model, [images], methods=methods, fast=False, progress=False)
    outside = xaieval.score(BlackBox(session, numpy=True), [images], methods=methods, progress=False)
    both = inside.rows.merge(outside.rows, on=["image_id", "method", "target", "predicted"])
    assert len(both) == 4
    np.testing.assert_allclose(both["masked_confidence_x"], both["masked_confidence_y"], atol=1e-6)


def test_maps_of_a_function_show_what_it_looks_at():
    def corner(images: Tensor) -> Tensor:
        return images[:, :2, :8, :8].mean(dim=(2, 3))

    maps = xaieval.explain(corner, torch.ones(2, 3, 32, 32), method=Occlusion(8, 8), target=1)["input"]
    assert (maps[:, :8, :8] == 1).all()
    assert (maps[:, 8:, 8:] == 0).all()


@pytest.mark.parametrize(
    "method", ["gradcam", "score-cam", "ablation-cam", "eigencam", "attention-rollout", "cam", "attention"]
)
def test_methods_that_look_inside_are_refused_with_those_that_do_not(method):
    with pytest.raises(ExplainerError) as caught:
        xaieval.score(brightness, [torch.rand(1, 3, 8, 8)], layers="layer4", methods=["random", method])
    message = str(caught.value)
    assert message.startswith(
        "the model is a function, which has no layers to look into, and "
        f"method '{method}' needs layers, gradients or the inside of the model; these methods look at the input: {ABLE}; "
    )
    with pytest.raises(ExplainerError, match="the model is a function"):
        xaieval.explain(brightness, torch.rand(1, 3, 8, 8), "layer4", method)


def test_a_function_has_no_layers_to_name():
    with pytest.raises(
        ExplainerError, match=r"no layers to look into, and layers= names 'layer4'; leave it out; these methods"
    ):
        xaieval.score(brightness, [torch.rand(1, 3, 8, 8)], ["auto", "layer4"], "rise")
    for layers in ("auto", "input", ()):
        assert list(xaieval.explain(brightness, torch.rand(1, 3, 8, 8), layers, "center")) == ["input"]
    with pytest.raises(ModelError, match=r"the model is a function, which has no layers to look into; give the nn.Module"):
        xaieval.list_layers(BlackBox(brightness), torch.rand(1, 3, 8, 8))


def test_every_method_either_works_on_a_function_or_is_refused():
    images = torch.rand(2, 3, 14, 14)
    samples = {"n_samples": 4}
    quick = {
        "rise": RISE(n_masks=8),
        "sobol": Sobol(n_designs=2),
        "hsic": HSIC(n_masks=8),
        **{f"captum:{kind}": Captum(kind, settings=samples) for kind in ("Lime", "KernelShap", "ShapleyValueSampling")},
        "shap:Partition": Shap("Partition", settings={"max_evals": 8}),
    }
    worked = []
    for name in [*METHODS, *(one for one in LIBRARY_METHODS if one.startswith(("captum:", "shap:")))]:
        try:
            xaieval.explain(brightness, images, method=quick.get(name, name))
            worked.append(name)
        except ExplainerError as error:
            refusal = "explains a detection" if name in ("d-rise", "d-close") else "the model is a function"
            assert refusal in str(error)  # noqa: PT017  # every other method is expected not to raise
    assert ", ".join(worked) == ABLE.replace("d-rise, d-close, ", "").replace(", precomputed:DIR", "")


def test_a_method_that_is_a_function_may_run_the_model():
    def difference(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images.mean(dim=1) * model(images)[:, :1, None]

    assert xaieval.explain(brightness, torch.rand(2, 3, 8, 8), method=difference)["input"].shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("output", "came"),
    [
        (lambda images: images.mean(dim=(0, 2, 3)), r"torch.float32 \[3\] for 2 images"),
        (lambda images: images.mean(), r"torch.float32 \[\] for 2 images"),
        (lambda images: images.mean(dim=(2, 3))[:1], r"torch.float32 \[1, 3\] for 2 images"),
        (lambda images: np.zeros((2, 3), dtype=np.int64), r"torch.int64 \[2, 3\] for 2 images"),
    ],
)
def test_a_function_that_gives_no_row_of_scores_an_image_is_refused(output, came):
    message = rf"the function .*<lambda> gave {came}; scores \[2, K\] of a floating type are expected, one row an image"
    with pytest.raises(ModelError, match=message):
        xaieval.explain(output, torch.rand(2, 3, 8, 8), method="random")


def test_what_is_neither_a_module_nor_a_function_is_refused():
    for thing in (3, "resnet18", nn.Linear):
        with pytest.raises(ModelError, match=r"^a model is a torch.nn.Module or a function of images, got"):
            as_module(thing)
    model = nn.Linear(2, 2)
    assert as_module(model) is model


def test_lists_and_mappings_with_arrays_are_handed_on():
    class Session:
        """As in ONNX Runtime, whose sessions give a list."""

        def __call__(self, images: Tensor) -> list[np.ndarray]:
            return [brightness(images)]

    expected = xaieval.explain(brightness, torch.ones(1, 3, 8, 8), method=Occlusion())["input"]
    assert torch.equal(xaieval.explain(Session(), torch.ones(1, 3, 8, 8), method=Occlusion())["input"], expected)
    boxes = {"boxes": np.array([[0.0, 0, 4, 4]]), "labels": np.array([1]), "scores": np.array([0.5])}
    scores = xaieval.score(
        lambda images: [boxes] * len(images), [torch.rand(2, 3, 8, 8)], methods="center", task="detection", progress=False
    )
    assert scores.rows["confidence"].tolist() == [0.5, 0.5]


def test_the_manifest_names_the_function():
    scores = xaieval.score(brightness, [torch.rand(2, 3, 8, 8)], methods="random", protocol=IDENTITY, progress=False)
    assert scores.manifest["model"] == {
        "class": "xaieval.models.blackbox.BlackBox",
        "function": f"{__name__}.brightness",
        "parameters": None,
        "fingerprint": None,
    }
    assert scores.manifest["run"]["model"] == f"{__name__}.brightness"
    assert BlackBox(functools.partial(brightness)).function_name == "functools.partial"


def test_a_run_of_another_function_does_not_go_into_the_same_folder(tmp_path):
    options = {"methods": "random", "protocol": IDENTITY, "progress": False, "output_dir": tmp_path}
    images = [torch.rand(2, 3, 8, 8)]
    xaieval.score(brightness, images, **options)

    def other(some: Tensor) -> np.ndarray:
        return brightness(some)

    with pytest.raises(xaieval.XaievalError, match="model"):
        xaieval.score(other, images, **options)


def test_a_module_of_ones_own_may_give_a_function_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "session_of_mine.py").write_text("def make():\n    return lambda images: images.mean(dim=(2, 3))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(load_model("session_of_mine:make").model, BlackBox)


def test_arrays_go_in_where_they_are_asked_for():
    seen: list[type] = []

    def look(images: object) -> np.ndarray:
        seen.append(type(images))
        return np.ones((len(images), 2))

    BlackBox(look)(torch.rand(1, 3, 4, 4))
    BlackBox(look, numpy=True)(torch.rand(1, 3, 4, 4))
    assert seen == [Tensor, np.ndarray]


def test_an_ensemble_of_scikit_learn_is_explained():
    ensemble = pytest.importorskip("sklearn.ensemble", reason="scikit-learn is no dependency")
    rng = np.random.default_rng(0)
    images = rng.random((60, 1, 6, 6)).astype(np.float32)
    labels = (images[:, 0, :3, :3].mean(axis=(1, 2)) > 0.5).astype(int)
    forest = ensemble.RandomForestClassifier(20, max_depth=4, random_state=0).fit(images.reshape(60, -1), labels)
    model = BlackBox(lambda pixels: forest.predict_proba(pixels.reshape(len(pixels), -1)), numpy=True)
    maps = xaieval.explain(model, torch.from_numpy(images[:20]), method=Occlusion(2, 1), target=1)["input"].mean(dim=0)
    assert maps[:3, :3].mean() > maps[3:, 3:].mean()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # such models are about still
@pytest.mark.parametrize("kind", ["script", "trace", "frozen", "export", "export, any size", "program"])
def test_whole_scripts_and_exported_programs_have_the_rows_of_the_network(kind):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    net, images = net.eval(), torch.rand(5, 3, 16, 16)
    dynamic = ({0: torch.export.Dim("batch", max=64)},)
    model = {
        "script": lambda: torch.jit.script(net),
        "trace": lambda: torch.jit.trace(net, images[:2]),
        "frozen": lambda: torch.jit.freeze(torch.jit.script(net)),
        "export": lambda: torch.export.export(net, (images[:2],)).module(),
        "export, any size": lambda: torch.export.export(net, (images[:2],), dynamic_shapes=dynamic).module(),
        "program": lambda: torch.export.export(net, (images[:2],)),
    }[kind]()
    methods = ("occlusion", "captum:Saliency", "random")
    rows = [xaieval.score(one, [images], methods=methods, progress=False).rows["masked_confidence"] for one in (net, model)]
    np.testing.assert_allclose(*rows, atol=1e-5)
    with pytest.raises(ModelError, match=r"model cannot be probed; give the nn.Module that it was made from"):
        xaieval.explain(model, images, "2")
