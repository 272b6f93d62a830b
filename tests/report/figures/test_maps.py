"""The grid of an image's maps: layers side by side, methods below each other."""

from __future__ import annotations

import numpy as np
import torch

from xaieval.report.figures.maps import grid_figure, maps_figure

PIXELS = torch.rand(3, 6, 8)


def test_each_map_stands_in_the_column_of_its_layer_and_the_row_of_its_method():
    maps = {(layer, method): torch.rand(6, 8) for layer in ("layer3", "layer4") for method in ("gradcam", "layercam")}
    maps["input", "edges"] = torch.rand(6, 8)
    figure = grid_figure(PIXELS, maps, "cat")
    cells = np.array(figure.axes[:12]).reshape(3, 4)
    assert [axes.get_title() for axes in cells[0]] == ["image", "layer3", "layer4", "input"]
    assert [axes.get_ylabel() for axes in cells[:, 1]] == ["gradcam", "layercam", "edges"]
    assert np.allclose(cells[0, 0].images[0].get_array(), PIXELS.permute(1, 2, 0))
    found = {
        (layer, method): cells[row, column].images[-1].get_array()
        for row, method in enumerate(("gradcam", "layercam", "edges"))
        for column, layer in ((1, "layer3"), (2, "layer4"), (3, "input"))
        if cells[row, column].images[0].get_cmap().name == "gray"
    }
    assert found.keys() == maps.keys()
    assert all(np.allclose(found[pair], maps[pair]) for pair in maps)
    empty = [axes for axes in cells.flat if (axes.images[0].get_array() == 1).all()]
    assert len(empty) == 6
    assert not any(axes.spines["left"].get_visible() for axes in empty)
    assert figure.get_suptitle() == ""
    assert figure._supxlabel.get_text() == "cat"


def test_the_maps_of_a_wide_picture_stand_below_it():
    maps = {("layer4", method): torch.rand(4, 30) for method in ("gradcam", "random")}
    figure = grid_figure(torch.rand(3, 4, 30), maps)
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["image", "layer4, gradcam", "layer4, random"]


def test_nothing_of_a_single_row_is_cut_off_when_it_is_saved():
    maps = {f"blocks.{number}\nAD": torch.rand(1, 64, 64) for number in range(3)}
    figure = maps_figure(torch.rand(1, 3, 64, 64), maps, ["airliner 0.95"], size=7)
    figure.draw_without_rendering()  # as savefig does
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= box.x0 < box.x1 <= width
    assert 0 <= box.y0 < box.y1 <= height
