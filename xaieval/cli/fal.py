"""The command `fal`: train an FPN and FAL, and compare them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import NO_PREFIX, app
from xaieval.cli.score import default_folder
from xaieval.cli.tables import print_text
from xaieval.config.fal_options import FalOptions
from xaieval.config.options import Json, Switch, to_settings
from xaieval.errors import UsageError

__all__ = ["fal"]


@app.command
def fal(
    run_file: Annotated[Path | None, Parameter(negative=())] = None,
    /,
    *,
    options: Annotated[FalOptions | None, NO_PREFIX] = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Train an FPN, score its levels, add attention where it is needed, and compare with an FPN of the same training.

    Writes report.md, tables and figures. The same command continues an interrupted experiment. Needs the extra [fal].

    Without options: a small network on 600 generated images, offline.

    Args:
        run_file: TOML file with options as keys; options on the command line win.
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    options = options or FalOptions()
    folder = Path(options.out) if options.out else default_folder(to_settings(options) | {"model": "fal"})
    try:
        import lightning  # noqa: F401  # fails first without the extra
    except ModuleNotFoundError as error:
        raise UsageError("the experiment needs lightning, which is not installed: pip install 'xaieval[fal]'") from error

    from xaieval.analysis.stats.intervals import check_level
    from xaieval.training.fal import prepare, run_experiment

    check_level(options.level)
    setup = prepare(options)
    run_experiment(setup, folder, lambda line: print(line, file=sys.stderr))
    print_text(f"written to {folder}")
    return None
