"""All metrics, methods and controls on a real network: which metrics agree, which method wins, what the controls score.

    python benchmarks/trust.py score --weights FILE --data ucmerced:DIR
    python benchmarks/trust.py tables

The first command writes a run (in two processes: `torchrun --nproc-per-node 2 benchmarks/trust.py score ...`); the second makes
the CSV files and the figure of `benchmarks/trust/` from its rows, which docs/trust.md shows. MobileNetV2 with ImageNet weights
(timm's `mobilenetv2_100` with TensorFlow's padding and inputs in [-1, 1]) at 128 x 128 pixels, four of its stages, eight
methods and the controls, the predicted class, 210 images, 10 per class.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cyclopts
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from xaieval.data import load_data
from xaieval.evaluation import distributed
from xaieval.evaluation.scores import Scores
from xaieval.metrics import METRICS, Metric, deletion, insertion, lerf, max_sensitivity, morf, road
from xaieval.models import load_model

HERE = Path(__file__).parent / "trust"
LAYERS = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "elementwise-gradcam", "eigencam", "eigengradcam")
SIZE = 128
RESAMPLES = 1000

app = cyclopts.App(help=__doc__)


def metrics() -> list[Metric]:
    """Every metric that needs no ground truth; these images have none.

    Curves have ten steps, ROAD two shares, and max-sensitivity five samples, which is coarse and still takes most of the time.
    The two parts of ROAD are left out: the metric is half their difference.
    """
    coarse = [insertion(10), deletion(10), morf(10), lerf(10), road((0.3, 0.7)), max_sensitivity(5)]
    settled = METRICS | {metric.name: metric for metric in coarse}
    left_out = {"road_morf", "road_lerf"}
    return [metric for name, metric in settled.items() if "masks" not in metric.needs and name not in left_out]


@app.command
def score(weights: Path, data: str, images: int = 210, out: Path = Path("trust-run"), seed: int = 0) -> None:
    """Score all layers, methods and controls.

    Args:
        weights: Weights file of mobilenetv2_100, safetensors.
        data: Data, such as ucmerced:DIR or folder:DIR.
        images: Number of images, spread evenly over the classes.
        out: Folder of the run.
        seed: Random seed.
    """
    loaded = load_model("timm:mobilenetv2_100", str(weights), model_args={"pad_type": "same"})
    half = (0.5, 0.5, 0.5)
    preprocessing = replace(loaded.preprocessing.with_size(SIZE), mean=half, std=half, interpolation="bilinear")
    loader = load_data(data, preprocessing, 15, images).loader
    distributed.score(
        loaded.model,
        loader,
        layers=LAYERS,
        methods=METHODS,
        metrics=metrics(),
        controls=True,
        output_dir=out,
        max_images=images,
        seed=seed,
    )


@app.command
def tables(run: Path = Path("trust-run"), seed: int = 0, page: Path | None = None) -> None:
    """Make the tables and the figure of a run.

    Args:
        run: Folder of the run.
        seed: Seed of the resampling.
        page: Page whose tables are replaced, docs/trust.md.
    """
    HERE.mkdir(exist_ok=True)
    scores = Scores.load(run)
    scores.summary().round(4).to_csv(HERE / "summary.csv")
    known = {metric["name"]: metric for metric in scores.manifest["metrics"]}
    directed = [name for name, metric in known.items() if metric["higher_is_better"] is not None]
    good = {name: 1 if known[name]["higher_is_better"] else -1 for name in directed}
    own = scores.rows[~scores.rows["method"].isin(scores.manifest["controls"])]
    agreement(own, good, seed).round(3).to_csv(HERE / "agreement.csv", index=False)
    winners(own, good).to_csv(HERE / "winners.csv", index=False)
    labels = {name: known[name]["label"] for name in directed}
    figure(pd.read_csv(HERE / "agreement.csv"), labels).savefig(HERE / "agreement.png", dpi=110)
    kept = ("versions", "seed", "model", "run", "speed", "device", "data", "ranks", "controls")
    manifest = {name: scores.manifest[name] for name in kept if name in scores.manifest}
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    if page is not None:
        page.write_text(filled(page.read_text()))


def agreement(rows: pd.DataFrame, good: dict[str, int], seed: int) -> pd.DataFrame:
    """Rank correlation of two metrics over pairs of layer and method, with an interval over resampled images.

    Metrics for which lower is better are negated: 1 means the same order, -1 the reverse.
    """
    table = rows.assign(pair=rows["layer"] + " " + rows["method"])
    values = {}
    for name, sign in good.items():
        wide = table.pivot_table(index="image_id", columns="pair", values=name, dropna=False)
        values[name] = sign * wide.to_numpy(dtype=float)
    count = len(next(iter(values.values())))
    rng = np.random.default_rng(seed)
    picks = rng.integers(count, size=(RESAMPLES, count))
    means = {name: np.array([np.nanmean(table[pick], axis=0) for pick in picks]) for name, table in values.items()}
    records = []
    for one, other in combinations(good, 2):
        whole = spearmanr(np.nanmean(values[one], axis=0), np.nanmean(values[other], axis=0)).statistic
        resampled = [spearmanr(*both).statistic for both in zip(means[one], means[other], strict=True)]
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        records.append({"metric": one, "other": other, "spearman": whole, "low": low, "high": high, "n_images": count})
    return pd.DataFrame(records)


def winners(rows: pd.DataFrame, good: dict[str, int]) -> pd.DataFrame:
    """By layer and metric, the method with the best mean, and the share of resamplings of the images in which it wins."""
    records = []
    for layer, group in rows.groupby("layer", sort=False):
        for name, sign in good.items():
            table = sign * group.pivot_table(index="image_id", columns="method", values=name, sort=False)
            values = table.to_numpy(dtype=float)
            best = int(np.nanmean(values, axis=0).argmax())
            rng = np.random.default_rng(0)
            picks = rng.integers(len(values), size=(RESAMPLES, len(values)))
            firsts = np.array([np.nanmean(values[pick], axis=0).argmax() for pick in picks])
            records.append(
                {
                    "layer": layer,
                    "metric": name,
                    "higher_is_better": sign > 0,
                    "best": table.columns[best],
                    "mean": round(float(sign * np.nanmean(values[:, best])), 3),
                    "first_share": round(float((firsts == best).mean()), 3),
                    "n_images": len(values),
                }
            )
    return pd.DataFrame(records)


def figure(correlations: pd.DataFrame, labels: dict[str, str]) -> Figure:
    """The rank correlations as a matrix."""
    names = list(labels)
    matrix = np.eye(len(names))
    for row in correlations.to_dict("records"):
        one, other = names.index(row["metric"]), names.index(row["other"])
        matrix[one, other] = matrix[other, one] = row["spearman"]
    picture = Figure(figsize=(0.5 * len(names) + 3, 0.5 * len(names) + 2), layout="constrained")
    axes = picture.subplots()
    shown = axes.imshow(matrix, cmap="PuOr_r", vmin=-1, vmax=1)
    axes.set_xticks(range(len(names)), [labels[name] for name in names], rotation=60, ha="right", fontsize="small")
    axes.set_yticks(range(len(names)), [labels[name] for name in names], fontsize="small")
    for (row, column), value in np.ndenumerate(matrix):
        colour = "white" if abs(value) > 0.7 else "black"
        axes.text(column, row, f"{value:.1f}".replace("-0.0", "0.0"), ha="center", va="center", fontsize=6, color=colour)
    picture.colorbar(shown, ax=axes, label="rank correlation, better with better", shrink=0.7)
    return picture


def filled(text: str) -> str:
    """The text of a page with new tables below each `<!-- from NAME -->`."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        inside = inside and line.startswith("|")
        if not inside:
            lines.append(line)
        for name, made in (("winners", winner_lines), ("controls", control_lines)):
            if line == f"<!-- from {name} -->":
                lines += made()
                inside = True
    return "\n".join(lines) + "\n"


