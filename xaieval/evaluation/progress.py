"""How far a run is: a bar on a terminal or in a notebook, and a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

__all__ = ["Counter", "Progressing", "in_notebook", "progress_bar"]

EVERY = 60.0  # seconds between two lines of a log; a run that is shorter writes none
REFRESH = 0.5  # seconds between two updates of a bar in a notebook
WINDOW = 6  # reports whose rate is given: that of the last minutes, since images of a checkpoint are read at once


class Progressing(NamedTuple):
    """The functions that advance a progress bar.

    Attributes:
        images: Takes a number of images that are finished.
        within: Takes the name of a method, how many passes it has made on the images of a batch, and how many there are.
    """

    images: Callable[[int], None]
    within: Callable[[str, int, int], None]


@dataclass
class Counter:
    """Counts images, and shows where a run is from time to time.

    Attributes:
        doing: What is done with the images, such as "scoring".
        total: The number of all images; None if it is not known.
        show: Takes the text, and the share that is done; None if it is not known.
        every: Seconds between two texts.
        clock: Gives the time in seconds.
        done: The number of images so far.
        inside: How far a long method is on the present images.
        shown: The number of texts so far.
    """

    doing: str
    total: int | None
    show: Callable[[str, float | None], Any]
    every: float
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    inside: str = ""
    shown: int = 0
    _seen: deque[tuple[float, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.last = self.clock()
        self._seen = deque([(self.start, 0)], maxlen=WINDOW)

    def images(self, count: int) -> None:
        """So many more images are finished."""
        self.done, self.inside = self.done + count, ""
        self._if_due()

    def within(self, name: str, done: int, total: int) -> None:
        """A method has made some of its passes."""
        self.inside = f"{name}: {done:,} of {total:,}" if done < total else ""
        self._if_due()

    def text(self) -> str:
        """Where the run is.

        Example:
            >>> times = iter([0.0, 100.0, 100.0])
            >>> counter = Counter("scoring", 500, lambda text, share: print(text), every=60, clock=lambda: next(times))
            >>> counter.images(200)
            scoring: 200 of 500 images, 2.0 images/s, 2 min 30 s left
        """
        (before, count), now = self._seen[0], self.clock()
        rate = (self.done - count) / (now - before) if now > before else 0.0
        known = f"{self.done:,} images" if self.total is None else f"{self.done:,} of {self.total:,} images"
        left = _duration((self.total - self.done) / rate) if rate and self.total is not None else ""
        pieces = [known, self.inside, f"{rate:.{1 if rate >= 1 else 3}f} images/s" if rate else "", left and f"{left} left"]
        return f"{self.doing}: {', '.join(piece for piece in pieces if piece)}"

    def result(self) -> str:
        """What was done."""
        return f"{self.doing}: {self.done:,} images in {_duration(self.clock() - self.start)}"

    def _if_due(self) -> None:
        now = self.clock()
        if now - self.last >= self.every:
            self.show(self.text(), self.done / self.total if self.total else None)
            self._seen.append((now, self.done))
            self.last, self.shown = now, self.shown + 1


@contextmanager
def progress_bar(wanted: bool, loader: Any, max_images: int | None, doing: str = "scoring") -> Iterator[Progressing]:
    """How far a run is; gives the functions that tell it.

    On a terminal and in a notebook it is a bar, else a line a minute on stderr, so that the log of a batch job shows that it is
    alive and when it will end; a run that takes less than a minute writes nothing there.

    Args:
        wanted: False shows nothing.
        loader: Its `dataset`, if it has a length, says how many images there are.
        max_images: The largest number of images.
        doing: What is done with the images.
    """
    from rich.console import Console

    dataset: Any = getattr(loader, "dataset", None)
    total = len(dataset) if hasattr(dataset, "__len__") else max_images
    total = min(total, max_images or total) if total else None
    if not wanted:
        yield Progressing(lambda count: None, lambda name, done, of: None)
        return
    console = Console(stderr=True)
    shown = _on_terminal(console, doing, total) if console.is_terminal else _written(doing, total)
    with shown as progressing:
        yield progressing


@contextmanager
def _on_terminal(console: Any, doing: str, total: int | None) -> Iterator[Progressing]:
    """A bar that disappears at the end."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), *Progress.get_default_columns()[:-1], TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(doing, total=total, rate="")
        inside = bar.add_task("", visible=False, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            bar.update(task, rate="" if bar.tasks[0].speed is None else f"{bar.tasks[0].speed:.1f} images/s")

        def within(name: str, done: int, total: int) -> None:
            bar.update(inside, description=f"  {name}", completed=done, total=total, visible=done < total)

        yield Progressing(advance, within)


@contextmanager
def _written(doing: str, total: int | None) -> Iterator[Progressing]:
    """Texts in a notebook, which replace each other, or lines in a log."""
    notebook = in_notebook()
    counter = Counter(doing, total, _cell() if notebook else _line, REFRESH if notebook else EVERY)
    try:
        yield Progressing(counter.images, counter.within)
    finally:
        if counter.shown:  # otherwise the run was too short to say anything
            counter.show(counter.result(), None)


def in_notebook() -> bool:
    """Whether this is a cell of a notebook, which nothing but a kernel of IPython can show."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _line(text: str, share: float | None) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _cell() -> Callable[[str, float | None], None]:
    """A function that shows a text in the output of the cell, in the place of the one before."""
    from IPython.display import display

    handle: Any = None

    def show(text: str, share: float | None) -> None:
        nonlocal handle
        bar = "" if share is None else f'<progress value="{share:.4f}" style="width: 20em"></progress> '
        bundle = {"text/html": f"<div>{bar}{escape(text)}</div>", "text/plain": text}
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)

    return show


def _duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> _duration(9.4), _duration(151), _duration(7300)
        ('9 s', '2 min 31 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
