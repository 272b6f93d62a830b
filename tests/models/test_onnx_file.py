"""ONNX files as models: the maps of the network that was exported, and one clear error for what a file cannot do."""

from __future__ import annotations

import re
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.cli import main
from xaieval.data import Preprocessing
from xaieval.errors import ExplainerError, ModelError, TargetError, UsageError
from xaieval.evaluation.fingerprint import fingerprint
from xaieval.explainers.adapters.captum import Captum
from xaieval.explainers.adapters.shap import Shap
from xaieval.explainers.perturbation import RISE, Occlusion
from xaieval.explainers.sensitivity import HSIC, Sobol
from xaieval.models import BlackBox, as_module, load_model, onnx_model
from xaieval.models.loading import names_code

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIDE, CLASSES = 32, 5


class Around(nn.Module):
    """A network with functions of its input and of its output."""

    def __init__(self, net: nn.Module, before=lambda images: images, after=lambda logits: logits) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    head = nn.Linear(128, CLASSES)
    with torch.no_grad():
        head.weight.mul_(20)  # LIME gives zeros where scores hardly change
    return nn.Sequential(*layers, head).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def export(tmp_path_factory, net):
    """A function that writes the network, or one around it, to a file for images like those given."""
    folder = tmp_path_factory.mktemp("onnx")

    def write(name, given, any_number=True, outputs=("scores",), **around):
        with warnings.catch_warnings():  # the exporter that needs no other package is going to be removed
            warnings.simplefilter("ignore")
            axes = {one: {0: "count"} for one in ("pixels", *outputs)} if any_number else {}
            names = {"input_names": ["pixels"], "output_names": list(outputs), "dynamic_axes": axes}
            torch.onnx.export(Around(net, **around).eval(), (given,), folder / name, dynamo=False, **names)
        return folder / name

    return write


@pytest.fixture(scope="module")
def file(export, images):
    return export("any.onnx", images[:2])


