"""Entry point of `python -m xaieval.cli`, by which several processes are started."""

from xaieval.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
