"""Whether the weights of a model are those of a new network."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from xaieval.results.findings import Finding

__all__ = ["find_random_weights"]


def find_random_weights(model: nn.Module) -> list[Finding]:
    """Check the normalisation layers: training changes all of them, so a network in which all are new was never trained.

    A model without such layers tells nothing.

    Example:
        >>> [finding.name for finding in find_random_weights(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))]
        ['random_weights']
    """
    layers = [module for module in model.modules() if _is_norm(module)]
    if not layers or not all(_is_new(layer) for layer in layers):
        return []
    return [
        Finding(
            "random_weights",
            f"the model has random weights: all {len(layers)} normalisation layers have the values of a new network (weight 1, "
            "bias 0), which training changes; load trained weights, because an untrained network has nothing to explain",
            {"normalisation_layers": len(layers)},
        )
    ]


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises with weights or stored statistics; libraries have many classes of their own."""
    return "norm" in type(module).__name__.lower() and any(True for _ in _values(module))


def _values(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = module._parameters.get(name, module._buffers.get(name))
        if value is not None and not value.is_meta:
            yield name, value


def _is_new(layer: nn.Module) -> bool:
    """Whether all values are those of a new layer."""
    new = {"weight": (0, 1), "running_var": (1,)}  # some networks start the last weight of a block at 0
    return all(any(bool((value == start).all()) for start in new.get(name, (0,))) for name, value in _values(layer))
