"""Which metric recognises a true explanation: true maps against false ones, on networks whose cause is known.

    python benchmarks/known_causes.py score
    python benchmarks/known_causes.py tables --page docs/known_causes.md

The networks are those of `benchmarks/train_cue_models.py`: each classifies generated scenes by one known cue, so the true map
of an image is the mask of its cue. The first command scores the true map and six false ones of each image by every metric that
judges a map, and writes `benchmarks/known_causes/`: for each cue, metric and false map, in how many images the true map has the
better value (`CUE.csv`), and what was run (`CUE.json`). The second makes the tables of the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pandas as pd
import torch
from coarse import COSTLY, SETTLED, judges_one_map, left_out
from matplotlib.figure import Figure
from numpy.typing import NDArray
from page_tables import filled
from scipy.ndimage import distance_transform_edt
from torch import Tensor

import xaieval
from xaieval.analysis.stats.intervals import wilson_interval
from xaieval.analysis.stats.paired import holm, paired_p_values
from xaieval.data import Preprocessing, scenes
from xaieval.data.cues import CUES, Cue
from xaieval.data.drawing import SIDE
from xaieval.data.scenes import VERSIONS, Scene, make_scene
from xaieval.explainers.base import Context
from xaieval.metrics import FAMILIES, Metric
from xaieval.models import cue_scenes

HERE = Path(__file__).parent / "known_causes"
TRUE = "true"
FALSE = ("shifted", "half", "distractor", "random", "twice", "everything")
EXCESS, OF_OBJECT = "_excess", "_of_object"  # what is added to the name of a metric
BATCH = 25
LEAST_SHIFT = 48  # pixels; no cue is wider or higher
TIE = 1e-9
ALPHA = 0.05
NOISE = 1e-6

app = cyclopts.App(help=__doc__)

Map = NDArray[np.float64]
Mask = NDArray[np.bool_]


# ---- the maps


def shifted(mask: Mask, rng: np.random.Generator) -> Map:
    """The mask at another place, with no pixel in common: rolled by 48 to 80 of the 128 pixels along each axis."""
    offset = rng.integers(LEAST_SHIFT, SIDE - LEAST_SHIFT + 1, size=2)
    return np.roll(mask, offset, axis=(0, 1)).astype(float)


def half(mask: Mask, rng: np.random.Generator) -> Map:
    """The left or the right half of the mask's pixels."""
    columns, rows = np.nonzero(mask.T)  # in the order of the columns
    side = slice(len(rows) // 2) if rng.random() < 0.5 else slice(len(rows) // 2, None)
    kept = np.zeros(mask.shape)
    kept[rows[side], columns[side]] = 1
    return kept


def twice(mask: Mask) -> Map:
    """The mask and as many of the pixels that are nearest to it."""
    distance = distance_transform_edt(~mask)
    nearest = np.argsort(distance, axis=None, kind="stable")[: 2 * int(mask.sum())]
    grown = np.zeros(mask.size)
    grown[nearest] = 1
    return grown.reshape(mask.shape)


def everything(mask: Mask) -> Map:
    """Every pixel but the first."""
    ones = np.ones(mask.shape)
    ones[0, 0] = 0
    return ones


def maps_of(scene: Scene, rng: np.random.Generator) -> dict[str, Map]:
    """The true map of a scene and the false ones, in [0, 1], `[128, 128]`."""
    assert scene.distractor is not None
    return {
        TRUE: scene.mask.astype(float),
        "shifted": shifted(scene.mask, rng),
        "half": half(scene.mask, rng),
        "distractor": scene.distractor.astype(float),
        "random": rng.random(scene.mask.shape),
        "twice": twice(scene.mask),
        "everything": everything(scene.mask),
    }


def without_equals(maps: Mapping[str, Map], rng: np.random.Generator) -> dict[str, Map]:
    """The maps with their equal pixels in random order, by noise of a millionth; curves would take them row by row."""
    return {name: made + NOISE * rng.random(made.shape) for name, made in maps.items()}


@dataclass(frozen=True)
class Given:
    """An explainer that returns the maps it was given, by the ids of the images."""

    name: str
    maps: Mapping[str, Tensor]
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`."""
        return torch.stack([self.maps[image_id] for image_id in context.ids])

    def to_dict(self) -> dict[str, Any]:
        """No settings: the maps are made from the seed."""
        return {}


# ---- scoring


def batches(drawn: Sequence[Scene], masks: Sequence[Mask]) -> list[dict[str, Any]]:
    """Batches of the scenes for `xaieval.score`, normalised to [-1, 1], with these masks as ground truth."""
    images = torch.from_numpy(np.stack([scene.image for scene in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1
    whole = {
        "image": images,
        "label": torch.tensor([scene.label for scene in drawn]),
        "id": [str(number) for number in range(len(drawn))],
        "mask": torch.from_numpy(np.stack(masks)),
    }
    return [{name: part[start : start + BATCH] for name, part in whole.items()} for start in range(0, len(drawn), BATCH)]


def explainers(maps: Sequence[Mapping[str, Map]]) -> list[Given]:
    """One explainer for the true map and for each kind of false ones."""
    return [
        Given(name, {str(number): torch.from_numpy(made[name]).float() for number, made in enumerate(maps)})
        for name in (TRUE, *FALSE)
    ]


def score_cue(
    cue: Cue, chosen: Sequence[Metric], images: int, seed: int, matched: bool
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The rows of all maps of one cue, and what its metrics are.

    Metrics that compare a map with the object are scored twice: with the mask of the cue, and, as NAME_of_object, with that of
    the distractor, which is what a data set with the masks of objects has. Only the others need maps without equal pixels.
    """
    drawn = [make_scene(index, "test", seed, cue) for index in range(images)]
    rng = np.random.default_rng([seed, list(CUES).index(cue)])
    pairs = [(maps, without_equals(maps, rng)) for maps in (maps_of(scene, rng) for scene in drawn)]
    exact, ordered = (explainers(maps) for maps in zip(*pairs, strict=True))
    placing = [metric for metric in chosen if "masks" in metric.needs]
    asking = [metric for metric in chosen if metric not in placing]
    of_object = [replace(metric, name=f"{metric.name}{OF_OBJECT}") for metric in placing]
    runs: list[tuple[str, list[Given], list[Metric], str | bool]] = [
        ("mask", ordered, asking, "shifted" if matched else False),
        ("mask", exact, placing, False),
        ("distractor", exact, of_object, False),
    ]
    model = cue_scenes(cue).eval()
    tables, described = [], []
    for masks, methods, some, controls in runs:
        if some:
            loader = batches(drawn, [getattr(scene, masks) for scene in drawn])
            options: dict[str, Any] = {"methods": methods, "metrics": some, "controls": controls, "seed": seed}
            scores = xaieval.score(model, loader, **options, progress=False)
            known = [column for table in tables for column in table.columns]
            tables.append(scores.rows.set_index(["image_id", "method"]).drop(columns=known, errors="ignore"))
            described += scores.manifest["metrics"]
    return pd.concat(tables, axis=1).reset_index(), described


def accuracy_of(cue: Cue, images: int, seed: int) -> dict[str, float]:
    """The accuracy with the cue, without it, and with nothing else: the proof that the network uses the cue."""
    prepare = Preprocessing(SIDE, SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = cue_scenes(cue).eval()
    found = {}
    for version in VERSIONS:
        correct = [
            model(batch["image"]).argmax(dim=1) == batch["label"]
            for batch in scenes(prepare, images, seed=seed, cue=cue, version=version).loader(100)
        ]
        found[version] = round(float(torch.cat(correct).double().mean()), 4)
    return found


# ---- counting


def recognised(rows: pd.DataFrame, directions: Mapping[str, int]) -> pd.DataFrame:
    """For each metric and false map, in how many images the true map has the better value.

    Args:
        rows: With the columns `image_id`, `method` and the metrics.
        directions: By metric, 1 if higher is better and -1 if lower is.
    """
    records = []
    for metric, sign in directions.items():
        table = rows.pivot_table(index="image_id", columns="method", values=metric, dropna=False)
        for other in FALSE:
            both = table[[TRUE, other]].dropna()
            records.append({"metric": metric, "false_map": other, **counted(sign * (both[TRUE] - both[other]))})
            records[-1] |= {"mean_true": both[TRUE].mean(), "mean_false": both[other].mean()}
    return pd.DataFrame(records)


def counted(differences: pd.Series) -> dict[str, float]:
    """Wins, ties and losses of the true map; its share of wins in percent, ties counted half, with Wilson's interval."""
    wins, ties, count = int((differences > TIE).sum()), int((differences.abs() <= TIE).sum()), len(differences)
    low, high = wilson_interval(round(wins + ties / 2), count)
    share = (wins + ties / 2) / count if count else np.nan
    p = float(paired_p_values(differences.to_numpy()[:, None])[0])
    return {
        "wins": wins,
        "ties": ties,
        "losses": count - wins - ties,
        "share": 100 * share,
        "low": 100 * low,
        "high": 100 * high,
        "mean_difference": differences.mean(),
        "p": p,
    }


def judged(counts: pd.DataFrame) -> pd.DataFrame:
    """The counts of a cue with p-values corrected by Holm's method for the false maps of a metric, and a verdict on the means.

    The verdict is "recognised" if the mean of the true map is significantly better at 5 %, "fooled" if that of the false map
    is, and else "not told apart".
    """
    corrected = counts.groupby("metric")["p"].transform(lambda column: holm(column.to_numpy()))
    better = np.where(counts["mean_difference"] > 0, "recognised", "fooled")
    return counts.assign(p_holm=corrected, verdict=np.where(corrected < ALPHA, better, "not told apart"))


def base(metric: str) -> str:
    """The metric that an excess or a value with the mask of the object belongs to.

    Example:
        >>> base("road_excess"), base("iou_of_object"), base("iou")
        ('road', 'iou', 'iou')
    """
    return metric.removesuffix(EXCESS).removesuffix(OF_OBJECT)


def in_order(counts: pd.DataFrame) -> pd.DataFrame:
    """The counts, family by family, with the columns `base`, `kind` (what is added to the name) and `family`."""
    names = counts["metric"].map(base)
    kinds = [metric.removeprefix(name) for metric, name in zip(counts["metric"], names, strict=True)]
    found = counts.assign(base=names, kind=kinds, family=[SETTLED[name].family for name in names])
    places = [found["family"].map(list(FAMILIES).index), names.map(list(SETTLED).index)]
    return found.assign(one=places[0], two=places[1]).sort_values(["one", "two"], kind="stable").drop(columns=["one", "two"])


def results(folder: Path = HERE) -> pd.DataFrame:
    """The counts of all cues, in the order of the page."""
    return in_order(pd.concat([pd.read_csv(folder / f"{cue}.csv") for cue in CUES], ignore_index=True))


@app.command
def score(
    cues: list[Cue] | None = None,
    *,
    metrics: list[str] | None = None,
    images: int = 100,
    few: int = 20,
    matched: bool = True,
    seed: int = 0,
    out: Path = HERE,
) -> None:
    """Score the true and the false maps. The results of other cues and metrics stay.

    Args:
        cues: The cues. Default: all.
        metrics: Names of metrics. Default: all that judge a map.
        images: Number of images of each cue.
        few: The same for metrics that cost many passes (`coarse.COSTLY`).
        matched: Score a shifted copy of every map too, for the excess of the metrics that are not costly.
        seed: Seed of the scenes and of the maps.
        out: Folder of the results.
    """
    out.mkdir(parents=True, exist_ok=True)
    chosen = [metric for metric in judges_one_map() if metrics is None or metric.name in metrics]
    for cue in cues or list(CUES):
        for costly, count in ((False, images), (True, few)):
            some = [metric for metric in chosen if (metric.name in COSTLY) == costly]
            if some:
                record(cue, some, count, seed, out, matched=matched and not costly)


def record(cue: Cue, chosen: Sequence[Metric], images: int, seed: int, out: Path, *, matched: bool) -> None:
    """Score one cue by some metrics, and put their results in the place of their former ones."""
    rows, described = score_cue(cue, chosen, images, seed, matched)
    directions = {metric["name"]: 1 if metric["higher_is_better"] else -1 for metric in described}
    counts = judged(recognised(rows[rows["predicted"] == rows["label"]], directions)).assign(cue=cue)
    table, manifest = out / f"{cue}.csv", out / f"{cue}.json"
    new = {metric.name for metric in chosen}
    if table.exists():
        former = pd.read_csv(table)
        counts = pd.concat([former[~former["metric"].map(base).isin(new)], counts])
    in_order(counts)[list(counts.columns)].to_csv(table, index=False, float_format="%.6g")
    known = json.loads(manifest.read_text()) if manifest.exists() else {}
    drawn = known.get("images", {}) | dict.fromkeys(sorted(new), images)
    about = {
        "command": "python benchmarks/known_causes.py score",
        "seed": seed,
        "accuracy": accuracy_of(cue, 100, seed),
        "images": {name: drawn[name] for name in SETTLED if name in drawn},
        "metrics": {name: dict(SETTLED[name].settings) for name in SETTLED if name in drawn and SETTLED[name].settings},
        "versions": {"xaieval": xaieval.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }
    manifest.write_text(json.dumps(about, indent=2) + "\n")


# ---- the page


@app.command
def tables(page: Path = Path("docs/known_causes.md")) -> None:
    """Fill the tables of the page from the results.

    Args:
        page: The page.
    """
    made = {
        "recognised": partial(recognised_lines, ""),
        "excess": partial(recognised_lines, EXCESS),
        "of object": partial(recognised_lines, OF_OBJECT),
        "left out": left_out_lines,
        "half": half_lines,
        "accuracy": accuracy_lines,
    }
    page.write_text(filled(page.read_text(), made))


def recognised_lines(kind: str) -> list[str]:
    """In Markdown, one row per metric of a kind: the share of images of all cues in which the true map wins.

    Args:
        kind: What is added to the name of the metric: nothing, EXCESS or OF_OBJECT.
    """
    counts = results().query("kind == @kind")
    lines = [f"| family | metric | n | networks | {' | '.join(FALSE)} |", "|---" * (len(FALSE) + 4) + "|"]
    for (family, metric), group in counts.groupby(["family", "metric"], sort=False):
        cells = [pooled(group[group["false_map"] == other]) for other in FALSE]
        images = group.groupby("false_map")[["wins", "ties", "losses"]].sum().sum(axis=1).max()
        lines.append(f"| {family} | `{metric}` | {images} | {group['cue'].nunique()} | {' | '.join(cells)} |")
    return lines


def left_out_lines() -> list[str]:
    """In Markdown, the metrics that do not say of one map whether it is good, with the reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, reason in left_out().items():
        reasons.setdefault((SETTLED[name].family, reason), []).append(f"`{name}`")
    rows = sorted(reasons.items(), key=lambda item: list(FAMILIES).index(item[0][0]))
    lines = ["| family | metrics | why a map is not enough |", "|---|---|---|"]
    return lines + [f"| {family} | {', '.join(names)} | {reason} |" for (family, reason), names in rows]


def pooled(cells: pd.DataFrame) -> str:
    """The share over all cues, in percent, ties counted half; in brackets the number of cues that fooled the metric.

    Example:
        >>> pooled(pd.DataFrame({"wins": [10, 5], "ties": [0, 4], "losses": [0, 1], "verdict": ["recognised", "fooled"]}))
        '85 (1)'
    """
    wins, ties, losses = (cells[name].sum() for name in ("wins", "ties", "losses"))
    count = wins + ties + losses
    fooled = int((cells["verdict"] == "fooled").sum())
    share = "" if count == 0 else f"{100 * (wins + ties / 2) / count:.0f}"
    return f"{share} ({fooled})" if fooled else share


def half_lines() -> list[str]:
    """In Markdown, the share of images in which the true map wins against half of it, by cue, with its interval.

    Metrics that know the object prefer the whole in every network.
    """
    half = results().query("false_map == 'half' and kind == '' and family != 'localisation'")
    counts = half.set_index(["metric", "cue"])
    lines = [f"| metric | {' | '.join(CUES)} |", "|---" * (len(CUES) + 1) + "|"]
    for metric in counts.index.get_level_values("metric").unique():
        rows = [counts.loc[(metric, cue)] if (metric, cue) in counts.index else None for cue in CUES]
        cells = ["" if row is None else f"{row.share:.0f} [{row.low:.0f}, {row.high:.0f}]" for row in rows]
        lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    return lines


def accuracy_lines() -> list[str]:
    """In Markdown, the accuracy of each network with its cue, without it, and with nothing else."""
    lines = ["| network | with the cue | without it | nothing but the cue |", "|---|---|---|---|"]
    for cue in CUES:
        found = json.loads((HERE / f"{cue}.json").read_text())["accuracy"]
        cells = [f"{100 * found[version]:.1f} %" for version in VERSIONS]
        lines.append(f"| `xaieval:scenes-{cue}` | {' | '.join(cells)} |")
    return lines


@app.command
def figure(out: Path = HERE / "scenes.png", index: int = 1) -> None:
    """Draw one scene of each cue, its versions, and its maps.

    Args:
        out: The picture.
        index: Number of the scene.
    """
    picture = Figure(figsize=(11, 5.2), layout="constrained")
    columns = ("image", "without the cue", "only the cue", TRUE, *FALSE[:3], "twice")
    for row, cue in zip(picture.subplots(len(CUES), len(columns)), CUES, strict=True):
        scene = make_scene(index, cue=cue)
        maps = maps_of(scene, np.random.default_rng(index))
        shown = [scene.image, scene.without_cue, scene.cue_only, *(maps[name] for name in columns[3:])]
        for axes, content, name in zip(row, shown, columns, strict=True):
            axes.imshow(content, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(name if cue == next(iter(CUES)) else "", fontsize=9)
        row[0].set_ylabel(cue, fontsize=9)
    picture.savefig(out, dpi=80)


if __name__ == "__main__":
    app()
