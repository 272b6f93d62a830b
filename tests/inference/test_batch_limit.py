"""Batches that do not fit in memory are processed in smaller parts, with the same rows."""

from __future__ import annotations

import functools
import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import xaieval
from xaieval.cli import main
from xaieval.errors import ExplainerError, RunError, UsageError
from xaieval.evaluation import loop
from xaieval.evaluation.model_check import ModelCheck
from xaieval.evaluation.scores import Scores
from xaieval.explainers.ablation import AblationCAM
from xaieval.explainers.adapters.base import library_errors
from xaieval.explainers.perturbation import RISE, Occlusion
from xaieval.inference import batch_limit
from xaieval.inference.batch_limit import BatchLimit, OverBudgetError, is_out_of_memory, parse_bytes
from xaieval.metrics import insertion

N = 5
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB; set PYTORCH_ALLOC_CONF"
WARNING = "passes of {} images do not fit in memory, {} from here on: CUDA out of memory"
CLOSE = 1e-5
MIB = 2**20


class Limited(nn.Module):
    """A network on a GPU whose memory is full above a number of images, in passes with or without gradients."""

    def __init__(self, most: int, where: str = "everywhere"):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 5)
        self.most, self.where = most, where
        self.tried: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.tried.append(len(images))
        here = {"everywhere": True, "looking": torch.is_grad_enabled(), "asking": torch.is_inference_mode_enabled()}
        if len(images) > self.most and here[self.where]:
            raise torch.OutOfMemoryError(FULL)
        return 3 * self.head(self.body(images).mean(dim=(2, 3)))


@pytest.fixture(autouse=True)
def collected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each garbage collection, which is slow and replaced here."""
    calls: list[int] = []
    monkeypatch.setattr(batch_limit, "gc", SimpleNamespace(collect=lambda: calls.append(1)))
    return calls


def _limited(most: int, where: str = "everywhere") -> Limited:
    torch.manual_seed(3)
    return Limited(most, where).eval()


def _images(count: int = N, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))


def score(model: nn.Module, loader: object, layers: object = ("body.0", "body.4"), **options: object) -> Scores:
    return xaieval.score(model, loader, layers, progress=False, **options)


def _assert_same_rows(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Check that all columns are equal, numbers up to rounding relative to their size."""
    assert expected["masked_confidence"].notna().all()
    assert list(found) == list(expected)
    for name, column in expected.items():
        if column.dtype.kind == "f" or name.endswith("_curve"):
            one, other = (np.stack(list(rows[name])).astype(float) for rows in (found, expected))
            np.testing.assert_allclose(one, other, rtol=0, atol=CLOSE * max(1, np.nanmax(np.abs(other), initial=0)))
        else:
            pd.testing.assert_series_equal(found[name], column)


def _sizes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "xaieval"]


# Parts.


