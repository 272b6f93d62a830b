"""Names in other spellings: papers and libraries put hyphens, underscores, spaces or capitals between the words of one name."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["full_name", "plain_name"]


def full_name(given: str, known: Collection[str]) -> str | None:
    """The name of a setting that may be written with dashes, or without a leading `n_`; None if it is not known.

    Example:
        >>> full_name("masks", ["n_masks"]), full_name("keep-curve", ["keep_curve"]), full_name("mask", ["n_masks"])
        ('n_masks', 'keep_curve', None)
    """
    name = given.replace("-", "_")
    return next((full for full in (name, f"n_{name}") if full in known), None)


def plain_name(name: str) -> str:
    """A name in small letters, without what stands between its words, and with "++" for "PlusPlus" or "pp" at its end.

    Example:
        >>> plain_name("GradCAM"), plain_name("grad-cam"), plain_name("average_drop"), plain_name("GradCAMPlusPlus")
        ('gradcam', 'gradcam', 'averagedrop', 'gradcam++')
    """
    return re.sub(r"(plusplus|pp)$", "++", re.sub(r"[-_ ]", "", name.lower()))
