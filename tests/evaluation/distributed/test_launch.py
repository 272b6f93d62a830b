"""The command that starts several processes: what it prints, and how it ends when some of them do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tests import ROOT
from xaieval.cli import main
from xaieval.errors import RunError, UsageError
from xaieval.evaluation.distributed import launch as launcher
from xaieval.evaluation.distributed.rank import LAUNCHER
from xaieval.evaluation.scores import Scores

pytestmark = pytest.mark.slow

LIVE = "pass"
SAY = (
    "import os, sys, json; "
    "open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w').write(json.dumps({{'message': {{'message': '{}'}}}})); sys.exit({})"
)
KILL = "import os; os.kill(os.getpid(), 9)"
HANG = "import time; time.sleep(60)"
KILLED = "rank {} died by signal 9 (SIGKILL); out of memory, perhaps"
GOES_ON = "; rows of finished batches are kept, and the same command continues from there"


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Launch small programs in the place of the command; the last one is for the process that is started once more."""
    started: list[Any] = []
    popen = subprocess.Popen
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def launch(*programs: str, **options: Any) -> list[str]:
        left = list(programs)

        def start(command: Any, **how: Any) -> Any:
            assert command[:4] == [sys.executable, "-P", "-m", "xaieval.cli"]
            assert how["env"][LAUNCHER] == str(os.getpid())
            started.append(popen([sys.executable, "-S", "-c", left.pop(0)], **how))
            return started[-1]

        monkeypatch.setattr(subprocess, "Popen", start)
        return launcher.launch(["score"], options.pop("processes", len(programs)), **options)

    yield launch
    assert all(process.poll() is not None for process in started), "none is left"


@pytest.mark.parametrize(
    ("programs", "kind", "message"),
    [
        ((HANG, SAY.format("no luck", 1)), RunError, "rank 1 failed: no luck"),
        ((HANG, SAY.format("no layer", 2)), UsageError, "no layer"),
        ((HANG, "import sys; sys.exit(3)"), RunError, "rank 1 failed: it ended with status 3 and said nothing"),
        ((KILL, SAY.format("no luck", 1)), RunError, "rank 1 failed: no luck"),
        ((KILL, KILL), RunError, KILLED.format(0) + GOES_ON),
        (("import os; os.kill(os.getpid(), 11)",), RunError, f"rank 0 died by signal 11 (SIGSEGV){GOES_ON}"),
    ],
)
def test_a_failure_ends_all_and_is_the_one_of_the_command(programs, kind, message, ranks):
    with pytest.raises((RunError, UsageError)) as failure:
        ranks(*programs)
    assert type(failure.value) is kind
    assert str(failure.value) == message


def test_of_several_failures_the_first_cause_is_told():
    failed = [
        launcher.Ended(0, 143),
        launcher.Ended(1, 1, "later"),
        launcher.Ended(2, 1, "too"),
        launcher.Ended(3, 2, "wrong"),
    ]
    assert str(launcher._failure(failed)) == "wrong"
    assert str(launcher._failure(failed[:3])) == "rank 1 failed: later"
    assert str(launcher._failure(failed[:1])) == f"rank 0 died by signal 15 (SIGTERM){GOES_ON}"


def test_those_that_live_are_enough_and_those_that_died_are_named(ranks):
    assert ranks(LIVE, LIVE) == []
    assert ranks(LIVE, KILL, "import sys; sys.exit(143)") == [
        f"{KILLED.format(1)}; the others did its share",
        "rank 2 died by signal 15 (SIGTERM); the others did its share",
    ]


def test_the_first_one_is_started_once_more_since_it_prints(ranks):
    assert ranks(KILL, LIVE, LIVE, processes=2) == [f"{KILLED.format(0)}; the others did its share"]
    with pytest.raises(RunError, match=r"^rank 0 died by signal 9"):
        ranks(KILL, LIVE, KILL, processes=2)


def test_where_each_has_its_own_images_all_have_to_live(ranks):
    with pytest.raises(RunError, match=r"^rank 1 died by signal 9"):
        ranks(HANG, KILL, apart=True)


def test_an_interruption_reaches_all_processes(ranks, tmp_path):
    told = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit(open({str(tmp_path)!r} + '/told', 'w').close()))"
    hang = f"{told}; open({str(tmp_path)!r} + '/hangs', 'w').close(); time.sleep(60)"
    watch = launcher._watch

    def interrupted(*args: Any) -> Any:
        while not (tmp_path / "hangs").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    launcher._watch = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            ranks(hang, KILL)
    finally:
        launcher._watch = watch
    assert (tmp_path / "told").exists()


