"""Fold BatchNorms into the convolutions before them, inside a borrowed model, and undo it afterwards.

One forward pass shows which pairs can be folded. It observes the functions that run, not the modules' classes, so a convolution
whose output is also used elsewhere, or used twice, is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["FoldablePair", "Folding", "find_foldable_pairs", "folded"]

CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}

# What remains of a normalisation's forward once its arithmetic is part of the convolution.
# Classes are named, so that timm, which takes long to import, is imported only by who uses it.
REMAINDERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "torch.nn.modules.batchnorm.BatchNorm1d": lambda norm, x: x,
    "torch.nn.modules.batchnorm.BatchNorm2d": lambda norm, x: x,
    "torch.nn.modules.batchnorm.BatchNorm3d": lambda norm, x: x,
    "torch.nn.modules.batchnorm.SyncBatchNorm": lambda norm, x: x,
    "timm.layers.norm_act.BatchNormAct2d": lambda norm, x: norm.act(norm.drop(x)),
}


@dataclass(frozen=True)
class FoldablePair:
    """A convolution whose output is used by one BatchNorm and by nothing else."""

    convolution: Any  # mypy takes attributes of modules for tensors or modules
    norm: Any


def find_foldable_pairs(
    model: nn.Module, images: Tensor, probed: Iterable[str] = (), call: Callable[[Tensor], Any] | None = None
) -> list[FoldablePair]:
    """Find the pairs of a model in eval mode that can be folded, with one forward pass.

    Args:
        model: The borrowed model.
        images: Images `[N, C, H, W]`; one is enough.
        probed: Paths of modules whose outputs are probed; these convolutions are not folded.
        call: Runs the model on images. Default: `model(images)`.

    Example:
        >>> import torchvision
        >>> len(find_foldable_pairs(torchvision.models.resnet18().eval(), torch.rand(1, 3, 64, 64)))
        20
    """
    excluded = set(probed)
    by_weight = {id(m.weight): m for name, m in model.named_modules() if name not in excluded and _is_convolution(m)}
    by_mean = {id(m.running_mean): m for m in model.modules() if _class_of(m) in REMAINDERS and "forward" not in vars(m)}
    if not by_weight or not by_mean:
        return []
    recorder = _record_pass(model, images, excluded, model if call is None else call)
    pairs = []
    for mean, (source, count) in recorder.normalised().items():
        convolution, norm = by_weight.get(source), by_mean.get(mean)
        if convolution is not None and norm is not None and count == 1:
            pairs.append(FoldablePair(convolution, norm))
    return pairs


def _record_pass(model: nn.Module, images: Tensor, probed: Iterable[str], call: Callable[[Tensor], Any]) -> _Recorder:
    """Record one forward pass. Outputs of the model itself and of probed modules count as used."""
    recorder = _Recorder()
    with ExitStack() as undo:
        for module in (model, *(model.get_submodule(path) for path in probed)):
            hook = module.register_forward_hook(lambda module, inputs, output: recorder.count_uses(output))
            undo.callback(hook.remove)
        undo.enter_context(torch.no_grad())
        undo.enter_context(recorder)
        recorder.count_uses(call(images))
    return recorder


@dataclass(frozen=True)
class Folding:
    """Pairs that are folded at the moment.

    Attributes:
        pairs: The folded pairs.
        original: The weight (data) and bias (parameter or None) of each convolution.
        fused: The weight and bias of each convolution with the arithmetic of its BatchNorm included.
    """

    pairs: list[FoldablePair]
    original: list[tuple[Tensor, Any]]
    fused: list[tuple[Tensor, Any]]

    def _fold(self) -> None:
        for pair, tensors in zip(self.pairs, self.fused, strict=True):
            _set_weights(pair.convolution, *tensors)
            # A bound method, because torch.compile recognises it when the same model is compiled again.
            pair.norm.forward = MethodType(REMAINDERS[_class_of(pair.norm)], pair.norm)

    def _unfold(self) -> None:
        for pair, tensors in zip(self.pairs, self.original, strict=True):
            _set_weights(pair.convolution, *tensors)
            vars(pair.norm).pop("forward", None)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Unfold the pairs inside this context, for code that looks at the model's own weights."""
        # Other changes made to the weights since, such as another memory layout, have to stay.
        self.fused[:] = [(pair.convolution.weight.data, pair.convolution._parameters["bias"]) for pair in self.pairs]
        self._unfold()
        try:
            yield
        finally:
            self._fold()


@contextmanager
def folded(pairs: Iterable[FoldablePair]) -> Iterator[Folding]:
    """Fold these pairs. The modules get their own weights and forward back on exit, also after an error."""
    pairs = list(pairs)
    original = [(pair.convolution.weight.data, pair.convolution._parameters["bias"]) for pair in pairs]
    folding = Folding(pairs, original, [_fused(pair) for pair in pairs])
    try:
        folding._fold()
        yield folding
    finally:
        folding._unfold()


def _set_weights(convolution: Any, weight: Tensor, bias: Any) -> None:
    convolution.weight.data = weight
    convolution._parameters["bias"] = bias


def _fused(pair: FoldablePair) -> tuple[Tensor, nn.Parameter]:
    """The fused weight and bias, computed in float64 where the device supports it."""
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


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution that can be folded: not parametrised, not in half precision, without forward hooks."""
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module._parameters.get("weight") is not None
        and "bias" in module._parameters
        and module.weight.dtype in (torch.float32, torch.float64)
        and not module._forward_hooks
    )


class _Recorder(TorchFunctionMode):
    """Records every function that runs, and where the outputs of convolutions are used."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[int, Tensor]] = {}  # by id; kept alive, so that no id is reused
        self.uses: Counter[int] = Counter()  # of each output
        self.runs: Counter[int] = Counter()  # of each weight and each running mean
        self.norms: list[tuple[int, int]] = []  # running mean, output

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not isinstance(result, int | float | torch.Size | torch.dtype | torch.device):
            self.count_uses((args, kwargs))
        if function in CONVOLUTIONS:
            weight = id(args[1] if len(args) > 1 else kwargs["weight"])
            self.runs[weight] += 1
            self.outputs[id(result)] = (weight, result)
        elif function is functional.batch_norm:
            self._note(args, kwargs)
        return result

    def count_uses(self, values: Any) -> None:
        """Count one use of each convolution output in `values`."""
        self.uses.update({id(leaf) for leaf in tree_leaves(values) if id(leaf) in self.outputs})

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        mean = id(arguments.get("running_mean"))
        self.runs[mean] += 1
        if not arguments.get("training", False) and id(arguments["input"]) in self.outputs:
            self.norms.append((mean, id(arguments["input"])))

    def normalised(self) -> dict[int, tuple[int, int]]:
        """By running mean: the weight of the convolution before it, and how often either was used or run; 1 if only once."""
        by_mean = {}
        for mean, output in self.norms:
            weight = self.outputs[output][0]
            by_mean[mean] = (weight, max(self.uses[output], self.runs[weight], self.runs[mean]))
        return by_mean
