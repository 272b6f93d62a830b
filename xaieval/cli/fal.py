"""The command that trains FAL and compares it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import FLAT, app
from xaieval.cli.json_output import records
from xaieval.cli.score import own_folder
from xaieval.cli.tables import print_comparison, say
from xaieval.config.options import FalOptions, Json, Switch, plain
from xaieval.errors import UsageError

__all__ = ["fal"]


@app.command
def fal(
    run_file: Annotated[Path | None, Parameter(negative=())] = None,
    /,
    *,
    options: Annotated[FalOptions | None, FLAT] = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Train an FPN, score its levels, put attention on those that need it, and compare with an FPN of the same training.

    Without options: a small network on 600 generated images, without network. Writes report.md, tables and figures; the same
    command goes on where it was killed. Needs the extra [fal].

    Args:
        run_file: TOML file with the same words as the options; the command line wins.
        as_json: Print one JSON document in place of the table.
        debug: Show the traceback of an error.
    """
    options = options or FalOptions()
    folder = Path(options.out) if options.out else own_folder(plain(options) | {"model": "fal"})
    try:
        import lightning  # noqa: F401  # the first to miss without the extra
    except ModuleNotFoundError as error:
        raise UsageError("the experiment trains by Lightning, which is missing: pip install 'xaieval[fal]'") from error

    from xaieval.analysis.stats.intervals import check_level
    from xaieval.training.fal import prepare, read_results, run_experiment, write_report
    from xaieval.training.fal.tables import comparison_table

    check_level(options.level)
    setup = prepare(options)
    run_experiment(setup, folder, lambda line: print(line, file=sys.stderr))
    files = write_report(setup, folder, options.level)
    comparison = comparison_table(read_results(folder), level=options.level)
    if as_json:
        return {"folder": str(folder), "files": files, "level": options.level, "comparison": records(comparison)}
    if len(comparison):
        print_comparison(comparison, options.level)
    say(f"written to {folder}: {', '.join(files)}")
    return None
