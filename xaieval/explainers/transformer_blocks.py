"""The blocks of a vision transformer and their attentions, found by one pass of any model with attention over tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.attention_weights import WeightKeeper
from xaieval.inference.borrowing import python_modules

__all__ = ["BlockFinder"]


class BlockFinder(WeightKeeper):
    """Keeps the weights of each block, and finds the block's module: the outermost item of a list with one attention."""

    def __init__(self, images: int, name: str) -> None:
        super().__init__(images, name)
        self.items: set[nn.Module] = set()  # of lists
        self.running: list[nn.Module] = []
        self.around: list[list[nn.Module]] = []  # for each attention that was kept, the modules that were running

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know which modules are running."""
        modules = python_modules(model)
        self.items = {item for module in modules if isinstance(module, nn.ModuleList | nn.Sequential) for item in module}
        handles = []
        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda module, _: self.running.append(module)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, *_: object) -> None:
        self.running.pop()

    def _keep(self, weights: Tensor) -> None:
        super()._keep(weights)
        self.around.append(list(self.running))

    @property
    def pooled(self) -> bool:
        """Whether the last attention is that of a query that pools the tokens, which belongs to no block."""
        return self.blocks[-1].shape[-2] == 1

    def found(self) -> list[nn.Module]:
        """The blocks in order.

        Raises:
            ExplainerError: There is a block without a module of its own.
        """
        calls = self._calls()
        alone = [[item for item in around if item in self.items and sum(item in one for one in calls) == 1] for around in calls]
        if not all(alone):
            raise ExplainerError(
                f"method '{self.name}' needs blocks that are items of a ModuleList or Sequential, with one attention each; "
                "'generic-attention' needs no blocks"
            )
        return [items[0] for items in alone]

    def attentions(self) -> list[nn.Module]:
        """The innermost module around the attention of each block."""
        return [around[-1] for around in self._calls()]

    def _calls(self) -> list[list[nn.Module]]:
        return [around for around, weights in zip(self.around, self.blocks, strict=True) if weights.shape[-2] > 1]
