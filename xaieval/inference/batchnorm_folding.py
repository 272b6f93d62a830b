"""BatchNorm folded into the convolutions before it, inside a borrowed model, and undone afterwards.

Which pairs can be folded is seen in one forward pass: the functions that run are watched, not the modules' classes, so that a
convolution whose output goes elsewhere too, or is used twice, is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["Folding", "Pair", "find_pairs", "folded"]

CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}

# What is left of a normalisation's forward once its arithmetic is in the convolution.
REMAINDERS: dict[type, Callable[[Any, Tensor], Tensor]] = {
    nn.BatchNorm1d: lambda norm, x: x,
    nn.BatchNorm2d: lambda norm, x: x,
    nn.BatchNorm3d: lambda norm, x: x,
    nn.SyncBatchNorm: lambda norm, x: x,
    BatchNormAct2d: lambda norm, x: norm.act(norm.drop(x)),
}


@dataclass(frozen=True)
class Pair:
    """A convolution whose output goes into a BatchNorm and nowhere else."""

    convolution: Any  # mypy takes attributes of modules for tensors or modules
    norm: Any


def find_pairs(
    model: nn.Module, images: Tensor, probed: Iterable[str] = (), call: Callable[[Tensor], Any] | None = None
) -> list[Pair]:
    """The pairs of a model in eval mode that can be folded, found in one forward pass.

    Args:
        model: borrowed.
        images: `[N, C, H, W]`; one is enough.
        probed: paths of modules whose outputs somebody looks at; those convolutions are left alone.
        call: runs the model on images; `model(images)` unless told.

    Example:
        >>> import torchvision
        >>> len(find_pairs(torchvision.models.resnet18().eval(), torch.rand(1, 3, 64, 64)))
        20
    """
    left_alone = set(probed)
    by_weight = {id(m.weight): m for name, m in model.named_modules() if name not in left_alone and _is_convolution(m)}
    by_mean = {id(m.running_mean): m for m in model.modules() if type(m) in REMAINDERS and "forward" not in vars(m)}
    if not by_weight or not by_mean:
        return []
    watch = _watched(model, images, left_alone, model if call is None else call)
    found = []
    for mean, (source, count) in watch.normalised().items():
        convolution, norm = by_weight.get(source), by_mean.get(mean)
        if convolution is not None and norm is not None and count == 1:
            found.append(Pair(convolution, norm))
    return found


def _watched(model: nn.Module, images: Tensor, probed: Iterable[str], call: Callable[[Tensor], Any]) -> _Watch:
    """What a forward pass does; outputs of the model itself and of probed modules are looked at by somebody."""
    watch = _Watch()
    with ExitStack() as undo:
        for module in (model, *(model.get_submodule(path) for path in probed)):
            hook = module.register_forward_hook(lambda module, inputs, output: watch.look_at(output))
            undo.callback(hook.remove)
        undo.enter_context(torch.no_grad())
        undo.enter_context(watch)
        watch.look_at(call(images))
    return watch


@dataclass(frozen=True)
class Folding:
    """Pairs that are folded for a while.

    Attributes:
        own: of each convolution its weight, as data, and its bias, as the parameter or None.
        fused: likewise, with the normalisation's arithmetic in them.
    """

    pairs: list[Pair]
    own: list[tuple[Tensor, Any]]
    fused: list[tuple[Tensor, Any]]

    def _fold(self) -> None:
        for pair, tensors in zip(self.pairs, self.fused, strict=True):
            _give(pair.convolution, *tensors)
            # A bound method, which torch.compile recognises when the same model is compiled again.
            pair.norm.forward = MethodType(REMAINDERS[type(pair.norm)], pair.norm)

    def _unfold(self) -> None:
        for pair, tensors in zip(self.pairs, self.own, strict=True):
            _give(pair.convolution, *tensors)
            vars(pair.norm).pop("forward", None)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Have the modules as they are by themselves, for somebody who looks inside."""
        # What else was done to the weights since, such as another layout in memory, is to stay.
        self.fused[:] = [(pair.convolution.weight.data, pair.convolution._parameters["bias"]) for pair in self.pairs]
        self._unfold()
        try:
            yield
        finally:
            self._fold()


@contextmanager
def folded(pairs: Iterable[Pair]) -> Iterator[Folding]:
    """Fold these pairs; the modules get their own weights and their own forward back, come what may."""
    pairs = list(pairs)
    own = [(pair.convolution.weight.data, pair.convolution._parameters["bias"]) for pair in pairs]
    folding = Folding(pairs, own, [_fused(pair) for pair in pairs])
    try:
        folding._fold()
        yield folding
    finally:
        folding._unfold()


def _give(convolution: Any, weight: Tensor, bias: Any) -> None:
    convolution.weight.data = weight
    convolution._parameters["bias"] = bias


def _fused(pair: Pair) -> tuple[Tensor, nn.Parameter]:
    """Weight and bias of both together, computed in float64 where the device has it."""
    convolution, norm = pair.convolution, pair.norm
    weight = convolution.weight.data
    wide = weight.dtype if weight.device.type == "mps" else torch.float64

    def widened(tensor: Any) -> Any:
        return None if tensor is None else tensor.detach().to(wide)

    statistics = widened(norm.running_mean), widened(norm.running_var), norm.eps
    fused = fuse_conv_bn_weights(
        widened(weight), widened(convolution.bias), *statistics, widened(norm.weight), widened(norm.bias)
    )
    return fused[0].detach().to(weight.dtype), nn.Parameter(fused[1].detach().to(weight.dtype), requires_grad=False)


def _is_convolution(module: nn.Module) -> bool:
    """A convolution with weights of its own: not parametrised, not in half precision, its output not looked at by a hook."""
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module._parameters.get("weight") is not None
        and "bias" in module._parameters
        and module.weight.dtype in (torch.float32, torch.float64)
        and not module._forward_hooks
    )


class _Watch(TorchFunctionMode):
    """Sees every function that runs, and what becomes of the convolutions' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[int, Tensor]] = {}  # by id; kept alive, so that no id comes twice
        self.uses: Counter[int] = Counter()  # of each output
        self.runs: Counter[int] = Counter()  # of each weight and each running mean
        self.norms: list[tuple[int, int]] = []  # running mean, output

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not isinstance(result, int | float | torch.Size | torch.dtype | torch.device):
            self.look_at((args, kwargs))
        if function in CONVOLUTIONS:
            weight = id(args[1] if len(args) > 1 else kwargs["weight"])
            self.runs[weight] += 1
            self.outputs[id(result)] = (weight, result)
        elif function is functional.batch_norm:
            self._note(args, kwargs)
        return result

    def look_at(self, values: Any) -> None:
        """Count a use of each output of a convolution among these."""
        self.uses.update({id(leaf) for leaf in tree_leaves(values) if id(leaf) in self.outputs})

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("input", "running_mean", "running_var", "weight", "bias", "training"), args, strict=False)) | kwargs
        mean = id(given.get("running_mean"))
        self.runs[mean] += 1
        if not given.get("training", False) and id(given["input"]) in self.outputs:
            self.norms.append((mean, id(given["input"])))

    def normalised(self) -> dict[int, tuple[int, int]]:
        """By running mean: the weight of the convolution before it, and 1 if neither ran, or went, anywhere else."""
        found = {}
        for mean, output in self.norms:
            weight = self.outputs[output][0]
            found[mean] = (weight, max(self.uses[output], self.runs[weight], self.runs[mean]))
        return found
