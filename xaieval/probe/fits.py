"""How well a layer's layout explains which of its cells change when a part of the image is altered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from xaieval.probe.layouts import MOST_EXTRA, MOST_PREFIX, Layout, token_grids

__all__ = ["LEARNED", "Fit", "Share", "best_fit"]

LEARNED = "learned"  # key of a layer whose tokens are not zero and do not depend on the image
CHANCE, CERTAIN = 2.5, 4  # least correlation over its standard error: few cells and few positions agree by chance
CLEAR = 0.8  # agreement that is enough without further positions
FOLLOWS = 0.5  # of the largest possible agreement in standard deviations; queries reach 0.45, places 0.55 and more
FAR = 0.4  # of a side of the map: tokens in the order of windows are places too, but half the map away from their own
MOST_FAR = 1 / 8  # largest share of the positions for which the cell that changes most may be that far
ALIKE = 0.15  # smallest correlation of a map's changes with the places that were altered
OUTSIDE = 0.5  # largest share of the changes in a grid that many tokens outside it may have; prompts have 0.03, places 1
MOST_MIDDLE = 2  # tokens in the middle of a grid
UNUSUAL = 1.2  # factor by which a correlation counts less: for tokens in the middle of a grid, for a stride with a fraction

# The frames of each place stand together.
PLACE_BY_PLACE = {"tokens": "N h*w*d C", "sequence_first": "h*w*d N C", "N C T": "N C h*w*d"}

Share = tuple[tuple[float, float], ...]  # of each side of the image, from and to


@dataclass(frozen=True)
class Fit:
    """How well the changes of a layer's cells agree with the altered places under a layout.

    Attributes:
        layout: The layout.
        correlation: Between the changes and the overlap of each cell with the altered patch, less for an unusual layout.
        agreement: Of the order of the positions, in standard deviations over all orders; 1 for perfect agreement.
        far: Share of the positions for which the cell that changes most is far from the patch.
        error: Standard error that the correlation has where nothing follows.
    """

    layout: Layout
    correlation: float
    agreement: float
    far: float = 0
    error: float = 0

    @property
    def follows(self) -> bool:
        """Whether the cells are places."""
        return self.correlation >= max(ALIKE, CHANCE * self.error) and self.agreement >= FOLLOWS and self.far <= MOST_FAR

    @property
    def clear(self) -> bool:
        """Whether more positions need not be tried."""
        enough = self.correlation >= max(2 * ALIKE, CERTAIN * self.error)
        return enough and self.agreement >= CLEAR and self.far == 0


def best_fit(
    kinds: Mapping[str, Tensor],
    shape: tuple[int, ...],
    size: tuple[int, ...],
    shares: tuple[Share, ...],
    grid: tuple[int, ...] | None = None,
    prefix: int | None = None,
    maps: Mapping[tuple[int, ...], Tensor] | None = None,
) -> Fit | None:
    """The layout under which the changes of a layer's cells agree best with the altered places; None if there is none.

    Where maps come before the tokens, the grid is that of a map or a share of it, and the cells of a map that change are
    compared with the tokens of the same grid: a cell of a deep network sees much more than its share of the image.

    Args:
        kinds: The changes `[positions, cells]`, by kind of layout.
        shape: Shape of the layer's output.
        size: Height and width of the images inside the model.
        shares: For each position, the altered share of each side.
        grid: Height and width of the token grid, if the user gave it.
        prefix: Number of tokens before it, if the user gave it.
        maps: The changes `[positions, cells]` of maps before the layer, by size.
    """
    maps = maps or {}
    fits: list[Fit] = []
    for kind, change in kinds.items():
        if kind == LEARNED:
            continue
        logs = _logs(change)
        if logs is None:
            continue
        if kind.startswith("channels"):
            cells = shape[2:] if kind == "channels_first" else shape[1:-1]
            if math.prod(cells) > 1:
                fits.append(_fit(Layout(kind, cells), logs, _overlaps(cells, shares)))
            continue
        for cells in _grids(logs.shape[1], size, maps) if grid is None else [grid]:
            if 1 < math.prod(cells) <= logs.shape[1] and len(cells) == len(size):
                candidates = _token_fits(kind, cells, logs, _pattern(cells, shares, maps), prefix)
                fits += [_handicapped(fit, logs.shape[1], size, cells in maps) for fit in candidates]
    return max(fits, key=lambda fit: fit.correlation, default=None)


def _grids(tokens: int, size: tuple[int, ...], maps: Mapping[tuple[int, ...], Tensor]) -> list[tuple[int, ...]]:
    """The grids that tokens could be: those of maps before them, or maps of a coarser stride, or of any without a map."""
    found = token_grids(tokens, size)
    if not maps:
        return found
    coarser = [cells for cells in found if cells not in maps and any(_is_share(cells, whole) for whole in maps)]
    return [cells for cells in maps if tokens - MOST_EXTRA <= math.prod(cells) <= tokens] + coarser


def _is_share(cells: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether merging whole neighbouring cells of one grid gives the other."""
    return all(
        any(count in (side // stride, -(-side // stride)) for stride in range(1, side + 1))
        for count, side in zip(cells, whole, strict=True)
    )


def _pattern(cells: tuple[int, ...], shares: tuple[Share, ...], maps: Mapping[tuple[int, ...], Tensor]) -> Tensor:
    """Where a grid should change, `[positions, cells]`, centred: as the map of its size, or as it overlaps the patch."""
    logs = _logs(maps[cells]) if cells in maps else None
    return _overlaps(cells, shares) if logs is None else logs - logs.mean(dim=1, keepdim=True)


def _logs(change: Tensor) -> Tensor | None:
    """Logarithms of the changes, less the mean of each cell, so that a cell counts by where it changes more than usual."""
    largest = change.nan_to_num(0, 0, 0).amax(dim=1, keepdim=True)
    if not change.isfinite().all() or not (largest > 0).all():
        return None
    logs = (change / largest + 1e-3).log()
    return logs - logs.mean(dim=0)


@lru_cache(256)
def _overlaps(cells: tuple[int, ...], shares: tuple[Share, ...]) -> Tensor:
    """The overlap of each cell with each altered patch, `[positions, cells]`, centred."""
    rows = []
    for share in shares:
        overlap = torch.ones(1)
        for count, (start, end) in zip(cells, share, strict=True):
            edges = torch.arange(count + 1) / count
            along = (edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)).clamp(min=0)
            overlap = torch.outer(overlap, along).flatten()
        rows.append(overlap)
    overlaps = torch.stack(rows)
    overlaps = overlaps - overlaps.mean(dim=1, keepdim=True)
    return overlaps - overlaps.mean(dim=0)


def _fit(layout: Layout, logs: Tensor, overlaps: Tensor) -> Fit:
    logs = logs - logs.mean(dim=1, keepdim=True)
    product = logs @ overlaps.T  # of each position's changes with each position's patch: largest on the diagonal
    most = overlaps @ overlaps.T
    correlation = product.trace() / (logs.norm() * overlaps.norm()).clamp(min=1e-30)
    order = [matrix.trace() / matrix.norm().clamp(min=1e-30) for matrix in (product, most)]
    error = 1 / math.sqrt(math.prod(layout.size) * (len(logs) - 1))
    agreement = float(order[0] / order[1].clamp(min=1e-30))
    return Fit(layout, float(correlation), agreement, _far(layout.token_sides, logs, overlaps), error)


def _far(cells: tuple[int, ...], logs: Tensor, overlaps: Tensor) -> float:
    """The share of the positions for which the cell that changes most is far from the one that overlaps the patch most."""
    far = torch.zeros(len(logs), dtype=torch.bool)
    most, patch = logs.argmax(dim=1), overlaps.argmax(dim=1)
    for most_along, patch_along, side in zip(
        torch.unravel_index(most, cells), torch.unravel_index(patch, cells), cells, strict=True
    ):
        far |= (most_along - patch_along).abs() > max(2, FAR * side)
    return float(far.float().mean())


def _handicapped(fit: Fit, tokens: int, size: tuple[int, ...], is_map: bool) -> Fit:
    """The fit with a lower correlation where the layout is unusual, because many layouts are tried."""
    cells = math.prod(fit.layout.size)
    whole = is_map or all(side % count == 0 for side, count in zip(size, fit.layout.size, strict=True))
    factor = (1 if whole else UNUSUAL) * (UNUSUAL if fit.layout.middle else 1) * (2 - cells / tokens) ** 2
    return replace(fit, correlation=fit.correlation / factor)


def _token_fits(kind: str, cells: tuple[int, ...], logs: Tensor, overlaps: Tensor, prefix: int | None) -> list[Fit]:
    """The best fits of a grid, counted frame by frame, and where there are several frames also place by place."""
    ways = [kind, *([PLACE_BY_PLACE[kind]] if len(cells) == 3 and 1 < cells[0] < math.prod(cells) else [])]
    return [fit for way in ways for fit in _fits_among(Layout(way, cells), logs, overlaps, prefix)]


def _fits_among(layout: Layout, logs: Tensor, overlaps: Tensor, prefix: int | None) -> list[Fit]:
    """The best fit of a grid among the tokens: after any number of tokens, and with tokens in its middle."""
    count = math.prod(layout.size)
    overlaps = layout.in_token_order(overlaps)
    extra = logs.shape[1] - count
    if prefix is not None and prefix > extra:
        return []
    starts = range(extra + 1) if prefix is None else [prefix]
    whole = _sliding(logs, overlaps)
    start = max(starts, key=lambda start: whole[start])
    if extra > MOST_PREFIX and _share_outside(logs, start, count) > OUTSIDE:
        return []
    fits = [_fit(replace(layout, prefix=start), logs[:, start : start + count], overlaps)]
    half = count // 2
    first, second = _sliding(logs[:, : half + extra], overlaps[:, :half]), _sliding(logs[:, half:], overlaps[:, half:])
    gaps = [(start, gap) for start in starts for gap in range(1, min(MOST_MIDDLE, extra - start) + 1)]
    if gaps:
        start, gap = max(gaps, key=lambda pair: first[pair[0]] + second[sum(pair)])
        parts = [logs[:, start : start + half], logs[:, start + half + gap : start + gap + count]]
        split = _fit(replace(layout, prefix=start, middle=gap), torch.cat(parts, dim=1), overlaps)
        fits.append(split)
    return fits


def _share_outside(logs: Tensor, start: int, count: int) -> float:
    """How much the tokens outside a grid depend on which patch is altered, as a share of what those in the grid do."""
    power = (logs - logs[:, start : start + count].mean(dim=1, keepdim=True)).square().mean(dim=0)
    outside = torch.cat([power[:start], power[start + count :]]).mean()
    return float(outside / power[start : start + count].mean().clamp(min=1e-30))


def _sliding(logs: Tensor, overlaps: Tensor) -> list[float]:
    """The sum of products of the overlaps with the logs from each token on."""
    windows = logs.unfold(1, overlaps.shape[1], 1)
    return torch.einsum("kpc,kc->p", windows, overlaps).tolist()
