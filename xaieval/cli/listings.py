"""Commands that list what there is."""

from __future__ import annotations

from typing import Annotated

from xaieval.cli.loading import load
from xaieval.cli.printing import console
from xaieval.cli.program import FLAT, app
from xaieval.config import ModelOptions, Switch

__all__ = ["layers", "methods", "metrics", "protocols"]


@app.command
def layers(
    model: str = "xaieval:fpn-scenes",
    /,
    *,
    model_options: Annotated[ModelOptions | None, FLAT] = None,
    debug: Switch = False,
) -> None:
    """List every layer address of a model in order of execution.

    Args:
        model: timm:NAME, torchvision:NAME, hf:NAME, xaieval:fpn-scenes, or package.module:factory, the only form that imports
            your code and runs it.
        debug: Show the traceback of an error.
    """
    loaded = load(model, model_options or ModelOptions())

    import pandas as pd
    import torch
    from rich.table import Table

    from xaieval.probe import list_layers

    size = loaded.preprocessing.image_size
    listing = list_layers(loaded.model, torch.zeros(1, len(loaded.preprocessing.mean), size, size))
    table = Table("address", "type", "output shape", box=None, title=f"{model} at {size} x {size} pixels", title_justify="left")
    table.add_column("stride", justify="right")
    table.add_column("parameters", justify="right")
    for row in listing.to_dict("records"):
        stride = "" if pd.isna(row["stride"]) else f"{row['stride']:g}"
        table.add_row(row["address"], row["module_type"], str(list(row["output_shape"])), stride, f"{row['parameters']:,}")
    console().print(table)


@app.command
def methods(*, debug: Switch = False) -> None:
    """List every explanation method by name: our own, and those of captum, pytorch-grad-cam and torch-cam.

    Args:
        debug: Show the traceback of an error.
    """
    from rich.table import Table

    from xaieval.explainers.catalogue import catalogue

    table = Table("method", "needs", "forward passes an image", "paper", box=None, header_style="bold")
    for entry in catalogue():
        table.add_row(*entry)
    console().print(table)


@app.command
def metrics(*, markdown: Switch = False, debug: Switch = False) -> None:
    """List every metric by name, with what it needs and what it costs.

    Args:
        markdown: Print a Markdown table, as in docs/metrics.md.
        debug: Show the traceback of an error.
    """
    from rich.table import Table

    from xaieval.metrics.catalogue import catalogue

    titles = ("metric", "needs", "forward passes an image", "better", "label", "paper")
    if markdown:
        for cells in (titles, ["---"] * len(titles), *(_in_markdown(*entry) for entry in catalogue())):
            print(f"| {' | '.join(cells)} |")
        return
    table = Table(*titles, box=None, header_style="bold")
    for entry in catalogue():
        table.add_row(*entry)
    console().print(table)


@app.command
def protocols(*, debug: Switch = False) -> None:
    """List every protocol by name: what it does, where that is written, and which faults of a tool it repeats.

    Args:
        debug: Show the traceback of an error.
    """
    from rich.table import Table

    from xaieval.presets import PRESETS, changes

    table = Table("protocol", "what it does", "choices", "source", "open in the source", "known faults repeated")
    table.show_lines = True
    for preset in PRESETS:
        chosen = "\n".join(f"{name}={value}" for name, value in changes(preset.protocol).items())
        table.add_row(preset.name, preset.does, chosen, preset.source, preset.open_choices, preset.faults)
    out = console()
    out.print(table)
    out.print("Numbers are in percent; where a tool gives fractions, its number is ours / 100.")


def _in_markdown(name: str, needs: str, *others: str) -> list[str]:
    """The cells of an entry, with its code marked as such."""
    return [f"`{name}`", ", ".join(f"`{need}`" for need in needs.split(", ")), *others]
