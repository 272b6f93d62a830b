"""The images of a report with all their maps, for the script that shows them one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from xaieval.report.figures.data import Pair
from xaieval.report.html.pictures import data_url

if TYPE_CHECKING:
    from xaieval.report.html.thumbnails import Maps

__all__ = ["Explorer", "explorer_of"]

SIDE, SIDE_OF_MAP, SIDE_OF_MASKED = 224, 112, 168  # pixels of the longer side; maps of a layer are smooth
QUALITY = 75  # of JPEG
MOST_BYTES = 3_500_000  # the largest size of all thumbnails


class Explorer(NamedTuple):
    """Images with their maps.

    Attributes:
        ids: Ids of the images in the page.
        pairs: Layers and methods.
        data: The same with the thumbnails as data URLs, for the script of the page.
        all_images: Number of images that there are maps of.
    """

    ids: list[str]
    pairs: list[Pair]
    data: dict[str, Any]
    all_images: int


def explorer_of(maps: Maps | None, ids: Iterable[str], pairs: Sequence[Pair], most_bytes: int = MOST_BYTES) -> Explorer:
    """The thumbnails of as many images as fit into a page, at least one.

    Args:
        maps: The images with their maps.
        ids: Ids of the images to show, most important first; those without maps are left out.
        pairs: Layers and methods to show; those without maps are left out.
        most_bytes: The largest size of all images.
    """
    if maps is None:
        return Explorer([], [], {"pairs": [], "images": []}, 0)
    known = [(layer, method) for layer, method in pairs if layer in maps.maps.get(method, {})]
    wanted = [image for image in dict.fromkeys(ids) if image in maps.number] if known else []
    images: list[dict[str, Any]] = []
    size = 0
    for image_id in wanted:
        image = _image(maps, image_id, known)
        size += len(image["image"]) + sum(len(one or "") for one in (*image["maps"], *image["masked"]))
        if images and size > most_bytes:
            break
        images.append(image)
    data = {"pairs": [list(pair) for pair in known], "images": images}
    return Explorer([image["id"] for image in images], known, data, len(wanted))


def _image(maps: Maps, image_id: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """An image, its maps in colour and the masked images, in the order of the pairs."""
    place = maps.number[image_id]
    masked = [maps.masked_picture(place, *pair, SIDE_OF_MASKED) for pair in pairs]
    return {
        "id": image_id,
        "image": data_url(maps.picture(place, SIDE), QUALITY),
        "maps": [data_url(maps.map_in_colour(place, *pair, SIDE_OF_MAP), QUALITY) for pair in pairs],
        "masked": [None if one is None else data_url(one, QUALITY) for one in masked],
    }
