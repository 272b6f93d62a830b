"""Score the maps of several models on each of the models: is it the maps that differ, or the models?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Unpack

import pandas as pd
import torch
from torch import Tensor, nn

from xaieval.config.controls import Controls
from xaieval.config.counts import check_count
from xaieval.config.groups import GroupsOf, resolve_groups
from xaieval.config.keywords import with_keywords
from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch, Failure
from xaieval.data.groups import group_source
from xaieval.evaluation.batch_rows import Measured, check_labelled, measured_rows
from xaieval.evaluation.cross_request import check_alike, check_classes, check_requests, paired_names
from xaieval.evaluation.cross_result import CrossScores
from xaieval.evaluation.fingerprint import new_manifest, run_identity
from xaieval.evaluation.first_pass import FirstPass, first_pass
from xaieval.evaluation.image_order import first_readable
from xaieval.evaluation.job import Job, borrowed, in_parts, started
from xaieval.evaluation.maps import BatchPass, raw_maps, run_batch
from xaieval.evaluation.matched import MatchedControls
from xaieval.evaluation.measure import judge_maps, masked_confidences
from xaieval.evaluation.model_check import check_model
from xaieval.evaluation.progress import progress_bar
from xaieval.evaluation.request import batches_of, count_images
from xaieval.explainers import Method
from xaieval.explainers.controls import Control
from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.options import Inference, InferenceOptions
from xaieval.inference.targets import Target
from xaieval.metrics import Metric
from xaieval.models.blackbox import Function
from xaieval.probe.requested_layers import Layers
from xaieval.results.findings import Finding
from xaieval.results.manifest import completed, count_groups, describe_data
from xaieval.results.rows import DISAGREE, GROUP, UNREADABLE, Pair, failed_rows
from xaieval.results.tensors import describe_image

__all__ = ["cross_score"]


def cross_score(
    models: Mapping[str, nn.Module | Function],
    loader: Iterable[Any],
    layers: Layers | Mapping[str, Layers] = (),
    methods: Method | Sequence[Method] = ("gradcam",),
    metrics: str | Metric | Sequence[str | Metric] = ("average_drop", "increase_in_confidence"),
    target: Target | None = None,
    protocol: str | Protocol = "default",
    *,
    controls: Controls = False,
    groups: GroupsOf = None,
    max_images: int | None = None,
    progress: bool = True,
    seed: int = 0,
    inference: Inference | None = None,
    **options: Unpack[InferenceOptions],
) -> CrossScores:
    """Score the maps of each model on every model: whose maps are better, apart from which model bears masking better.

    Average Drop and its kin measure maps and model at once: a model that loses little confidence when an image is dimmed has a
    small drop whatever its maps are. Here each image is masked by the maps of each model and shown to every model. The models
    are given back unchanged.

    Args:
        models: Two or more classifiers of the same classes, by name. All get the same images, so they need the same
            preprocessing.
        loader: As for `xaieval.score`; each batch is read once.
        layers: As for `xaieval.score`; or a mapping from the names of the models to their layers. Layers of different names
            are paired by their order.
        methods: As for `xaieval.score`.
        metrics: Names or `Metric` objects, but not those that run a method again on altered images, such as stability.
        target: The class that is explained, the same for all models: "predicted", "label", a class index, or a function.
            Images on which the models predict different classes do not count, which rows and result say. Default: the
            protocol's target.
        protocol: A name or a `Protocol`.
        controls: True or names of control maps, such as "center": maps of no model, which show how each model bears masking.
        groups: Which images belong together, as for `xaieval.score`.
        max_images: Stop after this number of images.
        progress: Show how far it is: a bar on a terminal or in a notebook, a line a minute in a log.
        seed: Of random explainers and of the tests.
        inference: How the models are run; see `Inference`.
        **options: Fields of `Inference` as keywords.

    Returns:
        Rows and manifest; `table()` gives the means, `split()` the parts of each difference between two models.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
        RunError: No image could be read, or a single image does not fit in memory.

    Reference:
        Kitagawa, "Components of a difference between two rates", Journal of the American Statistical Association 50, 1955, for
        the split.

    Example:
        >>> import torch, torchvision
        >>> models = {"small": torchvision.models.resnet18(num_classes=4), "large": torchvision.models.resnet34(num_classes=4)}
        >>> images = [torch.rand(4, 3, 64, 64)]
        >>> scores = cross_score(models, images, ["layer4"], target=0, controls="center", progress=False)
        >>> scores.table("average_drop")["mean"].unstack("model").shape  # maps of small, of large and of no model, on each
        (3, 2)
    """
    how = with_keywords(cross_score, inference or Inference(), options)
    check_count("max_images", max_images, optional=True)
    requests = check_requests(models, layers, methods, metrics, target, protocol, how, seed, controls)
    chosen = resolve_groups(groups)
    manifest = new_manifest(next(iter(requests.values())))
    del manifest["model"]
    manifest["models"] = {name: new_manifest(request)["model"] for name, request in requests.items()}
    frames: list[pd.DataFrame] = []
    failures: list[Failure] = []
    with ExitStack() as stack:
        devices = {name: stack.enter_context(borrowed(request)) for name, request in requests.items()}
        bar = stack.enter_context(progress_bar(progress, loader, max_images))
        first, batches = first_readable(batches_of(next(iter(requests.values())), loader, chosen, max_images))
        limit = how.limit(getattr(loader, "batch_size", None) or len(first))  # for all models, so that parts are the same
        looked = {name: first_pass(request, first, devices[name], limit) for name, request in requests.items()}
        check_alike({name: one.request for name, one in looked.items()})
        manifest |= _findings(looked, first, devices, limit, loader)
        jobs = {
            name: stack.enter_context(started(one.request, first, devices[name], one.layers, limit, fast=True))
            for name, one in looked.items()
        }
        plan = _Plan.of(jobs)
        source = None if first.group is None else group_source(chosen)
        manifest |= {} if source is None else {"groups": {"by": source, "weights": chosen.weights}}
        manifest |= _identity(looked, manifest, first, max_images, source)
        for batch in batches:
            failures += batch.failed
            if len(batch):
                frames += in_parts(plan.first, batch, plan.rows)
            bar.images(count_images(plan.first.protocol, batch))
        frames += plan.unreadable(failures) if failures else []
    rows = pd.concat(frames, ignore_index=True)
    readable = rows[rows["status"] != UNREADABLE]
    check_labelled(plan.first.protocol, readable["label"], readable["target"].notna())
    return CrossScores(rows, manifest | completed(manifest) | describe_data(rows, failures, []) | count_groups(manifest, rows))


def _identity(
    looked: Mapping[str, FirstPass], manifest: Mapping[str, Any], first: Batch, max_images: int | None, groups: str | None
) -> dict[str, Any]:
    """The manifest's entries on what was measured: the settings that all models share, and the layers of each."""
    one = next(iter(looked.values()))
    own, *_ = manifest["models"].values()
    shared = run_identity(one.request, own, one.layers, first, max_images, None, groups)
    del shared["model"], shared["layers"]
    return {
        "cross": {
            "models": list(looked),
            "layers": {name: [layer.address for layer in each.layers] for name, each in looked.items()},
        },
        "first_image": describe_image(first.ids[0], first.images[0]),
        "run": shared,
    }


