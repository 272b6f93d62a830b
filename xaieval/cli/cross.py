"""The command `cross`: the maps of two runs' models on both models."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import app
from xaieval.cli.json_output import records
from xaieval.cli.loading import chosen_target, class_order, load_for, load_forward, load_methods, load_metrics, mosaic_settings
from xaieval.cli.remake_maps import check_imports, options_of
from xaieval.cli.tables import print_table, print_text
from xaieval.config.groups import Groups
from xaieval.config.option_types import Json, Switch, Words
from xaieval.config.options import ModelOptions, ProtocolOptions, ScoreOptions, model_settings, parts_of_data
from xaieval.errors import RunError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from xaieval.evaluation.cross_result import CrossScores
    from xaieval.evaluation.scores import Scores
    from xaieval.metrics import Metric
    from xaieval.models import LoadedModel

__all__ = ["cross"]

# Options that both runs need to have in common.
SAME = {
    *(
        "data",
        "masks",
        "boxes",
        "annotations",
        "groups",
        "group_weights",
        "methods",
        "method_args",
        "target",
        "task",
        "output",
        "grid",
        "prefix_tokens",
        "layout",
        "forward",
    ),
    *(field.name for field in fields(ProtocolOptions)),
}


@app.command
def cross(
    first: Path,
    second: Path,
    /,
    *,
    metrics: Words | None = None,
    controls: Words = ("center",),
    max_images: int | None = None,
    out: Annotated[Path | None, Parameter(negative=())] = None,
    level: float = 0.95,
    device: str | None = None,
    progress: bool = True,
    import_code: Switch = False,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Score the maps of two runs' models on both models: is it the maps that differ, or the models?

    Models, images, groups, layers, methods and protocol are those of the runs; layers of different names are paired by their
    order.

    Args:
        first: Folder of a run.
        second: Folder of a run of another model, with the same data, groups, methods and protocol.
        metrics: Metrics. Default: those of the first run.
        controls: Control maps to show on both models, too.
        max_images: Number of images. Default: those of the first run.
        out: Folder for rows.parquet, summary.csv and manifest.json.
        level: Confidence level of the intervals, and 1 minus the family-wise error rate of the tests.
        device: Device of the models. Default: that of the first run.
        progress: Show a progress bar on a terminal, and a line a minute in a log.
        import_code: Allow models or data that are a package.module:factory, whose code is imported and run.
        as_json: Print one JSON document instead of the tables.
        debug: Show the traceback of an error.
    """
    from xaieval.analysis.stats.intervals import check_level
    from xaieval.config.counts import check_count
    from xaieval.evaluation.scores import Scores

    check_level(level)
    check_count("max_images", max_images, optional=True)
    runs = {_name(folder, first, second): Scores.load(folder) for folder in (first, second)}
    if len(runs) < 2:
        raise UsageError(f"cross takes two runs, got '{first}' twice")
    scores = _cross(runs, metrics, controls, max_images, device, progress, import_code)
    if out is not None:
        scores.save(out, level)
    parts = scores.split(level=level)
    if as_json:
        table = scores.table(level=level)
        document = {"first": str(first), "second": str(second), "level": level, "models": scores.models, "notes": scores.notes}
        return document | {"table": records(table), "parts": records(parts)}
    _print(scores, parts, level)
    if out is not None:
        print_text(f"written to {out}")
    return None


def _name(folder: Path, first: Path, second: Path) -> str:
    """The name of the folder of a run, or its path if both have the same name."""
    return folder.name if first.name != second.name else str(folder)


def _cross(
    runs: dict[str, Scores],
    metrics: Words | None,
    controls: Words,
    max_images: int | None,
    device: str | None,
    progress: bool,
    import_code: bool,
) -> CrossScores:
    """Load what the runs name, and score it."""
    from xaieval.analysis.comparability import first_difference
    from xaieval.data import load_data
    from xaieval.evaluation.cross_score import cross_score

    (one, first), (other, _) = runs.items()
    for name, run in runs.items():
        _check_run(name, run, import_code)
    _check_same(runs)
    recorded = first.manifest["options"]
    options, model_options = options_of(recorded, ScoreOptions), options_of(recorded, ModelOptions)
    loaded = {name: _load(name, run) for name, run in runs.items()}
    preprocessing = loaded[one].preprocessing
    settings = [asdict(model.preprocessing) for model in loaded.values()]
    if settings[0] != settings[1]:
        raise UsageError(
            f"the images are prepared differently: {first_difference(settings[0], settings[1], (one, other))}; all models of "
            "cross get the same images, so score both with the same --image-size, --mean, --std and --interpolation"
        )
    protocol = options_of(recorded, ProtocolOptions).resolve(preprocessing.mean, preprocessing.std, chosen_target(options))
    most = max_images or options.max_images
    places: dict[str, Any] = {"masks": options.masks, "boxes": options.boxes, "annotations": options.annotations}
    places |= {"classes": class_order(options.classes), **parts_of_data(options)}
    forward = load_forward(model_options.forward)
    mosaic = mosaic_settings(options, loaded[one], forward, protocol)  # those of the first run
    data = load_data(options.data, preprocessing, options.batch_size, most, **places, **mosaic)
    return cross_score(
        {name: model.model for name, model in loaded.items()},
        data.loader,
        layers={name: run.manifest["run"]["layers"] for name, run in runs.items()},
        methods=load_methods(options),
        metrics=_metrics(options, metrics),
        protocol=protocol,
        controls=controls,
        groups=Groups(options.groups, options.group_weights),
        max_images=most,
        progress=progress,
        seed=options.seed,
        device=device or options.device,
        batch_size=options.batch_size,
        forward=forward,
        **model_settings(options),
    )


