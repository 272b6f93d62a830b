"""What all maps of a batch share, so that the model is not shown the same images twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.evaluation.inspection import Inspected, inspected
from xaieval.evaluation.job import Job, make_pairs
from xaieval.evaluation.maps import BatchPass
from xaieval.explainers import Context, Explainer
from xaieval.inference.tasks import Followed
from xaieval.metrics.metric import Metric
from xaieval.results.manifest import digest
from xaieval.results.rows import Pair
from xaieval.results.tensors import tensor_bytes

__all__ = ["Shared"]

T = TypeVar("T")
Look = Callable[[Job], list[Inspected]]


@dataclass(frozen=True)
class Shared:
    """What is the same for all maps of a batch.

    Attributes:
        job: With all pairs of layer and method.
        batch: The original images, with the ground truth if the data has it.
        batch_pass: Of the original images, without activations and gradients.
        maps: Raw maps `[N, h, w]` of all pairs.
        judge: Of the original images, with the model that is asked about altered images.
        known: What was found for one map and holds for all, by what it is.
        seen: What was seen of altered images that are the same for all maps, by their content; None if they depend on the map.
        with_output: Whether what the model says of altered images is kept.
        with_layers: Whether the outputs of layers are kept.
    """

    job: Job
    batch: Batch
    batch_pass: BatchPass
    maps: Sequence[Tensor]
    judge: Context
    known: dict[Hashable, Any] = field(default_factory=dict)
    seen: dict[Hashable, Any] | None = None
    with_output: bool = False
    with_layers: bool = False

    def by_images(self, metrics: Sequence[Metric]) -> list[tuple[Shared, list[Metric]]]:
        """The metrics that look at the same altered images, together, with what they share.

        What was seen of altered images is forgotten after each list, so that memory does not grow with the number of metrics.
        """
        lists: dict[str, list[Metric]] = {}
        for metric in metrics:
            lists.setdefault(metric.altered_by, []).append(metric)
        return [(self._for(word, together), together) for word, together in lists.items()]

    def _for(self, word: str, metrics: Sequence[Metric]) -> Shared:
        needs = {need for metric in metrics for need in metric.needs}
        output, layers = bool(needs & {"inspect", "inspect_layer"}), "inspect_layer" in needs
        return replace(self, seen={} if word else None, with_output=output, with_layers=layers)

    def once(self, what: Hashable, find: Callable[[], T]) -> T:
        """What holds for all maps, found when it is first asked for."""
        if what not in self.known:
            self.known[what] = find()
        found: T = self.known[what]
        return found

    def inspect(self, number: int, images: Tensor) -> Inspected:
        """What the method of a pair, by its number, and the model say about altered images."""
        altered, followed = replace(self.batch, images=images), self.batch_pass.context.followed
        return self.look(number, ("images", images), lambda job: self.inspected(job, altered, followed))

    def look(self, number: int, what: tuple[Any, ...], look: Look) -> Inspected:
        """What is seen of one pair, by its number; of all pairs in one pass, if it is the same for all maps.

        Args:
            number: Of the pair.
            what: Words, numbers and tensors that say what is looked at.
            look: Gives what is seen of each pair of a job.
        """
        if self.seen is None:
            [found] = look(self.job.of_pair(number))
            return found
        content = _content(*what)
        if content not in self.seen:
            self.seen[content] = look(self.job)
        found_by_pair: list[Inspected] = self.seen[content]
        return found_by_pair[number]

    def inspected(self, job: Job, batch: Batch, followed: Followed | None) -> list[Inspected]:
        """One pass over images that serves all pairs of a job."""
        return inspected(job, batch, followed, self.with_output, self.with_layers)

    @property
    def maps_of_run(self) -> dict[Pair, Tensor]:
        """The raw maps by layer and method."""
        return dict(zip(self.job.names, self.maps, strict=True))

    def maps_by(self, explainer: Explainer) -> dict[Pair, Tensor]:
        """The raw maps of the original images by another method, at all layers of the run."""
        job = replace(self.job, pairs=make_pairs([explainer], self.job.layers))
        found = self.inspected(job, self.batch, self.batch_pass.context.followed)
        return {pair: one.raw for pair, one in zip(job.names, found, strict=True)}

    def ask(self, blocks: Any, wanted: Any) -> Tensor:
        """What `Context.ask` says of altered images; of those that were seen before, without showing them again."""
        if self.seen is None:
            return self.judge.ask(blocks, wanted)
        seen, asked, new = self.seen, list[Hashable](), list[tuple[Hashable, int]]()

        def unseen() -> Iterator[tuple[Tensor, Tensor]]:
            for images, numbers in blocks:
                content = _content(wanted, images, numbers)
                asked.append(content)
                if content not in seen:
                    seen[content] = None  # until the pass is over
                    new.append((content, len(images)))
                    yield images, numbers

        fresh = unseen()
        for first in fresh:  # if there is any
            found = self.judge.ask(chain([first], fresh), wanted)
            seen.update(zip((content for content, _ in new), found.split([count for _, count in new]), strict=True))
        return torch.cat([seen[content] for content in asked])


def _content(*what: Any) -> Hashable:
    """Words and numbers as they are, tensors by their values."""
    return tuple((tuple(one.shape), digest([tensor_bytes(one)])) if isinstance(one, Tensor) else one for one in what)