@given(count=st.integers(1, 40), size=st.integers(1, 40), most=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_all_images_are_done_once_in_order_in_parts_that_fit(count, size, most):
    def work(part: slice) -> list[int]:
        assert 1 <= part.stop - part.start <= size
        if part.stop - part.start > most:
            raise torch.OutOfMemoryError(FULL)
        return list(range(part.start, part.stop))

    batch_limit = BatchLimit(size)
    assert [image for part in batch_limit.parts(count, work) for image in part] == list(range(count))
    assert batch_limit.size == size if min(size, count) <= most else most / 2 < batch_limit.size + 0.5 <= most + 0.5


@pytest.fixture
def unchecked(monkeypatch):
    """Runs without the check of the first batch, whose passes are not counted here."""
    monkeypatch.setattr(loop, "check_model", lambda *_: ModelCheck())


def test_a_size_that_was_found_is_kept():
    tried: list[int] = []

    def work(part: slice) -> None:
        tried.append(part.stop - part.start)
        if tried[-1] > 2:
            raise MemoryError

    batch_limit = BatchLimit(8)
    batch_limit.parts(8, work)
    assert tried == [8, 4, 2, 2, 2, 2]
    tried.clear()
    batch_limit.parts(8, work)
    assert tried == [2, 2, 2, 2]


def test_where_inner_parts_do_not_fit_one_by_one_the_outer_part_gets_smaller():
    held: list[int] = []

    def outer(part: slice) -> int:
        held.append(part.stop - part.start)

        def inner(_: slice) -> None:
            if held[-1] > 1:  # what the outer part holds leaves no room
                raise MemoryError

        batch_limit.parts(3, inner)
        return part.start

    batch_limit = BatchLimit(4)
    assert batch_limit.parts(2, outer) == [0, 1]
    assert held == [2, 1, 1]


def test_an_error_of_one_image_and_any_other_error_are_raised_as_they_are():
    for size, error in ((1, MemoryError("full")), (4, ValueError("wrong"))):

        def work(_: slice, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            BatchLimit(size).parts(4, work)
        assert caught.value is error


def test_what_the_failed_pass_held_is_free_when_the_next_one_begins(collected):
    alive: list[weakref.ref[Tensor]] = []

    def work(part: slice) -> None:
        assert not [one for one in alive if one() is not None]
        large = torch.zeros(10)
        alive.append(weakref.ref(large))
        if part.stop - part.start > 1:
            raise MemoryError

    gc.disable()
    try:
        BatchLimit(4).parts(4, work)
    finally:
        gc.enable()
    assert len(alive) == 6
    assert len(collected) == 2  # for what holds itself in a circle


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OverBudgetError("tensors take more"),
        torch.OutOfMemoryError(FULL),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9"
        ),
    ],
    ids=str,
)
def test_errors_that_say_that_memory_is_full_are_known(error):
    assert is_out_of_memory(error)
    with pytest.raises(type(error)), library_errors("captum", "captum:Saliency"):
        raise error


def test_what_the_allocator_of_the_cpu_raises_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory")], ids=str)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)
    with pytest.raises(ExplainerError), library_errors("captum", "captum:Saliency"):
        raise error


# Rows.

CHEAP = {"metrics": ("average_drop", "increase_in_confidence")}
CASES: dict[str, dict[str, object]] = {
    "gradients": {"methods": ("gradcam", "gradcam++", "layercam"), "controls": True},
    "asking methods": {"methods": ("score-cam", RISE(n_masks=30), Occlusion(window=4))},
    "ablation": {"methods": ("ablation-cam",)},
    "whole ablation": {"methods": (AblationCAM(expand=False),)},
    "captum": {"methods": ("captum:IntegratedGradients", "captum:FeatureAblation", "captum:SmoothGrad")},
    "captum's layers": {"methods": ("captum:LayerConductance", "captum:DeepLift")},
    "other libraries": {"methods": ("pytorch-grad-cam:ScoreCAM", "pytorch-grad-cam:AblationCAM", "torch-cam:ScoreCAM")},
    "curves": {"metrics": (insertion(steps=6, keep_curve=True), "road", "coherency", "adcc")},
    "robustness": {"metrics": ("average_drop", "max_sensitivity", "infidelity", "stability_flip")},
    "no folding": {"fast": False},
    "bf16": {"precision": "bf16"},
}

LIMITS: dict[str, Sequence[int]] = {  # fewer, of what takes long; DeepLift takes two images at least
    "gradients": range(1, N),
    "asking methods": range(1, N),
    "captum": (1,),
    "captum's layers": (2,),
    "other libraries": (1,),
    "curves": (2,),
    "robustness": (2,),
}


@pytest.fixture(scope="module")
def unlimited() -> Callable[[str], pd.DataFrame]:
    @functools.cache
    def rows(case: str) -> pd.DataFrame:
        return score(_limited(10**9), [_images()], **(CHEAP | CASES[case])).rows

    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("case", "most"), [(case, most) for case in CASES for most in LIMITS.get(case, (1, 2))])
def test_rows_do_not_change_with_what_fits(case, most, unlimited):
    model = _limited(most)
    scores = score(model, [_images()], **(CHEAP | CASES[case]))
    _assert_same_rows(scores.rows, unlimited(case))
    assert scores.manifest["speed"]["batch_size"] <= most
    assert max(model.tried) > most