def _findings(
    looked: Mapping[str, FirstPass], first: Batch, devices: Mapping[str, torch.device], limit: BatchLimit, loader: Any
) -> dict[str, Any]:
    """The manifest's entries on what the first images show: the number of classes, and reasons not to trust the numbers.

    A finding that all models share is said once; others begin with the name of the model.
    """
    checks = {name: check_model(one, first, devices[name], limit, loader) for name, one in looked.items()}
    known = {name: check.classes for name, check in checks.items() if check.classes is not None}
    check_classes(known)
    named: dict[str, tuple[Finding, list[str]]] = {}
    for name, check in checks.items():
        for finding in check.findings:
            named.setdefault(finding.text, (finding, []))[1].append(name)
    found = [
        finding if len(names) == len(looked) else replace(finding, text=f"{', '.join(names)}: {finding.text}")
        for finding, names in named.values()
    ]
    return {"classes": next(iter(known.values()), None), "findings": [finding.to_dict() for finding in found]}


@dataclass(frozen=True)
class _Plan:
    """The maps of all models, in the order in which every model is shown the images that they mask.

    Attributes:
        jobs: By the name of the model; the first one also makes the control maps.
        pairs: Layer and method of each map.
        masks_of: The model of each map, or the name of the control map.
    """

    jobs: Mapping[str, Job]
    pairs: Sequence[Pair]
    masks_of: Sequence[str]

    @classmethod
    def of(cls, jobs: Mapping[str, Job]) -> _Plan:
        """The plan of some jobs.

        Raises:
            AddressError: The models have different numbers of layers.
        """
        names = paired_names(jobs)
        pairs, masks_of = [], []
        for name, job in jobs.items():
            own = iter(names)
            for place, (explainer, _) in zip(job.names, job.pairs, strict=True):
                control = isinstance(explainer, Control)
                pairs.append(place if control else next(own))
                masks_of.append(explainer.name if control else name)
        return cls(jobs, pairs, masks_of)

    @property
    def first(self) -> Job:
        """The job of the first model."""
        return next(iter(self.jobs.values()))

    def rows(self, batch: Batch) -> pd.DataFrame:
        """Every map on every model: one forward and backward pass of each model, then the masked passes."""
        passes, maps = {}, []
        for name, job in self.jobs.items():
            passed = run_batch(job, batch)
            maps += raw_maps(job, passed)
            passes[name] = passed.without_layers()
        common = _common_targets(list(passes.values()))
        frames = [self._rows_on(name, batch, passed, maps, common) for name, passed in passes.items()]
        return pd.concat(frames).sort_index(kind="stable")  # image by image, map by map, model by model

    def unreadable(self, failures: Sequence[Failure]) -> list[pd.DataFrame]:
        """The rows of images that could not be read, as many as of any other image."""
        metrics = [metric.name for metric in self.first.metrics]
        frames = [self._named(failed_rows(failures, self.pairs, metrics), name) for name in self.jobs]
        return [pd.concat(frames).sort_index(kind="stable")]

    def _rows_on(
        self, name: str, batch: Batch, passed: BatchPass, maps: Sequence[Tensor], common: tuple[Tensor, Tensor]
    ) -> pd.DataFrame:
        """All maps on one model."""
        pairs = [pair for job in self.jobs.values() for pair in job.pairs]
        job, device = replace(self.jobs[name], pairs=pairs), passed.context.images.device
        here, controls = [one.to(device) for one in maps], MatchedControls(job, passed)
        confidences = masked_confidences(job, passed, here, controls)
        values, curves = judge_maps(job, batch, passed, here, confidences, controls)
        targets, differ = (one.to(device) for one in common)
        measured = Measured.of(batch, passed, confidences, values, curves)
        measured = replace(measured, targets=targets, has_target=measured.has_target & ~differ)
        rows = measured_rows(measured, self.pairs, job.metrics, job.protocol)
        apart = [image_id for image_id, apart in zip(batch.ids, differ.tolist(), strict=True) if apart]
        rows.loc[rows["image_id"].isin(apart) & (rows["status"] == "no_target"), "status"] = DISAGREE
        return self._named(rows, name)

    def _named(self, rows: pd.DataFrame, model: str) -> pd.DataFrame:
        """Rows of all maps with the columns `masks_of` and `model`, after the method and the group."""
        place = list(rows.columns).index(GROUP if GROUP in rows else "method") + 1
        rows.insert(place, "masks_of", list(self.masks_of) * (len(rows) // len(self.masks_of)))
        rows.insert(place + 1, "model", model)
        return rows


def _common_targets(passes: Sequence[BatchPass]) -> tuple[Tensor, Tensor]:
    """The class that all models explain, `[N]`, -1 where there is none; and where their classes differ, `[N]`."""
    classes = torch.stack([passed.targets.cpu() for passed in passes])
    known = torch.stack([passed.has_target.cpu() for passed in passes]).all(dim=0)
    differ = known & (classes != classes[0]).any(dim=0)
    return classes[0].masked_fill(~known | differ, -1), differ
