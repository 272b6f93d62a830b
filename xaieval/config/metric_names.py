"""Other names of metrics: abbreviations of papers, and the classes of Quantus."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from xaieval.config.spelling import plain_name
from xaieval.errors import MetricError, choose_from

__all__ = ["ABBREVIATIONS", "QUANTUS", "own_name"]

PREFIX = "quantus:"

ABBREVIATIONS: Mapping[str, str] = {
    "AD": "average_drop",
    "IC": "increase_in_confidence",
    "AG": "average_gain",
    "ADD": "drop_in_deletion",
    "ADCC": "adcc",
    "ARCC": "arcc",
    "MoRF": "morf",
    "LeRF": "lerf",
    "ROAD": "road",
    "IROF": "irof",
    "SIC": "sic",
    "AIC": "aic",
    "SRG": "symmetric_relevance_gain",
    "AbPC": "abpc",
    "SaCo": "saco",
    "RIS": "relative_input_stability",
    "ROS": "relative_output_stability",
    "RRS": "relative_representation_stability",
    "MPRT": "mprt",
}

QUANTUS: Mapping[str, str] = {
    "FaithfulnessCorrelation": "faithfulness_correlation",
    "FaithfulnessEstimate": "faithfulness_estimate",
    "IROF": "irof",
    "Infidelity": "infidelity",
    "Monotonicity": "monotonicity",
    "MonotonicityCorrelation": "monotonicity_correlation",
    "PixelFlipping": "deletion",
    "ROAD": "road_morf",
    "RegionPerturbation": "region_perturbation",
    "Selectivity": "selectivity",
    "SensitivityN": "sensitivity_n",
    "Sufficiency": "sufficiency",
    "AvgSensitivity": "average_sensitivity",
    "Consistency": "consistency",
    "Continuity": "continuity",
    "LocalLipschitzEstimate": "local_lipschitz",
    "MaxSensitivity": "max_sensitivity",
    "RelativeInputStability": "relative_input_stability",
    "RelativeOutputStability": "relative_output_stability",
    "RelativeRepresentationStability": "relative_representation_stability",
    "EfficientMPRT": "efficient_mprt",
    "MPRT": "mprt",
    "RandomLogit": "random_logit",
    "SmoothMPRT": "smooth_mprt",
    "AUC": "roc_auc",
    "AttributionLocalisation": "attribution_localisation",
    "Focus": "relevance_mass_accuracy",
    "PointingGame": "pointing_game",
    "RelevanceMassAccuracy": "relevance_mass_accuracy",
    "RelevanceRankAccuracy": "relevance_rank_accuracy",
    "TopKIntersection": "top_k_intersection",
    "Complexity": "entropy",
    "EffectiveComplexity": "effective_complexity",
    "Sparseness": "sparseness",
    "Completeness": "completeness",
    "InputInvariance": "input_invariance",
    "NonSensitivity": "non_sensitivity",
}

_BY_CASE = {other.lower(): own for other, own in ABBREVIATIONS.items()}


def own_name(name: str, known: Collection[str] = ()) -> str:
    """The name of a metric from one of its other names; any other name is returned unchanged.

    Args:
        name: A name of ours; an abbreviation of `ABBREVIATIONS`, in any case; or "quantus:" and the name of a class of Quantus.
        known: Names that are also found in another spelling, such as "AverageDrop" or "average-drop".

    Raises:
        MetricError: Quantus has no such class.

    Example:
        >>> own_name("AD"), own_name("quantus:Complexity"), own_name("insertion"), own_name("Average-Drop", ["average_drop"])
        ('average_drop', 'entropy', 'insertion', 'average_drop')
    """
    if name in known:
        return name
    if name.startswith(PREFIX):
        found = name.removeprefix(PREFIX)
        if found not in QUANTUS:
            raise MetricError(f"no metric {name!r}; {choose_from(found, QUANTUS)}")
        return QUANTUS[found]
    spelled = {plain_name(other): other for other in known}
    return _BY_CASE.get(name.lower()) or spelled.get(plain_name(name), name)
