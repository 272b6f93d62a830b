"""The commands that list layers, methods, metrics, protocols and published tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import MODEL_OPTIONS, app
from xaieval.cli.json_output import records
from xaieval.cli.loading import load, load_forward
from xaieval.cli.table import name_and_network
from xaieval.cli.tables import print_table, print_text
from xaieval.config.option_types import MODEL_HELP, Json, Numbers, Switch
from xaieval.config.options import ModelOptions, token_grid
from xaieval.config.presets import PRESETS, Preset, changes
from xaieval.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from xaieval.analysis.published import PublishedTable

__all__ = ["layers", "methods", "metrics", "protocols", "published"]


@app.command
def layers(
    model: Annotated[str, Parameter(help=MODEL_HELP)] = "xaieval:fpn-scenes",
    /,
    *,
    model_options: Annotated[ModelOptions | None, MODEL_OPTIONS] = None,
    output: str | None = None,
    grid: Numbers | None = None,
    prefix_tokens: int | None = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """List the layer addresses of a model in order of execution.

    Args:
        model: The model by name.
        output: Key or index in the model's output, as for score; it is only checked here.
        grid: Height and width of the token grid, such as 14,14. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    model_options = model_options or ModelOptions()
    loaded, forward = load(model, model_options), load_forward(model_options.forward)

    import pandas as pd
    import torch
    from rich.table import Table

    from xaieval.inference.forward_passes import called
    from xaieval.inference.targets import find
    from xaieval.probe.hooks import list_layers

    def read(module: torch.nn.Module, images: torch.Tensor) -> Any:
        result = called(module, forward)(images)
        return result if output is None else find(result, output)

    shape = loaded.preprocessing.input_shape
    images = torch.zeros(1, *shape)
    listing = list_layers(loaded.model, images, forward=read, grid=token_grid(grid), prefix_tokens=prefix_tokens)
    if as_json:
        return {"model": model, "image_size": loaded.preprocessing.image_size, "layers": records(listing)}
    table = Table("address", "type", "output shape", box=None, header_style="bold")
    table.add_column("stride", justify="right")
    table.add_column("parameters", justify="right")
    for row in listing.to_dict("records"):
        stride = "" if pd.isna(row["stride"]) else f"{row['stride']:g}"
        table.add_row(row["address"], row["module_type"], str(list(row["output_shape"])), stride, f"{row['parameters']:,}")
    print_text(f"{model} at {shape[1]} x {shape[2]} pixels")
    print_table(table)
    return None


@app.command
def methods(*, markdown: Switch = False, as_json: Json = False, debug: Switch = False) -> dict[str, Any] | None:
    """List the explanation methods: our own, and those of captum, pytorch-grad-cam, torch-cam, zennit and shap.

    Args:
        markdown: Print a Markdown table, as in docs/methods.md.
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    from rich.table import Table

    from xaieval.explainers.catalogue import catalogue
    from xaieval.results.markdown import markdown_table

    _check_one_form(markdown, as_json)
    if as_json:
        return {"methods": [entry._asdict() for entry in catalogue()]}
    titles = ("method", "needs", "forward passes per image", "paper")
    if markdown:
        print(markdown_table(titles, [(f"`{entry.name}`", *entry[1:]) for entry in catalogue()]))
        return None
    table = Table(*titles, box=None, header_style="bold")
    for entry in catalogue():
        table.add_row(*entry)
    print_table(table)
    return None


@app.command
def metrics(*, markdown: Switch = False, as_json: Json = False, debug: Switch = False) -> dict[str, Any] | None:
    """List the metrics by family, with what each needs and costs.

    Args:
        markdown: Print a Markdown table, as in docs/metrics.md.
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    from rich.table import Table

    from xaieval.metrics.catalogue import catalogue
    from xaieval.results.markdown import markdown_table

    _check_one_form(markdown, as_json)
    if as_json:
        return {"metrics": [entry._asdict() for entry in catalogue()]}
    titles = ("metric", "family", "needs", "forward passes an image", "better", "label", "paper")
    if markdown:
        print(markdown_table(titles, [_in_markdown(*entry) for entry in catalogue()]))
        return None
    table = Table(*titles, box=None, header_style="bold")
    for entry in catalogue():
        table.add_row(*entry)
    print_table(table)
    return None


