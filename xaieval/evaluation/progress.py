"""The progress bar of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(wanted: bool, loader: Any, max_images: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar of images on stderr, where that is a terminal; gives the function that advances it."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    dataset: Any = getattr(loader, "dataset", None)
    total = len(dataset) if hasattr(dataset, "__len__") else max_images
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:-1], TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task("scoring", total=min(total, max_images or total) if total else None, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            bar.update(task, rate="" if bar.tasks[0].speed is None else f"{bar.tasks[0].speed:.1f} images/s")

        yield advance
