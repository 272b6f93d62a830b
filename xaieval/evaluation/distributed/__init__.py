"""One run in several processes, on one machine or many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xaieval.evaluation.distributed.rank import Rank

if TYPE_CHECKING:
    from xaieval.evaluation.distributed.shared_run import score

__all__ = ["Rank", "score"]


def __getattr__(name: str) -> Any:
    # Late, since the command line reads the rank before it needs torch.
    if name == "score":
        from xaieval.evaluation.distributed.shared_run import score

        return score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
