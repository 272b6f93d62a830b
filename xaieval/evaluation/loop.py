"""The whole job: from a loader to `Scores`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from xaieval.analysis.tables import directions
from xaieval.config.controls import Controls
from xaieval.config.counts import check_count
from xaieval.config.groups import Groups, GroupsOf, resolve_groups
from xaieval.config.keywords import with_keywords
from xaieval.config.metric_names import own_name
from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch, split_batch
from xaieval.data.each_class import EACH, image_of
from xaieval.data.groups import group_source
from xaieval.errors import CheckError, DataError, RunError, TargetError
from xaieval.evaluation.batch_rows import Measured, joined
from xaieval.evaluation.batch_sources import SharedLoader, Source, source_of
from xaieval.evaluation.distributed.rank import Rank, started_at
from xaieval.evaluation.drawn_values import bounds_of
from xaieval.evaluation.early_stopping import Stop, Stopping, check_stop_of_groups, resolve_stop
from xaieval.evaluation.fingerprint import new_manifest, run_identity
from xaieval.evaluation.first_pass import first_pass
from xaieval.evaluation.image_order import first_images, ids_by_chance
from xaieval.evaluation.job import Job, borrowed, in_parts, started
from xaieval.evaluation.judging import describe_judge, judge_started, judged_pass
from xaieval.evaluation.kept_images import KeptImages
from xaieval.evaluation.maps import raw_maps, run_batch
from xaieval.evaluation.matched import DONORS, Donors, MatchedControls, make_donors
from xaieval.evaluation.measure import judge_maps, masked_confidences
from xaieval.evaluation.model_check import check_model
from xaieval.evaluation.precision_trial import settled_precision
from xaieval.evaluation.progress import Progressing, progress_bar
from xaieval.evaluation.race import Race, Racing
from xaieval.evaluation.request import (
    Request,
    check_request,
    check_target_of_all,
    count_images,
    prepared,
)
from xaieval.evaluation.run_state import InMemory, RunState, Store, dead_workers_are_run_errors
from xaieval.evaluation.scores import Scores
from xaieval.evaluation.whole_run import wait_without_images, whole_run
from xaieval.explainers import Method
from xaieval.inference.options import Inference, InferenceOptions
from xaieval.inference.targets import Target
from xaieval.metrics import Metric, resolve_metrics
from xaieval.models.blackbox import Function
from xaieval.probe.requested_layers import Layers
from xaieval.results.files import check_folder
from xaieval.results.findings import Finding
from xaieval.results.part_ends import owned
from xaieval.results.run_folder import RunFolder
from xaieval.results.tensors import describe_image

__all__ = ["measured_run", "score"]


def score(
    model: nn.Module | Function,
    loader: Iterable[Any],
    layers: Layers = (),
    methods: Method | Sequence[Method] = ("gradcam",),
    metrics: str | Metric | Sequence[str | Metric] = ("average_drop", "increase_in_confidence"),
    target: Target | None = None,
    protocol: str | Protocol = "default",
    *,
    controls: Controls = False,
    groups: GroupsOf = None,
    stop: str | Stop | None = None,
    max_images: int | None = None,
    output_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    seed: int = 0,
    strict: bool = False,
    judge: nn.Module | Function | None = None,
    keep_maps: int = 0,
    inference: Inference | None = None,
    **options: Unpack[InferenceOptions],
) -> Scores:
    """Measure how good a model's explanations are, per layer and method: the whole job in one call.

    The model is given back unchanged: mode, hooks, gradients, device.

    Args:
        model: An image classifier from images `[N, C, H, W]`, or volumes `[N, C, D, H, W]`, to logits `[N, K]` (other models:
            see `task`, `output` and `forward` of `Inference`). A function is taken as a `xaieval.models.BlackBox`.
        loader: Batches of `(images, labels)`, `images`, or mappings with `image` / `images` / `pixel_values`, and optionally
            `label` / `labels` (classes `[N]`, or zeros and ones `[N, K]` where several are true), `id` and `group`. Images are
            normalised as the model expects.
        layers: Addresses or patterns such as "layer4", "fpn[*]", "blocks.*"; modules of the model, such as `model.layer4`; or
            "auto", a choice of the model's stages.
        methods: Names ('xaieval-bench methods' lists them), `Explainer` objects, objects of captum, pytorch-grad-cam and
            torch-cam, or functions `(model, images, targets) -> maps`.
        metrics: Names ('xaieval-bench metrics' lists them) or `Metric` objects.
        target: "predicted", "label", "each", a class index, or a function of logits and labels. Default: the protocol's target,
            which is "predicted" in the default protocol. "each" asks for every class that an image shows, by labels `[N, K]` or
            by its objects: one row for each, with the id `IMAGE@CLASS`, and the image as the group.
        protocol: A name or a `Protocol`.
        controls: True scores the control maps too, which ignore the model: random, uniform, center, edges and fake-cam. The
            summary then says in which metrics a method beats all of them. "matched" compares each map with others of its size,
            at the price of one more masked pass each: shifted, swapped, dimmed and blurred; rows and summary then have the
            excess of each metric over the first of them. Or names of both kinds.
        groups: Which images belong together, such as the views of a place or the frames of a video: "class" (the label), a
            regular expression on the id, a CSV file, a mapping from ids, or a `xaieval.Groups`, which can also weight means by
            groups. Intervals and tests then count groups instead of images. Default: the `group` of the batches, if they have
            one.
        stop: "ranking", "best", "worst" or a `Stop`: take the images in random order, and stop when the order of the layers,
            or the best or worst of them, is certain at a given error. Needs a `DataLoader` over a data set with a length.
        max_images: Stop after this number of images.
        output_dir: Folder for rows, summary and manifest, and for finished batches while the run is under way. The same call
            resumes an interrupted run; a folder that holds another run is refused.
        resume: False measures finished batches again.
        progress: Show how far it is: a bar on a terminal or in a notebook, a line a minute in a log.
        seed: Of random explainers and of the bootstrap.
        strict: Raise an error instead of a warning where there is a reason not to trust the numbers, such as random weights,
            the wrong normalisation or labels of another model; before the first image is scored if it shows by then.
        judge: A second classifier of the same classes, which is shown the original and the altered images in the place of
            `model`, such as one that was trained on masked images (`xaieval.training.fit(masked=True)`). The maps and their
            targets are those of `model`. Default: the model judges its own maps.
        keep_maps: Keep the maps of this number of images, drawn at random, for the report: `scores.to_html(path)` then shows
            them. With `output_dir` they are also written there; of several processes, those of the first one's images.
        inference: How the model is run: device, task, batch size, precision and more; see `Inference`.
        **options: Fields of `Inference` as keywords, such as `device="cuda"` or `task="detection"`.

    Returns:
        Rows and manifest; `summary()` gives the table.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
        RunError: No image could be read, a single image does not fit in memory, or the protocol asks for an error where a
            value is invalid.
        CheckError: With `strict`, a reason not to trust the numbers; its `scores` are those of a finished run.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> import torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> scores = score(model, [torch.rand(4, 3, 64, 64)], layers=["layer3", "layer4"], progress=False)
        >>> list(scores.summary().index), len(scores.rows)
        ([('layer3', 'gradcam'), ('layer4', 'gradcam')], 8)
    """
    how = with_keywords(score, inference or Inference(), options)
    check_count("max_images", max_images, optional=True)
    request = check_request(model, layers, methods, resolve_metrics(metrics), target, protocol, how, seed, controls)
    check_target_of_all(request.protocol)
    return measured_run(
        request,
        loader,
        resolve_stop(stop),
        resolve_groups(groups),
        max_images=max_images,
        output_dir=output_dir,
        resume=resume,
        progress=progress,
        strict=strict,
        judge=None if judge is model else judge,
        keep_maps=keep_maps,
    )


def measured_run(
    request: Request,
    loader: Iterable[Any],
    rule: Stop | Race | None,
    chosen: Groups,
    *,
    max_images: int | None,
    output_dir: str | Path | None,
    resume: bool,
    progress: bool,
    strict: bool,
    judge: nn.Module | Function | None = None,
    keep_maps: int = 0,
) -> Scores:
    """Measure what was asked for, image by image; the arguments are those of `score`.

    Args:
        request: What is asked for.
        loader: As for `score`.
        rule: What decides when the run stops, and which pairs are measured until then.
        chosen: Which images belong together.
        max_images: As for `score`, as are all that follow.
        output_dir: See there.
        resume: See there.
        progress: See there.
        strict: See there.
        judge: Another model than that of the request.
        keep_maps: As for `score`.

    Raises:
        UsageError: See there, as for the others.
        RunError: See there.
        CheckError: See there.
    """
    how, kept = request.inference, KeptImages(keep_maps, request.seed)
    check_stop_of_groups(rule, chosen.weights)
    _check_stop_of_each(rule, request.protocol)
    shared = loader if isinstance(loader, SharedLoader) else SharedLoader(loader)
    loader, own_part = shared.loader, shared.own_part
    source = source_of(
        shared,
        partial(prepared, request, groups=chosen),
        request.seed,
        max_images,
        planned=output_dir is not None,
        shuffled=rule is not None,
    )
    manifest = new_manifest(request) | describe_judge(judge)
    with ExitStack() as stack:
        stack.enter_context(dead_workers_are_run_errors(keeps_rows=output_dir is not None))
        device = stack.enter_context(borrowed(request))
        bar = stack.enter_context(progress_bar(progress, source, None))
        try:
            first = next(split_batch(source.first(), how.images_per_pass, None))
        except (DataError, RunError) as error:
            if own_part is None or output_dir is None or not source.ended:
                raise
            return wait_without_images(Path(output_dir), own_part, source.failures(), error)
        grouping = None if first.group is None else group_source(chosen)
        limit = how.limit(getattr(loader, "batch_size", None) or len(first))  # a last batch may be smaller
        looked = first_pass(request, first, device, limit)
        begins = stack.enter_context(ExitStack())  # until the run has a precision, which the folder then tells other processes
        looked = begins.enter_context(settled_precision(looked, first, device, limit, output_dir, judge is not None))
        request, probed = looked.request, looked.layers
        # The first images of the run, so that rows do not depend on batches.
        donors = first_images(source.first_images(DONORS), DONORS) if "swapped" in request.matched else ()
        by_chance = rule is None and ids_by_chance(loader, _images_of(first, request.protocol))
        manifest |= {"device": device.type, "first_image": describe_image(first.ids[0], first.images[0])}
        manifest |= {"ids_by_chance": True} if by_chance else {}
        manifest |= {} if grouping is None else {"groups": {"by": grouping, "weights": chosen.weights}}
        manifest["run"] = run_identity(request, manifest["model"], probed, first, max_images, rule, grouping, donors, own_part)
        manifest["run"] |= {} if judge is None else {"judge": manifest["judge"]["fingerprint"] or manifest["judge"]["function"]}
        if output_dir is not None:
            check_folder(output_dir, manifest["run"])
        checked = check_model(looked, first, device, limit, loader)
        if strict:
            refuse(checked.findings)
        manifest |= checked.to_dict()
        job = stack.enter_context(started(request, first, device, probed, limit, fast=True))
        job = replace(job, judge=stack.enter_context(judge_started(request, judge, first, limit)), progress=bar.within)
        stopping = None if rule is None else _started(rule, source.images or 0, job, manifest)
        store = stack.enter_context(_store(output_dir, manifest, resume, source, own_part))
        begins.close()
        state = _run_state(request, job, source, store, stopping, donors, kept, bar)
        stack.enter_context(state.under_way())
        scores = whole_run(state, manifest, request.protocol, own_part)
        scores = scores.with_maps(kept.explained(job, manifest.get("controls", ())))
        _save_maps(scores, output_dir)
        if strict:
            refuse(scores.findings(), scores)
        return scores


@contextmanager
def _store(
    folder: str | Path | None, manifest: Mapping[str, Any], resume: bool, source: Source, own_part: Rank | None
) -> Iterator[InMemory | RunFolder]:
    """Where the batches of a run go: into memory, or into a folder in which this process takes part."""
    if folder is None:
        yield InMemory()
        return
    owning = nullcontext() if own_part is None else owned(Path(folder), own_part.rank, own_part.world)
    with RunFolder.joined(folder, manifest, resume, source.order, started_at()) as store, owning:
        yield store


def _save_maps(scores: Scores, folder: str | Path | None) -> None:
    """Write the maps that a run keeps into its folder; of several processes, the first one does."""
    if scores.maps is not None and folder is not None and Rank.from_environment().is_first:
        scores.maps.save(folder)


def _run_state(
    request: Request,
    job: Job,
    source: Source,
    store: Store,
    stopping: Stopping | Racing | None,
    donors: Sequence[Batch],
    kept: KeptImages,
    bar: Progressing,
) -> RunState:
    """The part of this process in a run that begins."""
    donor_maps = cache(lambda: make_donors(job, donors) if donors else None)

    def measured(job: Job, batch: Batch) -> Measured:
        kept.add(batch)
        return measure(job, batch, donor_maps(), bar.images)

    def restored(batch: Batch) -> None:
        kept.add(batch)
        bar.images(count_images(request.protocol, batch))

    return RunState(job=job, source=source, store=store, measure=measured, done=restored, stopping=stopping)


def _check_stop_of_each(rule: Stop | Race | None, protocol: Protocol) -> None:
    if rule is not None and protocol.target == EACH:
        raise TargetError("stop= counts images, and target 'each' gives some of them several rows; leave one of them out")


def refuse(findings: Sequence[Finding], scores: Scores | None = None) -> None:
    """Raise an error if there are findings.

    Raises:
        CheckError: There are; with the scores of a finished run.
    """
    if findings:
        raise CheckError(findings, scores)


def _images_of(batch: Batch, protocol: Protocol) -> Batch:
    """The batch with the ids of its images, where it has each of them once for each class."""
    return replace(batch, ids=list(dict.fromkeys(map(image_of, batch.ids)))) if protocol.target == EACH else batch


def _started(rule: Stop | Race, population: int, job: Job, manifest: Mapping[str, Any]) -> Stopping | Racing:
    """What decides, from the rows so far, which pairs are measured on the next images."""
    higher_is_better = directions(manifest["metrics"])
    rule = replace(rule, by=own_name(rule.by, higher_is_better))
    return rule.start(population, job.names, higher_is_better, bounds_of(rule.by, job.metrics))


def measure(
    job: Job, batch: Batch, donors: Donors | None = None, done: Callable[[int], None] = lambda images: None
) -> Measured:
    """Everything that is measured on a batch: on all of it at once, or on parts of it if it does not fit in memory.

    Tensors stay on the device; its kernels may still be running.

    Args:
        job: What is measured.
        batch: At least one image.
        donors: The maps of other images, for the control `swapped`.
        done: Called with the number of images that were measured.

    Raises:
        RunError: A single image does not fit in memory.
    """

    def work(part: Batch) -> Measured:
        measured = _measure(job, part, donors)
        done(count_images(job.protocol, part))
        return measured

    return joined(in_parts(job, batch, work))


def _measure(job: Job, batch: Batch, donors: Donors | None) -> Measured:
    """Batch -> maps -> masked confidences -> metrics."""
    passed = run_batch(job, batch)
    maps = raw_maps(job, passed)
    passed = passed.without_layers()
    controls = MatchedControls(job, passed, donors)
    by, judged = judged_pass(job, batch, passed)
    confidences = masked_confidences(by, judged, maps, controls)
    values, curves = judge_maps(job, batch, passed, maps, confidences, controls, judged)
    return Measured.of(batch, passed, confidences, values, curves)
