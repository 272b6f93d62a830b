"""Training on masked images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from xaieval.errors import UsageError
from xaieval.training import cross_entropy, fit, mask_cells, masked_loss


@given(side=st.integers(1, 9), size=st.integers(4, 20), seed=st.integers(0, 99))
def test_each_cell_is_kept_or_removed_as_a_whole(side, size, seed):
    torch.manual_seed(seed)
    masked = mask_cells(torch.ones(5, 2, size, size + 3), grids=[side])
    assert set(masked.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(masked[:, 0], masked[:, 1])
    if size % side == 0 and (size + 3) % side == 0:
        cells = functional.avg_pool2d(masked, (size // side, (size + 3) // side))
        assert set(cells.unique().tolist()) <= {0.0, 1.0}


def test_every_second_image_stays_whole_and_the_others_lose_half_of_what_is_allowed():
    torch.manual_seed(0)
    kept = mask_cells(torch.ones(4000, 1, 14, 14), most=0.6, grids=[14]).mean(dim=(1, 2, 3))
    whole = (kept == 1).float().mean()
    assert abs(float(whole) - 0.5) < 0.04, "few of the others lose nothing by chance"
    assert abs(float(kept.mean()) - (1 - 0.5 * 0.3)) < 0.01


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"most": 0.0}, "most is a share"), ({"most": 1.5}, "most is a share"), ({"grids": []}, "grids are numbers")],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        mask_cells(torch.ones(1, 1, 4, 4), **settings)


def test_the_loss_is_that_of_masked_images():
    seen: list[Tensor] = []

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen.append(images)
        return images.sum()

    torch.manual_seed(1)
    images = torch.rand(8, 3, 8, 8) + 1
    masked_loss(loss, grids=[4])(nn.Identity(), images, torch.zeros(8))
    assert (seen[0] == 0).any()
    assert torch.equal(seen[0][seen[0] != 0], images[seen[0] != 0])


def test_fit_masks_the_training_images(tmp_path):
    shown: list[float] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 2)

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                shown.append(float((images == 0).float().mean()))
            return self.head(images.flatten(1))

    batch = (torch.rand(16, 3, 4, 4) + 1, torch.arange(16) % 2)
    data = DataLoader([batch] * 4, batch_size=None)
    for masked in (False, True):
        shown.clear()
        fit(Watched(), data, None, num_classes=2, epochs=1, loss=cross_entropy, masked=masked, log_dir=tmp_path, progress=False)
        assert (max(shown) > 0) == masked
