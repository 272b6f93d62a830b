"""The model parameter randomisation test: do maps change when the model's parameters are random?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Unpack

import pandas as pd
import torch
from torch import Tensor, nn

from xaieval.analysis.stats.intervals import mean_interval
from xaieval.analysis.tables import grouping_of, mean_of
from xaieval.config.counts import check_count
from xaieval.config.groups import GroupsOf, Weights, resolve_groups
from xaieval.config.keywords import with_keywords
from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch, Failure
from xaieval.errors import UsageError, choose_from
from xaieval.evaluation.first_pass import first_pass
from xaieval.evaluation.image_order import first_readable
from xaieval.evaluation.job import Job, borrowed, in_parts, started
from xaieval.evaluation.maps import finished_maps, raw_maps, run_batch
from xaieval.evaluation.progress import progress_bar
from xaieval.evaluation.request import batches_of, check_request, check_target_of_all, count_images
from xaieval.explainers import Method
from xaieval.inference.batch_limit import out_of_memory_is_run_error
from xaieval.inference.options import Inference, InferenceOptions
from xaieval.inference.randomisation import ModelPart, Swap, draw_anew, find_parts, swapped
from xaieval.inference.targets import Target
from xaieval.masking import upsample
from xaieval.metrics.similarity import spearman, ssim
from xaieval.models.blackbox import Function
from xaieval.probe.hooks import to_device
from xaieval.probe.requested_layers import Layers, to_addresses
from xaieval.results.metric_display import groups_text
from xaieval.results.rows import GROUP

__all__ = ["COMPLETE", "MEASURES", "MODES", "SanityCheck", "sanity_check"]

MODES = ("cascading", "independent")
COMPLETE = "complete"  # all parameters at once, which is always tested
MEASURES = ("ssim", "spearman", "spearman_absolute")


@dataclass(frozen=True, repr=False)
class SanityCheck:
    """How similar maps are before and after the model's parameters are randomised.

    Attributes:
        rows: Columns `image_id`, `layer`, `method`, `group` (if the images come in groups), `mode`, `randomised`, and the
            similarities `ssim`, `spearman` and `spearman_absolute`, NaN for a map that holds NaN or inf; the correlations also
            for a constant map.
        threshold: The similarity from which a method counts as data-independent.
        seed: Of the random parameters.
        unreadable: Id, label and reason of each image that could not be read; it has no rows.
        weights: What a mean counts: images, or groups if every group counts the same.
    """

    rows: pd.DataFrame
    threshold: float = 0.9
    seed: int = 0
    unreadable: Sequence[Failure] = field(default_factory=list)
    weights: Weights = "images"

    def __repr__(self) -> str:
        flagged = ", ".join(f"{method} at {layer}" for layer, method in self.data_independent) or "none"
        table = self.summary().xs(COMPLETE, level="mode")[list(MEASURES)].round(2)
        groups = f" in {groups_text(self.rows[GROUP].nunique(), self.weights)}" if GROUP in self.rows else ""
        return f"all parameters random, {self.rows['image_id'].nunique()} images{groups}\n{table}\ndata-independent: {flagged}"

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """The mean of each similarity over the images with its interval, for each step of the randomisation.

        Args:
            level: Of the intervals, those of `xaieval.analysis.stats.intervals.mean_interval`, in (0, 1).

        Returns:
            Index `(layer, method, mode, randomised)` in the order of the steps. For each similarity its mean, `<name>_low`,
            `<name>_high`, and `<name>_n`, the number of images that have a value; `n_images`, and `n_groups` if the images
            come in groups.
        """
        records = []
        steps = ["layer", "method", "mode", "randomised"]
        for step, part in self.rows.groupby(steps, sort=False):
            record: dict[str, Any] = dict(zip(steps, step, strict=True))
            for name in MEASURES:
                known = part.dropna(subset=[name])
                values, groups = known[name].to_numpy(dtype=float), grouping_of(part, known["image_id"], self.weights)
                low, high = mean_interval(values, level, groups=groups)
                mean = mean_of(values, groups)
                record |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(values)}
            together = {"n_groups": part[GROUP].nunique()} if GROUP in part else {}
            records.append(record | {"n_images": len(part), **together})
        return pd.DataFrame(records).set_index(steps)

    @property
    def data_independent(self) -> list[tuple[str, str]]:
        """Layer and method whose maps stay similar when all parameters are random, so that they cannot show what was learned.

        That is, the 95 % interval of SSIM lies above the threshold, and so does that of Spearman's correlation, unless every
        map is constant and there is no correlation. Where there is no interval, because of too few images or equal values, the
        mean decides.
        """
        table = self.summary().xs((COMPLETE, "*"), level=("mode", "randomised"))
        alike = table["ssim_low"].fillna(table["ssim"]) >= self.threshold
        ordered = (table["spearman_low"].fillna(table["spearman"]) >= self.threshold) | (table["spearman_n"] == 0)
        return [(str(layer), str(method)) for layer, method in table.index[alike & ordered]]


def sanity_check(
    model: nn.Module | Function,
    loader: Iterable[Any],
    layers: Layers = (),
    methods: Method | Sequence[Method] = ("gradcam",),
    *,
    modules: Layers | None = None,
    modes: str | Sequence[str] = MODES,
    target: Target | None = None,
    protocol: str | Protocol = "default",
    threshold: float = 0.9,
    groups: GroupsOf = None,
    max_images: int | None = None,
    progress: bool = True,
    seed: int = 0,
    inference: Inference | None = None,
    **options: Unpack[InferenceOptions],
) -> SanityCheck:
    """Test by random parameters: does a map change when the model loses what it has learned?

    Parameters are randomised in parts of the model: "cascading" from the output to the input, until all are random;
    "independent", one part at a time; and always all at once ("complete"). Each time the maps for the same targets are
    compared with those of the trained model: SSIM of the maps in [0, 1], Spearman's correlation of the raw maps, and of their
    absolute values. The model is given back unchanged, bit by bit: its own parameters are set aside and never written to.

    Args:
        model: As for `score`.
        loader: As for `score`; each image is explained once, and once more for each part and mode.
        layers: Addresses, patterns or modules of the model, or "auto".
        methods: Names, `Explainer` objects, or functions.
        modules: The parts, as modules of the model, paths of modules or patterns such as "layer*", each with everything inside
            it. Default: every module that holds parameters itself, which are many in a deep model.
        modes: "cascading", "independent", both, or none of them.
        target: "predicted", "label", a class index, or a function; always of the trained model.
        protocol: How maps are normalised, and what the gradient is taken of.
        threshold: The similarity from which a method counts as data-independent.
        groups: Which images belong together, as for `score`.
        max_images: Stop after this number of images.
        progress: Show how far it is: a bar on a terminal or in a notebook, a line a minute in a log.
        seed: Of the random parameters and of random explainers.
        inference: How the model is run; see `Inference`. The model's modules run unchanged here, so that `fast` and `compile`
            have no effect.
        **options: Fields of `Inference` as keywords.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
        RunError: No image could be read, or a single one does not fit in memory.

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
    how = with_keywords(sanity_check, inference or Inference(), options)
    check_count("max_images", max_images, optional=True)
    chosen = resolve_groups(groups)
    modes = _checked_modes(modes)
    request = check_request(model, layers, methods, (), target, protocol, how, seed)
    check_target_of_all(request.protocol)
    frames: list[pd.DataFrame] = []
    unreadable: list[Failure] = []
    with ExitStack() as stack:
        device = stack.enter_context(borrowed(request))
        bar = stack.enter_context(progress_bar(progress, loader, max_images))
        first, batches = first_readable(batches_of(request, loader, chosen, max_images))
        limit = how.limit(len(first))
        looked = first_pass(request, first, device, limit)
        job = stack.enter_context(started(looked.request, first, device, looked.layers, limit))
        steps = _find_steps(job, first, modules, modes)
        for batch in batches:
            unreadable += batch.failed
            if len(batch):
                frames += chain.from_iterable(in_parts(job, batch, lambda part: _rows(job, steps, part)))
            bar.images(count_images(request.protocol, batch))
    return SanityCheck(pd.concat(frames, ignore_index=True), threshold, seed, unreadable, chosen.weights)