@pytest.mark.parametrize("where", ["looking", "asking"])
@pytest.mark.parametrize("most", range(1, N))
def test_rows_do_not_change_whichever_pass_is_too_large(where, most, unlimited):
    scores = score(_limited(most, where), [_images()], **(CHEAP | CASES["asking methods"]))
    _assert_same_rows(scores.rows, unlimited("asking methods"))


def test_rows_are_the_same_to_the_last_bit_where_passes_hold_the_same_images():
    images = _images(8)
    few = score(_limited(4), [images], batch_size=8)
    batches = [{"image": part, "id": range(start, start + 4)} for start, part in ((0, images[:4]), (4, images[4:]))]
    pd.testing.assert_frame_equal(few.rows, score(_limited(8), batches).rows, check_exact=True)


def test_labels_objects_and_several_classes_an_image_come_along():
    labels = torch.tensor([4, 3, 2, 1, 0])
    batch = {"image": _images(), "label": labels, "masks": _images()[:, 0] > 0}
    options = {"target": "label", "metrics": ("average_drop", "pointing_game", "energy_pointing_game")}
    _assert_same_rows(*(score(_limited(most), [batch], **options).rows for most in (2, N)))
    several = batch | {"label": nn.functional.one_hot(labels, 5)}
    _assert_same_rows(*(score(_limited(most), [several]).rows for most in (2, N)))


@pytest.mark.usefixtures("unchecked")
def test_a_masked_pass_that_does_not_fit_is_made_again_alone():
    model = _limited(2, "asking")
    score(model, [_images(4)], "body.4", fast=False)
    assert model.tried == [2, 4, 4, 2, 2]  # where layers are, the look, and the masked pass in three attempts


@pytest.mark.usefixtures("unchecked")
def test_a_look_that_does_not_fit_is_made_again_in_parts():
    model = _limited(2, "looking")
    score(model, [_images(4)], "body.4", fast=False)
    assert model.tried == [2, 4, 2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 2])
def test_a_compiled_model_still_gets_full_passes(most, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = _limited(most)
    scores = score(model, [_images(), _images(3)], compile=True, **CHEAP)
    assert scores.manifest["speed"]["compiled"]
    expected = score(_limited(10**9), [_images(), _images(3)], compile=True, **CHEAP)
    _assert_same_rows(scores.rows, expected.rows)


def test_explain_gives_the_same_maps():
    for method in ("gradcam", "score-cam"):
        expected = xaieval.explain(_limited(N), _images(), ["body.0", "body.4"], method)
        for most in (1, 3):
            found = xaieval.explain(_limited(most), _images(), ["body.0", "body.4"], method)
            torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


def test_a_sanity_check_gives_the_same_similarities():
    order = ["image_id", "layer", "method", "mode", "randomised"]
    found = [
        xaieval.sanity_check(_limited(most), [_images()], ["body.4"], modules=["head", "body.3"], progress=False).rows
        for most in (1, N)
    ]
    one, other = (rows.sort_values(order, ignore_index=True) for rows in found)
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=0, atol=1e-4)


# What is remembered, said and refused.


@pytest.mark.usefixtures("unchecked")
def test_the_size_is_remembered_logged_once_a_change_and_written_down(caplog, tmp_path):
    model = _limited(3)
    with caplog.at_level(logging.WARNING, "xaieval"):
        scores = score(model, _images(16).split(8), "body.4", fast=False, output_dir=tmp_path)
    assert _sizes(caplog) == [WARNING.format(8, 4), WARNING.format(4, 2)]
    assert model.tried == [2, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2, *[2] * 8]
    for read in (scores, Scores.load(tmp_path)):
        assert read.manifest["speed"]["batch_size"] == 2


