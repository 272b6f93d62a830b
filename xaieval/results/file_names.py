"""Names of images, layers and methods as names of files, on any system."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

__all__ = ["FileNames", "safe_name"]

KEPT = "-_.,+=@()[]"  # beside letters and digits; brackets, since addresses such as fpn[pool] have them
LONGEST = 60  # letters, of up to four bytes; file systems take 255 bytes
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def safe_name(text: str) -> str:
    """A name for a file or folder that Linux, macOS and Windows take; other texts may get the same one.

    Example:
        >>> safe_name("cat/1 a.jpg"), safe_name("captum:Lime"), safe_name("../etc"), safe_name("fpn[pool]")
        ('cat--1_a.jpg', 'captum_Lime', '_.--etc', 'fpn[pool]')
    """
    name = "".join(sign if sign.isalnum() or sign in KEPT else "_" for sign in text.replace("/", "--"))
    name = name[:LONGEST].rstrip(".") or "_"
    return f"_{name[name.startswith('.') :]}" if name.startswith((".", "-")) or name.split(".")[0].lower() in RESERVED else name


@dataclass(frozen=True)
class FileNames:
    """Gives each text a name of its own; those that would have the same name, also in other case, get a digest behind it.

    Example:
        >>> names = FileNames()
        >>> names.of("a:b"), names.of("a?b"), names.of("A_B"), names.of("a:b"), names.of("layer4", "captum:Lime")
        ('a_b', 'a_b~c2a7b6', 'A_B~6c1908', 'a_b', 'layer4--captum_Lime')
    """

    known: dict[tuple[str, ...], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def of(self, *texts: str, shown: str | None = None) -> str:
        """The name of one text, or of several together, the same whenever it is asked for.

        Args:
            texts: What is named.
            shown: What the name is made of, such as the text without an ending. Default: the texts.
        """
        if texts not in self.known:
            name = "--".join(map(safe_name, texts if shown is None else [shown]))
            if name.casefold() in self.taken:
                name = f"{name}~{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:6]}"
            self.taken.add(name.casefold())
            self.known[texts] = name
        return self.known[texts]