@dataclass(frozen=True)
class _Step:
    """The parameters that are random at the same time."""

    mode: str
    randomised: str
    swaps: Sequence[Swap]


def _checked_modes(modes: str | Sequence[str]) -> Sequence[str]:
    modes = [modes] if isinstance(modes, str) else modes
    for mode in modes:
        if mode not in MODES:
            raise UsageError(f"no mode {mode!r}; {choose_from(mode, MODES)}")
    return modes


def _find_steps(job: Job, batch: Batch, modules: Layers | None, modes: Sequence[str]) -> list[_Step]:
    """What is randomised in each step; which modules run, and in which order, shows on the first images."""
    images, runner = to_device(batch.images, job.device), job.runner
    with out_of_memory_is_run_error():
        everything = runner.batch_limit.first(images, lambda part: find_parts(runner.model, part, runner.inside))
        parts = everything
        if modules is not None:
            names = to_addresses(modules, runner.model)
            parts = runner.batch_limit.first(images, lambda part: find_parts(runner.model, part, runner.inside, names))
    drawn = draw_anew(runner.model, [part.name for part in everything], job.seed)

    def swaps(parts: Iterable[ModelPart]) -> list[Swap]:
        return [swap for part in parts for holder in part.holders for swap in drawn[holder]]

    steps = []
    if "cascading" in modes:
        steps += [_Step("cascading", part.name, swaps(parts[: place + 1])) for place, part in enumerate(parts)]
    if "independent" in modes:
        steps += [_Step("independent", part.name, swaps([part])) for part in parts]
    return [*steps, _Step(COMPLETE, "*", swaps(everything))]