@pytest.mark.parametrize(
    "method",
    [
        *(RISE(n_masks=30), Occlusion(8, 4), Sobol(n_designs=2), HSIC(n_masks=30), "random"),
        *(Captum("Occlusion"), Captum("FeatureAblation"), Captum("ShapleyValueSampling", settings={"n_samples": 2})),
        *(Captum("Lime", settings={"n_samples": 100}), Captum("KernelShap", settings={"n_samples": 100})),
        Shap("Partition", settings={"max_evals": 30}),
    ],
    ids=lambda method: method if isinstance(method, str) else method.name,
)
def test_maps_are_those_of_the_network(file, net, images, method):
    expected = xaieval.explain(net, images[:2], method=method)["input"]
    found = xaieval.explain(onnx_model(file), images[:2], method=method)["input"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01


def test_rows_are_those_of_the_network(file, net, images):
    columns = ["predicted", "target", "confidence", "masked_confidence", "average_drop", "status"]
    rows = [
        xaieval.score(one, [images], methods=["occlusion", "random"], metrics=["average_drop"], progress=False).rows[columns]
        for one in (net, onnx_model(file))
    ]
    np.testing.assert_allclose(*(one.drop(columns="status").astype(float) for one in rows), atol=1e-4)
    assert rows[0]["status"].tolist() == rows[1]["status"].tolist()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_file_for_a_fixed_number_of_images_gets_them_in_groups(export, net, images, size):
    model = onnx_model(export(f"fixed{size}.onnx", images[:size], any_number=False))
    assert model.function.image_input.shape == (size, 3, SIDE, SIDE)
    for count in (1, 3, 5):
        torch.testing.assert_close(model(images[:count]), net(images[:count]).detach(), rtol=0, atol=1e-5)


def test_channels_last_are_transposed_and_said_to_be(export, net, images):
    path = export("last.onnx", images.permute(0, 2, 3, 1), before=lambda given: given.permute(0, 3, 1, 2))
    with pytest.warns(
        UserWarning, match=r"last.onnx takes images \[any, 32, 32, 3\], with the channels last; .* are transposed"
    ):
        model = onnx_model(path)
    for one in (model, onnx_model(path, channels_last=True)):
        torch.testing.assert_close(one(images), net(images).detach(), rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match=r"takes images \[any, 32, 32, 3\], got \[5, 3, 32, 32\]; .*channels_last=True is for"):
        onnx_model(path, channels_last=False)(images)


def test_half_precision_goes_in_and_single_comes_out(export, net, images):
    halves = {"before": lambda given: given.float(), "after": lambda scores: scores.half()}
    found = onnx_model(export("half.onnx", images.half(), **halves))(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, net(images.half().float()).detach(), rtol=0, atol=2e-3)
    assert not torch.equal(found, net(images).detach())


def test_whole_numbers_are_pixels_from_0_to_255(export, net, images):
    pixels = images.sigmoid() * 255
    path = export("bytes.onnx", pixels.byte(), before=lambda given: given.float() / 255)
    loaded = load_model(str(path))
    assert loaded.preprocessing == Preprocessing(SIDE, round(SIDE * 256 / 224), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    torch.testing.assert_close(loaded.model(pixels), net(pixels.round() / 255).detach(), rtol=0, atol=1e-5)
    loaded.model(torch.zeros(1, 3, SIDE, SIDE))  # a masked image may be black
    for wrong in (images, pixels / 255, pixels + 100):
        with pytest.raises(
            ModelError, match=r"bytes.onnx takes whole numbers \(uint8\) from 0 to 255, and the images have val"
        ):
            loaded.model(wrong)


def test_of_several_outputs_the_logits_have_to_be_named(export, net, images):
    both = {"after": lambda scores: (scores.pow(2), scores)}
    model = onnx_model(export("two.onnx", images[:2], outputs=("squares", "scores"), **both))
    with pytest.raises(ModelError, match=r"no logits \[N, K\].*say where they are with output="):
        xaieval.explain(model, images, method="occlusion")
    for output, expected in (("scores", net), ("squares", Around(net, after=lambda scores: scores.pow(2)))):
        found = xaieval.explain(model, images, method="occlusion", output=output)["input"]
        torch.testing.assert_close(found, xaieval.explain(expected, images, method="occlusion")["input"], rtol=0, atol=1e-4)
    model = onnx_model(export("logits.onnx", images[:1], any_number=False, outputs=("squares", "logits"), **both))
    torch.testing.assert_close(model(images)["logits"], net(images).detach(), rtol=0, atol=1e-5)
    found = xaieval.explain(model, images, method="occlusion")["input"]
    torch.testing.assert_close(found, xaieval.explain(net, images, method="occlusion")["input"], rtol=0, atol=1e-4)


def test_a_softmax_at_the_end_is_found(export, images):
    model = onnx_model(export("softmax.onnx", images[:2], after=lambda scores: scores.softmax(1)))
    found = xaieval.score(model, [images], methods="center", progress=False).findings()
    assert [one.name for one in found] == ["probabilities_for_logits"]
    identity = xaieval.Protocol(confidence="identity")
    assert not xaieval.score(model, [images], methods="center", protocol=identity, progress=False).findings()


def test_layers_and_methods_that_look_inside_are_refused_with_those_that_work(file, images):
    model = onnx_model(file)
    start = "the model is an ONNX file, which has no layers to look into, and "
    able = r"; these methods look at the input: rise, occlusion, sobol, hsic, .*captum:Lime.*shap:Partition"
    for method in ("gradcam", "captum:Saliency", "attention-rollout", "extremal-perturbation"):
        with pytest.raises(ExplainerError, match=f"^{start}method '{method}' needs layers, gradients or the inside.*{able}"):
            xaieval.explain(model, images, "auto", method)
    with pytest.raises(ExplainerError, match=f"^{start}layers= names 'conv1'; leave it out{able}"):
        xaieval.explain(model, images, "conv1", "rise")
    with pytest.raises(ModelError, match=r"^the model is an ONNX file, which has no layers to look into; give the nn.Module"):
        xaieval.list_layers(model, images)


def test_images_that_do_not_suit_a_file_are_refused(file, images):
    model = onnx_model(file)
    for wrong in (images[..., :16], images[:, :1], images[..., None]):
        shape = re.escape(str(list(wrong.shape)))
        with pytest.raises(ModelError, match=rf"^any.onnx takes images \[any, 3, 32, 32\], got {shape}; resize the images"):
            model(wrong)
    with pytest.raises(TargetError, match="no class 5; the model has 5 classes, 0 to 4"):
        xaieval.explain(model, images, method="center", target=CLASSES)


def _written(path, *inputs, axes=(0, 2, 3)):
    """A file, written by hand, of the mean of its first input over some axes, with inputs of these types and shapes."""
    taken = [onnx.helper.make_tensor_value_info(f"in{i}", *one) for i, one in enumerate(inputs)]
    given = [onnx.helper.make_tensor_value_info("out", inputs[0][0], None)]
    nodes = [onnx.helper.make_node("ReduceMean", ["in0"], ["out"], axes=axes, keepdims=0)]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "by hand", taken, given), opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.save(made, path)
    return path


def test_files_that_are_no_models_of_images_are_refused(tmp_path, images):
    kind, path = onnx.TensorProto, tmp_path / "odd.onnx"
    whole = (kind.FLOAT, [1, 3, SIDE, SIDE])
    with pytest.raises(
        ModelError, match=r"^odd.onnx has 2 inputs \(in0, in1\), and a model takes images only; give a function"
    ):
        onnx_model(_written(path, whole, whole))
    with pytest.raises(ModelError, match=r"^odd.onnx takes tensor\(int64\) \[1, 3, 32, 32\], and images"):
        onnx_model(_written(path, (kind.INT64, [1, 3, SIDE, SIDE])))
    with pytest.raises(ModelError, match=r"^odd.onnx takes tensor\(float\) \[any, 7\], and images"):
        onnx_model(_written(path, (kind.FLOAT, ["n", 7]), axes=[0]))
    with pytest.raises(ModelError, match=r"^odd.onnx takes 1 images at a time, and its output 'out' has the shape \[3\]"):
        onnx_model(_written(path, whole))(images)
    with pytest.raises(ModelError, match=r"^the function odd.onnx gave torch.float32 \[3\] for 5 images; scores \[5, K\]"):
        onnx_model(_written(path, (kind.FLOAT, ["n", 3, "h", "w"])))(images)


def test_files_that_cannot_be_read_are_refused(tmp_path, file, images):
    with pytest.raises(ModelError, match=r"^there is no file .*gone.onnx$"):
        load_model(str(tmp_path / "gone.onnx"))
    (tmp_path / "broken.onnx").write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"^onnxruntime cannot read .*broken.onnx: "):
        load_model(f"onnx:{tmp_path / 'broken.onnx'}")
    with pytest.raises(UsageError, match=r"^onnxruntime has no provider 'NoProvider' here; .*known: .*CPUExecutionProvider"):
        onnx_model(file, providers=["NoProvider"])
    with pytest.raises(ModelError, match=r"^the ONNX file .*any.onnx holds its own weights; leave weights and"):
        load_model(str(file), pretrained=True)
    with pytest.raises(ModelError, match=r"any.onnx cannot be built with {'thread': 2}"):
        load_model(str(file), model_args={"thread": 2})


