"""A run under way: its rows so far, what it is, whether it has seen enough, and what is kept if it breaks off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from xaieval.analysis.tables import directions
from xaieval.data.batches import Batch, Failure
from xaieval.errors import OutputError, RunError, XaievalError
from xaieval.evaluation.early_stopping import Stop, Stopping
from xaieval.evaluation.image_order import Shuffled
from xaieval.evaluation.maps import Job
from xaieval.evaluation.scores import Scores
from xaieval.explainers import describe_method
from xaieval.inference.forward_passes import Runner
from xaieval.inference.tasks import describe
from xaieval.metrics import Metric
from xaieval.results.checkpoints import Part, Parts, check_of
from xaieval.results.manifest import describe_data, digest, tensor_bytes
from xaieval.results.rows import Measured, failed_rows, measured_rows

__all__ = ["Run", "show_progress"]


@dataclass
class Run:
    """The rows and the manifest of a run under way."""

    metrics: Sequence[Metric]
    manifest: dict[str, Any]
    output_dir: str | Path | None
    resume: bool = True
    job: Job | None = None
    parts: Parts | None = None  # on the disk, if a folder was given
    frames: list[pd.DataFrame] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)  # of each batch
    failures: list[Failure] = field(default_factory=list)
    missed: list[Failure] = field(default_factory=list)  # those of them that no part says
    pending: tuple[Measured, Part] | None = None
    held: ExitStack = field(default_factory=ExitStack)  # the folder
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
            self.parts = self.held.enter_context(Parts.of(self.output_dir, self.manifest, self.resume))

    def made_by(self, runner: Runner) -> Runner:
        """Note how passes are made."""
        self.manifest["speed"] = runner.to_dict()
        return runner

    def fail(self, failures: Sequence[Failure]) -> None:
        """Take images that could not be read."""
        self.failures += failures
        self.missed += failures

    def has(self, batch: Batch) -> bool:
        """Whether the batch was measured before; its rows are taken then."""
        if self.parts is None:
            return False
        number = len(self.frames) + (self.pending is not None)
        rows = self.parts.find(number, batch)
        if rows is not None:
            self.flush()
            self.missed = []
            self._append(rows, self.parts.known[number].check)
        return rows is not None

    def add(self, batch: Batch, measured: Measured) -> None:
        """Take one batch; on a GPU, which need not wait for that, its rows are made when the next one is under way."""
        self.flush()
        others = self.missed[: len(self.missed) - len(batch.failed)]
        check = "" if self.parts is None else check_of(batch)
        self.pending = measured, Part(check, batch.ids, batch.failed, others)
        self.missed = []
        if measured.confidence.device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Make the rows of the batch that waits for it, and have them on the disk."""
        if self.pending is None:
            return
        (measured, part), self.pending = self.pending, None
        rows = measured_rows(measured, self.started.names, self.metrics, self.started.protocol)
        if self.parts is not None:
            self.parts.write(len(self.frames), part, rows)
        self._append(rows, part.check)

    def _append(self, rows: pd.DataFrame, check: str) -> None:
        self.frames.append(rows)
        self.checks.append(check)

    def watch(self, rule: Stop | None, images: Shuffled | None) -> None:
        """Have the rows looked at, to stop when the rule's question is answered."""
        if rule is not None and images is not None:
            self.stopping = Stopping(rule, len(images), self.started.names, directions(self.manifest["metrics"]))

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

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Keep the last batch of a run that breaks off too, and let go of its folder in the end."""
        with self.held:
            try:
                yield
            except BaseException as error:
                with suppress(XaievalError):  # the error that is under way is the one to hear of
                    self.flush()
                dead = _of_dead_worker(error)
                if dead is not None:
                    kept = "" if self.parts is None else "; rows of finished batches are kept, and the same command goes on"
                    raise RunError(f"a process that reads images died ({dead}), perhaps for want of memory{kept}") from error
                raise

    def finish(self) -> Scores:
        """The whole run, rows of unreadable images last; written if a folder was given."""
        self.flush()
        unreadable = failed_rows(self.failures, self.started.names, self.metrics)
        rows = pd.concat([*self.frames, unreadable] if self.failures else self.frames, ignore_index=True)
        checks = [] if self.parts is None else self.checks
        scores = Scores(rows, self.manifest | {"complete": True} | describe_data(rows, self.failures, checks))
        if self.parts is not None:
            try:
                scores.save(self.parts.folder)
            except OutputError as error:  # which is a wrong call elsewhere, but nobody's fault here
                raise RunError(str(error)) from error
            self.parts.remove()
        return scores


def _of_dead_worker(error: BaseException | None) -> str | None:
    """What torch says of a worker that died, which a signal brings up anywhere: also where others wrap what they meet."""
    while error is not None:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # torch has no class for it
            return str(error).splitlines()[0].rstrip(". ")
        error = error.__cause__ or error.__context__
    return None


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
            bar.update(task, rate="" if bar.tasks[0].speed is None else f"{bar.tasks[0].speed:.1f} images/s")

        yield advance
