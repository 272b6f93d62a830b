"""The whole job: a loop over a loader, from images to `Scores`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.config.protocol import Protocol, plain, resolve_protocol
from xaieval.data.batches import Batch, read_batches
from xaieval.errors import ExplainerError, UsageError
from xaieval.evaluation.early_stopping import Stop, resolve_stop
from xaieval.evaluation.image_order import Shuffled
from xaieval.evaluation.maps import Job, finished_maps, look, make_pairs, raw_maps
from xaieval.evaluation.measure import measure
from xaieval.evaluation.run_state import Run, show_progress
from xaieval.evaluation.scores import Scores
from xaieval.explainers import Explainer, Method, check_black_box, resolve_methods
from xaieval.explainers.controls import CONTROLS
from xaieval.inference.batch_limit import BatchLimit, in_batches, parse_bytes, refused_without_room
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import Forward, Runner, called, check_precision, sped_up
from xaieval.inference.reproducibility import check_repeatable, repeatable
from xaieval.inference.targets import Output, Target
from xaieval.inference.tasks import Task, predicted_score, resolve_task
from xaieval.metrics import Metric, resolve_metrics
from xaieval.models.blackbox import BlackBox, Function, as_module
from xaieval.probe.hooks import locate, to_device
from xaieval.results.manifest import new_manifest

__all__ = ["explain", "score"]

FULL_PASS = 16  # images in a pass where a method makes many of few


def score(
    model: nn.Module | Function,
    loader: Iterable[Any],
    layers: str | Iterable[str] = (),
    methods: Method | Sequence[Method] = ("gradcam",),
    metrics: str | Metric | Sequence[str | Metric] = ("average_drop", "increase_in_confidence"),
    target: Target | None = None,
    protocol: str | Protocol = "default",
    *,
    controls: bool = False,
    device: torch.device | str | None = None,
    stop: str | Stop | None = None,
    precision: str = "float32",
    compile: bool = False,
    memory: int | str | None = None,
    fast: bool = True,
    deterministic: bool = False,
    batch_size: int | None = None,
    max_images: int | None = None,
    output_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    seed: int = 0,
    task: str | Task = "classification",
    output: Output = None,
    forward: Forward | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
) -> Scores:
    """Measure how good a model's explanations are, per layer and method: the whole job in one call.

    The model is given back as it was: mode, hooks, gradients, device.

    Args:
        model: an image classifier: images `[N, C, H, W]`, or volumes `[N, C, D, H, W]`, to logits `[N, K]` (or see `output`);
            or a mere function, which becomes a `xaieval.models.BlackBox`.
        loader: batches of `(images, labels)`, `images`, or mappings with `image` / `images` / `pixel_values`, and optionally
            `label` / `labels` (classes `[N]`, or zeros and ones `[N, K]` where several are true) and `id`; images are
            normalised as the model expects.
        layers: addresses or patterns: "layer4", "fpn[*]", "blocks.*"; or "auto", a choice of the model's stages.
        methods: names ('xaieval-bench methods' lists them), `Explainer` objects, objects of captum, pytorch-grad-cam and
            torch-cam, or functions `(model, images, targets) -> maps`.
        metrics: names or `Metric` objects.
        target: "predicted", "label", a class index, or a function of logits and labels; the protocol's choice unless told,
            which is "predicted" by default.
        protocol: a name or a `Protocol`.
        controls: score the control maps too, which know nothing of the model: random, uniform, center, edges and fake-cam. The
            summary then says in which metrics a method beats all of them.
        stop: "ranking", "best", "worst" or a `Stop`: take the images in a random order by the seed, and stop when the order of
            the layers, or which is the best or the worst, is certain to be that of all images. Needs a `DataLoader` over a data
            set with a length.
        device: where to work; the model's own unless told.
        precision: "float32" (the model's own type), or "bf16" for the passes that confidences come from, by autocast, on
            processors that have it; maps are made in the model's own type.
        compile: run masked images through torch.compile, which takes a while at first and pays with many images.
        memory: what the tensors of a batch may take, in bytes or as "4 GiB" or "500 MB": fewer images run at a time where that
            is too little for all. Meant for a CPU, where a process is ended that takes too much. A GPU says itself that it is
            full, and fewer images run then, too.
        fast: fold BatchNorms into convolutions and lay memory out with channels last while the model is borrowed, which changes
            results by rounding alone; False runs the model's modules as they are.
        deterministic: give each image the same bits whatever `batch_size`, number of processes and order of the images, which
            change results by rounding otherwise. Every pass then holds one image and runs in one thread, the model's modules
            run as they are, and what torch cannot repeat is an error.
        batch_size: images in a forward pass; the loader's batches unless told. Masked images of several maps fill a batch
            together, so that a loader's small batches make no small passes.
        max_images: stop after so many images.
        output_dir: where rows, summary and manifest are written, and what is measured so far, batch by batch. The same call
            goes on from there, whatever ended the run before; a call for another run is refused.
        resume: False measures what is there again.
        progress: show a progress bar, where stderr is a terminal.
        seed: of random explainers and of the bootstrap.
        task: "classification", "detection" or "segmentation", or an object of
            `xaieval.inference.tasks`, which has more choices.
        output: where the logits or detections are in the model's output: a key, an index or a function.
        forward: how to run a model that takes more than images: a function `(model, images) -> output`.
        grid: height and width of the token grid of `[N, T, C]` layers, where it cannot be inferred; three numbers of
            volumes.
        prefix_tokens: number of tokens before that grid, likewise; with both, what is left over comes after the grid.

    Returns:
        Rows and manifest; `summary()` gives the table.

    Raises:
        UsageError: one of its kinds, for what cannot work as given.
        RunError: no image could be read, a single one does not fit in memory, or the protocol asks for an error where a value
            is invalid.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> import torch, torchvision
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> scores = score(model, [torch.rand(4, 3, 64, 64)], layers=["layer3", "layer4"], progress=False)
        >>> list(scores.summary().index), len(scores.rows)
        ([('layer3', 'gradcam'), ('layer4', 'gradcam')], 8)
    """
    model = as_module(model)
    protocol = _settle(protocol, target, model)
    explainers, chosen = _methods(methods, model, controls), resolve_metrics(metrics)
    asked = resolve_task(task, output)
    addresses = _addresses(layers, explainers)
    _check_numbers(seed, batch_size=batch_size, max_images=max_images)
    budget = parse_bytes(memory)
    check_precision(precision)
    if deterministic:
        check_repeatable(compile)
        batch_size, fast = 1, False
    rule = resolve_stop(stop)
    shuffled = None if rule is None else Shuffled(loader, seed, max_images)
    run = Run(chosen, new_manifest(model, seed, chosen), output_dir, resume)
    with (
        run.under_way(),
        borrow(model, device) as there,
        repeatable() if deterministic else nullcontext(),
        ExitStack() as undo,
        show_progress(progress, shuffled or loader, max_images) as advance,
    ):
        run.manifest["device"] = there.type
        if controls:
            run.manifest["controls"] = [control.name for control in CONTROLS]

        @refused_without_room()
        def begin(batch: Batch) -> Runner:
            """The first images settle where the layers are, and how passes are made."""
            images = to_device(batch.images, there)
            call = called(model, forward)
            told = partial(predicted_score, asked)
            size = batch_size or getattr(loader, "batch_size", None) or len(batch)  # not of a last, smaller batch
            batch_limit = BatchLimit(size, budget)
            where = partial(locate, model, layers=addresses, forward=call, grid=grid, prefix_tokens=prefix_tokens, score=told)
            found = batch_limit.first(images, where)
            job = Job(found, make_pairs(explainers, found), protocol, asked, seed, chosen)
            settings = {"max_images": max_images, "precision": precision, "stop": rule and asdict(rule)}
            settings |= {"deterministic": True} if deterministic else {}
            run.begin(job, batch, **({} if forward is None else {"forward": plain(forward)}), **settings)
            run.watch(rule, shuffled)
            paths = {item.layer.path for item in found}
            how = partial(sped_up, fast=fast, precision=precision, compile=compile, task=asked, forward=forward)
            return run.made_by(undo.enter_context(how(model, images, paths, batch_limit)))

        runner = None
        for batch in read_batches(shuffled or loader, batch_size, max_images):
            run.fail(batch.failed)
            if len(batch):
                batch = batch.copied() if deterministic else batch
                runner = runner or begin(batch)
                if not run.has(batch):
                    run.add(batch, measure(runner, batch, run.started, there))
                    run.made_by(runner)  # passes may have become smaller
            advance(len(batch) + len(batch.failed))
            if run.is_settled():
                break
        return run.finish()


def explain(
    model: nn.Module | Function,
    images: Tensor,
    layers: str | Iterable[str] = (),
    method: Method = "gradcam",
    target: Target | None = None,
    *,
    labels: Tensor | None = None,
    ids: Sequence[str] | None = None,
    protocol: str | Protocol = "default",
    device: torch.device | str | None = None,
    memory: int | str | None = None,
    seed: int = 0,
    task: str | Task = "classification",
    output: Output = None,
    forward: Forward | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
) -> dict[str, Tensor]:
    """Explanation maps of a batch, from several layers in one forward and one backward pass.

    The model is given back as it was.

    Args:
        model: an image classifier, or a function.
        images: `[N, C, H, W]` or volumes `[N, C, D, H, W]`, normalised as the model expects.
        layers: addresses or patterns, or "auto"; none for a method that needs no layer.
        method: a name, an `Explainer` or a function `(model, images, targets) -> maps`.
        target: "predicted", "label" (with `labels`), a class index, or a function; the protocol's choice unless told.
        labels: true classes `[N]`, or zeros and ones `[N, K]`.
        ids: of the images, for methods that read files or draw random numbers by them; "0", "1", ... unless told.
        protocol: says how maps are normalised, and what the gradient is taken of.
        device: where to work; the model's own unless told.
        memory: as for `score`.
        seed: of random explainers.
        task: "classification", "detection" or "segmentation", or an object of `xaieval.inference.tasks`.
        output: where the logits or detections are in the model's output.
        forward: how to run a model that takes more than images: a function `(model, images) -> output`.
        grid: height and width of the token grid of `[N, T, C]` layers, where it cannot be inferred; three numbers of
            volumes.
        prefix_tokens: number of tokens before that grid, likewise; with both, what is left over comes after the grid.

    Returns:
        By address (or "input" for a method without layer) maps `[N, H, W]`, of volumes `[N, D, H, W]`, in [0, 1], of the
        images' size, on the device where they were made. A map that is NaN or constant comes out as zeros.

    Raises:
        UsageError: one of its kinds, for what cannot work as given.
        RunError: a single image does not fit in memory.

    Example:
        >>> import torch, torchvision
        >>> maps = explain(torchvision.models.resnet18(), torch.rand(2, 3, 64, 64), ["layer4"])
        >>> maps["layer4"].shape
        torch.Size([2, 64, 64])
    """
    model = as_module(model)
    protocol = _settle(protocol, target, model)
    explainers = _methods(method, model)
    addresses = _addresses(layers, explainers)
    batch = next(read_batches([{"image": images, "label": labels, **({} if ids is None else {"id": ids})}]))
    with borrow(model, device) as there:
        call = called(model, forward)
        asked = resolve_task(task, output)
        first, told = to_device(batch.images, there), partial(predicted_score, asked)
        batch_limit = BatchLimit(max(len(batch), FULL_PASS), parse_bytes(memory))
        where = partial(locate, model, layers=addresses, forward=call, grid=grid, prefix_tokens=prefix_tokens, score=told)
        with refused_without_room():
            found = batch_limit.first(first, where)
        job = Job(found, make_pairs(explainers, found), protocol, asked, seed)
        runner = Runner(model, call, call, batch_limit)

        def maps(part: Batch) -> list[Tensor]:
            raw = raw_maps(runner, look(runner, part, job, there), job)
            return [finished_maps(one, part.images, protocol).maps for one in raw]

        parts = zip(*in_batches(runner.batch_limit, batch, maps), strict=True)
        return {layer: torch.cat(of_layer) for (layer, _), of_layer in zip(job.names, parts, strict=True)}


def _settle(protocol: str | Protocol, target: Target | None, model: nn.Module) -> Protocol:
    """The protocol with the caller's target; a black fill gets the numbers that images are normalised with."""
    settled = resolve_protocol(protocol)
    if target is not None:
        settled = replace(settled, target=target)
    config = getattr(model, "pretrained_cfg", None)  # models of timm know them
    if settled.fills_black and settled.mean is None and isinstance(config, Mapping):
        settled = replace(settled, mean=tuple(config["mean"]), std=tuple(config["std"]))
    return settled


def _methods(methods: Method | Sequence[Method], model: nn.Module, controls: bool = False) -> list[Explainer]:
    """The methods, with the control maps after them that are not among them already."""
    explainers = resolve_methods(methods)
    if controls:
        missing = [control for control in CONTROLS if not any(control is explainer for explainer in explainers)]
        explainers = resolve_methods([*explainers, *missing])
    if isinstance(model, BlackBox):
        check_black_box(explainers)
    return explainers


def _addresses(layers: str | Iterable[str], explainers: Sequence[Explainer]) -> list[str]:
    """The layers to probe: none if no explainer needs one."""
    needing = [explainer.name for explainer in explainers if explainer.needs_layer]
    addresses = [layers] if isinstance(layers, str) else list(layers)
    if needing and not addresses:
        raise ExplainerError(f"method {needing[0]!r} needs layers=, and none were given; 'xaieval-bench layers' lists all")
    return addresses if needing else []


def _check_numbers(seed: int, **sizes: int | None) -> None:
    if seed < 0:
        raise UsageError(f"seed is at least 0, got {seed}")
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise UsageError(f"{name} is at least 1, got {size}")
