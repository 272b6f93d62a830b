"""The commands that list layers, methods, metrics and protocols."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import MODEL_OPTIONS, app
from xaieval.cli.json_output import records
from xaieval.cli.loading import load, load_forward
from xaieval.cli.tables import print_table, print_text
from xaieval.config.option_types import MODEL_HELP, Json, Numbers, Switch
from xaieval.config.options import ModelOptions, token_grid
from xaieval.config.presets import PRESETS, Preset, changes
from xaieval.errors import UsageError

__all__ = ["layers", "methods", "metrics", "protocols"]


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
        output: Key or index in the model's output, as for score: checked here, it does not change the list.
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
