"""The best, the worst and random images of each layer with their maps, for a page without JavaScript and for print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from xaieval.report.figures.data import Pair, rows_of
from xaieval.report.html.formatting import format_number
from xaieval.report.html.image_choice import EACH, MOST_PAIRS, ImageChoice, choose_images, pairs_to_show
from xaieval.report.html.pictures import data_url
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.record import RunRecord

if TYPE_CHECKING:
    from xaieval.report.html.thumbnails import Maps

__all__ = ["Galleries", "Gallery", "Picture", "galleries_of"]

STRANGERS = "none of the given maps belongs to an image, layer and method that has a value"


class Picture(NamedTuple):
    """An image, its map over it, and the text below them."""

    image_id: str
    image: str
    overlay: str
    value: str
    confidence: str


class Gallery(NamedTuple):
    """The thumbnails of a layer and method, by kind: best, worst, at random."""

    layer: str
    method: str
    kinds: list[tuple[str, list[Picture]]]


@dataclass(frozen=True)
class Galleries:
    """The galleries of a page.

    Attributes:
        galleries: One for each layer and method; empty if there are no maps.
        ids: Ids of the images, random ones first, then the best and the worst of each layer and method in turn.
        why_none: Why there are no maps.
        by: Label of the metric that orders the images.
        among: The number of images to choose from, if these are not all of the run; else 0.
        pairs_left: How many layers and methods are not shown.
    """

    galleries: list[Gallery] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    why_none: str = ""
    by: str = ""
    among: int = 0
    pairs_left: int = 0


def galleries_of(scores: RunRecord, maps: Maps | None, methods: Sequence[str], why_no_maps: str) -> Galleries:
    """Choose the images of each layer, and draw them.

    Args:
        scores: The run.
        maps: The images with their maps.
        methods: The methods whose maps are shown.
        why_no_maps: What to say without maps.
    """
    if maps is None:
        return Galleries(why_none=why_no_maps)
    pairs = [pair for pair in pairs_to_show(scores, methods) if pair[0] in maps.maps.get(pair[1], {})]
    choice, among = choose_images(scores, pairs[:MOST_PAIRS]), 0
    if choice is not None and not set(choice.ids) <= set(maps.number):
        choice = choose_images(scores, pairs[:MOST_PAIRS], among=maps.number)
        among = len(set(maps.number) & set(scores.sample.rows["image_id"]))
    if choice is None or not choice.ids:
        return Galleries(why_none=STRANGERS)
    shown = [_gallery(scores, maps, choice, pair) for pair in pairs[:MOST_PAIRS]]
    return Galleries(shown, _in_turn(choice), "", label_of(choice.metric), among, max(0, len(pairs) - MOST_PAIRS))


def _in_turn(choice: ImageChoice) -> list[str]:
    """The ids such that the first of them are of all kinds, layers and methods."""
    kinds = [*choice.best.values(), *choice.worst.values()]
    return list(dict.fromkeys([*choice.others, *(ids[place] for place in range(EACH) for ids in kinds if place < len(ids))]))


def _gallery(scores: RunRecord, maps: Maps, choice: ImageChoice, pair: Pair) -> Gallery:
    """The thumbnails of a layer and method."""
    rows = rows_of(scores.sample.rows, pair).set_index("image_id")
    kinds = (("Best", choice.best[pair]), ("Worst", choice.worst[pair]), ("At random", choice.others))
    pictures = [(kind, [_picture(maps, choice, rows, pair, one) for one in ids]) for kind, ids in kinds if ids]
    return Gallery(*pair, pictures)


def _picture(maps: Maps, choice: ImageChoice, rows: Any, pair: Pair, image_id: str) -> Picture:
    """An image with its map and its scores."""
    place, row = maps.number[image_id], rows.loc[image_id]
    columns = [name for name in ("confidence", "masked_confidence") if name in rows and rows[name].notna().any()]
    return Picture(
        image_id=image_id,
        image=data_url(maps.picture(place)),
        overlay=data_url(maps.map_over(place, *pair)),
        value=f"{label_of(choice.metric)} {format_number(row[choice.metric['name']], decimals_of(choice.metric))}",
        confidence=" \N{RIGHTWARDS ARROW} ".join(format_number(row[name], 2) for name in columns),
    )
