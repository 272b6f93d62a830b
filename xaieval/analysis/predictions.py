"""Accuracy and confidence of a model on the images of a run, and findings based on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import bdtrc

from xaieval.analysis.stats.proportions import wilson_interval
from xaieval.config.labels import IGNORED
from xaieval.results.findings import Finding
from xaieval.results.record import RunRecord

__all__ = ["Predictions", "find_in_predictions", "predictions_of"]

FEWEST = 3  # images that a statement about confidences rests on
SATURATED, LOW = 0.999, 0.01  # confidences
MOST_SATURATED = 0.9  # share of images
CERTAIN = 0.99  # level of the interval of the accuracy
EQUAL = 1e-6  # relative difference of confidences
MOST_OTHERS = 0.9  # share of predictions that are classes above all labels
IMAGE_COLUMNS = ("label", "predicted", "confidence")  # the same in all rows of an image
OF_PARTS = ("detection", "segmentation")  # tasks
PROBABILITIES = ("softmax", "sigmoid")
ADVICE = (
    "check that label k is class k of the model and that it was trained for them; the predicted class, which is explained by "
    "default, needs no labels"
)


@dataclass(frozen=True)
class Predictions:
    """How often a model is right, and how sure it is.

    Attributes:
        labelled: Number of images that have one class as label and a prediction.
        correct: Number of those whose prediction is the label.
        images: Number of images with a confidence.
        mean_confidence: Mean confidence of the target class on the original images; NaN if there is none.
    """

    labelled: int
    correct: int
    images: int
    mean_confidence: float

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, in percent; NaN without labels."""
        return 100 * self.correct / self.labelled if self.labelled else float("nan")

    def __str__(self) -> str:
        accuracy = f"accuracy {self.accuracy:.1f} % ({self.correct} of {self.labelled} labels)" if self.labelled else ""
        confidence = f"mean confidence {self.mean_confidence:.3g} (n = {self.images})" if self.images else ""
        return ", ".join(filter(None, [accuracy, confidence]))


def predictions_of(rows: pd.DataFrame, classes: int | None = None) -> Predictions:
    """Accuracy and mean confidence of a run, each image counted once.

    Args:
        rows: The rows of a run.
        classes: The number of classes of the model, if it is known. A regression has only one, and its labels, such as ages,
            are then not classes.

    Example:
        >>> rows = pd.DataFrame({"image_id": list("aabb"), "label": [1, 1, 0, 0], "predicted": [1, 1, 1, 1]})
        >>> print(predictions_of(rows.assign(confidence=[0.8, 0.8, 0.6, 0.6])))
        accuracy 50.0 % (1 of 2 labels), mean confidence 0.7 (n = 2)
    """
    images = _images(rows)
    labelled = _labelled(images, classes)
    confidences = images["confidence"].dropna()
    return Predictions(
        labelled=len(labelled),
        correct=int((labelled["label"] == labelled["predicted"]).sum()),
        images=len(confidences),
        mean_confidence=float(confidences.mean()) if len(confidences) else float("nan"),
    )


def find_in_predictions(record: RunRecord) -> list[Finding]:
    """Reasons in the accuracy and the confidences of a run to doubt its numbers.

    - `labels_of_another_space`: labels that the model has no class for, or far fewer labels than classes with an accuracy that
      is not better than chance, or with predictions that are other classes.
    - `accuracy_at_chance`: such an accuracy otherwise.
    - `constant_confidences`, `saturated_confidences` (more than 90 % of the images above 0.999), `low_confidences` (median
      below 0.01).

    Args:
        record: A run. Its manifest may have `classes`, the number of classes of the model.
    """
    images = record.images(IMAGE_COLUMNS)
    run = record.manifest.get("run", {})
    kind = run.get("protocol.confidence", "softmax")
    # The class of an object or of most pixels need not be the label of the image.
    is_label = run.get("task", {}).get("name") not in OF_PARTS or run.get("protocol.target") == "label"
    return [
        *(_labels(images, record.manifest.get("classes")) if is_label else []),
        *_confidences(images["confidence"].dropna().to_numpy(dtype=float), kind),
    ]


