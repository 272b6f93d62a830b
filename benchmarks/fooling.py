"""Which metrics are fooled by maps made to cheat, before and after matching.

    python benchmarks/fooling.py score --weights FILE --data ucmerced:DIR
    python benchmarks/fooling.py tables --page docs/known_causes.md

Maps that know no model are scored beside Grad-CAM: everything; everything but one pixel; the centre; the picture's luminance;
the luminance blurred; and, in the third case, edges, fixed noise, noise drawn anew in each pass, and one pixel. A map fools a
metric if its mean is significantly better than that of Grad-CAM at its best layer by this metric (paired test of means, Holm's
correction for the maps of a case, 5 %). After matching, the values are the excess over the map's own shifted copy
(docs/controls.md). The networks are MobileNetV2 with ImageNet weights on UC Merced at 128 pixels and the built-in classifier
on generated scenes, by the metrics of confidences and curves; and the network of the object of
`benchmarks/train_cue_models.py`, by all metrics with a direction, with its cue as the object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd
import torch
from coarse import SETTLED
from page_tables import filled
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

import xaieval
from xaieval.analysis.stats.paired import holm, paired_p_values
from xaieval.data import Preprocessing, load_data, scenes
from xaieval.metrics import Metric, road
from xaieval.models import cue_scenes, load_model

HERE = Path(__file__).parent / "fooling"
SIZE = 128
ALPHA = 0.05
RIVAL = "gradcam"
WORDS = {"uniform": "everything", "fake-cam": "all but one pixel", "low_pass": "low-pass", "random": "fixed noise"}
WORDS |= {"noise": "new noise", "point": "one pixel"}

app = cyclopts.App(help=__doc__)


# ---- the maps that are not controls of xaieval


def luminance(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The mean of each pixel over the channels."""
    return images.mean(dim=1)


