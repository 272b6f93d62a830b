"""Names in other spellings: papers and libraries put hyphens, underscores, spaces or capitals between the words of one name."""

from __future__ import annotations

import re

__all__ = ["plain_name"]


def plain_name(name: str) -> str:
    """A name in small letters, without what stands between its words, and with "++" for "PlusPlus" or "pp" at its end.

    Example:
        >>> plain_name("GradCAM"), plain_name("grad-cam"), plain_name("average_drop"), plain_name("GradCAMPlusPlus")
        ('gradcam', 'gradcam', 'averagedrop', 'gradcam++')
    """
    return re.sub(r"(plusplus|pp)$", "++", re.sub(r"[-_ ]", "", name.lower()))