def _images(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per image, with the columns that belong to the image."""
    return rows.reindex(columns=["image_id", *IMAGE_COLUMNS]).drop_duplicates("image_id")


def _labelled(images: pd.DataFrame, classes: int | None) -> pd.DataFrame:
    """The images whose label and prediction are classes, which the number of a regression and the label 255 are not."""
    if classes == 1:
        return images[:0]
    labelled = images.dropna(subset=["label", "predicted"])
    return labelled[labelled["label"] != IGNORED] if classes is not None and classes <= IGNORED else labelled


def _labels(images: pd.DataFrame, classes: int | None) -> list[Finding]:
    labelled = _labelled(images, classes)
    labels, predicted = (labelled[name].to_numpy(dtype=int) for name in ("label", "predicted"))
    if not len(labels):
        return []
    known = classes or int(max(labels.max(), predicted.max())) + 1
    n, correct, chance = len(labels), int((labels == predicted).sum()), 1 / max(known, 2)
    evidence = {"images": n, "correct": correct, "labels": len(set(labels.tolist())), "classes": known, "chance": 100 * chance}
    if classes is not None and labels.max() >= classes:
        text = f"the data has the label {labels.max()}, but the model has {classes} classes, 0 to {classes - 1}; {ADVICE}"
        return [Finding("labels_of_another_space", text, evidence)]
    few = known > 2 and labels.max() + 1 <= known / 2  # as 21 folders on a model of 1000 classes
    others = float((predicted > labels.max()).mean()) if few else 0.0
    by_chance = bdtrc(correct - 1, n, chance) if correct else 1.0  # the probability of as many correct ones or more
    better = others <= MOST_OTHERS and by_chance < 1 - CERTAIN
    if better or wilson_interval(correct, n, CERTAIN)[1] >= (1 + chance) / 2:
        return []
    text = (
        f"accuracy is {100 * correct / n:.1f} % ({correct} of {n} images), {_like_chance(others, chance)}: the data has "
        f"{evidence['labels']} different labels up to {labels.max()}, the model {known} classes; {ADVICE}"
    )
    return [Finding("labels_of_another_space" if few else "accuracy_at_chance", text, evidence)]


def _like_chance(others: float, chance: float) -> str:
    if others > MOST_OTHERS:
        return f"and {others:.0%} of the predictions are classes above all labels"
    return f"not significantly better than chance ({100 * chance:.3g} %)"


def _confidences(values: np.ndarray, kind: str) -> list[Finding]:
    """What is wrong with the confidences of different images; only the first that applies."""
    if len(values) < FEWEST:
        return []
    spread, median = float(values.max() - values.min()), float(np.median(values))
    evidence = {"images": len(values), "median": median, "minimum": float(values.min()), "maximum": float(values.max())}
    saturated = float((values > SATURATED).mean())
    if kind in PROBABILITIES and saturated > MOST_SATURATED:
        text = (
            f"{saturated:.0%} of the {len(values)} confidences are above {SATURATED}: Increase in Confidence then counts "
            "increases of less than 0.001; see what the protocol's confidence='identity' (the logit) says"
        )
        return [Finding("saturated_confidences", text, evidence | {"share": saturated})]
    if spread <= EQUAL * abs(median):
        text = (
            f"all {len(values)} images have the same confidence, {median:.4g}: the output does not depend on the image, so no "
            "map can explain it; check the model, its weights and output="
        )
        return [Finding("constant_confidences", text, evidence)]
    if kind in PROBABILITIES and median < LOW:
        text = (
            f"half of the {len(values)} confidences are below {median:.2g}: a drop is divided by them, so drops and increases "
            "are noise; explain the predicted class, or a model that recognises these images"
        )
        return [Finding("low_confidences", text, evidence)]
    return []
