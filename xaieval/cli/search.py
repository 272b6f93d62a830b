"""The command `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import MODEL_OPTIONS, NO_PREFIX, PROTOCOL_OPTIONS, app, note
from xaieval.cli.json_output import records
from xaieval.cli.loading import load_inputs, load_methods, load_metrics
from xaieval.cli.score import default_folder
from xaieval.cli.tables import print_search, print_text
from xaieval.config.option_types import Json, Switch
from xaieval.config.options import ModelOptions, ProtocolOptions, SearchOptions, to_settings

__all__ = ["search"]


@app.command
def search(
    run_file: Annotated[Path | None, Parameter(negative=())] = None,
    /,
    *,
    options: Annotated[SearchOptions | None, NO_PREFIX] = None,
    model_options: Annotated[ModelOptions | None, MODEL_OPTIONS] = None,
    protocol_options: Annotated[ProtocolOptions | None, PROTOCOL_OPTIONS] = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Find the best layer and method for a model, without scoring all of them on all images.

    A pair that is certainly worse than another one is not measured any further. Writes rows.parquet, summary.csv and
    manifest.json. The same command continues an interrupted search.

    Args:
        run_file: TOML file with options as keys; options on the command line take precedence.
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    from xaieval.analysis.stats.intervals import check_level
    from xaieval.data.images import describe_left_out
    from xaieval.evaluation.search import SETS
    from xaieval.evaluation.search import search as run

    options, model_options = options or SearchOptions(), model_options or ModelOptions()
    protocol_options = protocol_options or ProtocolOptions()
    check_level(options.level)
    settings = to_settings(options) | to_settings(model_options) | to_settings(protocol_options)
    folder = Path(options.out) if options.out else default_folder(settings, "search")
    [first, *others] = options.methods
    methods: Any = first if first in SETS and not others else load_methods(options)
    [by] = load_metrics(options, [options.by])
    truth = "masks" in by.needs
    inputs = load_inputs(options, model_options, protocol_options, truth=truth)
    if inputs.data.left_out:
        note(f"{options.data}: {describe_left_out(inputs.data.left_out)}")
    found = run(
        inputs.loaded.model,
        inputs.data.loader,
        options.layers,
        methods,
        by,
        protocol=inputs.protocol,
        error=options.error,
        output_dir=folder,
        **inputs.settings,
    )
    if as_json:
        return {
            "folder": str(folder),
            "best": list(found.best),
            "undecided": [list(pair) for pair in found.undecided],
            "spent": found.spent,
            "reason": found.reason,
            "table": records(found.table(options.level)),
            "left_out": [{"layer": layer, "method": method, "reason": why} for (layer, method), why in found.left_out.items()],
        }
    print_search(found, options.level)
    print_text(f"written to {folder}")
    return None
