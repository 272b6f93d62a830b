"""MetaQuantus' two criteria for our metrics: do they bear small perturbations, and react to large ones?

    python benchmarks/metaquantus.py score
    python benchmarks/metaquantus.py tables --page docs/known_causes.md

After Hedstroem et al., "The Meta-Evaluation Problem in Explainable AI: Identifying Reliable Estimators with MetaQuantus",
TMLR 2023 (arXiv 2302.07265). The images, or the weights of the model, are perturbed a little, or until the predictions change;
then the model is explained and scored again. Each metric gets four numbers in [0, 1], higher is better:

- IAC, intra-consistency: are the values of one method those of the unperturbed case? The p-value of Wilcoxon's signed-rank test
  over images after a small perturbation, and 1 - p after a large one.
- IEC, inter-consistency: the share of images and methods whose rank is unchanged after a small perturbation, and the share
  whose value is worse after a large one.

As in the paper, a small perturbation counts where the prediction is the same, a large one where it is another. Coarser than the
paper's: two perturbations of each kind, four methods, 24 images, two networks of `benchmarks/train_cue_models.py`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pandas as pd
import torch
from coarse import COSTLY, judges_one_map
from numpy.typing import NDArray
from page_tables import filled
from scipy.stats import rankdata, wilcoxon
from torch import Tensor, nn

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.data.cues import Cue
from xaieval.data.drawing import SIDE
from xaieval.metrics import Metric
from xaieval.models import cue_scenes

HERE = Path(__file__).parent / "metaquantus"
LAYER = "layer3"
METHODS = ("gradcam", "layercam", "eigencam", "captum:Saliency")
# Half the width of uniform noise on the images, in their unit [-1, 1], and the standard deviation of the factors of the
# weights; as in the paper's code, but for large changes of the weights, where 2 leaves the class a confidence of exactly 0.
STRENGTHS = {
    ("images", "small"): 0.001,
    ("images", "large"): 5.0,
    ("weights", "small"): 0.001,
    ("weights", "large"): 0.5,
}
app = cyclopts.App(help=__doc__)

Table = NDArray[np.float64]  # values of a metric [methods, images], signed so that higher is better


def metrics() -> list[Metric]:
    """The metrics that judge a map, but for the costly ones."""
    return [metric for metric in judges_one_map() if metric.name not in COSTLY]


# ---- the criteria


def intra_consistency(before: Table, after: Table, kept: NDArray[np.bool_], size: str) -> float:
    """IAC of one perturbation, in [0, 1], higher is better: the mean over methods.

    Args:
        before: Values of the unperturbed case, `[methods, images]`; NaN where there is none.
        after: Values of the perturbed case.
        kept: The images that count.
        size: "small" or "large".
    """
    p_values = [_wilcoxon(one[kept], other[kept]) for one, other in zip(before, after, strict=True)]
    mean = float(np.nanmean(p_values)) if np.isfinite(p_values).any() else np.nan
    return mean if size == "small" else 1 - mean


def inter_consistency(before: Table, after: Table, kept: NDArray[np.bool_], size: str) -> float:
    """IEC of one perturbation, in [0, 1], higher is better: a mean over images and methods.

    Args:
        before: Values of the unperturbed case, `[methods, images]`, higher is better; images with NaN are left out.
        after: Values of the perturbed case.
        kept: The images that count.
        size: "small": the rank of the method on the image is the same, equal values share one; "large": its value is worse.
    """
    whole = kept & np.isfinite(before).all(axis=0) & np.isfinite(after).all(axis=0)
    if not whole.any():
        return np.nan
    before, after = before[:, whole], after[:, whole]
    agrees = rankdata(before, axis=0) == rankdata(after, axis=0) if size == "small" else before > after
    return float(agrees.mean())


def _wilcoxon(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Two-sided p-value; equal pairs are split between the signs, so that nothing but equal pairs has p = 1."""
    differences = (before - after)[np.isfinite(before) & np.isfinite(after)]
    if not len(differences):
        return np.nan
    return 1.0 if not differences.any() else float(wilcoxon(differences, zero_method="zsplit").pvalue)


# ---- the perturbations


def perturbed_weights(model: nn.Module, strength: float, generator: torch.Generator) -> nn.Module:
    """A copy of the model whose weights are multiplied by normal numbers of mean 1 and this standard deviation."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + strength * torch.randn(parameter.shape, generator=generator))
    return other


def perturbed_images(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Images with uniform noise of this half width."""
    return images + strength * (2 * torch.rand(images.shape, generator=generator) - 1)


def perturbed(model: nn.Module, images: Tensor, seed: int, repeats: int) -> Iterator[tuple[str, str, int, nn.Module, Tensor]]:
    """What is perturbed, how much, the number of the repetition, and the model and the images of each case."""
    for (what, size), number in product(STRENGTHS, range(repeats)):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        strength = STRENGTHS[what, size]
        if what == "weights":
            yield what, size, number, perturbed_weights(model, strength, generator), images
        else:
            yield what, size, number, model, perturbed_images(images, strength, generator)