def low_pass(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The luminance, blurred by a Gaussian with a standard deviation of 12 pixels."""
    return gaussian_blur(images.mean(dim=1, keepdim=True), kernel_size=[61, 61], sigma=[12.0, 12.0])[:, 0]


def noise(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Noise of its own in each pass."""
    return torch.rand(len(images), *images.shape[2:])


def point(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The pixel in the middle."""
    maps = torch.zeros(len(images), *images.shape[2:])
    maps[:, images.shape[2] // 2, images.shape[3] // 2] = 1
    return maps


FUNCTIONS = {function.__name__: function for function in (luminance, low_pass, noise, point)}
FIVE = ("uniform", "fake-cam", "center", "luminance", "low_pass")


# ---- scoring


def of_confidence() -> list[Metric]:
    """The metrics of confidences and curves, which have matched controls; curves of ten steps."""
    names = (
        "average_drop", "increase_in_confidence", "average_gain", "drop_in_deletion", "confidence_ratio", "insertion",
        "deletion", "morf", "lerf",
    )  # fmt: skip
    return [*(SETTLED[name] for name in names), road((0.1, 0.3))]


def directed() -> list[Metric]:
    """All metrics that say which map is better."""
    return [metric for metric in SETTLED.values() if metric.higher_is_better is not None]


@dataclass(frozen=True)
class Case:
    """A network's layers, the maps that cheat, the metrics, the images, and whether shifted copies are scored too."""

    layers: tuple[str, ...]
    maps: tuple[str, ...]
    metrics: list[Metric]
    images: int = 63
    matched: bool = True


CASES = {
    "ucmerced": Case(("blocks.4", "blocks.6"), FIVE, of_confidence()),
    "scenes": Case(("fpn[p3]", "fpn[p4]", "fpn[p5]"), FIVE, of_confidence()),
    "object": Case(("layer2", "layer3"), (*FIVE, "edges", "random", "noise", "point"), directed(), images=12, matched=False),
}


def fooled(rows: pd.DataFrame, directions: dict[str, int], cheats: Sequence[str] = FIVE) -> pd.DataFrame:
    """For each metric and cheating map, the means of both, and whether the map is significantly better than Grad-CAM.

    Grad-CAM is taken at the layer that is best by the metric's mean.

    Args:
        rows: With the columns `image_id`, `layer`, `method` and the metrics.
        directions: By metric, 1 if higher is better and -1 if lower is.
        cheats: Names of the cheating maps.
    """
    records = []
    own_rows = rows[rows["method"] == RIVAL]
    for metric, sign in directions.items():
        own = sign * own_rows.pivot_table(index="image_id", columns="layer", values=metric, dropna=False)
        rival = own[own.mean().idxmax()]
        found = [_compared(rows, metric, sign, cheat, rival) for cheat in cheats]
        for record, p in zip(found, holm([record["p"] for record in found]), strict=True):
            records.append(record | {"p_holm": p, "fooled": p < ALPHA and record["better"]})
    return pd.DataFrame(records)


def _compared(rows: pd.DataFrame, metric: str, sign: int, cheat: str, rival: pd.Series) -> dict[str, Any]:
    """One cheating map against the signed values of Grad-CAM."""
    values = sign * rows[rows["method"] == cheat].set_index("image_id")[metric]
    differences = (values - rival).dropna()
    return {
        "metric": metric,
        "map": cheat,
        "layer": rival.name,
        "mean_map": sign * values[differences.index].mean(),
        "mean_gradcam": sign * rival[differences.index].mean(),
        "images": len(differences),
        "better": differences.mean() > 0,
        "p": float(paired_p_values(differences.to_numpy()[:, None])[0]) if len(differences) else 1.0,
    }


def run(
    name: str, model: nn.Module, loader: Iterable[Any], chosen: Sequence[Metric], images: int, seed: int, out: Path
) -> None:
    """Score one network by some metrics, and put their results in the place of their former ones."""
    case = CASES[name]
    torch.manual_seed(seed)
    scores = xaieval.score(
        model,
        loader,
        case.layers,
        methods=[RIVAL, *(FUNCTIONS.get(cheat, cheat) for cheat in case.maps)],
        metrics=chosen,
        controls="shifted" if case.matched else False,
        max_images=images,
        seed=seed,
        progress=False,
    )
    known = {metric["name"]: metric["higher_is_better"] for metric in scores.manifest["metrics"]}
    directions = {metric: 1 if higher else -1 for metric, higher in known.items() if higher is not None}
    out.mkdir(parents=True, exist_ok=True)
    found = fooled(scores.rows, directions, case.maps)
    table = out / f"{name}.csv"
    if table.exists():
        former = pd.read_csv(table)
        found = pd.concat([former[~former["metric"].isin(found["metric"])], found])
    found.to_csv(table, index=False, float_format="%.6g")
    kept = ("versions", "seed", "model", "run", "data", "matched_controls")
    manifest = {key: scores.manifest[key] for key in kept if key in scores.manifest}
    (out / f"{name}.json").write_text(json.dumps(manifest, indent=2) + "\n")


@app.command
def score(
    cases: Sequence[str] = tuple(CASES),
    *,
    metrics: Sequence[str] | None = None,
    weights: Path | None = None,
    data: str = "ucmerced",
    images: int | None = None,
    seed: int = 0,
    out: Path = HERE,
) -> None:
    """Score Grad-CAM and the cheating maps. The results of other metrics stay.

    Args:
        cases: "ucmerced", "scenes" and "object".
        metrics: Names of metrics. Default: all of the case.
        weights: Weights file of mobilenetv2_100, safetensors.
        data: UC Merced, such as ucmerced:DIR.
        images: Number of images, spread evenly over the classes. Default: 63, of "object" 12.
        seed: Random seed.
        out: Folder of the results.
    """
    for case in cases:
        count = images or CASES[case].images
        model, loader = loaded(case, weights, data, count, seed)
        chosen = [metric for metric in CASES[case].metrics if metrics is None or metric.name in metrics]
        run(case, model, loader, chosen, count, seed, out)


def loaded(case: str, weights: Path | None, data: str, images: int, seed: int) -> tuple[nn.Module, Iterable[Any]]:
    """The network of a case and its images."""
    half = (0.5, 0.5, 0.5)
    if case == "object":
        prepare = Preprocessing(SIZE, SIZE, mean=half, std=half)
        return cue_scenes("object").eval(), scenes(prepare, images, seed=seed, cue="object", masks=True).loader(images)
    if case == "scenes":
        found = load_model("xaieval:fpn-scenes")
        return found.model, load_data("scenes", found.preprocessing, 25, images).loader
    found = load_model("timm:mobilenetv2_100", weights, model_args={"pad_type": "same"})
    prepare = replace(found.preprocessing.with_size(SIZE), mean=half, std=half, interpolation="bilinear")
    return found.model, load_data(data, prepare, 15, images).loader


# ---- the page


@app.command
def tables(page: Path = Path("docs/known_causes.md")) -> None:
    """Fill the tables of the page from the results.

    Args:
        page: The page.
    """
    made = {f"fooling {case}": lambda case=case: fooling_lines(pd.read_csv(HERE / f"{case}.csv")) for case in CASES}
    page.write_text(filled(page.read_text(), made))


def fooling_lines(found: pd.DataFrame) -> list[str]:
    """In Markdown, one row per metric: the maps that fool it, or that it cannot tell from Grad-CAM, and after matching."""
    names = [str(name) for name in found["metric"].unique()]
    matched = any(name.endswith("_excess") for name in names)
    same = (found["p_holm"] >= ALPHA) & (found["images"] > 0)
    heads = ["is fooled by", "cannot tell from Grad-CAM"]
    heads += ["excess: is fooled by", "excess: cannot tell"] if matched else []
    lines = [f"| metric | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for metric in names:
        if not metric.endswith("_excess") and (not matched or f"{metric}_excess" in names):
            own = [found["metric"] == name for name in ((metric, f"{metric}_excess") if matched else (metric,))]
            cells = [_names(found[rows & chosen]) for rows in own for chosen in (found["fooled"], same)]
            lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    return lines


def _names(found: pd.DataFrame) -> str:
    return ", ".join(WORDS.get(name, name) for name in found["map"]) or "none"


if __name__ == "__main__":
    app()
