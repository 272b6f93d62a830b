"""The command `xaieval-bench`: the only module that prints and exits.

torch is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from xaieval import __version__
from xaieval.config import FalOptions, ModelOptions, ProtocolOptions, ScoreOptions, Switch, parse_literals, plain, read_toml
from xaieval.errors import RunError, UsageError, XaievalError, choose_from
from xaieval.ranks import Rank, is_rank, is_spoken_for, report_failure

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from xaieval.data import Data
    from xaieval.models import LoadedModel
    from xaieval.protocol import Protocol
    from xaieval.scores import Scores
    from xaieval.stopping import Stop

__all__ = ["app", "main"]

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
PROGRAM = "xaieval-bench"
RUNS = Path("xaieval-runs")
FIGURE = "maps.png"
PREVIEW, MOST_COLUMNS = 5, 8  # images and layers in the figure

# What the command line said, for the processes that say it again.
_given: ContextVar[list[str]] = ContextVar("given")

# The options of three dataclasses stand side by side on the command line, under their own names.
Flat = Parameter(name="*")


def _read_run_file(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Take what the command line does not say from the run file, if one is given."""
    for argument in arguments:
        if argument.field_info.name == "run_file" and argument.tokens:
            settings = read_toml(argument.tokens[0].value)
            # Under the command's name, or a setting that is also the name of a command ("layers") would be passed over.
            Dict({commands[0]: settings}, source=argument.tokens[0].value)(app, commands, arguments)


