"""Runs that break off and go on: nothing is measured twice, nothing is lost, and nothing gets mixed up."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from xaieval import score
from xaieval.errors import OutputError, RunError
from xaieval.evaluation.scores import Scores
from xaieval.metrics import insertion
from xaieval.results.files import whole_file, write_file
from xaieval.results.part_files import SUFFIX, read_description, read_part, write_part
from xaieval.results.row_tables import frame_of

pytestmark = pytest.mark.slow

METRICS = ("average_drop", "increase_in_confidence", insertion(steps=4, keep_curve=True))


class Broken(Exception):
    """What happens to a run here."""


class Net(nn.Module):
    """A network that counts the batches which it looks at closely."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Conv2d(1, 4, 3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        self.looks = 0

    def forward(self, images: Tensor) -> Tensor:
        found = self.body(images)
        self.looks += found.requires_grad
        return self.head(found)


def image(number: int) -> Tensor:
    return torch.randn(1, 10, 10, generator=torch.Generator().manual_seed(number))


def loader(count: int, size: int = 2, broken_at: int | None = None, unreadable: set[int] | None = None) -> Iterator[Any]:
    """Batches of a data set, whose reading breaks off before a batch."""
    for number, start in enumerate(range(0, count, size)):
        if number == broken_at:
            raise Broken
        numbers = range(start, min(start + size, count))
        readable = [number for number in numbers if number not in (unreadable or ())]
        yield {
            "images": torch.stack([image(number) for number in readable]) if readable else torch.empty(0, 1, 10, 10),
            "labels": [number % 3 for number in readable],
            "ids": [f"image {number}" for number in readable],
            "failed": [(f"image {number}", number % 3, "torn") for number in numbers if number not in readable],
        }


def run(folder: Path | None, batches: Any, model: Net | None = None, **options: Any) -> Scores:
    options = {"methods": ("gradcam", "random"), "metrics": METRICS, "progress": False} | options
    return score(model or Net(), batches, "body", output_dir=folder, **options)


def broken(folder: Path, batches: Any, **options: Any) -> None:
    with pytest.raises(Broken):
        run(folder, batches, **options)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def same(folder: Path, other: Path) -> bool:
    manifests = [json.loads((place / "manifest.json").read_text()) | {"dates": None} for place in (folder, other)]
    return pq.read_table(folder / "rows.parquet").equals(pq.read_table(other / "rows.parquet")) and manifests[0] == manifests[1]


# ---- going on


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 9),
    size=st.integers(1, 4),
    unreadable=st.sets(st.integers(0, 8), max_size=4),
    breaks=st.lists(st.integers(0, 9), max_size=3),
)
def test_a_run_that_broke_off_ends_with_the_files_of_an_unbroken_one(count, size, unreadable, breaks, tmp_path_factory):
    if unreadable.issuperset(range(count)):
        unreadable = set()
    folder, whole = tmp_path_factory.mktemp("run") / "broken", tmp_path_factory.mktemp("run") / "whole"
    run(whole, loader(count, size, unreadable=unreadable))
    for broken_at in breaks:
        with suppress(Broken):
            run(folder, loader(count, size, broken_at, unreadable))
    run(folder, loader(count, size, unreadable=unreadable))
    assert same(folder, whole)
    assert files(folder) == {"rows.parquet", "summary.csv", "manifest.json"}


def test_nothing_is_measured_twice(tmp_path):
    broken(tmp_path, loader(10, broken_at=3))
    model = Net()
    run(tmp_path, loader(10), model)
    assert model.looks == 2
    again = Net()
    finished = run(tmp_path, loader(10), again)
    assert again.looks == 0
    pd.testing.assert_frame_equal(finished.rows, run(None, loader(10)).rows)


def test_it_is_all_measured_again_if_asked_for(tmp_path):
    broken(tmp_path, loader(10, broken_at=3))
    model = Net()
    run(tmp_path, loader(10), model, resume=False)
    assert model.looks == 5
    run(tmp_path, loader(10), model, resume=False)
    assert model.looks == 10


def test_a_data_set_that_has_grown_costs_the_new_images_only(tmp_path):
    run(tmp_path, loader(6))
    model = Net()
    grown = run(tmp_path, loader(10), model)
    assert model.looks == 2
    pd.testing.assert_frame_equal(grown.rows, run(None, loader(10)).rows)


def test_a_finished_run_in_other_batches_is_measured_again(tmp_path):
    run(tmp_path, loader(6))
    model = Net()
    run(tmp_path, loader(6, size=3), model)
    assert model.looks == 2


