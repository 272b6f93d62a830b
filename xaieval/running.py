"""A run under way: its rows so far, what it is, whether it has seen enough, and what is kept if it breaks off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from xaieval.data.batches import Batch, Failure
from xaieval.data.order import Shuffled
from xaieval.engine import Job
from xaieval.errors import RunError, XaievalError
from xaieval.explainers import describe_method
from xaieval.folders import check_folder, is_complete
from xaieval.manifest import digest, tensor_bytes
from xaieval.metrics import Metric
from xaieval.pairing import directed
from xaieval.rows import Measured, failed_rows, measured_rows
from xaieval.scores import Scores
from xaieval.speedup import Runner
from xaieval.stopping import Stop, Stopping
from xaieval.tasks import describe

__all__ = ["Run", "show_progress"]


@dataclass
class Run:
    """The rows and the manifest of a run under way."""

    metrics: Sequence[Metric]
    manifest: dict[str, Any]
    output_dir: str | Path | None
    job: Job | None = None
    frames: list[pd.DataFrame] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    pending: Measured | None = None
    stopping: Stopping | None = None
    watched: tuple[int, int] = (0, 0)  # how many of the frames and of the failures it has seen

    @property
    def started(self) -> Job:
        """What is asked of every batch; known once there were images."""
        if self.job is None:
            name, _, reason = self.failures[0]
            raise RunError(f"none of the {len(self.failures)} images could be read; the first, {name!r}: {reason}")
        return self.job

    def begin(self, job: Job, first: Batch, **settings: Any) -> None:
        """Settle what makes two runs the same run, in the order in which a difference is reported; look at the folder."""
        self.job = job
        described = {explainer.name: describe_method(explainer) for explainer, _ in job.pairs}
        chosen = {name: values for name, values in described.items() if values}
        made = {metric.name: dict(metric.settings) for metric in self.metrics if metric.settings}
        self.manifest["run"] = {
            "model": self.manifest["model"]["fingerprint"] or self.manifest["model"]["function"],
            "layers": [item.address for item in job.layers],
            "methods": list(described),
            **({"method settings": chosen} if chosen else {}),
            "metrics": [metric.name for metric in self.metrics],
            **({"metric settings": made} if made else {}),
            **{f"protocol.{name}": value for name, value in job.protocol.to_dict().items()},
            "seed": job.seed,
            "task": describe(job.task),
            **settings,
            "first image": digest([first.ids[0].encode(), tensor_bytes(first.images[0])]),
        }
        if self.output_dir is not None:
            check_folder(self.output_dir, self.manifest["run"])

    def made_by(self, runner: Runner) -> Runner:
        """Note how passes are made."""
        self.manifest["speed"] = runner.to_dict()
        return runner

    def add(self, measured: Measured) -> None:
        """Take one batch; its rows are made when the next one is under way, so that a GPU need not wait for them."""
        self.flush()
        self.pending = measured

    def flush(self) -> None:
        """Make the rows of the batch that waits for it."""
        measured, self.pending = self.pending, None
        if measured is not None:
            self.frames.append(measured_rows(measured, self.started.names, self.metrics, self.started.protocol))

    def watch(self, rule: Stop | None, images: Shuffled | None) -> None:
        """Have the rows looked at, to stop when the rule's question is answered."""
        if rule is not None and images is not None:
            self.stopping = Stopping(rule, len(images), self.started.names, directed(self.manifest["metrics"]))

    def is_settled(self) -> bool:
        """Whether what `stop` asks for is certain from the rows so far."""
        if self.stopping is None:
            return False
        self.flush()
        frames, failures = self.watched
        new = [*self.frames[frames:], failed_rows(self.failures[failures:], self.started.names, self.metrics)]
        self.watched = len(self.frames), len(self.failures)
        self.stopping.add(pd.concat([frame for frame in new if len(frame)]))
        self.manifest["stop"] = self.stopping.to_dict()
        return self.stopping.finished

    def gather(self, complete: bool) -> Scores:
        """All rows so far, those of unreadable images last."""
        unreadable = failed_rows(self.failures, self.started.names, self.metrics)
        rows = pd.concat([*self.frames, unreadable] if self.failures else self.frames, ignore_index=True)
        ids = rows["image_id"].unique()
        found = {
            "complete": complete,
            "data": {"images": len(ids), "fingerprint": digest(f"{image_id}\n".encode() for image_id in ids)},
            "unreadable": [{"id": name, "reason": reason} for name, _, reason in self.failures],
        }
        return Scores(rows, self.manifest | found)

    @contextmanager
    def kept_if_it_breaks(self) -> Iterator[None]:
        """Keep what there is of a run that breaks off, unless a finished one is there."""
        try:
            yield
        except BaseException:
            with suppress(XaievalError):  # the error that is under way is the one to hear of
                self.flush()
            if self.frames and self.output_dir is not None and not is_complete(self.output_dir):
                self.gather(complete=False).save(self.output_dir)
            raise

    def finish(self) -> Scores:
        """The whole run, written if a folder was given."""
        self.flush()
        scores = self.gather(complete=True)
        if self.output_dir is not None:
            scores.save(self.output_dir)
        return scores


@contextmanager
def show_progress(wanted: bool, loader: Any, max_images: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar of images on stderr, where that is a terminal; gives the function that moves it on."""
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
            bar.update(task, rate=f"{bar.tasks[0].speed or 0:.1f} images/s")

        yield advance
