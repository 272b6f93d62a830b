"""The named protocols: whose convention each one is, its source, and which faults of a tool it repeats."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from xaieval.config.protocol import PROTOCOLS, Protocol

__all__ = ["PRESETS", "Preset", "changes"]

BOTH = ("average_drop", "increase_in_confidence")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named protocol, with what to know before comparing its numbers with published ones.

    All numbers are in percent. Where a tool gives fractions, its number is ours / 100.

    Attributes:
        name: The value for `protocol=`.
        does: The convention in words.
        source: Where the convention is described.
        open_choices: What the source leaves open, and what was chosen here; empty if nothing.
        faults: Faults of the tool that its numbers contain, and that are repeated; empty if none.
        metrics: The metrics that the source reports.

    Example:
        >>> preset = next(preset for preset in PRESETS if preset.name == "pytorch-grad-cam")
        >>> preset.protocol.denominator
        'none'
    """

    name: str
    does: str
    source: str
    open_choices: str = ""
    faults: str = ""
    metrics: tuple[str, ...] = BOTH

    @property
    def protocol(self) -> Protocol:
        """The choices of the protocol."""
        return PROTOCOLS[self.name]


def changes(protocol: Protocol) -> dict[str, Any]:
    """Choices in which a protocol differs from the default protocol.

    Example:
        >>> changes(PROTOCOLS["score-cam"])
        {'masking': 'top'}
    """
    default = PROTOCOLS["default"]
    chosen = {field.name: getattr(protocol, field.name) for field in fields(Protocol)}
    return {name: value for name, value in chosen.items() if value != getattr(default, name)}


PRESETS = (
    Preset(
        name="default",
        does="min-max after upsampling, soft mask on the normalised input, predicted class, softmax, all images",
        source="this project",
        metrics=(*BOTH, "average_gain"),
    ),
    Preset(
        name="grad-cam++",
        does="map divided by its maximum, then upsampled; soft mask, predicted class, softmax, all images",
        source="Chattopadhay et al. 2018 (arXiv 1710.11063), eq. 25 and section 4.1; maps as in the authors' code "
        "(adityac94/Grad_CAM_plus_plus, misc/utils.py)",
        open_choices="the source does not state the space of the mask: here it is the model's input; space='pixels' is the "
        "other reading. The code has no Average Drop, so maps are normalised as for its figures. The printed sum of Average "
        "Drop lacks the 1/N that the text has",
        metrics=(*BOTH, "win_percentage"),
    ),
    Preset(
        name="score-cam",
        does="min-max after upsampling, the lower half of the pixels set to 0, the upper half keeps its values; normalised "
        "input, predicted class, softmax",
        source="Wang et al. 2020 (arXiv 1910.01279), section 4.2; maps as in the authors' code (haofanwang/Score-CAM, "
        "cam/scorecam.py)",
        open_choices="the source does not state whether the kept pixels keep the values of the map; here they do, since the "
        "text speaks of a 'slightly' modified map",
    ),
    Preset(
        name="opti-cam",
        does="min-max after upsampling, soft mask on raw pixels before normalisation, label, softmax; with average gain",
        source="Zhang et al. 2024 (arXiv 2301.07002), eq. 13 to 15 and Table A.14; space as in the authors' code "
        "(hanwei0912/OptiCAM), where normalisation is the model's first layer",
        open_choices="Table A.14 is 'without input normalization', which leaves open whether the network also receives raw "
        "pixels; here the mask is applied to raw pixels, and the network receives normalised ones",
        metrics=(*BOTH, "average_gain"),
    ),
    Preset(
        name="opti-cam-normalised",
        does="as opti-cam, with the mask on the normalised input",
        source="Zhang et al. 2024 (arXiv 2301.07002), eq. 13 to 15 and Tables 1 and 2",
        metrics=(*BOTH, "average_gain"),
    ),
    *(
        Preset(
            name=f"tame-{percent}",
            does=f"min-max, then upsampled; {kept}; raw pixels before normalisation, predicted class, softmax",
            source="Ntrougkas et al. 2022 (arXiv 2301.07407); the authors' code (bmezaris/TAME, scripts/eval_script.py and "
            "utilities/metrics.py)",
            open_choices=open_choices,
        )
        for percent, kept, open_choices in (
            (100, "soft mask", ""),
            (50, "the lowest 50 % of the pixels set to 0, soft values kept", ""),
            (
                15,
                "the lowest 85 % of the pixels set to 0, soft values kept",
                "the code rounds the number of kept pixels up, here it is rounded to the nearest: at most one pixel less",
            ),
        )
    ),
    Preset(
        name="relevance-cam",
        does="the upper half of the pixels kept unchanged, the lower half set to 0; Average Drop only over images whose "
        "confidence drops, a tie counts as increase",
        source="Lee et al. 2021 (CVPR), from secondary sources",
        open_choices="the text of the paper was not available, and the authors' code (mongeoroo/Relevance-CAM) has no "
        "evaluation: class, score and space are those of the default",
        faults="the mean over dropping images has a different N for each method, and rises when small drops become gains; a "
        "confidence that stays exactly the same counts as increased",
    ),
    Preset(
        name="adcc",
        does="min-max, soft mask on the normalised input, predicted class, softmax: the same as default",
        source="Poppi et al. 2021 (arXiv 2104.10252); the authors' code (aimagelab/ADCC, metrics/average_drop.py)",
        open_choices="the code reads the map from an 8-bit image; here it is not rounded. The ADCC of the code multiplies 3 "
        "by the sum of the reciprocals, where a harmonic mean divides; and for a given class, its drop compares that class "
        "with the predicted one. Neither is repeated here",
        metrics=("average_drop", "coherency", "complexity", "adcc"),
    ),
    Preset(
        name="torch-cam",
        does="min-max with 1e-8 added to the range, then upsampled; soft mask on the normalised input, predicted class, "
        "gradients of the softmax, 1e-7 added to the denominator, NaN maps left out",
        source="torchcam 0.5.0, ClassificationMetric with logits_fn = softmax, as in its documentation",
        faults="a confidence near 1e-7 has half its drop; a map whose range is near 1e-8 is dimmed, which happens with "
        "gradients of a saturated softmax; NaN maps are left out, so that N differs between methods",
    ),
    Preset(
        name="pytorch-grad-cam",
        does="min-max after upsampling, soft mask on the normalised input, predicted class, softmax; the absolute drop",
        source="grad-cam 1.5.7, DropInConfidence and IncreaseInConfidence with ClassifierOutputSoftmaxTarget",
        faults="the drop is not divided by the confidence, so images with a low confidence hardly count",
    ),
    Preset(
        name="xplique",
        does="absolute value of the map, min-max with 1e-8 added to the range, soft mask on the model's input; 1e-8 added "
        "to the denominator",
        source="Xplique, xplique/metrics/fidelity.py (AverageDropMetric, AverageIncreaseMetric, AverageGainMetric)",
        open_choices="the caller chooses class and score: here they are predicted and softmax. The tool upsamples maps before "
        "it takes the absolute value, here it is taken first. Without activation= its score is the raw output of the model, "
        "and a negative one reverses the sign of the drop; here such images get a status",
        faults="evidence against the class counts like evidence for it; a map whose range is near 1e-8 is dimmed",
        metrics=(*BOTH, "average_gain"),
    ),
)