@pytest.mark.usefixtures("unchecked")
def test_nothing_is_said_or_done_where_all_fits(caplog):
    model = _limited(8)
    with caplog.at_level(logging.DEBUG, "xaieval"):
        scores = score(model, [_images(8)], "body.4", fast=False)
    assert not _sizes(caplog)
    assert model.tried == [2, 8, 8]
    assert scores.manifest["speed"]["batch_size"] == 8
    assert "memory" not in scores.manifest["speed"]


@pytest.mark.parametrize("run", [score, xaieval.explain, functools.partial(xaieval.sanity_check, progress=False)])
def test_a_single_image_that_does_not_fit_is_a_clear_error(run):
    model = _limited(0)
    model.train()
    given = _images() if run is xaieval.explain else [_images()]
    with pytest.raises(RunError) as caught:
        run(model, given, ["body.4"])
    assert str(caught.value) == (
        "a single image does not fit in memory: CUDA out of memory; use smaller images, deeper layers (everything after the "
        "shallowest one is kept for gradients), a device with more memory, or a larger memory= if one is set"
    )
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert model.training
    assert not model.body[0]._forward_hooks
    assert model.head.weight.requires_grad


def test_rows_of_batches_before_an_image_that_does_not_fit_are_kept(tmp_path):
    model = _limited(8)

    def loader() -> Iterator[Tensor]:
        yield _images()
        model.most = 0
        yield _images()

    with pytest.raises(RunError, match="a single image does not fit in memory"):
        score(model, loader(), output_dir=tmp_path)
    assert len(Scores.load(tmp_path).rows) == 2 * N


# The budget.


class Wide(nn.Module):
    """A model that takes a known number of bytes per image: 64 for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images)).mean(dim=(2, 3))


def _wide() -> Wide:
    torch.manual_seed(1)
    return Wide().eval()


SIDE = 64
MAP = 64 * SIDE * SIDE * 4  # bytes of the wide layer of one image: 1 MiB


def _budgeted(images: int, memory: int | str | None, **options: object) -> Scores:
    return score(_wide(), [_images(images, SIDE)], "last", fast=False, memory=memory, **options)


@pytest.mark.parametrize(("maps", "size"), [(20, 8), (4.8, 4), (2.5, 2), (1.2, 1)])
def test_passes_get_as_small_as_a_budget_asks_for(maps, size, caplog):
    budget = int(maps * MAP)
    found = _budgeted(9, budget, batch_size=8)
    assert found.manifest["speed"]["batch_size"] == size
    assert found.manifest["speed"]["memory"] == budget
    if size < 8:
        [said] = _sizes(caplog)
        # The maps, the image, and the pass's own copy of the image.
        assert said.startswith(f"passes of 8 images do not fit in the memory budget, {size} from here on: one takes 1.2 MiB")
    _assert_same_rows(found.rows, _budgeted(9, None, batch_size=8).rows)


@pytest.mark.parametrize(
    "method", ["gradcam", "layercam", RISE(n_masks=20), "ablation-cam", "captum:IntegratedGradients"], ids=str
)
def test_many_images_take_at_most_as_many_times_what_one_takes(method):
    def peak(count: int) -> int:
        with batch_limit._Watch(None) as watch:
            score(_limited(9), [_images(count, 48)], "body.0", methods=method, fast=False)
        return watch.peak

    assert peak(6) <= 6 * peak(1)


def test_a_budget_too_small_for_one_image_is_refused():
    with pytest.raises(RunError) as caught:
        _budgeted(4, MAP // 2)
    assert "a single image does not fit in memory: tensors take more than the 0.5 MiB of memory=" in str(caught.value)
    with pytest.raises(RunError, match="a single image does not fit in memory"):
        xaieval.explain(_wide(), _images(4, SIDE), "last", memory=MAP // 2)


def _resident(name: str) -> int:
    """The memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def test_the_process_itself_takes_no_more_than_the_budget_and_a_little():
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        pytest.skip("needs Linux, which says how much memory a process took at most")
    images, before = _images(24, 224), _resident("VmRSS")
    whole = 24 * 64 * 224 * 224 * 4  # the wide layer of all images, 294 MiB
    score(_wide(), [images], "last", memory="64 MiB")
    assert _resident("VmHWM") - before < (64 + 64) * MIB < whole / 2


