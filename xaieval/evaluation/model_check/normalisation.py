"""Whether the images are normalised as the model was trained: by the statistics at its BatchNorms, and by trials.

A wrong mean and std still give maps and numbers, so nobody notices. Two kinds of evidence show it. The first BatchNorm of a
network sees a linear function of the images, so its stored mean and variance tell how the training images were normalised. And
a network is surer of images that look like those of its training. Both are computed for the images as they come, and for the
same images as if they were normalised in one of the common ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from xaieval.errors import advice
from xaieval.evaluation.model_check.look import BatchNormInput, Call, Look, recorded_inputs, trained_batch_norms
from xaieval.results.findings import Finding

__all__ = ["Normalisation", "find_wrong_normalisation", "normalisation_of"]

FAR, NEAR = 0.2, 0.1  # median divergence at the first BatchNorm: far from the training images, and near them
CLOSER = 0.25  # how much nearer another normalisation has to be
CONSISTENT = 0.15  # median over all BatchNorms; a larger one means that no normalisation explains the difference
SWAPPED = 0.7  # ratio of the mean divergences where the colours are in the other order
SCALED = 30.0  # ratio of variances that no other kind of images explains
ALIKE = 2.0  # ratio of the quartiles over channels; one scale gives all channels nearly the same
SURER = 0.15  # gain of the mean confidence that counts without BatchNorms
FEWEST, MOST_UP = 8, 0.9  # images, and the share of them whose confidence has to rise
ROUNDING = 0.01  # of a pixel value in [0, 1]
WHOLE, SAMPLED = 0.98, 4096  # share of the sampled values that have to be whole grey levels


@dataclass(frozen=True)
class Normalisation:
    """A way to turn pixels in [0, 1] into the numbers that a model gets.

    Attributes:
        name: In words.
        mean: Mean of each channel, or one for all.
        std: Standard deviation of each channel, or one for all.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation."""
        mean, std = self._by_channel(images)
        return images * std + mean

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Normalise pixels in [0, 1]."""
        mean, std = self._by_channel(pixels)
        return (pixels - mean) / std

    def swapped(self) -> Normalisation:
        """The same for images whose colours are in the other order."""
        return Normalisation(f"{self.name}, blue first", self.mean[::-1], self.std[::-1])

    def _by_channel(self, images: Tensor) -> tuple[Tensor, Tensor]:
        space = [1] * (images.ndim - 2)
        mean, std = (images.new_tensor(values).view(-1, *space) for values in (self.mean, self.std))
        return mean, std


