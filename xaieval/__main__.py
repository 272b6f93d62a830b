"""`python -m xaieval`: the command line, where `xaieval-bench` is not on the path."""

from __future__ import annotations

from xaieval.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
