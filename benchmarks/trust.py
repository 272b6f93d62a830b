"""Which metrics agree, which method wins, what controls score: on a network that knows its classes, and on one that does not.

    python benchmarks/train_ucmerced.py train --weights FILE --data ucmerced:DIR --out NETWORKS
    python benchmarks/trust.py score --data ucmerced:DIR --networks NETWORKS
    python benchmarks/trust.py foreign --data ucmerced:DIR --weights FILE
    python benchmarks/trust.py tables --page docs/trust.md

`score` scores the network of each fold on 42 images that it has not seen (two processes: `--only 0 1` and `--only 2 3 4`);
`foreign` scores the network with ImageNet weights, which knows none of these classes, on the same 210 images by a few metrics.
`tables` makes the CSV files and the figure of `benchmarks/trust/` from the rows, and the tables of docs/trust.md. All at
128 x 128 pixels, four stages of MobileNetV2, the predicted class, the default protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
import pandas as pd
from coarse import COSTLY, SETTLED
from page_tables import filled
from train_ucmerced import held_out, pictures_of, trained_network

import xaieval
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import bootstrap_means
from xaieval.analysis.tables import directions, grouping_of, metric_tables
from xaieval.data import Pictures
from xaieval.evaluation.scores import Scores
from xaieval.metrics import METRICS, Metric, deletion, insertion, road
from xaieval.models import load_model
from xaieval.results.matched import without_excess

HERE = Path(__file__).parent / "trust"
ACCURACY = Path(__file__).parent / "trained_ucmerced/accuracy.csv"
LAYERS = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "elementwise-gradcam", "eigencam", "eigengradcam")
CONTROLS = ("random", "uniform", "center", "edges", "fake-cam", "shifted", "dimmed")
FEW = ("average_drop", "increase_in_confidence", "average_gain")
LEFT_OUT = {"road_morf", "road_lerf", "morf", "lerf", "infidelity", "stability_shift", *COSTLY}
ROUNDS = 2
PLACES = (0, 10, 5, 15)  # among the twenty held-out images of a class, which are two blocks of ten
RESAMPLES = 1000

app = cyclopts.App(help=__doc__)


def metrics() -> list[Metric]:
    """The metrics that need no ground truth, which these images lack, as far as time allows.

    Settings are those of `coarse.py`, with curves of five steps and one share for ROAD. The two parts of ROAD are left out,
    since the metric is half their difference; and so are MoRF, LeRF, infidelity and the stability under shifts, which cost as
    much as all confidences together, and the costly metrics.
    """
    settled = SETTLED | {metric.name: metric for metric in (insertion(5), deletion(5), road((0.5,)))}
    return [metric for name, metric in settled.items() if "masks" not in metric.needs and name not in LEFT_OUT]


@app.command
def score(
    data: str,
    networks: Path,
    rounds: int = ROUNDS,
    out: Path = Path("trust-run"),
    seed: int = 0,
    only: Annotated[list[int] | None, cyclopts.Parameter(consume_multiple=True)] = None,
) -> None:
    """Score the network of each fold on images that it has not seen.

    Args:
        data: ucmerced:DIR.
        networks: Folder of the trained networks.
        rounds: Number of images of each fold and class, up to 4.
        out: Folder of the runs.
        seed: Seed of the folds and of the scores.
        only: Numbers of the folds to score. Default: all.
    """
    pictures = pictures_of(data)
    for fold, turn, numbers in unseen(pictures, rounds, seed):
        if only is None or fold in only:
            model = trained_network(networks, fold)
            _score(model, pictures.subset(numbers), METHODS, metrics(), out / f"fold{fold}-{turn}", seed)


@app.command
def foreign(data: str, weights: Path, rounds: int = ROUNDS, out: Path = Path("trust-run"), seed: int = 0) -> None:
    """Score a network that knows none of the classes, on the same images: Grad-CAM and the metrics of the confidence.

    Args:
        data: ucmerced:DIR.
        weights: ImageNet weights of mobilenetv2_100, safetensors.
        rounds: As for `score`.
        out: Folder of the runs.
        seed: As for `score`.
    """
    pictures = pictures_of(data)
    numbers = sorted(number for _, _, some in unseen(pictures, rounds, seed) for number in some)
    model = load_model("timm:mobilenetv2_100", weights, model_args={"pad_type": "same"}).model
    few = [METRICS[name] for name in FEW]
    _score(model, pictures.subset(numbers), METHODS[:1], few, out / "foreign", seed)


def unseen(pictures: Pictures, rounds: int, seed: int) -> Iterator[tuple[int, int, list[int]]]:
    """Fold, round, and the numbers of the images: one of each class that the fold's network has not seen.

    The images of the first two rounds come from different blocks of places.
    """
    for fold, numbers in enumerate(held_out(pictures, seed)):
        by_class: dict[int | None, list[int]] = {}
        for number in numbers:
            by_class.setdefault(pictures.labels[number], []).append(number)
        for turn, place in enumerate(PLACES[:rounds]):
            yield fold, turn, [members[place] for members in by_class.values()]


def _score(model: Any, pictures: Pictures, methods: Sequence[str], chosen: list[Metric], out: Path, seed: int) -> None:
    xaieval.score(
        model,
        pictures.loader(21),
        layers=LAYERS,
        methods=methods,
        metrics=chosen,
        controls=CONTROLS,
        output_dir=out,
        progress=False,
        seed=seed,
    )


@app.command
def tables(run: Path = Path("trust-run"), page: Path | None = None) -> None:
    """Make the tables and the figure from the runs.

    Args:
        run: Folder of the runs.
        page: Page whose tables are replaced, docs/trust.md.
    """
    HERE.mkdir(exist_ok=True)
    parts = [Scores.load(folder) for folder in sorted(run.glob("fold?-?"))]
    scores, other = joined(parts), Scores.load(run / "foreign").with_groups("class")
    made = {
        "summary": scores.summary().reset_index(),
        "foreign": other.summary().reset_index(),
        "agreement": scores.agreement().table,
        "winners": winners(scores),
        "controls": against_controls(scores),
        "matched": matched(scores),
        "size": sizes(scores),
        "layers": pd.concat([layers(scores).assign(network="trained"), layers(other).assign(network="foreign")]),
    }
    for name, table in made.items():
        table.round(4).to_csv(HERE / f"{name}.csv", index=False)
    scores.plot("agreement", size=8).savefig(HERE / "agreement.png", dpi=110)
    about = {"trained": described(scores), "foreign": described(other)}
    (HERE / "manifest.json").write_text(json.dumps(about, indent=2) + "\n")
    if page is not None:
        page.write_text(filled(page.read_text(), MADE))


def joined(parts: Sequence[Scores]) -> Scores:
    """One run of runs with other images and networks of the same kind, whose images belong together by class."""
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    networks = sorted({part.manifest["model"]["fingerprint"] for part in parts})
    about = {"data": {"images": int(rows["image_id"].nunique())}, "networks": networks}
    return Scores(rows, parts[0].manifest | about).with_groups("class")


def described(scores: Scores) -> dict[str, Any]:
    """What a run was and found, without what differs between two runs of the same command."""
    kept = ("versions", "seed", "networks", "model", "run", "device", "data", "groups", "controls", "matched_controls")
    found = {"predictions": str(scores.predictions), "warnings": scores.warnings()}
    return {name: scores.manifest[name] for name in kept if name in scores.manifest} | found


def own_tables(scores: Scores, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The values of metrics or other columns, images x pairs of layer and method, without control maps."""
    own = scores.rows[~scores.rows["method"].isin(scores.controls)]
    return metric_tables(own, list(names), ["layer", "method"])