def test_what_is_watched_is_what_is_alive():
    with batch_limit._Watch(10 * MIB) as watch:
        first = torch.zeros(MIB)  # 4 MiB
        views = [first[:10], first.view(2, -1), first.t()]
        assert watch.used == 4 * MIB
        second = first + 1
        assert watch.used == 8 * MIB
        del first, views
        assert watch.used == 4 * MIB
        with pytest.raises(OverBudgetError):
            torch.cat([second, second])
        assert watch.used == 4 * MIB
    with batch_limit._Watch(10 * MIB) as watch:
        second.add_(1).view(-1)[:5].relu_()  # was there before
        assert watch.used == 0


def test_what_is_made_in_inference_mode_and_kept_for_gradients_is_watched_too():
    with batch_limit._Watch(None) as watch:
        with torch.inference_mode():
            made = nn.functional.linear(torch.zeros(1024, 1024), torch.zeros(1024, 1024)).reshape(2, -1)
            assert watch.used == 4 * MIB
        del made
        leaf = torch.zeros(MIB, requires_grad=True)
        total = leaf.exp().exp().sum()  # two results are kept
        assert 12 * MIB <= watch.used < 13 * MIB
        total.backward()
        assert 8 * MIB <= watch.used < 9 * MIB  # the leaf and its gradient


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The budgets of all memory watches from here on."""
    entered: list[int] = []
    own = batch_limit._Watch
    monkeypatch.setattr(batch_limit, "_Watch", lambda budget: entered.append(budget) or own(budget))
    return entered


def test_only_one_image_of_a_shape_is_watched(monkeypatch):
    entered = _watched(monkeypatch)
    shapes = [_images(4, SIDE), _images(4, SIDE), _images(3, SIDE // 2), _images(5, SIDE)]
    score(_wide(), shapes, "last", fast=False, memory="1 GiB", batch_size=8)
    assert len(entered) == 2
    entered.clear()
    score(_wide(), shapes, "last", fast=False)
    assert not entered


def test_a_compiled_model_keeps_to_the_budget(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = _budgeted(8, int(2.5 * MAP), compile=True)
    assert found.manifest["speed"]["compiled"]
    assert found.manifest["speed"]["batch_size"] == 2
    _assert_same_rows(found.rows, _budgeted(8, None).rows)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), (1, 1), ("1024", 1024), ("4 GiB", 4 * 2**30), ("4gib", 4 * 2**30), ("0.5MB", 500_000), ("2 TB", 2 * 10**12)],
)
def test_a_number_of_bytes_may_have_a_unit(given, expected):
    assert parse_bytes(given) == expected


@pytest.mark.parametrize("given", [0, -1, "", "GiB", "4 Gi", "4 GiB/s", "1e9", "nan GB", "0.1 B", True, "much"])
def test_anything_else_is_refused(given):
    with pytest.raises(UsageError) as caught:
        score(_wide(), [_images(2)], "last", memory=given)
    assert str(caught.value) == f"memory is a number of bytes, such as 4294967296, '4 GiB' or '500 MB'; got {given!r}"


@pytest.mark.slow
def test_the_command_line_takes_a_budget(tmp_path, capsys, caplog):
    run = tmp_path / "run.toml"
    run.write_text(f'max_images = 4\nmemory = "4 MiB"\nbatch_size = 4\nout = "{tmp_path / "run"}"\n')
    main(["score", str(run)])
    found = Scores.load(tmp_path / "run")
    assert found.manifest["speed"]["memory"] == 4 * MIB
    assert found.manifest["speed"]["batch_size"] < 4
    assert found.manifest["options"]["memory"] == "4 MiB"
    assert "do not fit in the memory budget" in caplog.text
    with pytest.raises(SystemExit) as caught:
        main(["score", "--max-images", "8", "--memory", "lots"])
    assert caught.value.code == 2
    assert "memory is a number of bytes" in capsys.readouterr().err
