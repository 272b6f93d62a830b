"""Names in other spellings: papers and libraries put hyphens, underscores, spaces or capitals between the words of one name."""

from __future__ import annotations

import re

__all__ = ["plain_name"]


def plain_name(name: str) -> str:
    """A name in small letters, without what stands between its words.

    Example:
        >>> plain_name("GradCAM"), plain_name("grad-cam"), plain_name("average_drop")
        ('gradcam', 'gradcam', 'averagedrop')
    """
    return re.sub(r"[-_ ]", "", name.lower())
