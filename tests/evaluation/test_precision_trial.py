"""The trial of `precision="auto"`: what it measures, what it chooses, and that the choice is part of the run."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from torch import nn

import xaieval
from xaieval import score
from xaieval.errors import CheckError, OutputError, UsageError
from xaieval.evaluation import precision_trial
from xaieval.evaluation.precision_trial import FASTER, Tried
from xaieval.metrics import Metric
from xaieval.metrics.catalogue import METRICS

IMAGES = (6, 3, 12, 12)


class Network(nn.Module):
    """A small classifier that can behave differently in passes of autocast."""

    def __init__(self, in_bf16=None):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)
        self.in_bf16 = in_bf16
        self.passes = []

    def forward(self, images):
        reduced = torch.is_autocast_enabled("cpu")
        self.passes.append(("bf16" if reduced else "float32", len(images)))
        logits = 30 * self.head(self.features(images).mean((2, 3)))
        return self.in_bf16(logits) if reduced and self.in_bf16 else logits


@pytest.fixture
def clock(monkeypatch):
    """Seconds of passes by precision; passes run, but nothing is timed."""
    seconds, asked = {"float32": 3.0, "bf16": 1.5}, []

    def timed(precision, device, work):
        asked.append(precision)
        return work(), seconds[precision]

    monkeypatch.setattr(precision_trial, "timed", timed)
    seconds["asked"] = asked
    return seconds


def images(seed=0):
    return torch.rand(IMAGES, generator=torch.Generator().manual_seed(seed))


def run(model=None, **options):
    given = {"layers": ["features"], "methods": ["gradcam", "layercam"], "precision": "auto", "progress": False} | options
    return score(model or Network(), [images()], **given)


def same_rows(one, other):
    pd.testing.assert_frame_equal(one.rows, other.rows, check_exact=True)


# What it chooses.


def test_a_faster_precision_with_the_same_numbers_is_taken_and_recorded(clock, caplog):
    with caplog.at_level(logging.WARNING, "xaieval"):
        scores = run()
    same_rows(scores, run(precision="bf16"))
    assert scores.manifest["run"]["precision"] == "bf16"
    assert scores.manifest["speed"]["autocast"] == "bfloat16"
    trial = scores.manifest["precision_trial"]
    assert trial["chosen"] == "bf16"
    assert trial["tried"]["bf16"]["faster"] == 2.0
    assert trial["needed"]["faster"] == FASTER
    assert 0 < trial["tried"]["bf16"]["confidence"] < trial["needed"]["confidence"]
    assert [record.getMessage() for record in caplog.records] == [f"precision: {trial['reason']}"]
    assert trial["reason"].startswith("bf16, after a trial on 6 images beside float32: bf16 2.00 times as fast, AD ")


@pytest.mark.parametrize("seconds", [3.0 / FASTER, 2.9, 4.0])
def test_one_that_is_hardly_faster_is_left(clock, seconds):
    clock["bf16"] = seconds
    scores = run()
    assert scores.manifest["run"]["precision"] == scores.manifest["precision_trial"]["chosen"] == "float32"
    same_rows(scores, run(precision="float32"))


@pytest.mark.parametrize(
    "in_bf16",
    [lambda logits: logits.roll(1, dims=1), lambda logits: 0 * logits, lambda logits: logits * math.nan],
    ids=["other classes", "nothing", "NaN"],
)
def test_one_that_moves_the_numbers_is_left(clock, in_bf16):
    scores = run(Network(in_bf16))
    assert scores.manifest["run"]["precision"] == "float32"
    same_rows(scores, run(precision="float32"))


def test_a_model_that_does_not_run_in_it_stays_with_float32(clock):
    def fail(logits):
        raise RuntimeError("not implemented for 'BFloat16'")

    trial = run(Network(fail)).manifest["precision_trial"]
    assert trial["chosen"] == "float32"
    assert trial["tried"]["bf16"]["failed"] == "RuntimeError: not implemented for 'BFloat16'"
    assert "bf16 failed (RuntimeError: not implemented for 'BFloat16')" in trial["reason"]


@pytest.mark.parametrize(
    ("tried", "serves"),
    [
        (Tried(1.3, 1.9, -4.9, 0.04), True),
        (Tried(1.2, 0.0, 0.0, 0.0), False),
        (Tried(9.0, -2.1, 0.0, 0.0), False),
        (Tried(9.0, 0.0, 5.1, 0.0), False),
        (Tried(9.0, 0.0, 0.0, 0.06), False),
        (Tried(9.0, math.nan, 0.0, 0.0), False),
        (Tried(9.0, 0.0, 0.0, math.nan), False),
    ],
)
def test_what_serves(tried, serves):
    assert tried.serves is serves


def test_the_numbers_of_a_trial_are_those_worked_by_hand():
    before = torch.tensor([[0.5, 0.8, math.nan], [0.4, 0.9, math.nan]])
    after = torch.tensor([[0.5, 0.8, math.nan], [0.3, 0.8, math.nan]])
    parts = [
        precision_trial._Passes(torch.stack([before, after]).double(), [2.0, 3.0]),
        precision_trial._Passes(torch.stack([before, after])[:, :, :1].double(), [7.0]),
    ]
    found = precision_trial._compared(parts)
    assert found.faster == 3.0
    assert found.average_drop == pytest.approx((40 + 0 + 40 - 20 - 0 - 20) / 3)
    assert found.increase_in_confidence == pytest.approx(-100 / 3)
    assert found.confidence == pytest.approx((0.1 + 0.1 + 0.1) / (0.5 + 0.8 + 0.4 + 0.9 + 0.5 + 0.4))


# What it costs.


def test_it_takes_few_passes_and_the_originals_have_one_in_bf16_afterwards(clock):
    model = Network()
    run(model, layers=["features", "features.0"], methods=["gradcam", "layercam", "hirescam"])
    plain = Network()
    run(plain, layers=["features", "features.0"], methods=["gradcam", "layercam", "hirescam"], precision="bf16")
    in_bf16, again = (sum(count for kind, count in each.passes if kind == "bf16") for each in (model, plain))
    assert again == 6 * (1 + 6)  # the originals once, and each of six maps
    assert in_bf16 - again == 6 * (1 + 1 + 3)  # a pass before, the originals, and three of the maps
    assert clock["asked"] == ["float32", "bf16"] * 4


@pytest.mark.parametrize(
    ("methods", "tried"),
    [
        (["occlusion", "gradcam", "score-cam"], {"gradcam"}),
        (["occlusion"], {"random", "uniform", "center", "edges", "fake-cam"}),
        (["eigencam", "center"], {"eigencam", "center"}),
    ],
)
def test_methods_that_make_passes_of_their_own_are_not_run_for_it(clock, monkeypatch, methods, tried):
    seen, real = [], precision_trial.raw_maps
    monkeypatch.setattr(precision_trial, "raw_maps", lambda job, passed: seen.append(job.names) or real(job, passed))
    run(methods=methods, layers=["features"])
    [pairs] = seen
    assert {method for _, method in pairs} == tried


def test_masks_that_keep_most_and_least_are_among_those_tried(clock, monkeypatch):
    blocks = []
    real = precision_trial._masked
    monkeypatch.setattr(precision_trial, "_masked", lambda *args: blocks.append(real(*args)) or blocks[-1])
    run(methods=["uniform", "center", "fake-cam", "edges", "random"], layers=())
    kept = [(block != 0).double().mean().item() for block in blocks[0]]
    assert len(kept) == 3
    assert kept[0] == 0.0  # a constant map masks everything
    assert kept[2] > 0.9  # Fake-CAM leaves out one pixel


# The choice is part of the run.


def interrupted(clock, folder, **options):
    """A run that ends after its first batch."""

    def batches():
        yield images()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(Network(), batches(), ["features"], precision="auto", output_dir=folder, progress=False, **options)


@pytest.mark.parametrize(("first", "chosen"), [(1.0, "bf16"), (5.0, "float32")])
def test_a_run_that_resumes_takes_the_choice_of_its_folder(clock, tmp_path, first, chosen):
    clock["bf16"] = first
    interrupted(clock, tmp_path)
    clock["bf16"] = 6.0 - first  # the trial would choose the other one now
    count = len(clock["asked"])
    for _ in range(2):  # the second time the run is finished
        scores = score(Network(), [images(), images(1)], ["features"], precision="auto", output_dir=tmp_path, progress=False)
        assert scores.manifest["run"]["precision"] == scores.manifest["precision_trial"]["chosen"] == chosen
        assert scores.manifest["precision_trial"]["tried"]["bf16"]["faster"] == 3.0 / first
    assert len(clock["asked"]) == count
    assert json.loads((tmp_path / "manifest.json").read_text())["precision_trial"]["chosen"] == chosen
    whole = score(Network(), [images(), images(1)], ["features"], precision=chosen, progress=False)
    pd.testing.assert_frame_equal(scores.rows, whole.rows, check_exact=True)


def test_a_folder_of_a_named_precision_goes_on_with_it_and_the_other_way_round(clock, tmp_path):
    run(precision="float32", output_dir=tmp_path / "named")
    scores = run(output_dir=tmp_path / "named")
    assert scores.manifest["run"]["precision"] == "float32"
    assert clock["asked"] == []
    run(output_dir=tmp_path / "tried")
    assert run(precision="bf16", output_dir=tmp_path / "tried").manifest["run"]["precision"] == "bf16"
    with pytest.raises(OutputError, match="""its precision is "bf16", this run's is "float32";"""):
        run(precision="float32", output_dir=tmp_path / "tried")


