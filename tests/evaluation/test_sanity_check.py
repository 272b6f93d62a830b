"""Random parameters: what is drawn, that the model comes back to the last bit, and what the maps make of it.

Against a slow way to the same (a copy of the model, module by module, with scipy and scikit-image), and against Quantus.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import xaieval
from tests.borrowing import unchanged
from xaieval.config.protocol import Protocol
from xaieval.data import Preprocessing, scenes, ucmerced
from xaieval.errors import AddressError, ExplainerError, ModelError, RunError, UsageError
from xaieval.evaluation.sanity_check import COMPLETE, MEASURES, SanityCheck, sanity_check
from xaieval.inference.randomisation import draw_anew, find_parts, swapped
from xaieval.models.loading import load_model

LAYERS = ["features.1", "features.4"]


class Tiny(nn.Module):
    """Two convolutions, one with a BatchNorm, and a classifier that is defined first and runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


def tiny() -> nn.Module:
    """With parameters and statistics that are none of a beginning."""
    torch.manual_seed(5)
    model = Tiny()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.features[3].buffers()][:-1]:
            tensor.copy_(torch.rand_like(tensor) - 0.3 * (tensor.ndim > 1))
    return model.eval()


def pictures(count: int = 5, start: int = 0) -> dict[str, Any]:
    images = [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index)) for index in range(start, start + count)]
    return {"images": torch.stack(images), "ids": [f"image {index}" for index in range(start, start + count)]}


def check(loader: Any = None, model: nn.Module | None = None, **choices: Any) -> SanityCheck:
    given = {"layers": LAYERS, "methods": ("gradcam", "center"), "progress": False} | choices
    return sanity_check(tiny() if model is None else model, [pictures()] if loader is None else loader, **given)


def parts_of(model: nn.Module, shape: tuple[int, ...] = (1, 3, 16, 16), patterns: Any = None) -> list[Any]:
    return find_parts(model, torch.zeros(shape), model, patterns)


def values(model: nn.Module, path: str, seed: int = 0) -> dict[str, Tensor]:
    """What is drawn for a module, by name."""
    module = model.get_submodule(path)
    names = [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]
    return dict(zip(names, (drawn for _, drawn in draw_anew(model, [path], seed)[path]), strict=True))


# ---- the parts of a model


def test_parts_go_from_the_output_down_in_the_order_of_execution():
    assert [part.name for part in parts_of(tiny())] == ["head", "features.3", "features.2", "features.0"]


