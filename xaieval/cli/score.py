"""The command `score`."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import MODEL_OPTIONS, NO_PREFIX, PROTOCOL_OPTIONS, app, command_line, note
from xaieval.cli.json_output import score_document
from xaieval.cli.loading import check_names, load_inputs, load_judge, load_methods, load_metrics, shown_slices
from xaieval.cli.table import beside, check_published
from xaieval.cli.tables import print_rankings, print_summary, print_text, rankings_by_metric, summary_if_interrupted
from xaieval.config.option_types import Json, Switch
from xaieval.config.options import ModelOptions, ProtocolOptions, ScoreOptions, model_settings, parse_literals, to_settings
from xaieval.errors import RunError, UsageError, printable
from xaieval.evaluation.distributed.rank import Rank, end_with_launcher, is_spoken_for

if TYPE_CHECKING:
    from xaieval.config.protocol import Protocol
    from xaieval.data import Data
    from xaieval.evaluation.early_stopping import Stop
    from xaieval.evaluation.scores import Scores
    from xaieval.inference.forward_passes import Forward
    from xaieval.models import LoadedModel

__all__ = ["default_folder", "score"]


RUNS = Path("xaieval-runs")
FIGURE = "maps.png"
# Settings that change no row.
IDLE = ("group_weights", "progress", "level", "nproc", "workers", "resume", "bands", "keep_maps", "published")
PREVIEW, MOST_COLUMNS = 5, 8  # images and layers in the figure


@app.command
def score(
    run_file: Annotated[Path | None, Parameter(negative=())] = None,
    /,
    *,
    options: Annotated[ScoreOptions | None, NO_PREFIX] = None,
    model_options: Annotated[ModelOptions | None, MODEL_OPTIONS] = None,
    protocol_options: Annotated[ProtocolOptions | None, PROTOCOL_OPTIONS] = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Score layers and methods of a model by Average Drop, Increase in Confidence and other metrics.

    Writes rows.parquet, summary.csv, manifest.json and maps.png; with localisation metrics also pooled.csv (numbers over all
    images at once), and with --keep-maps maps.safetensors. The same command continues an interrupted run.

    Without options, it scores a small built-in model on 200 generated images and needs no network.

    Args:
        run_file: TOML file with options as keys; options on the command line take precedence.
        as_json: Print one JSON document instead of the tables.
        debug: Show the traceback of an error.
    """
    options, model_options = options or ScoreOptions(), model_options or ModelOptions()
    protocol_options = protocol_options or ProtocolOptions()
    settings = to_settings(options) | to_settings(model_options) | to_settings(protocol_options)
    folder = Path(options.out) if options.out else default_folder(settings)
    with summary_if_interrupted(folder, options.level):
        if options.nproc > 1 and not is_spoken_for():
            from xaieval.evaluation.distributed.launch import launch

            for line in launch(command_line.get(), options.nproc, options.already_split):
                note(line)
            return None
        end_with_launcher()
        return _score(options, model_options, protocol_options, settings, folder, as_json)


def _score(
    options: ScoreOptions,
    model_options: ModelOptions,
    protocol_options: ProtocolOptions,
    settings: dict[str, Any],
    folder: Path,
    as_json: bool,
) -> dict[str, Any] | None:
    """Score in this process, which may be one of several."""
    from xaieval.analysis.pooled import pooled_numbers
    from xaieval.analysis.stats.intervals import check_level
    from xaieval.config.groups import Groups
    from xaieval.data.images import describe_left_out
    from xaieval.evaluation.distributed import score as run
    from xaieval.results.files import KEPT_MAPS, MANIFEST, POOLED, ROWS, SUMMARY

    check_level(options.level)
    methods, metrics = load_methods(options), load_metrics(options, options.metrics)
    check_published(options.published, options.model, [method.name for method in methods], as_json)
    judge = None if options.judge is None else load_judge(options, model_options, options.judge)
    truth = any("masks" in metric.needs for metric in metrics)
    inputs = load_inputs(options, model_options, protocol_options, truth=truth)
    loaded, forward, protocol, data, settings_of_run = inputs
    if data.left_out and Rank.from_environment().is_first:
        note(f"{options.data}: {describe_left_out(data.left_out)}")
    scores = run(
        loaded.model,
        data.loader,
        layers=options.layers,
        methods=methods,
        metrics=metrics,
        protocol=protocol,
        controls=options.controls,
        groups=Groups(options.groups, options.group_weights),
        stop=_stop_rule(options),
        max_images=options.max_images,
        output_dir=folder,
        already_split=options.already_split,
        judge=judge,
        keep_maps=options.keep_maps,
        **settings_of_run,
    )
    if not Rank.from_environment().is_first:
        return None
    stored = json.dumps(scores.manifest)
    scores.manifest["options"] = settings
    _describe(scores, loaded, data, options, model_options)
    tests = scores.controls_table(options.level) if scores.controls else None
    summary = scores.summary(options.level, tests=tests)
    _save_changed(scores, stored, folder, options.level, summary)
    tables = [SUMMARY, *([POOLED] if pooled_numbers(scores.column_names, scores.metrics) else [])]
    kept = [] if scores.maps is None else [KEPT_MAPS]
    files = [ROWS, *tables, MANIFEST, *kept, *_maps_if_possible(folder, loaded, forward, data, options, protocol)]
    if not as_json:
        print_summary(scores, summary, tests, options.level)
        print_text(f"written to {folder}: {', '.join(files)}")
        print_rankings(scores, options.level)
        if options.published is not None:
            print_text(str(beside(scores, options.published, options.level)))
    if not summary["n_images"].any():
        raise RunError(f"no row could be counted; the column 'status' in '{folder / ROWS}' says why")
    if as_json:
        return score_document(scores, summary, rankings_by_metric(scores, options.level), options.level, files, folder)
    return None


