"""What `layers=` takes: addresses, patterns, and modules of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from xaieval.errors import AddressError

__all__ = ["Layers", "to_addresses"]

Layers = str | nn.Module | Iterable[str | nn.Module]


def to_addresses(layers: Layers, model: nn.Module) -> list[str]:
    """The addresses and patterns of `layers=`.

    A module becomes its path in the model; for one that the model contains twice, the first of its paths. A `ModuleList` or
    `ModuleDict` does not run itself, so it stands for the modules in it.

    Args:
        layers: An address or pattern, a module of the model, or any number of them.
        model: The model.

    Raises:
        AddressError: A module is not part of the model, or an item is neither text nor a module.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18()
        >>> to_addresses(model.layer4, model), to_addresses(["conv1", model.layer3[-1]], model)
        (['layer4'], ['conv1', 'layer3.1'])
    """
    single = isinstance(layers, str | nn.Module)
    if not single and not isinstance(layers, Iterable):
        raise _wrong_kind(layers)
    items = [layers] if single else layers
    paths = {module: path for path, module in model.named_modules()}
    return [address for item in items for address in _addresses(item, paths)]  # type: ignore[union-attr]  # checked above


def _addresses(item: object, paths: dict[nn.Module, str]) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, nn.ModuleList | nn.ModuleDict):
        for module in item.children():
            yield from _addresses(module, paths)
    elif isinstance(item, nn.Module):
        yield _path(item, paths)
    else:
        raise _wrong_kind(item)


def _path(module: nn.Module, paths: dict[nn.Module, str]) -> str:
    kind = type(module).__name__
    if module not in paths:
        raise AddressError(
            f"layers= has a {kind} that is not a module of this model; give a module of the model that is explained, not of a "
            "copy of it and not a slice (model.features[4], not model.features[:5]), or an address"
        )
    if not paths[module]:
        raise AddressError(f"layers= has the model itself ({kind}); give modules of it, such as model.layer4, or addresses")
    return paths[module]


def _wrong_kind(item: object) -> AddressError:
    return AddressError(
        f"layers= takes addresses such as 'layer4', modules of the model, or a list of them; got "
        f"{' '.join(repr(item).split())[:60]} of type {type(item).__name__}"
    )