def _rows(job: Job, steps: Sequence[_Step], batch: Batch) -> list[pd.DataFrame]:
    """The rows of one batch, step by step and pair by pair."""
    frames = []
    passed = run_batch(job, batch)
    followed, images, nothing = passed.context.followed, passed.context.images, ~passed.has_target
    before = raw_maps(job, passed)
    del passed  # so that activations and gradients can be freed
    for step in steps:
        with swapped(step.swaps):
            after = raw_maps(job, run_batch(job, batch, followed))
        for (layer, method), one, other in zip(job.names, before, after, strict=True):
            place: dict[str, Any] = {"layer": layer, "method": method, **({} if batch.group is None else {GROUP: batch.group})}
            place |= {"mode": step.mode, "randomised": step.randomised}
            found = _similarities(one, other, images, job.protocol, nothing)
            frames.append(pd.DataFrame({"image_id": batch.ids, **place, **found}))
    return frames


def _similarities(before: Tensor, after: Tensor, images: Tensor, protocol: Protocol, nothing: Tensor) -> dict[str, Any]:
    """By measure, `[N]`; NaN where there is `nothing` to explain."""
    pair = [finished_maps(raw, images, protocol) for raw in (before, after)]
    raw = [upsample(maps, images.shape[2:]) for maps in (before, after)]
    invalid = pair[0].invalid | pair[1].invalid | nothing
    constant = pair[0].constant | pair[1].constant | nothing  # up to rounding, which ranks would turn into noise
    ordered = spearman(raw[0], raw[1]).masked_fill(constant, torch.nan)
    signed = bool((raw[0] < 0).any() | (raw[1] < 0).any())  # otherwise the absolute values have the same order
    found = {
        "ssim": ssim(pair[0].maps, pair[1].maps).masked_fill(invalid, torch.nan),
        "spearman": ordered,
        "spearman_absolute": spearman(raw[0].abs(), raw[1].abs()).masked_fill(constant, torch.nan) if signed else ordered,
    }
    return {name: values.cpu().numpy() for name, values in found.items()}
