"""Which metrics are fooled by maps made to cheat, before and after matching.

    python benchmarks/fooling.py score --weights FILE --data ucmerced:DIR
    python benchmarks/fooling.py tables --page docs/known_causes.md

Five maps that know no model are scored beside Grad-CAM: everything; everything but one pixel; the centre; the picture's
luminance; and the luminance blurred. A map fools a metric if its mean is significantly better than that of Grad-CAM at its best
layer by this metric (paired test of means, Holm's correction for the five maps, 5 %). After matching, the values are the excess
over the map's own shifted copy (docs/controls.md). The networks are MobileNetV2 with ImageNet weights on UC Merced at 128
pixels, and the built-in classifier on generated scenes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd
from page_tables import filled
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

import xaieval
from xaieval.analysis.stats.paired import holm, paired_p_values
from xaieval.data import load_data
from xaieval.metrics import METRICS, Metric, deletion, insertion, lerf, morf, road
from xaieval.models import load_model

HERE = Path(__file__).parent / "fooling"
SIZE = 128
STEPS = 10
ALPHA = 0.05
RIVAL = "gradcam"
CHEATS = ("uniform", "fake-cam", "center", "luminance", "low_pass")
WORDS = {"uniform": "everything", "fake-cam": "all but one pixel", "low_pass": "low-pass"}
LAYERS = {"ucmerced": ("blocks.4", "blocks.6"), "scenes": ("fpn[p3]", "fpn[p4]", "fpn[p5]")}

app = cyclopts.App(help=__doc__)


# ---- the maps that are not controls of xaieval


def luminance(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The mean of each pixel over the channels."""
    return images.mean(dim=1)


def low_pass(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The luminance, blurred by a Gaussian with a standard deviation of 12 pixels."""
    return gaussian_blur(images.mean(dim=1, keepdim=True), kernel_size=[61, 61], sigma=[12.0, 12.0])[:, 0]


# ---- scoring


def metrics() -> list[Metric]:
    """The metrics of confidences and curves, which have matched controls; curves of ten steps."""
    coarse = [insertion(STEPS), deletion(STEPS), morf(STEPS), lerf(STEPS), road((0.1, 0.3))]
    settled = METRICS | {metric.name: metric for metric in coarse}
    names = (
        "average_drop", "increase_in_confidence", "average_gain", "drop_in_deletion", "confidence_ratio", "insertion",
        "deletion", "morf", "lerf", "road",
    )  # fmt: skip
    return [settled[name] for name in names]


def fooled(rows: pd.DataFrame, directions: dict[str, int]) -> pd.DataFrame:
    """For each metric and cheating map, the means of both, and whether the map is significantly better than Grad-CAM.

    Grad-CAM is taken at the layer that is best by the metric's mean.

    Args:
        rows: With the columns `image_id`, `layer`, `method` and the metrics.
        directions: By metric, 1 if higher is better and -1 if lower is.
    """
    records = []
    own_rows = rows[rows["method"] == RIVAL]
    for metric, sign in directions.items():
        own = sign * own_rows.pivot_table(index="image_id", columns="layer", values=metric, dropna=False)
        rival = own[own.mean().idxmax()]
        found = [_compared(rows, metric, sign, cheat, rival) for cheat in CHEATS]
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


def run(case: str, model: nn.Module, loader: Iterable[Any], images: int, seed: int, out: Path) -> None:
    """Score one network and write its table."""
    options: dict[str, Any] = {"methods": [RIVAL, "uniform", "fake-cam", "center", luminance, low_pass], "metrics": metrics()}
    scores = xaieval.score(
        model, loader, LAYERS[case], **options, controls="shifted", max_images=images, seed=seed, progress=False
    )
    known = {metric["name"]: metric["higher_is_better"] for metric in scores.manifest["metrics"]}
    directions = {name: 1 if higher else -1 for name, higher in known.items() if higher is not None}
    out.mkdir(parents=True, exist_ok=True)
    fooled(scores.rows, directions).to_csv(out / f"{case}.csv", index=False, float_format="%.6g")
    kept = ("versions", "seed", "model", "run", "data", "matched_controls")
    manifest = {name: scores.manifest[name] for name in kept if name in scores.manifest}
    (out / f"{case}.json").write_text(json.dumps(manifest, indent=2) + "\n")


@app.command
def score(
    cases: Sequence[str] = tuple(LAYERS),
    *,
    weights: Path | None = None,
    data: str = "ucmerced",
    images: int = 63,
    seed: int = 0,
    out: Path = HERE,
) -> None:
    """Score Grad-CAM and the cheating maps.

    Args:
        cases: "ucmerced" and "scenes".
        weights: Weights file of mobilenetv2_100, safetensors.
        data: UC Merced, such as ucmerced:DIR.
        images: Number of images, spread evenly over the classes.
        seed: Random seed.
        out: Folder of the results.
    """
    if "ucmerced" in cases:
        loaded = load_model("timm:mobilenetv2_100", weights, model_args={"pad_type": "same"})
        half = (0.5, 0.5, 0.5)
        preprocessing = replace(loaded.preprocessing.with_size(SIZE), mean=half, std=half, interpolation="bilinear")
        run("ucmerced", loaded.model, load_data(data, preprocessing, 15, images).loader, images, seed, out)
    if "scenes" in cases:
        loaded = load_model("xaieval:fpn-scenes")
        run("scenes", loaded.model, load_data("scenes", loaded.preprocessing, 25, images).loader, images, seed, out)


# ---- the page


@app.command
def tables(page: Path = Path("docs/known_causes.md")) -> None:
    """Fill the tables of the page from the results.

    Args:
        page: The page.
    """
    made = {f"fooling {case}": lambda case=case: fooling_lines(pd.read_csv(HERE / f"{case}.csv")) for case in LAYERS}
    page.write_text(filled(page.read_text(), made))


def fooling_lines(found: pd.DataFrame) -> list[str]:
    """In Markdown, one row per metric: the maps that fool it or that it cannot tell from Grad-CAM, before and after matching."""
    metrics = [name for name in found["metric"].unique() if f"{name}_excess" in set(found["metric"])]
    same = (found["p_holm"] >= ALPHA) & (found["images"] > 0)
    lines = [
        "| metric | is fooled by | cannot tell from Grad-CAM | excess: is fooled by | excess: cannot tell |",
        "|---" * 5 + "|",
    ]
    for metric in metrics:
        own = [found["metric"] == name for name in (metric, f"{metric}_excess")]
        cells = [_names(found[rows & chosen]) for rows in own for chosen in (found["fooled"], same)]
        lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    return lines


def _names(found: pd.DataFrame) -> str:
    return ", ".join(WORDS.get(name, name) for name in found["map"]) or "none"


if __name__ == "__main__":
    app()
