"""Random parameters in the place of a model's own, for metrics that ask whether maps depend on what the model has learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate

from torch import Tensor

from xaieval.inference.forward_passes import Runner
from xaieval.inference.randomisation import ModelPart, Swap, draw_anew, find_parts, swapped

__all__ = ["RandomParameters"]

Modules = tuple[str, ...] | None


@dataclass(frozen=True)
class RandomParameters:
    """The random parameters of a run: drawn once, and the same for all batches.

    Values depend on the seed and the path of their module. Which modules run, and in which order, shows on the first images.

    Attributes:
        parts: By the patterns that name them, the parts of the model from its output to its input.
        drawn: The values by path of the module.
    """

    parts: dict[Modules, list[ModelPart]] = field(default_factory=dict)
    drawn: dict[str, list[Swap]] = field(default_factory=dict)

    def steps(self, runner: Runner, images: Tensor, seed: int, order: str, modules: Sequence[str] | None) -> list[list[Swap]]:
        """What is random in each step.

        Args:
            runner: Of the run; its model has its own parameters again on return.
            images: Images of any batch.
            seed: Of the run.
            order: "top_down" or "bottom_up", one part more in each step, from the output or from the input; "independent", one
                part at a time; or "complete", all parts in one step.
            modules: Paths or patterns of the parts. Default: each module that holds parameters itself.

        Raises:
            AddressError: A pattern matches no module with parameters.
            ModelError: The model has no parameters.
        """
        with runner.lent():
            parts = self._found(runner, images, modules if modules is None else tuple(modules))
            missing = [path for part in parts for path in part.holders if path not in self.drawn]
            self.drawn.update(draw_anew(runner.model, missing, seed))
        one_each = [[swap for path in part.holders for swap in self.drawn[path]] for part in parts]
        if order == "independent":
            return one_each
        cascade = list(accumulate(one_each if order != "bottom_up" else one_each[::-1]))
        return cascade if order != "complete" else cascade[-1:]

    @contextmanager
    def in_place(self, runner: Runner, swaps: Sequence[Swap]) -> Iterator[Runner]:
        """A runner of the model with these parameters. On exit, also after an error, the model has its own again.

        The parameters are those of the unfolded model, and a compiled one may have its own inside, so neither is used here.
        """
        with runner.lent(), swapped(swaps):
            yield replace(runner, forward=runner.inside, folding=None)

    def _found(self, runner: Runner, images: Tensor, modules: Modules) -> list[ModelPart]:
        if modules not in self.parts:
            first = runner.batch_limit.first(images, lambda part: find_parts(runner.model, part, runner.inside, modules))
            self.parts[modules] = first
        return self.parts[modules]
