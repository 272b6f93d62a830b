"""Lines of progress in logs that are no terminal."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from xaieval.evaluation import progress
from xaieval.evaluation.progress import Counter, in_notebook, progress_bar


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _counter(total: int | None = 1000) -> tuple[Counter, _Clock, list[str]]:
    clock, lines = _Clock(), []
    return Counter("scoring", total, lambda text, share: lines.append(text), 60, clock), clock, lines


def test_there_is_a_line_a_minute_with_rate_and_time_left():
    counter, clock, lines = _counter()
    for _ in range(30):  # 10 s for 8 images: six batches a minute
        clock.now += 10
        counter.images(8)
    assert lines == [f"scoring: {48 * n} of 1,000 images, 0.800 images/s, {left} left" for n, left in enumerate(
        ("19 min 50 s", "18 min 50 s", "17 min 50 s", "16 min 50 s", "15 min 50 s"), 1
    )]  # fmt: skip
    assert counter.result() == "scoring: 240 images in 5 min 0 s"


def test_images_that_a_checkpoint_had_do_not_make_the_rest_look_fast():
    counter, clock, lines = _counter()
    counter.images(900)  # at once
    for _ in range(7):
        clock.now += 60
        counter.images(6)
    assert lines[0].endswith("15.1 images/s, 6 s left")
    assert lines[-1] == "scoring: 942 of 1,000 images, 0.100 images/s, 9 min 40 s left"


def test_long_methods_tell_how_far_they_are_and_are_forgotten_when_they_end():
    counter, clock, lines = _counter(total=None)
    clock.now = 61
    counter.within("rise", 2000, 8000)
    counter.within("rise", 4000, 8000)
    clock.now = 130
    counter.within("rise", 8000, 8000)
    counter.images(4)
    clock.now = 200
    counter.images(4)
    assert lines == [
        "scoring: 0 images, rise: 2,000 of 8,000",
        "scoring: 0 images",
        "scoring: 8 images, 0.040 images/s",
    ]


def test_a_short_run_writes_nothing_and_a_long_one_lines_on_stderr(capsys, monkeypatch):
    with progress_bar(True, [1, 2], max_images=4) as bar:
        bar.images(4)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress_bar(True, SimpleNamespace(dataset=range(9)), None, "explaining") as bar:
        bar.within("rise", 1, 2)
        bar.images(3)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "explaining: 0 of 9 images, rise: 1 of 2"
    assert lines[1].startswith("explaining: 3 of 9 images")
    assert lines[2].startswith("explaining: 3 images in ")
    with progress_bar(False, [1], None) as bar:
        bar.within("rise", 1, 2)
        bar.images(3)
    assert capsys.readouterr() == ("", "")


def test_a_program_that_has_imported_ipython_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))  # a shell
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))
    assert in_notebook()
