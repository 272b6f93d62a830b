"""Rules by which layers are selected for attention: which columns they use, what they need, and what they test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xaieval.config.metric_names import own_name
from xaieval.errors import MetricError

__all__ = ["DEFAULT_RULES", "RULES", "Rule", "rule_of"]

Against = Literal["best", "zero"]


@dataclass(frozen=True)
class Rule:
    """A rule by which layers are selected.

    Attributes:
        name: The name of the rule; empty for metrics that were named one by one.
        metrics: The columns that decide.
        meaning: One sentence.
        needs: How to get the columns.
        against: What a layer is tested against: the "best" layer of each column, or "zero".
        decimals: Number of decimals in texts.
    """

    name: str
    metrics: tuple[str, ...]
    meaning: str = ""
    needs: str = ""
    against: Against = "best"
    decimals: int = 1


DEFAULT_RULES = ("oracle-gate", "ad-ic")  # the winner of the experiment on rules; and what every run has the columns for

_RULES = (
    Rule(
        "ad-ic",
        ("increase_in_confidence", "average_drop"),
        "A layer needs attention if its maps lose much of the confidence (AD) and rarely raise it (IC), as in the paper.",
        'score with metrics=("average_drop", "increase_in_confidence")',
    ),
    Rule(
        "excess",
        ("average_drop_excess",),
        "A layer needs attention if its maps keep little more of the confidence than the same maps at another place.",
        'score with metrics=("average_drop",) and controls="shifted"',
    ),
    Rule(
        "oracle-gate",
        ("oracle_gate",),
        "A layer needs attention if a gate that knows the class of the image would save much of the loss there.",
        "xaieval.training.fal.with_oracle_gate(scores, fpn, loader) adds it",
        decimals=3,
    ),
    Rule(
        "probe",
        ("probe",),
        "A layer needs attention if an attention branch, trained there on the features of the frozen network, saves loss.",
        "xaieval.training.fal.with_probe(scores, fpn, training_loader, loader) adds it",
        against="zero",
        decimals=3,
    ),
)
RULES: Mapping[str, Rule] = {rule.name: rule for rule in _RULES}


def rule_of(by: str | Sequence[str] | None, metrics: Sequence[Mapping[str, Any]]) -> Rule:
    """The rule of this name, or a rule of these metrics.

    Args:
        by: The name of a rule, or names of metrics; None for the first of `DEFAULT_RULES` that the run has the columns for.
        metrics: The metrics of the run's manifest.

    Raises:
        MetricError: The run lacks a column of the rule.

    Example:
        >>> rule_of("ad-ic", [{"name": "average_drop"}, {"name": "increase_in_confidence"}]).metrics
        ('increase_in_confidence', 'average_drop')
        >>> rule_of(None, [{"name": "oracle_gate"}, {"name": "average_drop"}]).name
        'oracle-gate'
        >>> rule_of(["average_drop"], []).metrics
        ('average_drop',)
    """
    known = [metric["name"] for metric in metrics]
    if by is None:
        by = next((name for name in DEFAULT_RULES if set(RULES[name].metrics) <= set(known)), DEFAULT_RULES[-1])
    names = (by,) if isinstance(by, str) else tuple(by)
    rule = RULES.get(names[0]) if len(names) == 1 else None
    if rule is None:
        return Rule("", tuple(own_name(name, known) for name in names))
    missing = [name for name in rule.metrics if name not in known]
    if missing:
        raise MetricError(f"the rule '{rule.name}' needs {' and '.join(missing)}, which the run does not have; {rule.needs}")
    return rule