def test_an_image_that_can_be_read_at_last_is_measured_with_its_batch(tmp_path):
    broken(tmp_path, loader(10, broken_at=4, unreadable={3, 7}))
    model = Net()
    healed = run(tmp_path, loader(10, unreadable={7}), model)
    assert model.looks == 2
    pd.testing.assert_frame_equal(healed.rows, run(tmp_path / "whole", loader(10, unreadable={7})).rows)


# ---- what there is of an unfinished run


def test_an_unfinished_run_can_be_read(tmp_path):
    broken(tmp_path, loader(12, broken_at=4, unreadable={0, 1, 5}))
    kept = Scores.load(tmp_path)
    expected = run(None, loader(8, unreadable={0, 1, 5}))
    pd.testing.assert_frame_equal(kept.rows, expected.rows)
    assert kept.manifest["complete"] is False
    for part in ("data", "unreadable", "run", "metrics"):
        ours = {**kept.manifest[part], "batches": 0} if part == "data" else kept.manifest[part]
        assert ours == ({**expected.manifest[part], "batches": 0} if part == "data" else expected.manifest[part])
    assert kept.summary()["n_failed"].tolist() == [3, 3]
    assert kept.warnings()[0] == "the run is not finished: this is what was measured on its first 8 images"


@pytest.mark.parametrize("column", ["image_id", "layer", "status", "average_drop"])
def test_an_unfinished_run_without_a_column_is_refused(column, tmp_path):
    with suppress(Broken):
        run(tmp_path, loader(6, broken_at=2))
    for path in (tmp_path / "parts").glob(f"*{SUFFIX}"):
        write_part(path, frame_of(read_part(path)).drop(columns=column), read_description(path))
    with pytest.raises(OutputError, match=rf"holds no rows of a run: the column '{column}' is missing"):
        Scores.load(tmp_path)


def test_a_finished_run_is_read_even_where_another_one_is_under_way(tmp_path):
    run(tmp_path, loader(6))
    broken(tmp_path, loader(6, broken_at=2), resume=False)
    assert Scores.load(tmp_path).manifest["complete"] is True


def test_a_run_without_rows_leaves_nothing_behind(tmp_path):
    broken(tmp_path / "run", loader(6, broken_at=0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_torn_parts_are_said_and_measured_again(cut, tmp_path, caplog):
    broken(tmp_path / "run", loader(10, broken_at=4))
    last = tmp_path / "run/parts/00000003.part.arrow"
    os.truncate(last, int(cut * last.stat().st_size))
    with caplog.at_level(logging.WARNING, "xaieval"):
        kept = Scores.load(tmp_path / "run")
    assert kept.rows["image_id"].nunique() == 6
    assert f"'{last}' is damaged, so that what it held has to be measured again: " in caplog.text
    model = Net()
    run(tmp_path / "run", loader(10), model)
    assert model.looks == 2
    run(tmp_path / "whole", loader(10))
    assert same(tmp_path / "run", tmp_path / "whole")


def test_a_part_with_damage_inside_is_measured_again(tmp_path, caplog):
    broken(tmp_path / "run", loader(10, broken_at=4))
    part = tmp_path / "run/parts/00000001.part.arrow"
    content = bytearray(part.read_bytes())
    content[4:200] = bytes(196)  # pages; the footer, which is read first, is whole
    part.write_bytes(content)
    run(tmp_path / "run", loader(10))
    run(tmp_path / "whole", loader(10))
    assert same(tmp_path / "run", tmp_path / "whole")


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Net(1)}, "its model is "),
        ({"protocol": "torch-cam"}, "its protocol."),
        ({"methods": ("gradcam",)}, 'its methods is ["gradcam", "random"], this run\'s is ["gradcam"]'),
        ({"seed": 1}, "its seed is 0, this run's is 1"),
        ({"max_images": 7}, "its max_images is null, this run's is 7"),
        ({"batches": loader(10, unreadable={0})}, "its first image is "),
    ],
)
def test_another_run_is_refused_with_the_difference(change, message, tmp_path):
    broken(tmp_path, loader(10, broken_at=3))
    before = files(tmp_path)
    with pytest.raises(OutputError) as caught:
        run(tmp_path, change.pop("batches", loader(10)), **change)
    assert str(caught.value).startswith(f"'{tmp_path}' holds another run: {message}")
    assert files(tmp_path) == before


