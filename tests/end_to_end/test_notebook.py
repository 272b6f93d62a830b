"""What a notebook shows, in a kernel of IPython as Jupyter starts it."""

from __future__ import annotations

from typing import Any

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

CELLS = {
    "prepare": """
import torch
from torch import nn
import xaieval
from xaieval.evaluation import progress
progress.REFRESH = 0  # the bar of a run as short as this would not be shown
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
images = torch.rand(4, 3, 16, 16)
""",
    "score": "scores = xaieval.score(model, [images[:2], images[2:]], ['1'], ['gradcam', 'edges'], max_images=4)",
    "silent": "_ = xaieval.score(model, [images], ['1'], progress=False)",
    "show": "xaieval.show(images, xaieval.explain(model, images, ['1']))",
    "plot": "scores.plot()",
    "scores": "scores",
    "pyplot": "%matplotlib inline\nimport matplotlib.pyplot\nscores.plot()",
    "nothing": "figure = scores.plot()",
    "loaded": "from xaieval.models import load_model\nload_model('xaieval:fpn-scenes')",
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, Any]:
    """The outputs of each cell."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120).execute()
    return {name: cell["outputs"] for name, cell in zip(CELLS, notebook["cells"], strict=True)}


@pytest.mark.parametrize("cell", ["show", "plot", "pyplot"])
def test_a_figure_is_shown_exactly_once(outputs, cell):
    [shown] = outputs[cell]
    assert shown["output_type"] == "execute_result"
    assert len(shown["data"]["image/png"]) > 1000


def test_a_figure_that_is_kept_is_not_shown(outputs):
    assert outputs["nothing"] == []


def test_the_size_of_a_figure_is_that_of_a_page_and_its_pixels_are_twice_as_many(outputs):
    [shown] = outputs["show"]
    assert shown["metadata"]["image/png"]["width"] == pytest.approx(100 * (2 * 1.35 + 1.1), abs=1)


def test_scores_are_a_table(outputs):
    [shown] = outputs["scores"]
    assert "<table" in shown["data"]["text/html"]
    assert "AD" in shown["data"]["text/html"]


def test_progress_is_one_output_that_ends_with_what_was_done(outputs):
    [shown] = [one for one in outputs["score"] if one["output_type"] != "stream"]  # tqdm misses ipywidgets on stderr
    assert shown["output_type"] == "display_data"
    assert shown["data"]["text/plain"].startswith("scoring: 4 images in ")
    assert shown["data"]["text/html"].startswith("<div>scoring: 4 images in ")  # the bar is gone
    assert outputs["silent"] == []


def test_a_loaded_model_takes_three_lines(outputs):
    [shown] = [one for one in outputs["loaded"] if one["output_type"] != "stream"]
    lines = shown["data"]["text/plain"].splitlines()
    assert len(lines) == 3
    assert lines[0] == "xaieval.models.fpn.FPNClassifier, 546,808 parameters"