def _describe(scores: Scores, loaded: LoadedModel, data: Data, options: ScoreOptions, model_options: ModelOptions) -> None:
    """Add to the manifest what only the command line knows of the model and the images."""
    from xaieval.config.protocol import plain
    from xaieval.models.class_names import class_names

    if data.left_out:
        scores.manifest["data"]["left_out"] = dict(data.left_out)
    if scores.maps is not None:  # their report loads neither model nor data
        names = class_names(loaded.model, options.model, model_options.pretrained and model_options.weights is None)
        scores.manifest["class_names"] = {"labels": list(data.classes or ()), "model": names}
    scores.manifest["preprocessing"] = {name: plain(value) for name, value in asdict(loaded.preprocessing).items()}


def _save_changed(scores: Any, stored: str, folder: Path, level: float, summary: Any) -> None:
    """Save a run, unless its manifest is the stored one: that of a finished run which was repeated unchanged."""
    if json.dumps(scores.manifest) != stored:
        scores.save(folder, level, summary)


def _stop_rule(options: ScoreOptions) -> Stop | None:
    """The rule of early stopping, or None."""
    if options.stop is None:
        if options.stop_args:
            raise UsageError("--stop-args are settings of --stop, which is missing; add --stop ranking, best or worst")
        return None

    from xaieval.evaluation.early_stopping import Stop, resolve_stop

    resolve_stop(options.stop)
    arguments = parse_literals(options.stop_args)
    check_names("stop-args", arguments, [name for name in Stop.__dataclass_fields__ if name != "rule"])
    return Stop(rule=options.stop, **arguments)  # type: ignore[arg-type]  # checked by resolve_stop


def default_folder(settings: dict[str, Any], *more: str) -> Path:
    """Output folder of a command: always the same for the same settings, and a different one for others."""
    relevant = {name: value for name, value in settings.items() if name not in IDLE}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]
    names = [settings[key].rstrip("/").split("/")[-1].split(":")[-1] for key in ("model", "data")]
    return RUNS / "-".join([*names, *more, digest])


def _maps_if_possible(
    folder: Path, loaded: LoadedModel, forward: Forward | None, data: Data, options: ScoreOptions, protocol: Protocol
) -> list[str]:
    """Save the figure of maps; without one, say why: the results are there, and a model or data set may raise anything."""
    try:
        return _save_maps(folder, loaded, forward, data, options, protocol)
    except Exception as error:
        note(f"no {FIGURE}: {' '.join(str(error).split()) or type(error).__name__}")
        return []


def _save_maps(
    folder: Path, loaded: LoadedModel, forward: Forward | None, data: Data, options: ScoreOptions, protocol: Protocol
) -> list[str]:
    """Save a figure of a few images with their maps by the first method; return the names of the files."""
    import torch

    from xaieval.data.batches import read_batches
    from xaieval.data.each_class import EACH, each_class
    from xaieval.evaluation.explain import explain
    from xaieval.report import show

    batch = next(read_batches(data.preview, max_images=PREVIEW)) if data.preview is not None else None
    if batch is not None and protocol.target == EACH:
        batch, protocol = next(each_class(iter([batch]))).part(0, PREVIEW, []), replace(protocol, target="label")
    if batch is None or not len(batch):
        return []
    maps = explain(
        loaded.model,
        batch.images,
        options.layers,
        load_methods(options)[0],
        labels=batch.labels,
        ids=batch.ids,
        protocol=protocol,
        device=options.device,
        memory=options.memory,
        seed=options.seed,
        forward=forward,
        **model_settings(options),
    )
    titles = batch.ids
    if data.classes is not None and isinstance(batch.labels, torch.Tensor) and batch.labels.ndim == 1:
        known = range(len(data.classes))
        titles = [data.classes[one] if one in known else name for one, name in zip(batch.labels.tolist(), titles, strict=True)]
    titles = [printable(title) for title in titles]
    shown = {layer: maps[layer].cpu() for layer in list(maps)[:MOST_COLUMNS]}
    pixels = loaded.preprocessing.to_pixels(batch.images, options.bands)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # in class names; matplotlib draws a box
        slices = shown_slices(loaded, batch.images)
        figure = show(pixels, shown, titles, f"{options.model}, {options.methods[0]}", slices=slices)
        figure.savefig(folder / FIGURE, dpi=120)
    return [FIGURE]
