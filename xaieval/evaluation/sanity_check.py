"""Whether maps depend on what the model has learned: the map of the model beside that of the model with random parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from xaieval.analysis.stats.intervals import bootstrap_interval
from xaieval.config.protocol import Protocol, resolve_protocol
from xaieval.data.batches import Batch, Failure, read_batches
from xaieval.errors import ExplainerError, RunError, UsageError, choose_from
from xaieval.evaluation.maps import Job, finished_maps, look, make_pairs, raw_maps
from xaieval.evaluation.run_state import show_progress
from xaieval.explainers import Method, resolve_methods
from xaieval.inference.batch_limit import BatchLimit, in_batches, refused_without_room
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import Forward, Runner, called
from xaieval.inference.randomisation import Part, Swap, draw_anew, find_parts, swapped
from xaieval.inference.targets import Output, Target
from xaieval.inference.tasks import Task, predicted_score, resolve_task
from xaieval.masking import upsample
from xaieval.metrics.similarity import spearman, ssim
from xaieval.models.blackbox import Function, as_module
from xaieval.probe.hooks import locate, to_device

__all__ = ["COMPLETE", "MEASURES", "MODES", "SanityCheck", "sanity_check"]

MODES = ("cascading", "independent")
COMPLETE = "complete"  # all of the model's parameters at once, which is always tried
MEASURES = ("ssim", "spearman", "spearman_absolute")


@dataclass(frozen=True, repr=False)
class SanityCheck:
    """How alike maps are before and after the model's parameters were drawn anew.

    Attributes:
        rows: columns `image_id`, `layer`, `method`, `mode`, `randomised`, and the similarities `ssim`, `spearman` and
            `spearman_absolute`. NaN where there is none: a map that holds NaN or inf, and for the correlations a constant map.
        threshold: similarity from which a method counts as data-independent.
        seed: of the random parameters, and of the bootstrap.
        unreadable: id, label and reason of each image that could not be read, and has no rows.
    """

    rows: pd.DataFrame
    threshold: float = 0.9
    seed: int = 0
    unreadable: Sequence[Failure] = field(default_factory=list)

    def __repr__(self) -> str:
        flagged = ", ".join(f"{method} at {layer}" for layer, method in self.data_independent) or "none"
        table = self.summary().xs(COMPLETE, level="mode")[list(MEASURES)].round(2)
        return f"all parameters random, {self.rows['image_id'].nunique()} images\n{table}\ndata-independent: {flagged}"

    def summary(self, level: float = 0.95, resamples: int = 1000) -> pd.DataFrame:
        """The mean of each similarity over the images, with its interval, for each step of the randomisation.

        Args:
            level: of the percentile bootstrap intervals, in (0, 1).
            resamples: of the bootstrap.

        Returns:
            Index `(layer, method, mode, randomised)` in the order of the steps; of each similarity its mean, `<name>_low`,
            `<name>_high` and `<name>_n`, the number of images that have it; `n_images`.
        """
        records = []
        steps = ["layer", "method", "mode", "randomised"]
        for step, group in self.rows.groupby(steps, sort=False):
            record: dict[str, Any] = dict(zip(steps, step, strict=True))
            for name in MEASURES:
                values = group[name].to_numpy(dtype=float)
                values = values[~np.isnan(values)]
                low, high = bootstrap_interval(values, level, resamples, self.seed)
                mean = float(values.mean()) if len(values) else float("nan")
                record |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(values)}
            records.append(record | {"n_images": len(group)})
        return pd.DataFrame(records).set_index(steps)

    @property
    def data_independent(self) -> list[tuple[str, str]]:
        """Layer and method whose maps stay alike when all parameters are random, so that they cannot show what was learned.

        Those whose 95 % interval of SSIM lies above the threshold, and whose interval of Spearman's correlation does too, or
        cannot be had since every map is constant.
        """
        table = self.summary().xs((COMPLETE, "*"), level=("mode", "randomised"))
        alike = table["ssim_low"] >= self.threshold
        ordered = (table["spearman_low"] >= self.threshold) | (table["spearman_n"] == 0)
        return [(str(layer), str(method)) for layer, method in table.index[alike & ordered]]


def sanity_check(
    model: nn.Module | Function,
    loader: Iterable[Any],
    layers: str | Iterable[str] = (),
    methods: Method | Sequence[Method] = ("gradcam",),
    *,
    modules: str | Sequence[str] | None = None,
    modes: str | Sequence[str] = MODES,
    target: Target | None = None,
    protocol: str | Protocol = "default",
    threshold: float = 0.9,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    max_images: int | None = None,
    progress: bool = True,
    seed: int = 0,
    task: str | Task = "classification",
    output: Output = None,
    forward: Forward | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
) -> SanityCheck:
    """Test by random parameters: does a map change when the model forgets what it has learned?

    Parameters are drawn anew in parts of the model: "cascading" from the output downwards, so that in the end all are random;
    "independent", one part at a time; and always all at once ("complete"). Each time the maps, for the same targets, are
    compared with those of the model: SSIM of the maps in [0, 1], Spearman's correlation of the maps as the method gives them,
    and of their absolute values. The model is given back as it was, to the last bit: its own parameters are put aside and
    never written to.

    Args:
        model: as for `score`.
        loader: as for `score`; each image is explained once, and once more for each part and mode.
        layers: addresses or patterns, or "auto".
        methods: names, `Explainer` objects, or functions.
        modules: the parts, as paths of modules or patterns such as "layer*", each with all that it contains; every module
            that holds parameters itself unless told, which are many in a deep model.
        modes: "cascading", "independent", both, or none of them.
        target: "predicted", "label", a class index, or a function; always of the model as it is.
        protocol: says how maps are normalised, and what the gradient is taken of.
        threshold: similarity from which a method counts as data-independent.
        device: where to work; the model's own unless told.
        batch_size: images in a pass; the loader's batches unless told.
        max_images: stop after so many.
        progress: show a progress bar, where stderr is a terminal.
        seed: of the random parameters, of random explainers and of the bootstrap.
        task: as for `score`.
        output: as for `score`.
        forward: as for `score`.
        grid: as for `score`.
        prefix_tokens: as for `score`.

    Raises:
        UsageError: one of its kinds, for what cannot work as given.
        RunError: no image could be read.

    Reference:
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292), the model parameter randomisation
        test, cascading and independent.

    Example:
        >>> import torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> images = torch.rand(4, 3, 64, 64)
        >>> check = sanity_check(model, [images], ["layer4"], ["gradcam", "center"], modules=["fc", "layer*"], progress=False)
        >>> check.data_independent
        [('input', 'center')]
    """
    model = as_module(model)
    modes = _checked_modes(modes)
    settled = resolve_protocol(protocol)
    settled = settled if target is None else replace(settled, target=target)
    explainers = resolve_methods(methods)
    addresses = [layers] if isinstance(layers, str) else list(layers)
    needing = [explainer.name for explainer in explainers if explainer.needs_layer]
    if needing and not addresses:
        raise ExplainerError(f"method {needing[0]!r} needs layers=, and none were given; 'xaieval-bench layers' lists all")
    asked, call = resolve_task(task, output), called(model, forward)
    frames: list[pd.DataFrame] = []
    unreadable: list[Failure] = []
    plan = None
    with borrow(model, device) as there, show_progress(progress, loader, max_images) as advance:

        @refused_without_room()
        def begin(batch: Batch) -> _Plan:
            images = to_device(batch.images, there)
            told = partial(predicted_score, asked)
            wanted = addresses if needing else []
            batch_limit = BatchLimit(batch_size or len(batch))
            where = partial(locate, model, layers=wanted, forward=call, grid=grid, prefix_tokens=prefix_tokens, score=told)
            found = batch_limit.first(images, where)
            job = Job(found, make_pairs(explainers, found), settled, asked, seed)
            steps = batch_limit.first(images, lambda some: _steps(model, some, call, modules, modes, seed))
            return _Plan(Runner(model, call, call, batch_limit), job, steps)

        for batch in read_batches(loader, batch_size, max_images):
            unreadable += batch.failed
            if len(batch):
                plan = plan or begin(batch)
                rows = partial(_rows, plan, device=there)
                frames += chain.from_iterable(in_batches(plan.runner.batch_limit, batch, rows))
            advance(len(batch) + len(batch.failed))
    if not frames:
        name, _, reason = unreadable[0]
        raise RunError(f"none of the {len(unreadable)} images could be read; the first, {name!r}: {reason}")
    return SanityCheck(pd.concat(frames, ignore_index=True), threshold, seed, unreadable)


@dataclass(frozen=True)
class _Step:
    """What is random at once."""

    mode: str
    randomised: str
    swaps: Sequence[Swap]


@dataclass(frozen=True)
class _Plan:
    """What is done to every batch."""

    runner: Runner
    job: Job
    steps: Sequence[_Step]


def _checked_modes(modes: str | Sequence[str]) -> Sequence[str]:
    modes = [modes] if isinstance(modes, str) else modes
    for mode in modes:
        if mode not in MODES:
            raise UsageError(f"no mode {mode!r}; {choose_from(mode, MODES)}")
    return modes


def _steps(
    model: nn.Module, images: Tensor, call: Any, modules: str | Sequence[str] | None, modes: Sequence[str], seed: int
) -> list[_Step]:
    everything = find_parts(model, images, call)
    parts = everything if modules is None else find_parts(model, images, call, modules)
    drawn = draw_anew(model, [part.name for part in everything], seed)

    def swaps(parts: Iterable[Part]) -> list[Swap]:
        return [swap for part in parts for holder in part.holders for swap in drawn[holder]]

    steps = []
    if "cascading" in modes:
        steps += [_Step("cascading", part.name, swaps(parts[: place + 1])) for place, part in enumerate(parts)]
    if "independent" in modes:
        steps += [_Step("independent", part.name, swaps([part])) for part in parts]
    return [*steps, _Step(COMPLETE, "*", swaps(everything))]


def _rows(plan: _Plan, batch: Batch, device: torch.device) -> list[pd.DataFrame]:
    """Of one batch, step by step and pair by pair."""
    frames = []
    runner, job = plan.runner, plan.job
    seen = look(runner, batch, job, device)
    followed, images = seen.context.followed, seen.context.images
    before = raw_maps(runner, seen, job)
    del seen  # what the layers left is not held any longer
    for step in plan.steps:
        with swapped(step.swaps):
            after = raw_maps(runner, look(runner, batch, job, device, followed), job)
        for (layer, method), one, other in zip(job.names, before, after, strict=True):
            place = {"layer": layer, "method": method, "mode": step.mode, "randomised": step.randomised}
            frames.append(pd.DataFrame({"image_id": batch.ids, **place, **_similarities(one, other, images, job.protocol)}))
    return frames


def _similarities(before: Tensor, after: Tensor, images: Tensor, protocol: Protocol) -> dict[str, Any]:
    """By measure, `[N]`."""
    pair = [finished_maps(raw, images, protocol) for raw in (before, after)]
    raw = [upsample(maps, images.shape[2:]) for maps in (before, after)]
    invalid = pair[0].invalid | pair[1].invalid
    constant = pair[0].constant | pair[1].constant  # up to rounding, of which ranks would make noise
    ordered = spearman(raw[0], raw[1]).masked_fill(constant, torch.nan)
    signed = bool((raw[0] < 0).any() | (raw[1] < 0).any())  # what is not need not be put in order once more
    found = {
        "ssim": ssim(pair[0].maps, pair[1].maps).masked_fill(invalid, torch.nan),
        "spearman": ordered,
        "spearman_absolute": spearman(raw[0].abs(), raw[1].abs()).masked_fill(constant, torch.nan) if signed else ordered,
    }
    return {name: values.cpu().numpy() for name, values in found.items()}