def winner_lines() -> list[str]:
    """In Markdown, one row per metric: the best method at each layer, its mean, and its share of wins."""
    table = pd.read_csv(HERE / "winners.csv")
    layers = list(table["layer"].unique())
    lines = [f"| metric | {' | '.join(f'`{layer}`' for layer in layers)} |", "|---" * (len(layers) + 1) + "|"]
    for name, group in table.groupby("metric", sort=False):
        rows = group.set_index("layer").to_dict("index")
        cells = [f"{rows[at]['best']} {rows[at]['mean']:.3g} ({rows[at]['first_share']:.0%})" for at in layers]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def control_lines() -> list[str]:
    """In Markdown, one row per metric: the best pair, each control, and the number of pairs that beat all controls."""
    summary = pd.read_csv(HERE / "summary.csv")
    winning = pd.read_csv(HERE / "winners.csv")
    manifest = json.loads((HERE / "manifest.json").read_text())
    controls = manifest["controls"]
    better = dict(zip(winning["metric"], winning["higher_is_better"], strict=True))
    own = summary[~summary["method"].isin(controls)]
    values = summary.set_index("method")
    lines = [
        f"| metric | best pair | {' | '.join(controls)} | pairs that beat all controls |",
        "|---" * (len(controls) + 3) + "|",
    ]
    for name, higher in better.items():
        best = own.loc[own[name].idxmax() if higher else own[name].idxmin()]
        beaten = sum(name in str(words).split(", ") for words in own["beats_controls"])
        cells = ["" if pd.isna(values.loc[control, name]) else f"{values.loc[control, name]:.3g}" for control in controls]
        first = f"{best[name]:.3g} ({best['method']}, `{best['layer']}`)"
        words = f"`{name}`, {'higher' if higher else 'lower'} is better"
        lines.append(f"| {words} | {first} | {' | '.join(cells)} | {beaten} of {len(own)} |")
    return lines


if __name__ == "__main__":
    app()
