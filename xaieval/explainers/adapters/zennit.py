"""Layer-wise relevance propagation by zennit's composites as explainers: by name, or with settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.adapters.base import CalledModel, Kind, Library, LibraryMethod, calling, leaf
from xaieval.explainers.adapters.canonizing import Gate, Negative, Structure, TokenMean, functions_for_rules, structure_of
from xaieval.explainers.adapters.function_calls import functions_as_modules
from xaieval.explainers.adapters.lending import split_repeated_calls
from xaieval.explainers.base import Context, Explainer
from xaieval.inference.tasks import Followed

__all__ = ["LIBRARY", "Zennit"]

NAME = "zennit"
# What part of the score may arrive at the pixels: biases take some of it, and beyond these limits the map says nothing.
LEAST, MOST = 0.01, 100.0


@dataclass(frozen=True, kw_only=True)
class ZennitKind(Kind):
    """How the adapter handles one of zennit's composites.

    Attributes:
        needs_layer: Composites explain the image.
        first: Whether the first layer has a rule of its own.
        box: Whether that rule needs the lowest and the highest value of a pixel.
        share: Whether relevance starts as 1, instead of the score.
    """

    needs_layer: bool = False
    passes: str = "2"
    first: bool = False
    box: bool = False
    share: bool = False


LRP = "Bach et al. 2015, PLoS ONE 10(7)"
KINDS: dict[str, ZennitKind] = {
    "EpsilonPlus": ZennitKind(paper=f"{LRP}; Montavon et al. 2017, arXiv 1512.02479"),
    "EpsilonPlusFlat": ZennitKind(paper="Lapuschkin et al. 2019, arXiv 1902.10178", first=True),
    "EpsilonAlpha2Beta1": ZennitKind(paper=LRP),
    "EpsilonAlpha2Beta1Flat": ZennitKind(paper="Lapuschkin et al. 2019, arXiv 1902.10178", first=True),
    "EpsilonGammaBox": ZennitKind(paper="Montavon et al. 2019, LNCS 11700", first=True, box=True),
    "ExcitationBackprop": ZennitKind(paper="Zhang et al. 2018, arXiv 1608.00507", share=True),
}


@dataclass(frozen=True)
class Zennit(LibraryMethod):
    """A composite of zennit: one rule of layer-wise relevance propagation for each kind of layer.

    The model is brought into the form that the rules need for the time of the call, whatever library it comes from: batch norms
    that follow a linear layer at once are merged into it, sums of two activations share relevance by their values, gates of
    squeeze-excitation and constant factors take none. The relevance of a pixel is the sum over its channels.

    Relevance starts as the score of the target. It is conserved, so that the map adds up to the score, where no layer has a
    bias or with `settings={"zero_params": "bias"}`. An image of whose score less than 1 % arrives at the pixels, or more than
    100 times as much, has a map of NaN.

    Args:
        method: The name of zennit's class.
        settings: Keywords for its constructor, such as `epsilon`, `gamma`, `zero_params`. `low` and `high` of `EpsilonGammaBox`
            are by default the lowest and the highest value of each channel of the image.
        label: The name in tables and rows. Default: library and class.

    Raises:
        ExplainerError: There is no such composite; when called: a layer or function of the model has no rule, or relevance is
            not conserved on any image.

    Reference:
        Anders et al., "Software for Dataset-wide XAI: From Local Explanations to Global Insights with Zennit, CoRelAy, and
        ViRelAy" (arXiv 2106.13200). The paper of each composite: `paper`.

    Example:
        >>> import torchvision, xaieval
        >>> method = Zennit("EpsilonPlus", settings={"zero_params": "bias"}, label="lrp")
        >>> xaieval.explain(torchvision.models.resnet18(), torch.rand(2, 3, 64, 64), method=method)["input"].shape
        torch.Size([2, 64, 64])
    """

    needs_logits = True  # with which the output of the changed model is compared
    library = NAME
    kinds = KINDS
    given = frozenset({"layer_map", "first_map", "canonizers"})
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def calls(self) -> list[Callable[..., Any]]:
        """The constructor of the composite."""
        from zennit import composites

        return [getattr(composites, self.method)]

    def to_dict(self) -> dict[str, Any]:
        """Settings for the manifest; empty by default."""
        return {"settings": self.settings} if self.settings else {}

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`."""
        with calling(NAME, self.name, context), torch.enable_grad():
            split_repeated_calls(context.model, lambda: context.read(context.images[:1]))
            first, addition = leaf(context.images[:1]), _addition()
            classes = functions_for_rules(addition)
            functions, read = functions_as_modules(context.model, classes, context.read, first)
            called = CalledModel(context, read)
            called.functions = functions
            covered = (*_with_rules(), addition, TokenMean, Gate, Negative)
            structure = structure_of(called, lambda: called(first), covered, self.name)
            composite = self._composite(structure, called, context.images)
            images = leaf(context.images)
            with composite.context(called):
                output = called(images)
                start = self._start(output, context)
                (relevance,) = torch.autograd.grad(output, images, start)
        return _kept(self.name, relevance.sum(dim=1), start)

    def _start(self, output: Any, context: Context) -> Tensor:
        """The relevance of the model's output: what each number contributes to the score.

        Raises:
            ExplainerError: The output is no tensor, or not that of the model.
        """
        if not isinstance(output, Tensor):
            raise ExplainerError(f"method '{self.name}' explains models that give one tensor; 'gradcam' explains any model")
        _check_same(self.name, output, context.logits)
        read = output.detach().requires_grad_()
        score = context.task.score(read, context.followed or Followed.all(context.targets))
        (gradient,) = torch.autograd.grad(score.sum(), read)
        return gradient if KINDS[self.method].share else gradient * read.detach()

    def _composite(self, structure: Structure, called: nn.Module, images: Tensor) -> Any:
        from zennit import composites, rules
        from zennit.types import Activation, AvgPool, BatchNorm

        kind, box = KINDS[self.method], {}
        if kind.first:
            _check_first(self.name, structure, called)
        if kind.box:
            places = tuple(range(2, images.ndim))
            box = {"low": images.amin(dim=places, keepdim=True), "high": images.amax(dim=places, keepdim=True)}
        layer_map = [(TokenMean, rules.Norm()), (AvgPool, rules.Norm()), (Activation, rules.Pass()), (BatchNorm, rules.Pass())]
        inner = getattr(composites, self.method)(**{"layer_map": layer_map, **box, **self.settings})
        affine = composites.NameMapComposite([(tuple(structure.affine), rules.Norm())])
        return composites.MixedComposite([affine, inner], canonizers=[_merging(structure.merged)])