PLAIN = Normalisation("no normalisation (pixels in [0, 1])", (0.0,), (1.0,))
BYTES = Normalisation("no scaling (pixels 0 to 255)", (0.0,), (1 / 255,))
HALF = Normalisation("mean 0.5 and std 0.5", (0.5,), (0.5,))
IMAGENET = Normalisation("the mean and std of ImageNet", IMAGENET_MEAN, IMAGENET_STD)
GREY = Normalisation("the mean and std of ImageNet in grey", (0.449,), (0.226,))
CLIP = Normalisation("the mean and std of CLIP", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def known_normalisations(channels: int) -> list[Normalisation]:
    """The common ways, narrow ranges first."""
    colour = [CLIP, IMAGENET] if channels == 3 else [GREY]
    return [PLAIN, HALF, *colour, BYTES]


def normalisation_of(images: Tensor) -> Normalisation | None:
    """How images are normalised: the common way that makes their pixels whole grey levels, or else the narrowest that fits.

    Args:
        images: Images `[N, C, H, W]`.

    Returns:
        None if the images fit none of the common ways.

    Example:
        >>> grey_levels = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16) / 255
        >>> normalisation_of((grey_levels - 0.5) / 0.5).name
        'mean 0.5 and std 0.5'
    """
    known = known_normalisations(images.shape[1])
    swapped = [way.swapped() for way in known if len(set(way.mean)) > 1]  # normalised after the colours were swapped, or before
    fitting = [way for way in (*known, *swapped) if _fits(way.to_pixels(images))]
    whole = [way for way in fitting if _are_grey_levels(way.to_pixels(images))]
    return next(iter([*whole, *fitting]), None)


def _fits(pixels: Tensor) -> bool:
    return float(pixels.min()) >= -ROUNDING and float(pixels.max()) <= 1 + ROUNDING


def _are_grey_levels(pixels: Tensor) -> bool:
    levels = pixels.flatten()[:: max(1, pixels.numel() // SAMPLED)] * 255
    return float(((levels - levels.round()).abs() < ROUNDING * 5).float().mean()) >= WHOLE


@dataclass(frozen=True)
class _Trial:
    """Images as another normalisation would give them.

    Attributes:
        way: The normalisation.
        images: The images.
    """

    way: Normalisation
    images: Tensor


def find_wrong_normalisation(model: nn.Module, call: Call, look: Look, look_again: Callable[[Tensor], Look]) -> list[Finding]:
    """Try the common normalisations on the first images.

    With BatchNorms, one full pass confirms the best of them; the others cost a pass up to the first BatchNorm. Without, each
    gets its share of the images, so that together they cost one pass.

    Args:
        model: The borrowed model.
        call: Runs it.
        look: The forward pass of the images as they came.
        look_again: Makes a forward pass of other images.
    """
    if look.confidence.isnan().any():
        return []
    return _find_better(model, call, look, look_again) or _wrong_scale(look)


def _find_better(model: nn.Module, call: Call, look: Look, look_again: Callable[[Tensor], Look]) -> list[Finding]:
    """The one of the common normalisations that is much nearer to that of the training."""
    present = normalisation_of(look.images)
    if present is None:
        return []
    pixels = present.to_pixels(look.images)
    same = {IMAGENET, CLIP} if present in (IMAGENET, CLIP) else {present}  # too close to be told apart
    others = [way for way in known_normalisations(pixels.shape[1]) if way not in same]
    if look.batch_norms:
        return _by_statistics(model, call, look, look_again, present, pixels, others)
    if isinstance(look.read, Tensor) and look.read.ndim == 2:  # sure of one class
        # Larger numbers make many networks surer, so pixels up to 255 prove nothing; CLIP's numbers are those of ImageNet.
        return _by_confidence(look, look_again, present, pixels, [way for way in others if way not in (BYTES, CLIP)])
    return []


def _by_statistics(
    model: nn.Module,
    call: Call,
    look: Look,
    look_again: Callable[[Tensor], Look],
    present: Normalisation,
    pixels: Tensor,
    others: Sequence[Normalisation],
) -> list[Finding]:
    """By the stored statistics of the first BatchNorm."""
    came = look.batch_norms[0]
    trials = [_Trial(way, way.of_pixels(pixels)) for way in others]
    inputs = [(trial, first_input(model, call, trial.images)) for trial in trials]
    best, statistics = min(inputs, key=lambda pair: _median(pair[1]))
    distance = _median(came)
    if distance > FAR and _median(statistics) < min(NEAR, CLOSER * distance):
        again = look_again(best.images)
        if _over_all(again) > CONSISTENT:
            return []
        evidence = _evidence(look, again) | {"variance_ratio": _ratio(came), "best_variance_ratio": _ratio(statistics)}
        reason = (
            f"their variance at the model's first BatchNorm would be {_ratio(statistics):.2g} times that of its training "
            f"images instead of {_ratio(came):.2g} times"
        )
        return [_finding(present.name, best, reason, evidence)]
    return _swapped(model, call, look, look_again, present) if pixels.shape[1] == 3 else []


def _swapped(
    model: nn.Module, call: Call, look: Look, look_again: Callable[[Tensor], Look], present: Normalisation
) -> list[Finding]:
    """Whether the colours are in the other order: the filters of the first layer see colours, so their statistics differ."""
    trial = _Trial(present.swapped(), look.images.flip(1))
    came = float(look.batch_norms[0].divergence.mean())
    swapped = float(first_input(model, call, trial.images).divergence.mean())
    if came < NEAR / 2 or swapped > SWAPPED * came:
        return []
    again = look_again(trial.images)
    evidence = _evidence(look, again) | {"divergence": came, "best_divergence": swapped}
    reason = f"they would be {swapped / came:.2g} times as far from the model's training images at its first BatchNorm"
    gains = again.confidence.mean() > look.confidence.mean()
    return [_finding(present.name, trial, reason, evidence)] if gains else []


def _by_confidence(
    look: Look,
    look_again: Callable[[Tensor], Look],
    present: Normalisation,
    pixels: Tensor,
    others: Sequence[Normalisation],
) -> list[Finding]:
    """By how sure the model is; only a large gain on nearly all images counts, and as many different classes."""
    colour = [_Trial(present.swapped(), look.images.flip(1))] if pixels.shape[1] == 3 else []
    trials = [*(_Trial(way, way.of_pixels(pixels)) for way in others), *colour]
    share = len(pixels) // len(trials)
    if share < FEWEST:
        return []
    again = look_again(torch.cat([trial.images[:share] for trial in trials]))
    confidences, classes = (values.view(len(trials), share) for values in (again.confidence, again.followed.classes))
    gains = confidences - look.confidence[:share]
    best = int(gains.mean(dim=1).argmax())
    gain, up = float(gains[best].mean()), float((gains[best] > 0).float().mean())
    # A network that is surer of one class whatever the image shows has only been driven out of its range.
    if gain < SURER or up < MOST_UP or len(classes[best].unique()) < len(look.followed.classes[:share].unique()):
        return []
    evidence = {
        "images": share,
        "mean_confidence": float(look.confidence[:share].mean()),
        "best_mean_confidence": float(confidences[best].mean()),
    }
    return [_finding(present.name, trials[best], f"the model would be surer of {up:.0%} of {share} images", evidence)]


def _wrong_scale(look: Look) -> list[Finding]:
    """Whether the first BatchNorm sees values of another scale, which no common normalisation explains."""
    if not look.batch_norms or not float(look.images.std()):  # blank images have no scale
        return []
    ratio, ratios = _ratio(look.batch_norms[0]), look.batch_norms[0].variance_ratio
    low, high = ratios.quantile(ratios.new_tensor([0.25, 0.75])).tolist()
    if 1 / SCALED < ratio < SCALED or high > ALIKE * low:
        return []
    text = (
        f"the images seem to have the wrong scale: at the model's first BatchNorm their variance is {ratio:.2g} times that of "
        "its training images, and no common normalisation explains it; normalise them as in the model's training, "
        f"by {advice('mean= and std= of Preprocessing', '--mean and --std')}"
    )
    minimum, maximum = float(look.images.min()), float(look.images.max())
    return [Finding("wrong_normalisation", text, {"variance_ratio": ratio, "minimum": minimum, "maximum": maximum})]


def _finding(present: str, best: _Trial, reason: str, evidence: Mapping[str, Any]) -> Finding:
    confidence, gained = evidence["mean_confidence"], evidence["best_mean_confidence"]
    return Finding(
        "wrong_normalisation",
        f"the images seem to have the wrong normalisation: they come with {present}, but with {best.way.name} {reason} (mean "
        f"confidence {confidence:.2f} as they come, {gained:.2f} then); normalise them as in the model's training, "
        f"by {advice('mean= and std= of Preprocessing', '--mean and --std')}",
        {"present": present, "best": best.way.name, **evidence},
    )


def _evidence(look: Look, again: Look) -> dict[str, Any]:
    return {
        "images": len(look.images),
        "mean_confidence": float(look.confidence.mean()),
        "best_mean_confidence": float(again.confidence.mean()),
    }


def _median(statistics: BatchNormInput) -> float:
    return float(statistics.divergence.median())


def _ratio(statistics: BatchNormInput) -> float:
    return float(statistics.variance_ratio.median())


def _over_all(look: Look) -> float:
    return float(torch.tensor([_median(statistics) for statistics in look.batch_norms]).median())


class _Enough(BaseException):
    """Ends a forward pass; not an `Exception`, which models may catch."""


def first_input(model: nn.Module, call: Call, images: Tensor) -> BatchNormInput:
    """The statistics at the first BatchNorm; the rest of the model does not run."""

    def stop(module: nn.Module, inputs: Any) -> None:  # runs after the hook that records
        raise _Enough

    with recorded_inputs(model) as records, torch.no_grad():
        handles = [module.register_forward_pre_hook(stop) for module in trained_batch_norms(model)]
        try:
            call(images)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
    return records[0]
