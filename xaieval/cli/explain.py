"""The command `explain`: maps as image files and arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import MODEL_OPTIONS, NO_PREFIX, PROTOCOL_OPTIONS, app, note
from xaieval.cli.json_output import records
from xaieval.cli.loading import load_inputs, load_methods
from xaieval.cli.tables import print_table, print_text
from xaieval.config.explain_options import ExplainOptions
from xaieval.config.option_types import Json, Switch
from xaieval.config.options import ModelOptions, ProtocolOptions
from xaieval.errors import RunError, UsageError

__all__ = ["explain"]

FEW = 8  # images of the data, unless the options say how many
SHOWN = 12  # images in the table that is printed
NOT_HERE = ("resume", "strict")  # settings of scores


@app.command
def explain(
    images: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    /,
    *,
    options: Annotated[ExplainOptions | None, NO_PREFIX] = None,
    model_options: Annotated[ModelOptions | None, MODEL_OPTIONS] = None,
    protocol_options: Annotated[ProtocolOptions | None, PROTOCOL_OPTIONS] = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Write maps as image files and arrays: no labels and no scores are needed.

    Writes a folder for each image with LAYER--METHOD--overlay.png, --map.npy (float32, in [0, 1]) and --masked.png; and
    maps.csv with classes, confidences and the paths of the files.

    Args:
        images: Files, folders with all images below them, or patterns such as 'photos/*.jpg'. Default: those of --data.
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    options, model_options = options or ExplainOptions(), model_options or ModelOptions()
    if images and options.data != ExplainOptions.data:
        raise UsageError(f"images are those of the files ({images[0]!r}) or those of --data {options.data}; give one of them")
    options = replace(options, data="") if images else replace(options, max_images=options.max_images or FEW)
    from xaieval.evaluation.save_maps import TABLE, save_maps
    from xaieval.results.files import MANIFEST

    folder = Path(options.out or "maps")
    inputs = load_inputs(options, model_options, protocol_options or ProtocolOptions(), truth=False, places=images)
    table = save_maps(
        inputs.loaded.model,
        inputs.data.loader,
        options.layers,
        load_methods(options),
        protocol=inputs.protocol,
        output_dir=folder,
        kinds=options.kinds,
        figure=options.figure,
        alpha=options.alpha,
        preprocessing=inputs.loaded.preprocessing,
        bands=options.bands,
        slices=getattr(inputs.loaded.preprocessing, "slices", None),
        colours=options.colours,
        classes=_names(inputs, options, model_options),
        overwrite=options.overwrite,
        max_images=options.max_images,
        **{name: value for name, value in inputs.settings.items() if name not in NOT_HERE},
    )
    kinds = [*options.kinds, *([] if options.figure is None else ["figure"])]
    counts = {kind: int(table[kind].nunique()) for kind in kinds if kind in table}
    for image_id in table.loc[table["status"] == "unreadable", "image_id"].unique():
        note(f"{image_id} could not be read; '{folder / MANIFEST}' says why")
    if not any(counts.values()):
        raise RunError(f"no map could be made; the column 'status' in '{folder / TABLE}' says why")
    if as_json:
        return {"folder": str(folder), "files": counts, "maps": records(table)}
    _print_images(table)
    words = {kind: "masked image" if kind == "masked" else "raw map" if kind == "raw" else kind for kind in counts}
    files = ", ".join(f"{count} {words[kind]}{'s' if count > 1 else ''}" for kind, count in counts.items())
    print_text(f"written to {folder}: {files}, {TABLE}, {MANIFEST}")
    return None


def _names(inputs: Any, options: ExplainOptions, model_options: ModelOptions) -> Callable[[int | None], Sequence[str] | None]:
    """A function from the number of classes to their names: those that the model knows, or those of the data's folders.

    Names of another number of classes are those of something else.
    """
    from xaieval.models.class_names import class_names

    known = [class_names(inputs.loaded.model, options.model, model_options.pretrained), inputs.data.classes or ()]
    return lambda count: next((names for names in known if names and count in (None, len(names))), None)


def _print_images(table: Any) -> None:
    """Print what was explained on each image, without the layers and methods."""
    import pandas as pd
    from rich.table import Table

    seen = table.drop_duplicates("image_id")
    shown = Table("image", "predicted", "explained", box=None, header_style="bold")
    shown.add_column("confidence", justify="right")
    for row in seen.head(SHOWN).to_dict("records"):
        classes = [row.get(f"{name}_name", row[name]) for name in ("predicted", "target")]
        confidence = "" if pd.isna(row["confidence"]) else f"{row['confidence']:.3f}"
        shown.add_row(row["image_id"], *("" if pd.isna(one) else str(one) for one in classes), confidence)
    print_table(shown)
    if len(seen) > SHOWN:
        print_text(f"and {len(seen) - SHOWN} more images, see maps.csv")