LIBRARY = Library(
    name=NAME,
    package="zennit",
    install="pip install 'xaieval[zennit]'",
    methods={f"{NAME}:{name}": Zennit(name) for name in KINDS},
    classes=frozenset({"Composite"}),
    adapt=lambda made: _by_name_instead(type(made).__name__),
)


def _by_name_instead(kind: str) -> Explainer:
    """Refuse a composite that the user has made: which settings it has cannot be read from it, and so not be recorded.

    Raises:
        ExplainerError: With the form that works.
    """
    if kind in KINDS:
        raise ExplainerError(
            f"a {kind} of zennit does not say its settings; give '{NAME}:{kind}', or with settings "
            f"xaieval.explainers.Zennit('{kind}', settings={{...}}) with the keywords of {kind}"
        )
    raise ExplainerError(
        f"no method of zennit's {kind}; the composites with a method are {', '.join(KINDS)}, by name ('{NAME}:EpsilonPlus'); "
        "any other one can be run by a function (model, images, targets) that returns maps [N, H, W]"
    )


def _addition() -> type[nn.Module]:
    """The class of a sum of two activations, around the module that zennit has a rule for."""
    from zennit.layer import Sum

    class Addition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum = Sum()

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.sum(torch.stack(torch.broadcast_tensors(left, right), dim=-1))

    return Addition


def _merging(pairs: Sequence[tuple[str, str]]) -> Any:
    """Zennit's canonizer that merges these batch norms into these layers."""
    from zennit.canonizers import NamedMergeBatchNorm

    class Merging(NamedMergeBatchNorm):  # type: ignore[misc]  # zennit has no types
        @staticmethod
        def merge_batch_norm(modules: Any, batch_norm: Any) -> None:
            """Leave an exact identity: zennit forgets the epsilon, 0.001 in some networks, which adds up over their layers."""
            NamedMergeBatchNorm.merge_batch_norm(modules, batch_norm)
            batch_norm.running_var.data = batch_norm.running_var.data - batch_norm.eps

    return Merging([((linear,), norm) for linear, norm in pairs])


def _with_rules() -> tuple[type[nn.Module], ...]:
    """Classes of modules that the composites have a rule for, or that need none."""
    from zennit.types import Activation, AvgPool, BatchNorm, Linear

    kinds = (kind for group in (Activation, AvgPool, BatchNorm, Linear) for kind in _flat(group))
    return tuple(kind for kind in kinds if kind is not nn.MultiheadAttention)  # which has weights of its own


def _flat(group: Any) -> list[type[nn.Module]]:
    inner = [_flat(one) if hasattr(one, "__subclass__") else [one] for one in group.__subclass__]
    return [kind for kinds in inner for kind in kinds]


def _kept(name: str, maps: Tensor, start: Tensor) -> Tensor:
    """The maps, NaN where next to nothing of the relevance has arrived, or many times as much.

    Raises:
        ExplainerError: It is so for every image.
    """
    given, arrived = (one.flatten(1).sum(dim=1).abs() for one in (start, maps))
    share = arrived / given
    # A map of zeros is that of a score that does not depend on the image; it is flagged as constant.
    fits = (share >= LEAST) & (share <= MOST) | given.isnan() | (maps == 0).flatten(1).all(dim=1)
    if not fits.any():
        raise ExplainerError(
            f"method '{name}' does not conserve relevance in this model: {float(share.median()):.2g} of the score arrives at "
            "the pixels, as biases or denominators near 0 take the rest; take another composite, or 'gradcam'"
        )
    return maps.masked_fill(~fits.view(-1, 1, 1), torch.nan)


def _check_first(name: str, structure: Structure, called: nn.Module) -> None:
    from zennit.types import Convolution, Linear

    wanted = Convolution if "Box" in name else Linear
    registered = next((path for path, module in called.named_modules() if isinstance(module, wanted)), "")
    if registered != structure.first:
        raise ExplainerError(
            f"method '{name}' has a rule for the first layer, and takes '{registered.removeprefix('model.')}' for it, but "
            f"'{structure.first.removeprefix('model.')}' runs first; take 'zennit:EpsilonPlus'"
        )


def _check_same(name: str, output: Tensor, expected: Tensor | None) -> None:
    """Refuse a network that gives another output once its batch norms are merged."""
    if expected is None or expected.shape != output.shape:
        return
    finite = expected.flatten(1).isfinite().all(dim=1)
    one, other = output.detach()[finite], expected[finite]
    if not torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max() if other.numel() else 0) + 1e-6):
        raise ExplainerError(
            f"method '{name}' merges batch norms into the layers before them, which changes the output of this model; take "
            "'gradcam'"
        )