# ---- scoring


def values_of(model: nn.Module, images: Tensor, masks: Tensor, targets: Tensor, seed: int) -> dict[str, Table]:
    """By metric, the values `[methods, images]` for given classes, signed so that higher is better."""
    batches = [
        {"image": images[part], "label": targets[part], "mask": masks[part], "id": [str(number) for number in part.tolist()]}
        for part in torch.arange(len(images)).split(25)
    ]
    options: dict[str, Any] = {"layers": LAYER, "methods": METHODS, "metrics": metrics(), "target": "label"}
    scores = xaieval.score(model, batches, **options, seed=seed, progress=False)
    return {metric.name: _table(scores.rows, metric, len(images)) for metric in metrics()}


def _table(rows: pd.DataFrame, metric: Metric, images: int) -> Table:
    """The values of a metric, `[methods, images]`, signed so that higher is better."""
    table = rows.pivot_table(index="method", columns="image_id", values=metric.name, dropna=False)
    values = table.loc[list(METHODS), [str(number) for number in range(images)]].to_numpy(float)
    return values if metric.higher_is_better else -values


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """The predicted classes, `[N]`."""
    with torch.inference_mode():
        found: Tensor = model(images).argmax(dim=1)
    return found


def meta_evaluate(cue: Cue, images: int, seed: int, repeats: int) -> list[dict[str, Any]]:
    """IAC and IEC of every metric for every perturbation of one network and its scenes."""
    model = cue_scenes(cue).eval()
    prepare = Preprocessing(SIDE, SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = next(iter(scenes(prepare, images, seed=seed, cue=cue, masks=True).loader(images)))
    pictures, masks = batch["image"], batch["mask"]
    targets = predictions(model, pictures)
    before = values_of(model, pictures, masks, targets, seed)
    records = []
    for what, size, number, other, changed in perturbed(model, pictures, seed, repeats):
        same = (predictions(other, changed) == targets).numpy()
        kept = same if size == "small" else ~same
        after = values_of(other, changed, masks, targets, seed)
        records += [
            {
                "cue": cue,
                "perturbed": what,
                "size": size,
                "repeat": number,
                "metric": name,
                "images": int(kept.sum()),
                "iac": intra_consistency(before[name], after[name], kept, size),
                "iec": inter_consistency(before[name], after[name], kept, size),
            }
            for name in before
        ]
    return records


@app.command
def score(
    cues: Sequence[Cue] = ("watermark", "object"), *, images: int = 24, repeats: int = 2, seed: int = 0, out: Path = HERE
) -> None:
    """Perturb, explain and score again.

    Args:
        cues: The networks.
        images: Number of scenes.
        repeats: Perturbations of each kind.
        seed: Seed of the scenes and of the perturbations.
        out: Folder of the results.
    """
    out.mkdir(parents=True, exist_ok=True)
    records = [record for cue in cues for record in meta_evaluate(cue, images, seed, repeats)]
    pd.DataFrame(records).to_csv(out / "perturbations.csv", index=False, float_format="%.5g")
    manifest = {
        "command": "python benchmarks/metaquantus.py score",
        "cues": list(cues), "images": images, "repeats": repeats, "seed": seed, "layer": LAYER, "methods": list(METHODS),
        "strengths": {" ".join(kind): strength for kind, strength in STRENGTHS.items()},
        "metrics": {metric.name: dict(metric.settings) for metric in metrics() if metric.settings},
        "versions": {"xaieval": xaieval.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }  # fmt: skip
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


# ---- the page


@app.command
def tables(page: Path = Path("docs/known_causes.md")) -> None:
    """Fill the table of the page from the results.

    Args:
        page: The page.
    """
    page.write_text(filled(page.read_text(), {"metaquantus": criteria_lines}))


def criteria(records: pd.DataFrame) -> pd.DataFrame:
    """By metric and what is perturbed, the four numbers over all networks and repetitions, and `mc`, their mean."""
    means = records.pivot_table(index=["metric", "perturbed"], columns="size", values=["iac", "iec"], sort=False)
    means.columns = [f"{name}_{size}" for name, size in means.columns]
    return means.assign(mc=means.mean(axis=1, skipna=False))


def criteria_lines() -> list[str]:
    """In Markdown, one row per metric."""
    found = criteria(pd.read_csv(HERE / "perturbations.csv"))
    numbers = ["iac_small", "iac_large", "iec_small", "iec_large", "mc"]
    heads = [
        f"{what}: {words}"
        for what in ("images", "weights")
        for words in ("IAC small", "IAC large", "IEC small", "IEC large", "mean")
    ]
    lines = [f"| metric | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for metric in found.index.get_level_values("metric").unique():
        cells = [f"{found.loc[(metric, what), name]:.2f}" for what in ("images", "weights") for name in numbers]
        lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    app()
