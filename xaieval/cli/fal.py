"""The command `fal`: train an FPN and FAL, and compare them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import NO_PREFIX, app
from xaieval.cli.json_output import records
from xaieval.cli.score import default_folder
from xaieval.cli.tables import print_arms, print_text
from xaieval.config.fal_options import FalOptions
from xaieval.config.option_types import Json, Switch
from xaieval.config.options import to_settings
from xaieval.errors import UsageError

__all__ = ["fal"]


@app.command
def fal(
    run_file: Annotated[Path | None, Parameter(negative=())] = None,
    /,
    *,
    options: Annotated[FalOptions | None, NO_PREFIX] = None,
    remake: Switch = False,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Train an FPN, score its levels, add attention where it is needed, and compare with the FPN and with twins.

    All networks are trained alike, from the same backbone. A twin has the layers and loss of FAL and does not use its maps.

    Writes report.md, tables, figures, and the rows that they are made from. Needs the extra [fal].

    Without options, it runs the whole experiment with small networks on generated images, without network, in five minutes.

    Args:
        run_file: TOML file with options as keys; options on the command line take precedence.
        remake: Only make the tables and report.md in --out again, from its rows; of the options only level and class count.
        as_json: Print one JSON document instead of text.
        debug: Show the traceback of an error.
    """
    options = options or FalOptions()
    folder = Path(options.out) if options.out else default_folder(to_settings(options) | {"model": "fal"})
    try:
        import lightning  # noqa: F401  # fails first without the extra
    except ModuleNotFoundError as error:
        raise UsageError("the experiment needs lightning, which is not installed: pip install 'xaieval[fal]'") from error

    from xaieval.analysis.stats.intervals import check_level
    from xaieval.training.fal import prepare, read_results, run_experiment, write_figures, write_report
    from xaieval.training.fal.report.sentences import sentences
    from xaieval.training.fal.report.tables import arm_table, difference_table

    check_level(options.level)
    if not remake:
        experiment = prepare(options)
        run_experiment(experiment, folder, lambda line: print(line, file=sys.stderr))
        write_figures(experiment, folder)
    files = write_report(folder, options.level, options.class_name)
    results = read_results(folder)
    arms = arm_table(results, level=options.level)
    if as_json:
        differences = difference_table(results, level=options.level)
        return {
            "folder": str(folder),
            "files": files,
            "level": options.level,
            "arms": records(arms),
            "differences": records(differences),
            "found": sentences(results, options.level),
        }
    print_arms(arms, options.level)
    for sentence in sentences(results, options.level):
        print_text(sentence)
    print_text(f"written to {folder}: {', '.join(files)}")
    return None