@app.command
def protocols(*, as_json: Json = False, debug: Switch = False) -> dict[str, Any] | None:
    """List the named protocols: what each does, its source, and which known faults of a tool it repeats.

    Args:
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    from rich.table import Table

    if as_json:
        return {"protocols": [_preset_document(preset) for preset in PRESETS]}
    table = Table("protocol", "what it does", "choices", "source", "open in the source", "known faults repeated", box=None)
    table.header_style = "bold"
    for preset in PRESETS:
        chosen = ", ".join(f"{name}={value}" for name, value in changes(preset.protocol).items())
        table.add_row(preset.name, preset.does, chosen, preset.source, preset.open_choices, preset.faults)
    print_table(table)
    print_text("Numbers are in percent; where a tool gives fractions, its number is ours / 100.")
    return None


@app.command
def published(name: str | None = None, /, *, as_json: Json = False, debug: Switch = False) -> dict[str, Any] | None:
    """List the tables of AD and IC of papers and tools that a run can be put beside, or print one of them.

    `xaieval-bench table RUN --published NAME` and `score --published NAME` show the printed numbers beside measured ones.

    Args:
        name: The table to print, such as opti-cam, or opti-cam/ResNet50 for one of its networks.
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    from dataclasses import asdict

    from rich.table import Table

    from xaieval.analysis.published import PUBLISHED, network_rows, published_table

    named, network = (None, None) if name is None else name_and_network(name)
    tables = PUBLISHED if named is None else (published_table(named),)
    rows_of = {one.name: one.rows if network is None else network_rows(one, network) for one in tables}
    if as_json:
        return {"published": [asdict(one) | {"rows": records(rows_of[one.name])} for one in tables]}
    if named is not None:
        _print_published(tables[0], rows_of[tables[0].name])
        return None
    shown = Table("name (and protocol)", "source", "table", "data", "networks", box=None, header_style="bold")
    for one in tables:
        columns = (", ".join(map(str, one.rows[column].unique())) for column in ("data", "network"))
        shown.add_row(one.name, one.source, one.where, *columns)
    print_table(shown)
    print_text("`xaieval-bench published NAME` prints one, and the command that measures it again.")
    return None


def _print_published(table: PublishedTable, rows: pd.DataFrame) -> None:
    """Print rows of a published table, and what to know about them."""
    import pandas as pd
    from rich.table import Table

    from xaieval.analysis.published import printed_text

    rows = rows.dropna(axis="columns", how="all")
    shown = Table("network", "method", box=None, header_style="bold")
    metrics = {"average_drop": "AD %", "average_gain": "AG %", "increase_in_confidence": "IC %", "win_percentage": "win %"}
    metrics = {metric: label for metric, label in metrics.items() if metric in rows}
    for label in metrics.values():
        shown.add_column(label, justify="right")
    for heading in ("data", "images", "measured again by"):
        shown.add_column(heading)
    for row in rows.to_dict("records"):
        cells = ["-" if pd.isna(row[metric]) else printed_text(row[metric]) for metric in metrics]
        again = [str(row[part]) for part in ("model", "layer", "rerun") if not pd.isna(row.get(part))]
        images = "-" if pd.isna(row.get("images")) else f"{int(row['images']):,}"
        shown.add_row(row["network"], row["method"], *cells, row["data"], images, " ".join(again) or "-")
    print_text(f"{table.source}, {table.where}; copied from {table.read_in}")
    print_text(f"protocol: {table.preset.does}")
    print_table(shown, names=2)
    for command in _commands(table, rows):
        print_text(f"measured again: {command}")
    for text in (table.doubts, table.preset.open_choices):
        if text:
            print_text(f"open: {text}")


def _commands(table: PublishedTable, rows: pd.DataFrame) -> list[str]:
    """The commands that measure rows of a table again, one for each network that can be."""
    again = rows.dropna(subset=["model", "rerun"]) if "model" in rows else rows.iloc[:0]
    gain = " --metrics average_drop,increase_in_confidence,average_gain" if "average_gain" in rows else ""
    return [
        f"xaieval-bench score --model {model} --pretrained --data folder:DIR --protocol {table.name} "
        f"--layers {','.join(dict.fromkeys(part['layer'].dropna()))} --methods {','.join(dict.fromkeys(part['rerun']))} "
        f"--published {table.name}{gain}"
        for model, part in again.groupby("model", sort=False)
    ]


def _preset_document(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "does": preset.does,
        "choices": changes(preset.protocol),
        "source": preset.source,
        "open_choices": preset.open_choices,
        "faults": preset.faults,
    }


def _check_one_form(markdown: bool, as_json: bool) -> None:
    if as_json and markdown:
        raise UsageError("--json and --markdown are two forms of the same table; choose one")


def _in_markdown(name: str, family: str, needs: str, *others: str) -> list[str]:
    """Cells of a Markdown row; the metric's name and needs are formatted as code."""
    return [f"`{name}`", family, ", ".join(f"`{need}`" for need in needs.split(", ")), *others]