def _changed(number: int, change: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    batches = list(loader(10))
    change(batches[number])
    return batches


OTHERS = "batch 2 is of the same ids as this run's ('image 4', ...), but its images, labels or groups are others"


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (list(loader(10, size=3)), "batch 0 has 2 images, this run's has 3"),
        (
            _changed(1, lambda batch: batch.update(ids=["image 2", "image 9b"])),
            "batch 1 has the image 'image 3', this run's has 'image 9b' there",
        ),
        (_changed(2, lambda batch: batch["images"].mul_(2)), OTHERS),
        (_changed(2, lambda batch: batch.update(labels=[0, 0])), OTHERS),
    ],
)
def test_other_data_is_refused_with_the_difference(batches, message, tmp_path):
    broken(tmp_path, loader(10, broken_at=3))
    with pytest.raises(OutputError) as caught:
        run(tmp_path, batches)
    assert str(caught.value) == (
        f"'{tmp_path}' holds an interrupted run, and its {message}; give the same images in the same order and batches, or "
        "start again with resume=False"
    )
    assert Scores.load(tmp_path).rows["image_id"].nunique() == 6


def test_other_versions_are_said(tmp_path, caplog):
    broken(tmp_path, loader(10, broken_at=3))
    path = tmp_path / "parts/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    with caplog.at_level(logging.WARNING, "xaieval"):
        run(tmp_path, loader(10))
    assert f"3 batches were measured before by other versions: torch 1.0 (now {torch.__version__.split('+')[0]}" in caplog.text


# ---- files


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (order.append(f"rename to {to.name}"), replace(path, to)))
    write_file(tmp_path / "file", lambda file: file.write(b"content"))
    assert order == ["sync", "rename to file", "sync"]  # the last one is the folder's
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def breaks(file: Any) -> None:
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_file(path, breaks)
    assert files(tmp_path) == {"file"}
    assert path.read_bytes() == b"old"


# ---- loaders that die


def test_a_file_that_is_being_written_stays_and_what_a_dead_process_left_is_removed(tmp_path):
    run(tmp_path, loader(2))
    (tmp_path / ".rows.parquet.0badf00d.part").touch()
    with whole_file(tmp_path / "summary.csv") as file:
        run(tmp_path, loader(2))
        assert len([*tmp_path.glob(".*.part")]) == 1
        file.write(b"later")
    assert (tmp_path / "summary.csv").read_bytes() == b"later"
    assert not [*tmp_path.glob(".*.part")]


# Torch's error comes by a signal, at any time: within a callback, where it is lost, the loader raises another one later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dead_worker_is_named(tmp_path):
    from torch.utils.data import DataLoader, Dataset

    class Deadly(Dataset[Tensor]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Tensor:
            if index == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return image(index)

    with pytest.raises(
        RunError, match=r"^a process that reads images died \(DataLoader worker .*\), perhaps because memory ran out"
    ):
        run(tmp_path, DataLoader(Deadly(), 2, num_workers=1))


def test_a_dead_worker_is_named_if_its_connection_breaks_before_its_signal_comes(tmp_path):
    def late(number: int, _: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")

    def batches() -> Iterator[Any]:
        yield from loader(2)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        raise ConnectionResetError(104, "Connection reset by peer")

    before = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(
            RunError, match=r"^a process that reads images died \(DataLoader worker \(pid 5\) is killed by signal"
        ):
            run(tmp_path, batches())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(Scores.load(tmp_path).rows) == 4


def test_a_broken_connection_of_another_kind_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("xaieval.evaluation.run_state.GRACE", 0.01)

    def batches() -> Iterator[Any]:
        yield from loader(2)
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError):
        run(tmp_path, batches())


# ---- the command line


GOES_ON = "the same command continues from there"

SLOW = """
import time
import torch
def make():
    for number in range(40):
        print(number, flush=True)
        yield torch.full((2, 3, 128, 128), 0.01 * number)
        time.sleep(0.2)
"""


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_command_that_is_told_to_end_prints_what_there_is_and_goes_on_later(number, status, word, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    words = ["score", "--data", "slow:make", "--layers", "fpn[p5]", "--out", "run"]
    command = [sys.executable, "-m", "xaieval.cli", *words]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "3":  # three batches are done, or nearly
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err == f"xaieval-bench: {word}; rows of finished batches, if any, are kept, and {GOES_ON}\n"
    assert " fpn[p5]  gradcam " in out
    kept = Scores.load(tmp_path / "run")
    assert kept.rows["image_id"].nunique() >= 6
    assert not kept.manifest["complete"]