# Metrics that are not fit for it, and calls that make no trial.

DELICATE = Metric("delicate", lambda y, o: 100 * (o - y), higher_is_better=True, rounding_decides=True)


def test_metrics_that_rounding_decides_keep_float32_without_a_trial(clock):
    scores = run(metrics=["average_drop", DELICATE])
    assert clock["asked"] == []
    assert scores.manifest["run"]["precision"] == "float32"
    assert scores.manifest["precision_trial"]["reason"] == "float32, since differences of rounding can decide delicate"
    assert not [finding for finding in scores.findings() if finding.name == "rounding_decides"]


def test_such_a_metric_in_a_precision_that_was_named_is_a_finding():
    scores = run(precision="bf16", metrics=["average_drop", DELICATE])
    [finding] = [finding for finding in scores.findings() if finding.name == "rounding_decides"]
    assert finding.evidence == {"precision": "bf16", "metrics": ["delicate"]}
    assert not [one for one in run(precision="bf16").findings() if one.name == "rounding_decides"]
    with pytest.raises(CheckError, match="differences of rounding can decide delicate"):
        run(precision="bf16", metrics=[DELICATE], strict=True)


def all_but_a_pixel(model, pictures, targets):
    maps = torch.ones_like(pictures[:, 0])
    maps[:, 0, 0] = 0
    return maps