def test_modules_that_others_use_without_a_call_come_where_those_are():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.position = nn.Parameter(torch.rand(1, 1, 4))
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)  # which uses out_proj's weights and never calls it
            self.first = nn.Linear(3, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            embedded = self.first(tokens) + self.position
            return self.last(self.attention(embedded, embedded, embedded)[0])

    names = [part.name for part in parts_of(Attending(), (1, 6, 3))]
    assert names == ["last", "attention.out_proj", "attention", "first", ""]


def test_parts_by_patterns_hold_all_that_is_in_them():
    found = parts_of(tiny(), patterns=["features", "head"])
    assert [part.name for part in found] == ["head", "features"]
    assert found[1].holders == ("features.0", "features.2", "features.3")
    assert [part.name for part in parts_of(tiny(), patterns="features.*")] == ["features.3", "features.2", "features.0"]
    assert [part.name for part in parts_of(tiny(), patterns=["features.0", "features.?"])][-1] == "features.0"


def test_patterns_and_models_that_hold_nothing_are_refused():
    with pytest.raises(
        AddressError, match=r"^no module with parameters matches 'heads'; did you mean 'head'\? known: features.0, "
    ):
        parts_of(tiny(), patterns=["heads"])
    with pytest.raises(AddressError, match=r"no module with parameters matches 'features\.1'"):
        parts_of(tiny(), patterns=["features.1"])
    with pytest.raises(ModelError, match=r"^Sequential has no parameters to randomise$"):
        parts_of(nn.Sequential(nn.ReLU()))


# ---- what is drawn


def test_a_module_is_drawn_by_its_own_reset():
    model = tiny()
    drawn = values(model, "features.0")
    bound = 1 / np.sqrt(27)  # PyTorch's own for 3 x 3 x 3 inputs
    assert drawn["weight"].abs().max() <= bound
    assert drawn["bias"].abs().max() <= bound
    assert drawn["weight"].std() > bound / 3
    norm = values(model, "features.3")
    assert [float(norm[name].unique()) for name in ("weight", "bias", "running_mean", "running_var")] == [1, 0, 0, 1]
    assert norm["num_batches_tracked"] == 0


def test_seed_and_path_decide_whatever_else_is_drawn_and_whatever_the_global_random_numbers_are():
    model = tiny()
    alone = values(model, "features.2")["weight"]
    torch.manual_seed(123)
    assert torch.equal(draw_anew(model, ["head", "features.2"], 0)["features.2"][0][1], alone)
    assert not torch.equal(values(model, "features.2", seed=1)["weight"], alone)
    same = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    assert not torch.equal(values(same, "a")["weight"], values(same, "b")["weight"])


class Scale(nn.Module):
    """A parameter, a scalar, a parameter of zeros and a table, without a reset."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2000,), 3.0))
        self.one = nn.Parameter(torch.tensor(0.5))
        self.nothing = nn.Parameter(torch.zeros(4))
        self.register_buffer("table", torch.arange(4))


def test_a_parameter_without_a_reset_is_normal_with_its_own_size():
    drawn = values(Scale(), "")
    assert float(drawn["weight"].mean()) == pytest.approx(0, abs=0.2)
    assert float(drawn["weight"].square().mean().sqrt()) == pytest.approx(3, rel=0.05)
    assert drawn["one"] != 0.5
    assert not drawn["nothing"].any()
    assert drawn["table"].tolist() == [0, 1, 2, 3]


def test_a_parameter_that_a_reset_leaves_alone_is_drawn_all_the_same():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's, on its old kind of weight_norm
        layer = nn.utils.weight_norm(nn.Linear(30, 20))
    drawn = values(nn.Sequential(layer).requires_grad_(False), "0")
    assert not torch.equal(drawn["weight_v"], layer.weight_v)
    assert not torch.equal(drawn["weight_g"], layer.weight_g)
    assert float(drawn["weight_v"].square().mean()) == pytest.approx(float(layer.weight_v.square().mean()), rel=0.3)


def test_statistics_of_a_frozen_batch_norm_begin_anew():
    norm = FrozenBatchNorm2d(3)
    for buffer in norm.buffers():
        buffer.uniform_(0.2, 0.8)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
    assert [part.name for part in parts_of(model)] == ["1", "0"]
    drawn = values(model, "1")
    assert {name: float(value.unique()) for name, value in drawn.items()} == {
        "weight": 1,
        "bias": 0,
        "running_mean": 0,
        "running_var": 1,
    }


class Rebuilt(nn.Linear):
    """A reset that makes a new parameter in place of filling its own, and reaches into another module."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.inner = nn.Linear(4, 4)

    def reset_parameters(self) -> None:
        self.weight = nn.Parameter(torch.full((4, 4), 7.0))
        nn.init.zeros_(self.bias)
        if hasattr(self, "inner"):
            self.inner.reset_parameters()


def test_the_model_and_the_global_random_numbers_are_as_they_were_after_a_draw():
    for model in (tiny(), nn.Sequential(Rebuilt())):
        paths = [path for path, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None]
        before = {
            name: (id(tensor), tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()
        }
        with unchanged(model):
            drawn = draw_anew(model, paths, 0)
        for name, tensor in model.state_dict(keep_vars=True).items():
            assert (id(tensor), tensor.data_ptr()) == before[name][:2]
            assert torch.equal(tensor, before[name][2])
    assert drawn["0"][0][1].unique().tolist() == [7.0]
    assert drawn["0"][0][0] is model[0].weight


def test_tensors_hold_what_they_held_in_the_same_memory_after_an_error():
    model = tiny()
    swaps = [swap for every in draw_anew(model, ["head", "features.3"], 0).values() for swap in every]
    before = [(tensor.data_ptr(), tensor.clone()) for tensor, _ in swaps]

    def change() -> None:
        with swapped([*swaps, *swaps]):  # also where one comes twice
            assert all(torch.equal(tensor, values) for tensor, values in swaps)
            raise KeyboardInterrupt

    with unchanged(model), pytest.raises(KeyboardInterrupt):
        change()
    for (tensor, _), (memory, content) in zip(swaps, before, strict=True):
        assert tensor.data_ptr() == memory
        assert torch.equal(tensor, content)


# ---- the check


@contextmanager
def altered(model: nn.Module, paths: list[str]) -> Iterator[nn.Module]:
    """A copy of the model in which these modules are drawn anew."""
    copied = copy.deepcopy(model)
    for path in paths:
        for (_, drawn), tensor in zip(
            draw_anew(model, [path], 0)[path],
            [*copied.get_submodule(path).parameters(recurse=False), *copied.get_submodule(path).buffers(recurse=False)],
            strict=True,
        ):
            tensor.data.copy_(drawn)
    yield copied


@pytest.mark.slow
def test_similarities_are_those_of_a_slow_way():
    from skimage.metrics import structural_similarity

    model, images = tiny(), pictures()["images"]
    targets = model(images).argmax(dim=1)
    # Raw Grad-CAM maps are what remains of the protocol without normalisation, as they are never below 0.
    found = check().rows.set_index(["layer", "method", "mode", "randomised"]).sort_index()
    order = ["head", "features.3", "features.2", "features.0"]
    steps = {("cascading", path): order[: place + 1] for place, path in enumerate(order)}
    steps |= {("independent", path): [path] for path in order} | {(COMPLETE, "*"): order}
    alive = 0
    for (mode, name), paths in steps.items():
        with altered(model, paths) as other:
            for layer in LAYERS:
                rows = found.loc[(layer, "gradcam", mode, name)]
                before, after = (
                    xaieval.explain(one, images, layer, target=lambda logits, labels: targets)[layer] for one in (model, other)
                )
                for number in range(5):
                    one, two = before[number].double().numpy(), after[number].double().numpy()
                    expected = structural_similarity(
                        one, two, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
                    )
                    assert rows["ssim"].iloc[number] == pytest.approx(expected, abs=1e-4)
                    if np.ptp(one) and np.ptp(two):
                        alive += 1
                        correlation = spearmanr(one.ravel(), two.ravel()).statistic
                        assert rows["spearman"].iloc[number] == pytest.approx(correlation, abs=1e-3)
                    else:
                        assert np.isnan(rows["spearman"].iloc[number])
    assert alive > 30
    assert set(found.index.droplevel([0, 1])) == set(steps)


class Fixed(nn.Conv2d):
    """A convolution whose reset needs no random numbers, so that any tool resets it to the same."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for scale, parameter in enumerate([self.weight, self.bias], start=1):
                parameter.copy_(torch.cos(scale * torch.arange(parameter.numel()) + len(self.weight)).view_as(parameter))


@pytest.mark.parametrize(("mode", "order"), [("cascading", "top_down"), ("independent", "independent")])
def test_rank_correlations_are_those_of_quantus_to_1e_6(mode, order):
    quantus = pytest.importorskip("quantus", reason="a tool to compare with, which the package does not need")
    model = nn.Sequential(
        Fixed(3, 4, 3), nn.Tanh(), Fixed(4, 4, 3), nn.Tanh(), Fixed(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    model.eval()
    images = pictures()["images"]
    targets = model(images).argmax(dim=1)

    def gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        images = images.detach().clone().requires_grad_()
        score = model(images).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(score, images)[0].sum(dim=1)

    def for_quantus(model: nn.Module, inputs: Any, targets: Any, **kwargs: Any) -> np.ndarray:
        return gradient(model, torch.as_tensor(inputs), torch.as_tensor(targets))[:, None].numpy()

    metric = quantus.MPRT(
        similarity_func=quantus.similarity_func.correlation_spearman,
        layer_order=order,
        abs=False,
        normalise=False,
        disable_warnings=True,
    )
    expected = metric(
        model=model, x_batch=images.numpy(), y_batch=targets.numpy(), a_batch=None, explain_func=for_quantus, channel_first=True
    )
    rows = check([images], model, methods=gradient, layers=(), modes=mode).rows
    rows = rows[rows["mode"] == mode]
    assert list(rows["randomised"].unique()) == ["4", "2", "0"]
    for name, group in rows.groupby("randomised"):
        np.testing.assert_allclose(group["spearman"], expected[name], atol=1e-6)
        assert group["spearman"].max() < 0.99


def test_the_last_step_of_the_cascade_is_the_whole_model_and_parts_may_be_chosen():
    rows = check().rows
    last = rows[(rows["mode"] == "cascading") & (rows["randomised"] == "features.0")].reset_index(drop=True)
    whole = rows[rows["mode"] == COMPLETE].reset_index(drop=True)
    pd.testing.assert_frame_equal(last[list(MEASURES)], whole[list(MEASURES)])
    chosen = check(modules=["features", "head"]).rows
    assert list(dict.fromkeys(zip(chosen["mode"], chosen["randomised"], strict=True))) == [
        ("cascading", "head"),
        ("cascading", "features"),
        ("independent", "head"),
        ("independent", "features"),
        (COMPLETE, "*"),
    ]
    few = check(modes=(), modules="head").rows
    pd.testing.assert_frame_equal(few, whole)


def test_maps_are_of_the_class_that_the_model_itself_predicts():
    model, seen = tiny(), []

    def record(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        seen.append((targets.tolist(), model(images).argmax(dim=1).tolist()))
        return images.mean(dim=1)

    check(model=model, methods=record, layers=())
    own = model(pictures()["images"]).argmax(dim=1).tolist()
    assert [targets for targets, _ in seen] == [own] * 10
    assert len({tuple(predicted) for _, predicted in seen}) > 1, "random models predict otherwise"


def test_rows_do_not_depend_on_the_batches_and_depend_on_the_seed():
    whole = check().rows
    parts = check([pictures(2), pictures(3, 2)]).rows
    keys = ["layer", "method", "mode", "randomised", "image_id"]
    one, two = (rows.sort_values(keys, ignore_index=True) for rows in (whole, parts))
    pd.testing.assert_frame_equal(one, two, check_exact=False, atol=1e-5)
    assert (check(seed=1).rows["ssim"] != whole["ssim"]).any()
    assert check(batch_size=2, max_images=3).rows["image_id"].nunique() == 3


def test_negative_maps_of_one_shape_differ_in_sign_alone():
    turns = iter([1.0, -1.0] + [1.0] * 8)

    def turning(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return next(turns) * (images[:, 0] + 5)

    rows = check(methods=turning, layers=()).rows
    first = rows[rows["randomised"] == "head"].iloc[:5]
    assert first["spearman"].tolist() == pytest.approx([-1] * 5)
    assert first["spearman_absolute"].tolist() == pytest.approx([1] * 5)


# ---- what does not depend on the model is found out


def test_controls_are_flagged_and_grad_cam_is_not():
    prepare = Preprocessing(image_size=64, resize=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    loader = scenes(prepare, size=12).loader(batch_size=12)
    methods = ("gradcam", "layercam", "center", "edges", "random", "uniform")
    found = sanity_check(xaieval.models.fpn_scenes(), loader, ["fpn[p3]", "fpn[p5]"], methods, modes=(), progress=False)
    assert found.data_independent == [("input", name) for name in ("center", "edges", "random", "uniform")]
    text = repr(found)
    assert text.startswith("all parameters random, 12 images")
    assert "data-independent: " in text
    assert "edges at input" in text


def rows_of(ssim: list[float], spearman: list[float], method: str = "a", mode: str = COMPLETE) -> pd.DataFrame:
    columns = {"ssim": ssim, "spearman": spearman, "spearman_absolute": spearman}
    place = {"layer": "p", "method": method, "mode": mode, "randomised": "*" if mode == COMPLETE else "head"}
    return pd.DataFrame({"image_id": range(len(ssim)), **place, **columns})


def test_a_method_is_flagged_by_the_lower_ends_of_both_intervals():
    nan = float("nan")
    cases = {
        "alike": ([0.95] * 6, [0.97] * 6),
        "constant": ([1.0] * 6, [nan] * 6),
        "ranks differ": ([0.95] * 6, [0.1] * 6),
        "structure differs": ([0.5] * 6, [0.97] * 6),
        "uncertain": ([0.5, 1, 1, 1, 1, 1], [0.97] * 6),
        "no value": ([nan] * 6, [nan] * 6),
    }
    frames = [rows_of(*values, method=name) for name, values in cases.items()]
    frames.append(rows_of([1.0] * 6, [1.0] * 6, "ranks differ", "cascading"))  # one part alone flags nothing
    result = SanityCheck(pd.concat(frames))
    assert result.data_independent == [("p", "alike"), ("p", "constant")]
    assert SanityCheck(result.rows, threshold=0.96).data_independent == [("p", "constant")]
    assert "data-independent: none" in repr(SanityCheck(rows_of([0.1] * 3, [0.1] * 3)))


def test_the_summary_is_the_mean_with_its_interval_and_counts_what_is_missing():
    nan = float("nan")
    summary = SanityCheck(rows_of([0.2, 0.4, 0.9] * 4, [0.5, nan, 0.7] * 4)).summary().loc[("p", "a", COMPLETE, "*")]
    assert summary["ssim"] == pytest.approx(0.5)
    assert summary["spearman"] == pytest.approx(0.6)
    assert (summary["ssim_n"], summary["spearman_n"], summary["n_images"]) == (12, 8, 12)
    assert 0.2 <= summary["ssim_low"] < 0.5 < summary["ssim_high"] <= 0.9
    assert SanityCheck(rows_of([nan], [nan])).summary()["ssim"].isna().all()


@pytest.mark.parametrize("images", [1, 3, 20])
def test_maps_that_stay_the_same_are_found_where_equal_values_have_no_interval(images):
    alike = SanityCheck(rows_of([1.0] * images, [1.0] * images))
    assert alike.summary()["ssim_low"].isna().all()
    assert len(alike.data_independent) == 1
    assert not SanityCheck(rows_of([0.1] * images, [0.1] * images)).data_independent


@pytest.mark.shared
def test_real_weights_on_real_images(imagenet_weights: Path, ucmerced_folder: Path):
    loaded = load_model("timm:mobilenetv2_100", weights=imagenet_weights, model_args={"pad_type": "same"})
    loader = ucmerced(ucmerced_folder, loaded.preprocessing.with_size(160)).spread(6).loader(batch_size=6)
    found = sanity_check(loaded.model, loader, ["blocks.6"], ["gradcam", "edges"], modes=(), progress=False)
    assert found.data_independent == [("input", "edges")]


# ---- the model comes back, whatever happens


def test_the_model_comes_back_to_the_last_bit():
    model = tiny().train()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    with unchanged(model):
        check(model=model)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


@pytest.mark.parametrize("fails_at", [1, 2, 7])
def test_the_model_comes_back_when_a_method_raises(fails_at):
    model, calls = tiny().train(), []

    def failing(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        calls.append(None)
        if len(calls) == fails_at:
            raise RuntimeError("no more")
        return images.mean(dim=1)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with unchanged(model), pytest.raises(RuntimeError, match="no more"):
        check(model=model, methods=failing, layers=())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tied_parameters_come_back():
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model[2].weight = model[0].weight
    with unchanged(model.eval()):
        found = check(model=model, layers=["1"], methods="gradcam")
    assert len(found.rows) == 5 * 5
    assert model[2].weight is model[0].weight


# ---- maps without a value, images that cannot be read, wrong use


def test_maps_with_nan_have_no_similarity_and_constant_ones_no_correlation():
    def holes(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = images.mean(dim=1)
        maps[1, 0, 0] = torch.nan
        maps[2] = 3.0
        return maps

    rows = check(methods=holes, layers=(), modes=()).rows
    assert rows["ssim"].isna().tolist() == [False, True, False, False, False]
    assert rows["spearman"].isna().tolist() == [False, True, True, False, False]
    assert rows["ssim"][2] == 1


def test_images_that_cannot_be_read_are_listed():
    broken = pictures(3) | {"failed": [("bad.png", None, "truncated")]}
    found = check([broken], modes=())
    assert found.unreadable == [("bad.png", None, "truncated")]
    assert found.rows["image_id"].nunique() == 3
    with pytest.raises(RunError, match=r"^none of the 1 images could be read; the first, 'bad\.png': truncated$"):
        check([{"failed": [("bad.png", None, "truncated")]}])


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        (
            {"layers": ()},
            ExplainerError,
            "method 'gradcam' needs layers=, and none were given; xaieval.list_layers(model, images) lists all",
        ),
        ({"modes": "cascade"}, UsageError, "no mode 'cascade'; did you mean 'cascading'? known: cascading, independent"),
    ],
)
def test_wrong_use_is_refused_word_for_word(choices, error, message):
    with pytest.raises(error) as raised:
        check(**choices)
    assert str(raised.value) == message


def test_a_function_has_no_parameters_to_randomise():
    with pytest.raises(ModelError, match="BlackBox has no parameters to randomise"):
        sanity_check(lambda images: images.mean(dim=(2, 3)), [pictures()], methods="center", progress=False)


def test_protocol_and_target_are_those_of_a_run():
    rows = check(protocol=Protocol(absolute=True), target=0, methods="captum:Saliency", layers=(), modes=()).rows
    assert rows["ssim"].notna().all()
    labelled = pictures() | {"labels": torch.tensor([0, 1, 2, 3, 4])}
    assert len(check([labelled], target="label", modes=()).rows) == 3 * 5
