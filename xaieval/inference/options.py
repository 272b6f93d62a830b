"""How a model is run: the options that `score`, `explain` and `sanity_check` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from xaieval.config.axes import check_layout
from xaieval.config.counts import check_count
from xaieval.errors import UsageError
from xaieval.inference.batch_limit import BatchLimit, parse_bytes
from xaieval.inference.forward_passes import Forward
from xaieval.inference.precision import AUTO, check_precision
from xaieval.inference.reproducibility import check_repeatable
from xaieval.inference.targets import Output
from xaieval.inference.tasks import Task, resolve_task

__all__ = ["Inference", "InferenceOptions", "LayerLayout"]

LayerLayout = str | Callable[[Tensor], Tensor]


class InferenceOptions(TypedDict, total=False):
    """The fields of `Inference` as keyword arguments."""

    task: str | Task
    output: Output
    forward: Forward | None
    grid: tuple[int, ...] | None
    prefix_tokens: int | None
    layout: LayerLayout | Mapping[str, LayerLayout] | None
    device: torch.device | str | None
    batch_size: int | None
    precision: str
    compile: bool
    memory: int | str | None
    fast: bool
    deterministic: bool


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is run and how its output is read.

    Give the options as keywords, `score(..., task="detection", device="cuda")`, or make one object for several calls:
    `score(..., inference=how)`, `explain(..., inference=how)`.

    Args:
        task: "classification", "detection" or "segmentation", or an object of `xaieval.inference.tasks`, which has more
            choices.
        output: Where the logits or detections are in the model's output: a key, an index or a function. Default: found
            automatically in tensors, mappings, tuples and objects with `.logits`.
        forward: A function `(model, images) -> output` that runs a model which takes more than images. Default:
            `model(images)`.
        grid: Height and width of the token grid of `[N, T, C]` layers, where it cannot be inferred; three numbers for volumes.
        prefix_tokens: Number of tokens before that grid, where it cannot be inferred. With both, the tokens that are left over
            come after the grid.
        layout: The axes of the layers' outputs, where they cannot be inferred: words such as "T N C" (sequence first),
            "N h w C" or "N*V C h w" (V views or frames of each image in the batch), or a function from the output to
            `[N, C, h, w]`, the counterpart of pytorch-grad-cam's `reshape_transform`. One for all layers, or a mapping from
            addresses or patterns. Gradients are converted in the same way. Views become further channels, so that a Grad-CAM is
            the sum over views.
        device: Where the model runs. Default: the model's device.
        batch_size: Images in a forward pass. Default: the loader's batch size. Masked images of several maps share a pass, so
            a loader with small batches does not make small passes.
        precision: "float32" (the model's own type), or a faster one for the passes that confidences come from: "bf16" or
            "fp16" by autocast, "tf32" on GPUs. Maps are always made in the model's own type. "auto" lets `score` and `search`
            try on the first batch whether a faster one pays and leaves the numbers where they are; what was measured and what
            was chosen is in the manifest. Other calls take float32 for it.
        compile: Run masked images through `torch.compile`, which is slow at first and pays off with many images.
        memory: Memory that the tensors of a batch may take, in bytes or as "4 GiB" or "500 MB"; fewer images run at a time if
            needed. Meant for CPUs, where a process that takes too much is killed. On GPUs an out-of-memory error has the same
            effect without this option.
        fast: Fold BatchNorms into convolutions and use the channels-last memory format while the model is borrowed; results
            change by rounding only. False runs the model's modules unchanged.
        deterministic: Give each image the same bits for any `batch_size`, number of processes and order of the images, which
            otherwise change results by rounding. Every pass then holds one image and runs in one thread, the model's modules
            run unchanged, and an operation that torch cannot repeat is an error.

    Raises:
        UsageError: An option is unknown or out of range, or two contradict each other.

    Example:
        >>> Inference(task="segmentation", memory="4 GiB").batch_size is None  # the loader's
        True
    """

    task: str | Task = "classification"
    output: Output = None
    forward: Forward | None = None
    grid: tuple[int, ...] | None = None
    prefix_tokens: int | None = None
    layout: LayerLayout | Mapping[str, LayerLayout] | None = None
    device: torch.device | str | None = None
    batch_size: int | None = None
    precision: str = "float32"
    compile: bool = False
    memory: int | str | None = None
    fast: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size, optional=True)
        check_count("prefix_tokens", self.prefix_tokens, 0, optional=True)
        if self.forward is not None and not callable(self.forward):
            raise UsageError(f"forward is a function (model, images) -> output, got {self.forward!r}")
        parse_bytes(self.memory)
        check_precision(self.precision)
        resolve_task(self.task, self.output)
        check_layout(self.layout)
        if self.deterministic:
            check_repeatable(self.compile, self.precision == AUTO)

    @property
    def images_per_pass(self) -> int | None:
        """Images in a forward pass, where the options say it."""
        return 1 if self.deterministic else self.batch_size

    def limit(self, size: int) -> BatchLimit:
        """The limit on the images in a pass: `size`, unless the options say another one."""
        return BatchLimit(self.images_per_pass or size, parse_bytes(self.memory))
