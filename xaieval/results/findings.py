"""What was found out about a run's model and data before its numbers: a name, a sentence, and the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """A reason to read the numbers of a run with care, found before they were measured.

    Attributes:
        name: A short name, such as "one_output".
        text: A sentence: what came, what it means, and the way out.
        evidence: Plain values (numbers, texts, lists of them) that the sentence rests on.

    Example:
        >>> found = Finding("one_output", "the model has one output per image", {"shape": [4, 1]})
        >>> Finding.from_dict(found.to_dict()) == found
        True
    """

    name: str
    text: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain values for a manifest."""
        return {"name": self.name, "text": self.text, "evidence": dict(self.evidence)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        """The finding of a manifest's entry."""
        return cls(entry["name"], entry["text"], dict(entry["evidence"]))