def _metrics(options: ScoreOptions, names: Words | None) -> list[Metric]:
    """The metrics of these names; those of the first run have its settings, and are the default."""
    from xaieval.metrics import resolve_metrics

    of_the_run = load_metrics(options, options.metrics)
    with_settings = {metric.name: metric for metric in of_the_run}
    return [with_settings.get(metric.name, metric) for metric in resolve_metrics(names or of_the_run)]


def _check_run(name: str, run: Scores, import_code: bool) -> None:
    """Refuse a run that does not say how to load its model and data, or only by code.

    Raises:
        RunError: With the way out.
    """
    options = run.manifest.get("options")
    if not options:
        raise RunError(f"the run {name} was made from Python; give its model to xaieval.cross_score there")
    if not import_code:
        check_imports(model=options["model"], data=options["data"], forward=options.get("forward"))


def _check_same(runs: dict[str, Scores]) -> None:
    """Refuse two runs whose data, groups, methods or protocol differ.

    Raises:
        UsageError: With the first difference.
    """
    from xaieval.analysis.comparability import first_difference

    names = tuple(runs)
    one, other = (_shared_options(run) for run in runs.values())
    if one != other:
        raise UsageError(
            f"the runs were made with different options: {first_difference(one, other, (names[0], names[1]))}; all models of "
            "cross are scored alike, so score both with the same"
        )


def _shared_options(run: Scores) -> dict[str, Any]:
    """The options that both runs need to have in common, with the defaults of those that older runs did not know."""
    kinds = (ScoreOptions, ModelOptions, ProtocolOptions)
    known = {name: value for kind in kinds for name, value in asdict(options_of(run.manifest["options"], kind)).items()}
    return {key: list(known[key]) if isinstance(known[key], tuple) else known[key] for key in sorted(SAME)}


def _load(name: str, run: Scores) -> LoadedModel:
    """The model of a run.

    Raises:
        RunError: It has other weights than the one that was scored.
    """
    from xaieval.evaluation.fingerprint import fingerprint

    recorded = run.manifest["options"]
    options = options_of(recorded, ScoreOptions)
    loaded = load_for(options, options_of(recorded, ModelOptions), options.seed)
    known = (run.manifest.get("model") or {}).get("fingerprint")
    if fingerprint(loaded.model) != known:
        raise RunError(f"the model '{options.model}' is not the one that {name} scored: its fingerprint differs")
    return loaded


def _print(scores: CrossScores, parts: pd.DataFrame, level: float) -> None:
    """Print what does not count, the table of maps and models, and the parts of the difference."""
    from rich.table import Table

    from xaieval.results.metric_display import label_of, mean_text

    for finding in scores.findings:
        print_text(f"warning: {finding.text} [{finding.name}]")
    for note in scores.notes:
        print_text(f"note: {note}")
    shown = Table("layer", "method", "metric", "maps of", box=None, header_style="bold")
    for model in scores.models:
        shown.add_column(f"on {model} [{level:.0%} interval]", justify="right")
    shown.add_column("n", justify="right")
    cells = scores.table(level=level)
    metrics = {metric["name"]: metric for metric in scores.metrics}
    groups: Any = cells.groupby(["layer", "method", "metric", "masks_of"], sort=False)
    for (layer, method, metric, masks_of), rows in groups:
        entry = metrics[metric]
        texts = [mean_text(row["mean"], row["low"], row["high"], entry) for row in rows.to_dict("records")]
        shown.add_row(layer, method, label_of(entry), masks_of, *texts, str(int(rows["n_images"].min())))
    print_table(shown, names=4)
    _print_parts(scores, parts, level)


def _print_parts(scores: CrossScores, parts: pd.DataFrame, level: float) -> None:
    """Print the difference between the models' own numbers, and its two parts."""
    from rich.table import Table

    from xaieval.results.metric_display import label_of, mean_text

    shown = Table("layer", "method", "metric", "part", box=None, header_style="bold")
    for heading in (f"{' - '.join(scores.models)} [{level:.0%} interval]", "p"):
        shown.add_column(heading, justify="right")
    metrics = {metric["name"]: metric for metric in scores.metrics}
    for row in parts.reset_index().to_dict("records"):
        entry = metrics[row["metric"]]
        cell = mean_text(row["value"], row["low"], row["high"], entry, "+")
        shown.add_row(row["layer"], row["method"], label_of(entry), row["part"], cell, f"{row['p_holm']:.2g}")
    print_table(shown, names=4)
    print_text(
        "map: other maps, the same model; model: the same maps, another model; difference: their sum; p: corrected by Holm for "
        f"{len(parts)} tests"
    )