def test_processes_are_numbered_over_all_machines_and_share_the_processors(monkeypatch, tmp_path):
    environments = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **_: environments.append(env))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in (("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_LOCALID", "0")):
        monkeypatch.setenv(name, value)
    launcher._start([], 2, 3, 12.5, tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    launcher._start([], 0, 20, 12.5, tmp_path)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "XAIEVAL_STARTED")
    assert [environments[0][name] for name in names] == ["5", "6", "2", "3", "5", "12.5"]
    assert [environments[1][name] for name in names[:-1]] == ["20", "40", "0", "20", "7"]


# ---- the command itself


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command line in an empty working directory, with what its processes print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capfd.readouterr()

    return run


QUICK = ("--layers", "fpn[p5]", "--max-images", "5", "--batch-size", "2", "--methods", "gradcam,random", "--deterministic")


def test_the_command_in_two_processes_writes_and_prints_what_it_does_in_one(bench, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # other numbers of threads sum in another order, unless all is deterministic
    status, printed, errors = bench("score", "--nproc", "2", *QUICK, "--out", "two")
    assert (status, errors) == (0, "")
    assert bench("score", *QUICK, "--out", "one") == (0, printed.replace("two", "one"), "")
    one, two = (Path(name) for name in ("one", "two"))
    alone, merged = (Scores.load(folder) for folder in (one, two))
    pd.testing.assert_frame_equal(merged.rows, alone.rows, check_exact=True)
    pictures = [plt.imread(folder / "maps.png") for folder in (one, two)]
    np.testing.assert_allclose(pictures[0], pictures[1], atol=2 / 255)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (one, two)]
    for manifest, nproc in zip(manifests, (1, 2), strict=True):
        assert manifest.pop("options").pop("nproc") == nproc
        assert manifest["dates"].keys() == {"started", "ended"}
        del manifest["dates"]
    assert manifests[0] == manifests[1]
    assert manifests[0]["run"]["deterministic"] is True
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


FACTORIES = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
from tests.evaluation.distributed.test_shared_run import image, tiny

def model():
    return tiny()

class Troubled:
    def __iter__(self):
        for number in range(6):
            if number == 2:
                trouble()
            yield torch.stack([image(2 * number), image(2 * number + 1)])

def data():
    return Troubled()
"""


def test_a_process_of_the_command_that_is_killed_is_named_and_the_others_do_its_share(bench):
    Path("killing.py").write_text(f"""{FACTORIES}
def trouble():
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
""")
    words = ("--model", "killing:model", "--data", "killing:data", "--layers", "0", "--out", "run")
    status, printed, errors = bench("score", "--nproc", "2", *words)
    assert status == 0
    assert errors == f"xaieval-bench: {KILLED.format(1)}; the others did its share\n"
    assert "written to run: " in printed
    assert Scores.load("run").manifest["options"]["nproc"] == 2
    assert Scores.load("run").rows["image_id"].nunique() == 12


def test_the_processes_of_a_killed_command_end_with_it(tmp_path):
    (tmp_path / "hanging.py").write_text(f"""{FACTORIES}
def trouble():
    open(f"hangs-{{os.getpid()}}", "w").close()
    time.sleep(300)
""")
    words = ["score", "--nproc", "2", "--model", "hanging:model", "--data", "hanging:data", "--layers", "0", "--out", "run"]
    command = [sys.executable, "-m", "xaieval.cli", *words]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    launched = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    assert _soon(lambda: len(list(tmp_path.glob("hangs-*"))) == 2)
    launched.kill()
    launched.wait()
    processes = [int(path.name.partition("-")[2]) for path in tmp_path.glob("hangs-*")]
    assert _soon(lambda: not any(map(_runs, processes)), seconds=5)


def _soon(happens: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not (happened := happens()) and time.monotonic() < end:
        time.sleep(0.1)
    return happened


def _runs(process: int) -> bool:
    """Whether a process that is not a child of this one runs."""
    with contextlib.suppress(FileNotFoundError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"  # one that nobody has waited for is over, too
    return False


def test_a_process_of_torchrun_puts_its_rank_before_its_message_and_leaves_word(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    status, _, errors = bench("score", "--nproc", "0")
    message = "nproc is at least 1, got 0"
    assert (status, errors) == (2, f"xaieval-bench: rank 1: {message}\n")
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == message
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    assert bench("score", "--nproc", "0") == (2, "", "")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
