"""All metrics with settings that a slow machine bears, and which of them a map alone is enough for.

The lists are made from the catalogue, so that a new metric takes part in every benchmark of metrics.
"""

from __future__ import annotations

from xaieval import metrics as of
from xaieval.metrics import METRICS, Metric

__all__ = ["AGAIN", "COSTLY", "DESCRIBES", "SETTLED", "asks_again", "judges_one_map", "left_out"]

STEPS = 10  # of curves, and groups of pixels
SHARES = (0.05, 0.15)  # of the pixels that ROAD removes; a cue covers about a twentieth of its scene
SHOWN = (0.03, 0.1, 0.3)  # shares of the pixels on the curves of information
SIDE = 16  # of patches, in pixels
COARSE = (
    of.insertion(STEPS),
    of.deletion(STEPS),
    of.morf(STEPS),
    of.lerf(STEPS),
    of.road(SHARES),
    of.road_morf(SHARES),
    of.road_lerf(SHARES),
    of.monotonicity(STEPS),
    of.faithfulness_estimate(STEPS),
    of.faithfulness_correlation(samples=30),
    of.sensitivity_n((0.03, 0.3), samples=20),
    of.mu_fidelity(samples=50),
    of.monotonicity_correlation(STEPS, samples=3),
    of.effective_complexity(steps=STEPS, samples=3),
    of.non_sensitivity(grid_size=6),
    of.region_perturbation(regions=20, segments=SIDE),
    of.selectivity(segments=SIDE),
    of.irof("slic-25"),
    of.symmetric_relevance_gain(steps=STEPS),
    of.sic(SHOWN, baseline="blur"),
    of.aic(SHOWN, baseline="blur"),
    of.pixel_average_precision(100),
    of.box_accuracy(thresholds=20),
    of.max_sensitivity(3),
    of.average_sensitivity(3),
    of.local_lipschitz(3),
    of.continuity(4, share=0.25),
    of.relative_input_stability(3),
    of.relative_representation_stability(3),
    of.relative_output_stability(3),
    of.smooth_mprt(samples=2),
    of.arcc((0.2, 0.6)),
)
SETTLED: dict[str, Metric] = METRICS | {metric.name: metric for metric in COARSE}
# These still take 20 to 65 forward passes for each image and map, or compress pictures, so they are scored on fewer images.
COSTLY = (
    "faithfulness_correlation",
    "sensitivity_n",
    "mu_fidelity",
    "monotonicity_correlation",
    "effective_complexity",
    "non_sensitivity",
    "region_perturbation",
    "selectivity",
    "irof",
    "sic",
    "aic",
)
# What a map alone does not have, by the name of the input.
AGAIN = {
    "masked_maps": "it asks for the map of the masked image",
    "randomise": "it asks for maps of models with random parameters",
    "explain": "it asks for maps of moved images",
    "attribute": "it asks for maps of noisy images",
    "inspect": "it asks for maps of altered images",
    "inspect_maps": "it asks for maps of altered images",
    "inspect_layer": "it asks for maps of altered images",
    "explain_class": "it asks for the map for another class",
    "explain_by": "it asks for the map by another method",
    "attribute_shifted": "it asks for the map of the shifted image",
    "lend": "it asks another library for maps",
}
DESCRIBES = "it describes a map, so no value is better"


def asks_again(metric: Metric) -> str:
    """What a metric asks of the method beyond the map, in words; empty if the map is enough."""
    return next((words for need, words in AGAIN.items() if need in metric.needs), "")


def judges_one_map() -> list[Metric]:
    """The metrics that say of one map whether it is good: with a direction, and without asking its method again."""
    left = left_out()
    return [metric for name, metric in SETTLED.items() if name not in left]


def left_out() -> dict[str, str]:
    """By name, the other metrics, with the reason."""
    reasons = {name: asks_again(metric) or DESCRIBES * (metric.higher_is_better is None) for name, metric in SETTLED.items()}
    return {name: reason for name, reason in reasons.items() if reason}
