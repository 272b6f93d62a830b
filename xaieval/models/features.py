"""Classifiers on models that give features, such as DINOv2 and DINOv3: by reference images, or by a linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from xaieval.config.protocol import plain
from xaieval.errors import ModelError, TargetError, choose_from
from xaieval.inference.borrowing import borrow
from xaieval.inference.targets import Output, describe_value, find

__all__ = ["FewShot", "LinearHead"]

References = Mapping[str, Tensor] | Sequence[Tensor]


class FewShot(nn.Module):
    """Few-shot classifier: the score of a class is how similar the image is to its reference images.

    The reference of a class is the mean of its images' features, each scaled to length 1, and the logit is the cosine of the
    image's feature and the reference, divided by a temperature. References are computed once and stored in a buffer. Layer
    addresses start with `model`, such as `model.blocks.11`.

    Args:
        model: A model that gives features `[N, C]`, or an object with them as `pooler_output`. It is not copied. These are what
            the model itself takes for the image: the class token after the last norm in DINOv2 of timm and transformers and in
            DINOv3 of transformers, and the mean of the patch tokens in timm's DINOv3, by its `global_pool`. Models of timm give
            features with `num_classes=0`.
        references: Images `[n, C, H, W]` (one or more) of each class, prepared as the model expects, by name or in order.
        output: Where the features are in the model's output: a key, an index or a function. Default: found automatically.
        temperature: Divides the cosines; it matters for the softmax over the classes alone.
        batch_size: References per forward pass.

    Attributes:
        classes: The names of the classes; their numbers as text if the references have no names.

    Raises:
        ModelError: The model gives no features, or they are logits.
        TargetError: There are no references, or they are no images.

    Reference:
        Snell et al., "Prototypical Networks for Few-shot Learning" (arXiv 1703.05175), section 2.3, with the cosine instead of
        the distance; the temperature of 0.07 is that of DINO's nearest neighbours: Caron et al., "Emerging Properties in
        Self-Supervised Vision Transformers" (arXiv 2104.14294), appendix F.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> classifier = FewShot(backbone, {"dark": torch.zeros(1, 3, 8, 8), "bright": torch.ones(2, 3, 8, 8)})
        >>> classifier(torch.rand(5, 3, 8, 8)).shape, classifier.index("bright")
        (torch.Size([5, 2]), 1)
    """

    references: Tensor

    def __init__(
        self, model: Any, references: References, output: Output = None, temperature: float = 0.07, batch_size: int = 32
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ModelError(f"temperature is a positive number, got {temperature}")
        named = references if isinstance(references, Mapping) else {str(place): one for place, one in enumerate(references)}
        self.classes = [str(name) for name in named]
        self.model, self.output, self.temperature = model, output, temperature
        images = {name: _images(name, one) for name, one in named.items()}
        if not images:
            raise TargetError("there are no references; give images [n, C, H, W] for each class")
        means = []
        with borrow(model) as device, torch.no_grad():
            for one in images.values():
                features = torch.cat([self._features(part.to(device)) for part in one.split(batch_size)])
                means.append(features.mean(dim=0))
        self.register_buffer("references", functional.normalize(torch.stack(means), dim=1))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Cosines of the images and the references, divided by the temperature."""
        return self._features(images) @ self.references.T / self.temperature

    @property
    def settings(self) -> dict[str, Any]:
        """What the classes are and how they are compared, for manifests; the references themselves are a buffer."""
        return {"classes": self.classes, "temperature": self.temperature, "features": plain(self.output)}

    def index(self, name: str) -> int:
        """Class index of a name, for use as target.

        Raises:
            TargetError: There is no such class.
        """
        if name not in self.classes:
            raise TargetError(f"no class {name!r}; {choose_from(name, self.classes)}")
        return self.classes.index(name)

    def _features(self, images: Tensor) -> Tensor:
        """Features of length 1."""
        return functional.normalize(features_of(self.model, images, self.output), dim=1)


class LinearHead(nn.Module):
    """Linear probe: a model that gives features, and a linear layer that makes logits of them.

    Layer addresses of the model start with `model`, such as `model.blocks.11`.

    Args:
        model: A model that gives features, as for `FewShot`. It is not copied.
        weight: Weights of the classes, `[K, C]`.
        bias: One number per class. Default: none.
        output: Where the features are in the model's output, as for `FewShot`.

    Raises:
        ModelError: The shapes of weight and bias do not go together; when called: the model gives no features, or of another
            length.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> LinearHead(backbone, torch.rand(7, 4))(torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 7])
    """

    def __init__(self, model: Any, weight: Tensor, bias: Tensor | None = None, output: Output = None) -> None:
        super().__init__()
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            came = "" if bias is None else f" and a bias {list(bias.shape)}"
            raise ModelError(f"a linear head has a weight [K, C] and a bias [K]; got a weight {list(weight.shape)}{came}")
        self.model, self.output = model, output
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            if bias is not None:
                self.head.bias.copy_(bias)

    @property
    def settings(self) -> dict[str, Any]:
        """Where the features are, for manifests."""
        return {"features": plain(self.output)}

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the classes."""
        features = features_of(self.model, images, self.output)
        if features.shape[1] != self.head.in_features:
            raise ModelError(
                f"the model gives features of {features.shape[1]} numbers, and the head takes {self.head.in_features}; output= "
                "says which features it was trained on"
            )
        logits: Tensor = self.head(features)
        return logits


def features_of(model: Any, images: Tensor, output: Output = None) -> Float[Tensor, "n c"]:
    """The features that a model gives of images.

    Raises:
        ModelError: There are none, or they are logits.
    """
    result = model(images)
    found = find(result, output) if output is not None else getattr(result, "pooler_output", result)
    if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point():
        raise ModelError(
            f"the model gives no features [N, C]: got {describe_value(found)}; say where they are with output= (a key, an "
            "index, or a function of the output, such as lambda out: out.last_hidden_state[:, 0])"
        )
    classes = getattr(model, "num_classes", 0)
    if output is None and hasattr(model, "reset_classifier") and classes and found.shape[1] == classes:
        raise ModelError(f"the model gives {classes} logits, and features are expected; create it with num_classes=0")
    return found


def _images(name: str, images: Any) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim < 4 or not len(images):
        came = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise TargetError(f"the references of class {name!r} are images [n, C, H, W], one or more; got {came}")
    return images