def test_a_missing_runtime_is_one_line(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"^ONNX files need onnxruntime, which is missing: pip install 'xaieval\[onnx\]'$"):
        onnx_model(file)


def test_what_runs_the_file(file):
    session = onnx_model(file, providers="CPUExecutionProvider", threads=2).function.session
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 2
    assert onnx_model(file).function.session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_a_session_is_a_model(file, net, images):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    model = as_module(session)
    assert isinstance(model, BlackBox)
    torch.testing.assert_close(model(images), net(images).detach(), rtol=0, atol=1e-5)
    expected = xaieval.explain(net, images, method="occlusion")["input"]
    torch.testing.assert_close(xaieval.explain(session, images, method="occlusion")["input"], expected, rtol=0, atol=1e-4)


def test_a_file_is_known_by_its_content_and_its_weights(file, tmp_path, images):
    scores = xaieval.score(onnx_model(file), [images], methods="center", progress=False)
    known = scores.manifest["model"]["fingerprint"]
    assert scores.manifest["model"]["function"] == "any.onnx"
    assert scores.manifest["run"]["model"] == known == fingerprint(onnx_model(file))
    outside = onnx.load(file)
    path = tmp_path / "outside.onnx"
    onnx.save(outside, path, save_as_external_data=True, location="weights of it.bin", size_threshold=0)
    first = fingerprint(onnx_model(path))
    weights = path.with_name("weights of it.bin")
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    assert len({known, first, fingerprint(onnx_model(path))}) == 3


def test_the_command_line_takes_a_file(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    assert not names_code(str(file))
    assert not names_code(f"onnx:{file}")
    assert names_code("mine.onnx:make")
    assert load_model(f"onnx:{file}").preprocessing.image_size == SIDE
    data = ["--data", "scenes", "--max-images", "2", "--no-progress"]
    main(["score", "--model", str(file), *data, "--methods", "occlusion,captum:Occlusion", "--out", "run"])
    assert "captum:Occlusion" in capsys.readouterr().out
    assert xaieval.Scores.load(tmp_path / "run").manifest["model"]["function"] == "any.onnx"
    refused = "the model is an ONNX file, which has no layers to look into"
    for command, reason in (
        (["score", "--model", f"onnx:{file}", *data], f"{refused}, and method 'gradcam' needs layers"),
        (["layers", str(file)], f"{refused}; give the nn.Module that it was made from"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        printed = capsys.readouterr().err
        assert stopped.value.code == 2
        assert reason in printed
        assert len(printed.splitlines()) == 1