app = App(
    name=PROGRAM,
    help="Measure how good the visual explanations of an image model are, layer by layer.",
    version=__version__,
    config=_read_run_file,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


@app.command
def score(
    run_file: Annotated[Path | None, Parameter(negative=())] = None,
    /,
    *,
    options: Annotated[ScoreOptions | None, Flat] = None,
    model_options: Annotated[ModelOptions | None, Flat] = None,
    protocol_options: Annotated[ProtocolOptions | None, Flat] = None,
    debug: Switch = False,
) -> None:
    """Score layers and methods by Average Drop and Increase in Confidence.

    Without options: the built-in classifier with a feature pyramid on 200 generated images, without network. Writes
    rows.parquet, summary.csv, manifest.json and maps.png.

    Args:
        run_file: TOML file with the same words as the options; the command line wins.
        debug: Show the traceback of an error.
    """
    options, model_options = options or ScoreOptions(), model_options or ModelOptions()
    protocol_options = protocol_options or ProtocolOptions()
    if options.nproc > 1 and not is_rank():
        from xaieval.launcher import launch

        launch(_given.get(), options.nproc)
        return
    settings = plain(options) | plain(model_options) | plain(protocol_options)
    folder = Path(options.out) if options.out else _folder(settings)

    from xaieval.data import load_data
    from xaieval.distributed import score as run
    from xaieval.scores import MANIFEST, ROWS, SUMMARY
    from xaieval.stats import check_level

    check_level(options.level)
    loaded = _load(options.model, model_options)
    data = load_data(
        options.data,
        loaded.preprocessing,
        options.batch_size,
        options.max_images,
        download=options.download,
        workers=options.workers,
        pin_memory=(options.device or "").startswith("cuda"),
    )
    protocol = protocol_options.resolve(loaded.preprocessing.mean, loaded.preprocessing.std, options.target)
    scores = run(
        loaded.model,
        data.loader,
        layers=options.layers,
        methods=options.methods,
        metrics=options.metrics,
        protocol=protocol,
        stop=_stop_rule(options),
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        fast=options.fast,
        batch_size=options.batch_size,
        max_images=options.max_images,
        output_dir=folder,
        already_split=options.already_split,
        progress=options.progress,
        seed=options.seed,
        **options.where,
    )
    if not Rank.from_environment().is_first:
        return
    scores.manifest["options"] = settings
    scores.save(folder, options.level)
    pictures = _save_maps(folder, loaded, data, options, protocol)
    summary = scores.summary(options.level)
    _print_summary(scores, summary, options.level, [ROWS, SUMMARY, MANIFEST, *pictures], folder)
    if not summary["n_images"].any():
        raise RunError(f"no row could be counted; the column 'status' in '{folder / ROWS}' says why")


@app.command
def fal(
    run_file: Annotated[Path | None, Parameter(negative=())] = None,
    /,
    *,
    options: Annotated[FalOptions | None, Flat] = None,
    debug: Switch = False,
) -> None:
    """Train an FPN, score its levels, put attention on those that need it, and compare with an FPN of the same training.

    Without options: a small network on 600 generated images, without network. Writes report.md, tables and figures; the same
    command goes on where it was killed. Needs the extra [fal].

    Args:
        run_file: TOML file with the same words as the options; the command line wins.
        debug: Show the traceback of an error.
    """
    options = options or FalOptions()
    folder = Path(options.out) if options.out else _folder(plain(options) | {"model": "fal"})
    try:
        import lightning  # noqa: F401  # the first to miss without the extra
    except ModuleNotFoundError as error:
        raise UsageError("the experiment trains by Lightning, which is missing: pip install 'xaieval[fal]'") from error

    from xaieval.experiment import prepare, read_results, run_experiment, write_report
    from xaieval.experiment.tables import comparison_table
    from xaieval.stats import check_level

    check_level(options.level)
    setup = prepare(options)
    run_experiment(setup, folder, lambda line: print(line, file=sys.stderr))
    files = write_report(setup, folder, options.level)
    comparison = comparison_table(read_results(folder), level=options.level)
    if len(comparison):
        _print_comparison(comparison, options.level)
    _console().print(f"written to {folder}: {', '.join(files)}", soft_wrap=True)


@app.command
def layers(
    model: str = "xaieval:fpn-scenes",
    /,
    *,
    model_options: Annotated[ModelOptions | None, Flat] = None,
    debug: Switch = False,
) -> None:
    """List every layer address of a model in order of execution.

    Args:
        model: timm:NAME, torchvision:NAME, hf:NAME, xaieval:fpn-scenes, or package.module:factory (which imports that module).
        debug: Show the traceback of an error.
    """
    loaded = _load(model, model_options or ModelOptions())

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
    _console().print(table)


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
    _console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and exit with 0, 1 (the run failed), 2 (wrong use) or 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _given.set(arguments)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _stop(WRONG_USE, str(error), arguments)
    except UsageError as error:
        _stop(WRONG_USE, str(error), arguments)
    except XaievalError as error:
        _stop(FAILED, str(error), arguments)
    except KeyboardInterrupt:
        _stop(INTERRUPTED, "interrupted; rows of finished batches, if there are any, are kept", arguments)
    except Exception as error:
        _stop(FAILED, f"{type(error).__name__}: {error} (--debug shows where)", arguments)


def _stop(status: int, message: str, arguments: list[str]) -> None:
    line = " ".join(message.split())
    if status != INTERRUPTED:
        report_failure(line)
    if "--debug" in arguments:
        raise
    if not is_spoken_for():
        rank = f"rank {os.environ['RANK']}: " if is_rank() else ""
        print(f"{PROGRAM}: {rank}{line}", file=sys.stderr)
    sys.exit(status)


def _load(spec: str, options: ModelOptions) -> LoadedModel:
    """The model, with the preprocessing that the options ask for."""
    from xaieval.models import load_model

    loaded = load_model(spec, options.weights, options.pretrained, parse_literals(options.model_args))
    preprocessing = loaded.preprocessing
    if options.image_size is not None:
        preprocessing = preprocessing.with_size(options.image_size)
    given = {"mean": options.mean, "std": options.std, "interpolation": options.interpolation}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(loaded, preprocessing=replace(preprocessing, **changes))


def _stop_rule(options: ScoreOptions) -> Stop | None:
    """When to stop early, if that is asked for."""
    if options.stop is None:
        if options.stop_args:
            raise UsageError("--stop-args say more about --stop, which is not given; add --stop ranking, best or worst")
        return None

    from xaieval.stopping import Stop, resolve_stop

    resolve_stop(options.stop)
    arguments = parse_literals(options.stop_args)
    unknown = next((name for name in arguments if name not in Stop.__dataclass_fields__ or name == "rule"), None)
    if unknown is not None:
        names = [name for name in Stop.__dataclass_fields__ if name != "rule"]
        raise UsageError(f"no --stop-args.{unknown}; {choose_from(unknown, names)}")
    return Stop(rule=options.stop, **arguments)  # type: ignore[arg-type]  # a rule, as was just looked up


def _folder(settings: dict[str, Any]) -> Path:
    """A folder of the run's own: the same command always gets the same one, another command another."""
    what = {name: value for name, value in settings.items() if name not in ("progress", "level", "nproc", "workers")}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    names = [settings[key].rstrip("/").split("/")[-1].split(":")[-1] for key in ("model", "data")]
    return RUNS / "-".join([*names, digest])


def _save_maps(folder: Path, loaded: LoadedModel, data: Data, options: ScoreOptions, protocol: Protocol) -> list[str]:
    """The figure of a few images with their maps by the first method; the names of the files written."""
    from xaieval.data.batches import read_batches
    from xaieval.report import maps_figure
    from xaieval.scoring import explain

    batch = next(read_batches(data.preview, max_images=PREVIEW)) if data.preview is not None else None
    if batch is None or not len(batch) or batch.images.ndim != 4:  # a figure shows images, no volumes
        return []
    maps = explain(
        loaded.model,
        batch.images,
        options.layers,
        options.methods[0],
        labels=batch.labels,
        ids=batch.ids,
        protocol=protocol,
        device=options.device,
        seed=options.seed,
        **options.where,
    )
    titles = batch.ids
    if data.classes is not None and batch.labels is not None and batch.labels.ndim == 1:
        titles = [data.classes[label] for label in batch.labels.tolist()]
    shown = {layer: maps[layer].cpu() for layer in list(maps)[:MOST_COLUMNS]}
    pixels = loaded.preprocessing.to_pixels(batch.images)
    maps_figure(pixels, shown, titles, f"{options.model}, {options.methods[0]}").savefig(folder / FIGURE, dpi=120)
    return [FIGURE]


def _print_summary(scores: Scores, summary: pd.DataFrame, level: float, files: list[str], folder: Path) -> None:
    """The table of results, and what a reader has to know about it."""
    from rich.table import Table

    table = Table("layer", "method", box=None, header_style="bold")
    for metric in scores.manifest["metrics"]:
        arrow = "higher is better" if metric["higher_is_better"] else "lower is better"
        table.add_column(f"{metric['label']} [{level:.0%} interval]\n{arrow}", justify="right")
    for heading in ("n", "failed"):
        table.add_column(heading, justify="right")
    for row in summary.reset_index().to_dict("records"):
        cells = [
            f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"
            for name in (metric["name"] for metric in scores.manifest["metrics"])
        ]
        table.add_row(row["layer"], row["method"], *cells, str(int(row["n_images"])), str(int(row["n_failed"])))
    console = _console()
    console.print(table)
    counts = scores.rows["status"].value_counts()
    if set(counts.index) != {"ok"}:
        console.print("rows by status: " + ", ".join(f"{status} {count}" for status, count in counts.items()))
    if "stop" in scores.manifest:
        console.print(f"stopped: {scores.manifest['stop']['reason']}", soft_wrap=True)
    console.print(f"written to {folder}: {', '.join(files)}", soft_wrap=True)


def _print_comparison(comparison: pd.DataFrame, level: float) -> None:
    """The models of the experiment beside the FPN control."""
    import pandas as pd
    from rich.table import Table

    table = Table("arm", "model", box=None, header_style="bold")
    names = {"accuracy": "accuracy %", "average_drop": "AD %", "increase_in_confidence": "IC %"}
    for title in names.values():
        table.add_column(f"{title}\nto control [{level:.0%} interval]", justify="right")
    table.add_column("n", justify="right")
    for row in comparison.reset_index().to_dict("records"):
        cells = []
        for name in names:
            difference = row.get(f"{name}_difference")
            ends = (
                f"[{row[f'{name}_difference_low']:+.1f}, {row[f'{name}_difference_high']:+.1f}]" if pd.notna(difference) else ""
            )
            cells.append(f"{row[name]:.1f}" + (f"  {difference:+.1f} {ends}" if ends else ""))
        table.add_row(row["arm"], row["model"], *cells, str(int(row["n_images"])))
    _console().print(table)


def _console() -> Console:
    """stdout; as wide as it takes where it is no terminal, so that nothing is cut off in a file."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(width=200, highlight=False, markup=False)


if __name__ == "__main__":
    main()