def test_maps_that_keep_the_whole_image_are_a_finding_in_bf16_only():
    def found(**options):
        return [one for one in run(**options).findings() if one.name == "rounding_decides"]

    [finding] = found(precision="bf16", methods=["gradcam", all_but_a_pixel])
    assert finding.evidence == {"precision": "bf16", "mask_area": {"all_but_a_pixel": pytest.approx(143 / 144)}}
    assert finding.text.startswith("the maps of all_but_a_pixel keep nearly all of every image")
    assert not found(precision="float32", methods=["gradcam", all_but_a_pixel])
    assert found(precision="bf16", methods=["gradcam", "fake-cam"])
    assert not found(precision="bf16", controls=True)  # nobody takes a control map for an explanation


@pytest.mark.parametrize(("metric", "unfit"), [("monotonicity", True), ("completeness", True), ("insertion", False)])
def test_which_metrics_are_not_fit(metric, unfit):
    assert METRICS[metric].rounding_decides is unfit


def test_explaining_makes_no_trial(clock):
    model = Network()
    options = {"layers": "features", "method": "ablation-cam"}
    maps = [xaieval.explain(model, images(), precision=each, **options)["features"] for each in ("auto", "float32")]
    assert torch.equal(*maps)
    assert clock["asked"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deterministic": True}, "deterministic=True cannot choose a precision by its speed"),
        ({"judge": Network()}, "precision='auto' tries the model that is explained, and judge= is another one"),
        ({"precision": "tf32"}, "precision 'tf32' needs an NVIDIA GPU, and the device is cpu"),
    ],
)
def test_where_no_trial_is_possible(clock, options, message):
    with pytest.raises(UsageError, match=message):
        run(**options)


# Several processes that begin at once.


def two_at_once(folder, loaders):
    """The scores of two calls at the same time. Threads stand for processes: they have no locks in common either."""

    def one(loader):
        return score(Network(), loader, ["features"], precision="auto", output_dir=folder, progress=False)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, loaders))


def test_of_processes_that_begin_at_once_one_makes_the_trial_and_its_choice_holds(monkeypatch, tmp_path):
    choices, both = iter(["bf16", "float32"]), threading.Barrier(2)

    def trial(*_):
        chosen = next(choices)
        time.sleep(0.3)  # long enough for the other one to come
        return precision_trial._choice(chosen, {}, f"{chosen}, by the test")

    def loader():
        both.wait()
        return images()

    monkeypatch.setattr(precision_trial, "_trial", trial)
    one, other = two_at_once(tmp_path, [Once(loader), Once(loader)])
    assert one.manifest["run"]["precision"] == other.manifest["run"]["precision"] == "bf16"
    assert next(choices) == "float32", "the other one has made no trial"
    same_rows(one, other)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "rows.parquet", "summary.csv"}


class Once:
    """A loader of one batch, which is made when it is asked for."""

    def __init__(self, make):
        self.make, self.made = make, None

    def __iter__(self):
        self.made = self.make() if self.made is None else self.made
        yield self.made


def hang(folder, trying):
    def trial(*_):
        trying.set()
        time.sleep(60)

    precision_trial._trial = trial
    run(output_dir=folder)


def test_a_process_that_dies_in_the_trial_holds_nobody_up(monkeypatch, tmp_path):
    forked = multiprocessing.get_context("fork")
    trying = forked.Event()
    first = forked.Process(target=hang, args=(tmp_path, trying))
    first.start()
    assert trying.wait(30)
    tries = []

    def trial(*_):
        tries.append(first.is_alive())
        return precision_trial._choice("bf16", {}, "bf16, by the test")

    monkeypatch.setattr(precision_trial, "_trial", trial)
    killed = threading.Timer(0.3, first.kill)
    killed.start()
    scores = run(output_dir=tmp_path)
    first.join()
    assert first.exitcode == -signal.SIGKILL
    assert tries == [False]
    assert scores.manifest["run"]["precision"] == "bf16"


def test_a_trial_that_ends_in_an_error_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(precision_trial, "_trial", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
