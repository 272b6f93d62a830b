"""Check that layers are found and maps are oriented correctly in the architectures of timm, torchvision and other libraries.

    python benchmarks/architectures.py [FILE]

writes `benchmarks/architectures.csv` (or FILE), and from it the table of docs/architectures.md. For each model with random
weights: how many layers `list_layers` lists, which ones `layers="auto"` selects, the layout of their outputs, whether a bright
square in each quarter of the image changes the outputs in that quarter, and whether the model is unchanged afterwards (weights,
buffers, flags, hooks). The check of the quarters needs no training and no gradients: a flipped, rotated or transposed map shows
the squares elsewhere. Models that are already in the file are skipped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from xaieval import explain, list_layers
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import called
from xaieval.inference.options import Inference
from xaieval.inference.queries import with_known_output
from xaieval.inference.tasks import Task, predicted_score
from xaieval.probe.hooks import ProbeLayer, locate, run
from xaieval.probe.layouts import Layout
from xaieval.testing.state import equal, model_state

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one
from architecture_cases import CASES, Case
from architecture_models import build
from page_tables import filled

QUARTERS = [(0, 0), (0, 1), (1, 0), (1, 1)]
PAGE = Path(__file__).parents[1] / "docs/architectures.md"
LONGEST = 90  # characters of options in the table of the page
TITLES = '| model | image | layers | `layers="auto"` | layout | right way up | unchanged |'


def planted(size: tuple[int, int], channels: int = 3) -> Tensor:
    """An image of faint noise, and copies with a square in the middle of each quarter, in two textures: `[9, C, H, W]`."""
    height, width = size
    generator = torch.Generator().manual_seed(1)
    images = 0.1 * torch.randn(1, channels, height, width, generator=generator).repeat(9, 1, 1, 1)
    textures = 1 + 2 * torch.randn(2, channels, height // 4, width // 4, generator=generator)
    for number, image in enumerate(images[1:]):
        down, right = QUARTERS[number // 2]
        top, left = height * (1 + 4 * down) // 8, width * (1 + 4 * right) // 8
        image[:, top : top + height // 4, left : left + width // 4] += textures[number % 2]
    return images


def is_upright(activation: Tensor) -> bool:
    """Whether a layer's output `[9, C, h, w]` for `planted` images changes in the quarters where the squares are.

    The changes of the quarters are matched to the squares in all 24 orders, and the true order must fit best. Logarithms
    remove the effect of a quarter that always changes most. The location of the peak alone would not do: deep layers see the
    whole image, and their outputs peak beside the square.
    """
    moved = (activation[1:] - activation[:1]).double().square().sum(dim=1).unflatten(0, (4, 2)).mean(dim=1)
    shares = functional.adaptive_avg_pool2d(moved[:, None], 2).flatten(1).log()
    fits = {order: sum(shares[i, at].item() for i, at in enumerate(order)) for order in permutations(range(4))}
    return max(fits, key=lambda order: fits[order]) == (0, 1, 2, 3)


def line(row: Mapping[str, Any]) -> str:
    """A row of the table in docs/architectures.md."""
    options = row["options"] if len(row["options"]) <= LONGEST else "a small configuration"
    upright = row["reason"] or "yes"
    listed = "" if row["listed"] == "" else f"{float(row['listed']):g}"
    layers = ", ".join(f"`{layer}`" for layer in row["auto"].split())
    kinds = ", ".join(dict.fromkeys(layout.split(":")[0].replace("_", " ") for layout in row["layouts"].split()))
    unchanged = {"True": "yes", "False": "no"}.get(str(row["unchanged"]), "")
    cells = (f"`{row['model']}`{f' ({options})' if options else ''}", row["image"], listed, layers, kinds, upright, unchanged)
    return f"| {' | '.join(cells)} |"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the table in docs/architectures.md."""
    return [TITLES, "|---|---|---|---|---|---|---|", *(line(row) for row in rows)]


def examine(case: Case) -> dict[str, Any]:
    """The columns that need the model."""
    images = planted(case.size, case.channels)
    model = build(case, images)
    before = model_state(model)
    listing = list_layers(model, images[:1])
    located, outputs = _chosen(model, images, case.task)
    wrong = [address for address, activation in outputs.items() if not is_upright(activation)]
    maps = explain(model, images[:2], list(outputs), task=case.task)
    assert all(one.shape == (2, *case.size) and one.isfinite().all() for one in maps.values())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "listed": len(listing),
        "auto": " ".join(outputs),
        "layouts": " ".join(_described(at.layout) for at in located),
        "upright": not wrong,
        "reason": f"moves elsewhere: {' '.join(wrong)}" if wrong else "",
        "unchanged": _same(before, model_state(model)),
    }


def _chosen(model: nn.Module, images: Tensor, task: Task) -> tuple[list[ProbeLayer], dict[str, Tensor]]:
    """The layers that "auto" selects, and their outputs as maps `[9, C, h, w]` by address."""
    inference, task = with_known_output(Inference(), task, model)
    forward = called(model, inference.forward)
    with borrow(model), torch.no_grad():
        with torch.enable_grad():
            located = locate(model, images, ["auto"], forward=forward, score=partial(predicted_score, task))
        return located, run(model, images, located, differentiable=False, forward=forward).activations


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return before.keys() == after.keys() and all(equal(value, after[name]) for name, value in before.items())


def _described(layout: Layout) -> str:
    return f"{layout.kind}:{'x'.join(map(str, layout.size))}+{layout.prefix}"


def describe(case: Case) -> dict[str, Any]:
    """The columns that identify a case."""
    options = " ".join(f"{name}={value}" for name, value in case.arguments.items())
    return {"model": case.name, "options": options, "image": "x".join(map(str, case.size))}


def check(case: Case) -> dict[str, Any]:
    """The row of a model; one that fails has the reason in it."""
    start, key = time.perf_counter(), describe(case)
    try:
        row = key | examine(case)
    except Exception as error:  # a model can raise anything
        row = key | {"upright": False, "reason": f"{type(error).__name__}: {str(error)[:200]!r}"}
    print(f"{time.perf_counter() - start:5.1f} s  {row['model']}: {row.get('auto', '')} {row['reason']}", flush=True)
    return row


def main(file: Path) -> None:
    """Check all models that are not in the file yet. Rows of other models stay, at the end."""
    known = pd.read_csv(file, keep_default_na=False).to_dict("records") if file.exists() else []
    rows = {key_of(row): row for row in known if row.get("unchanged", "") != "" or row["reason"]}
    order = {key_of(describe(case)): number for number, case in enumerate(CASES)}
    for case in CASES:
        key = key_of(describe(case))
        if key not in rows:
            rows[key] = check(case)
            in_order = sorted(rows, key=lambda one: order.get(one, len(order)))
            pd.DataFrame([rows[one] for one in in_order]).convert_dtypes().to_csv(file, index=False)
    print(f"{sum(row['upright'] for row in rows.values())} of {len(rows)} upright")


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What identifies a row."""
    return row["model"], row["options"], row["image"]


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".csv")
    main(path)
    made = pd.read_csv(path, keep_default_na=False).to_dict("records")
    PAGE.write_text(filled(PAGE.read_text(), {"benchmarks/architectures.csv": lambda: table(made)}))