def resampled_means(values: pd.DataFrame, groups: Grouping | None, seed: int = 0) -> np.ndarray:
    """The mean of each column in bootstrap samples of the groups, `[R, T]`; NaN are left out."""
    there = values.notna().to_numpy()
    sums = bootstrap_means(np.hstack([values.fillna(0).to_numpy(), there]), RESAMPLES, seed, groups=groups)
    total, count = np.split(sums, 2, axis=1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def winners(scores: Scores) -> pd.DataFrame:
    """By layer and metric, the method with the best mean, and the share of resamplings of the groups in which it wins."""
    records = []
    higher_is_better = directions(scores.metrics)
    for name, table in own_tables(scores, list(higher_is_better)).items():
        sign = 1 if higher_is_better[name] else -1
        groups = grouping_of(scores.rows, table.index)
        for layer in dict.fromkeys(table.columns.get_level_values("layer")):
            values = sign * table[layer]
            best = str(values.mean().idxmax())
            firsts = values.columns[np.nanargmax(resampled_means(values, groups), axis=1)]
            share = float((firsts == best).mean())
            found = {"layer": layer, "metric": name, "higher_is_better": sign > 0, "best": best}
            records.append(found | {"mean": sign * values[best].mean(), "first_share": share, "n_images": len(values)})
    return pd.DataFrame(records)


def narrowed(scores: Scores, metrics: Sequence[str], methods: Sequence[str] = METHODS) -> Scores:
    """The run with some of its metrics and methods, so that tests are corrected for these alone."""
    kept = {*metrics, *(f"{name}_excess" for name in metrics)}
    entries = [metric for metric in scores.metrics if metric["name"] in kept]
    rows = scores.rows[scores.rows["method"].isin([*methods, *scores.controls])]
    return Scores(rows, scores.manifest | {"metrics": entries})


def against_controls(scores: Scores) -> pd.DataFrame:
    """By metric, how many pairs of layer and method beat all control maps, and each of them, each metric tested on its own."""
    records = []
    for name in directions(without_excess(scores.metrics)):
        tests = narrowed(scores, [name]).controls_table()
        pairs = tests.groupby(["layer", "method"], sort=False)["beats"].all()
        found = {"metric": name, "pairs": len(pairs), "beat_all": int(pairs.sum()), "tests": len(tests)}
        records.append(found | {control: int(group["beats"].sum()) for control, group in tests.groupby("control", sort=False)})
    return pd.DataFrame(records)


def matched(scores: Scores) -> pd.DataFrame:
    """By metric and matched control: how many pairs beat it, how many are worse, and the largest lead.

    Pairs are better by the tests of `Scores.matched_table`, each metric on its own, and worse if the interval of the excess
    lies on the other side of 0.
    """
    records = []
    for name, higher in directions(without_excess(scores.metrics)).items():
        if f"{name}_excess" not in scores.rows:
            continue
        for control, tests in narrowed(scores, [name]).matched_table().groupby("control", sort=False):
            lead = tests["excess"] if higher else -tests["excess"]
            worse = tests["high"] < 0 if higher else tests["low"] > 0
            first = tests.loc[lead.idxmax()]
            found = {"metric": name, "control": control, "pairs": len(tests), "better": int(tests["beats"].sum())}
            found |= {"worse": int(worse.sum()), "largest_lead": lead.max(), "layer": first["layer"], "method": first["method"]}
            records.append(found)
    return pd.DataFrame(records)


def sizes(scores: Scores) -> pd.DataFrame:
    """Pearson's correlation of each metric with the mask area over the pairs, with an interval over resampled groups."""
    higher_is_better = directions(scores.metrics)
    values = own_tables(scores, ["mask_area", *higher_is_better])
    groups = grouping_of(scores.rows, values["mask_area"].index)
    area, drawn = values["mask_area"].mean(), resampled_means(values["mask_area"], groups)
    records = []
    for name, higher in higher_is_better.items():
        table = values[name].reindex(values["mask_area"].index)
        low, high = pd.Series(correlations(resampled_means(table, groups), drawn)).quantile([0.025, 0.975])
        r = correlations(table.mean().to_numpy()[None], area.to_numpy()[None])[0]
        records.append({"metric": name, "higher_is_better": higher, "r": r, "low": low, "high": high, "n_images": len(table)})
    return pd.DataFrame(records)


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row of two tables `[R, T]`; NaN where a row is constant or has missing values."""
    apart = [table - table.mean(axis=1, keepdims=True) for table in (one, other)]
    spread = np.sqrt((apart[0] ** 2).sum(axis=1) * (apart[1] ** 2).sum(axis=1))
    return np.divide((apart[0] * apart[1]).sum(axis=1), spread, out=np.full(len(one), np.nan), where=spread > 0)


def layers(scores: Scores) -> pd.DataFrame:
    """Grad-CAM by layer: AD, IC and AG with their excess, and how many control maps it beats, in tests of these alone."""
    few = narrowed(scores, FEW, METHODS[:1])
    own = few.summary().reset_index()
    own = own[~own["method"].isin(few.controls)]
    tests = few.controls_table()
    beaten = tests.pivot_table(index="layer", columns="metric", values="beats", aggfunc="sum")
    names = [f"{name}{kind}" for name in FEW for kind in ("", "_excess")]
    columns = ["layer", "mask_area", *(f"{name}{end}" for name in names for end in ("", "_low", "_high")), "n_images"]
    counts = {f"{name}_beats": own["layer"].map(beaten[name]).astype(int) for name in FEW}
    return own[columns].assign(**counts, controls=tests["control"].nunique())


def accuracy_lines() -> list[str]:
    """In Markdown, the accuracy of each fold's network on the images that it has not seen."""
    lines = ["| fold | accuracy % | mean confidence | n |", "|---|---|---|---|"]
    for row in pd.read_csv(ACCURACY).to_dict("records"):
        ends = f"[{row['accuracy_low']:.1f}, {row['accuracy_high']:.1f}]"
        lines.append(f"| {row['fold']} | {row['accuracy']:.1f} {ends} | {row['confidence']:.2f} | {row['n_images']} |")
    return lines


def winner_lines() -> list[str]:
    """In Markdown, one row per metric: the best method at each layer, its mean, and its share of wins."""
    table = pd.read_csv(HERE / "winners.csv")
    found = list(table["layer"].unique())
    lines = [f"| metric | {' | '.join(f'`{layer}`' for layer in found)} |", "|---" * (len(found) + 1) + "|"]
    for name, group in table.groupby("metric", sort=False):
        rows = group.set_index("layer").to_dict("index")
        cells = [f"{rows[at]['best']} {rows[at]['mean']:.3g} ({rows[at]['first_share']:.0%})" for at in found]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def control_lines() -> list[str]:
    """In Markdown, one row per metric: the best pair, each control map, and how many pairs beat all of them."""
    summary, beaten = pd.read_csv(HERE / "summary.csv"), pd.read_csv(HERE / "controls.csv").set_index("metric")
    controls = json.loads((HERE / "manifest.json").read_text())["trained"]["controls"]
    higher = pd.read_csv(HERE / "size.csv").set_index("metric")["higher_is_better"]
    own, values = summary[~summary["method"].isin(controls)], summary.set_index("method")
    heads = ["metric", "best pair", *controls, "pairs that beat all controls"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, counts in beaten.iterrows():
        best = own.loc[own[name].idxmax() if higher[name] else own[name].idxmin()]
        means = values.loc[controls, name]
        cells = ["" if pd.isna(mean) else f"{mean:.3g}{times(counts.get(control))}" for control, mean in means.items()]
        first = f"{best[name]:.3g} ({best['method']}, `{best['layer']}`)"
        words = f"`{name}`, {'higher' if higher[name] else 'lower'} is better"
        lines.append(f"| {words} | {first} | {' | '.join(cells)} | {counts['beat_all']:.0f} of {counts['pairs']:.0f} |")
    return lines


def times(count: float | None) -> str:
    """In brackets, how many pairs beat a control; nothing for a control that is no rival."""
    return "" if count is None or pd.isna(count) else f" ({count:.0f})"


def matched_lines() -> list[str]:
    """In Markdown, one row per metric: how many pairs are better and worse than their matched controls."""
    table = pd.read_csv(HERE / "matched.csv")
    controls = list(table["control"].unique())
    heads = ["metric", *(f"better, worse than `{control}`" for control in controls), "largest lead over `shifted`"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, group in table.groupby("metric", sort=False):
        rows = group.set_index("control").to_dict("index")
        counts = [f"{row['better']}, {row['worse']} of {row['pairs']}" if row else "" for row in map(rows.get, controls)]
        first = rows["shifted"]
        lead = f"{first['largest_lead']:.3g} ({first['method']}, `{first['layer']}`)"
        lines.append(f"| `{name}` | {' | '.join(counts)} | {lead} |")
    return lines


def size_lines() -> list[str]:
    """In Markdown, the correlation of each metric, and of its excess, with the mask area."""
    table = pd.read_csv(HERE / "size.csv").set_index("metric")
    words = {name: f"{row['r']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for name, row in table.iterrows()}
    lines = ["| metric | r with the mask area | r of its excess |", "|---|---|---|"]
    own = [str(name) for name in table.index if not str(name).endswith("_excess")]
    return lines + [f"| `{name}` | {words[name]} | {words.get(f'{name}_excess', '')} |" for name in own]


def layer_lines() -> list[str]:
    """In Markdown, Grad-CAM at each layer of both networks."""
    table = pd.read_csv(HERE / "layers.csv")
    names = {
        "average_drop": "AD %",
        "increase_in_confidence": "IC %",
        "average_drop_excess": "AD excess",
    }
    names |= {"increase_in_confidence_excess": "IC excess"}
    heads = ["network", "layer", "mask area", *names.values(), "controls beaten in AD, IC"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in table.to_dict("records"):
        cells = [f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]" for name in names]
        beaten = f"{row['average_drop_beats']}, {row['increase_in_confidence_beats']} of {row['controls']}"
        lines.append(f"| {row['network']} | `{row['layer']}` | {row['mask_area']:.2f} | {' | '.join(cells)} | {beaten} |")
    return lines


MADE = {
    "accuracy": accuracy_lines,
    "winners": winner_lines,
    "controls": control_lines,
    "matched": matched_lines,
    "size": size_lines,
    "layers": layer_lines,
}


if __name__ == "__main__":
    app()
