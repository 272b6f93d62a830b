"""The progress bar of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

__all__ = ["Progressing", "progress_bar"]


class Progressing(NamedTuple):
    """The functions that advance a progress bar.

    Attributes:
        images: Takes a number of images that are finished.
        within: Takes the name of a method, how many passes it has made on the images of a batch, and how many there are.
    """

    images: Callable[[int], None]
    within: Callable[[str, int, int], None]


@contextmanager
def progress_bar(wanted: bool, loader: Any, max_images: int | None) -> Iterator[Progressing]:
    """A progress bar of images on stderr, where that is a terminal; gives the functions that advance it."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    dataset: Any = getattr(loader, "dataset", None)
    total = len(dataset) if hasattr(dataset, "__len__") else max_images
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:-1], TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task("scoring", total=min(total, max_images or total) if total else None, rate="")

        inside = bar.add_task("", visible=False, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            bar.update(task, rate="" if bar.tasks[0].speed is None else f"{bar.tasks[0].speed:.1f} images/s")

        def within(name: str, done: int, total: int) -> None:
            bar.update(inside, description=f"  {name}", completed=done, total=total, visible=done < total)

        yield Progressing(advance, within)
