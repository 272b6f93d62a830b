"""Volumes
=======

Explain and score a network for volumes: does its map find the bright ball? Each volume is noise with one bright ball. The
weights of the network are set by hand to detect brightness, so it is known where a faithful map has to peak.

``python examples/volume.py [FOLDER]`` prints how many maps peak inside the ball and the scores, and writes the middle slice of
a volume with its map to ``volume.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import xaieval

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
SIDE, RADIUS = 32, 5

# %%
# Volumes and a network.


def volumes_with_balls(count: int) -> tuple[Tensor, Tensor]:
    """Volumes `[N, 1, 32, 32, 32]` and masks of their balls `[N, 32, 32, 32]`."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randint(RADIUS, SIDE - RADIUS, (count, 3), generator=generator)
    centres[0] = torch.tensor([16, 11, 21])  # the ball in the figure lies in the middle slice of the volume
    places = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 3, indexing="ij"))
    inside = ((places - centres[:, :, None, None, None]) ** 2).sum(dim=1) <= RADIUS**2
    noise = 0.3 * torch.rand(count, 1, SIDE, SIDE, SIDE, generator=generator)
    return noise + 0.7 * inside[:, None], inside


class BrightBall(nn.Module):
    """Means over 3 x 3 x 3 voxels above a threshold, at half the resolution; class 1 is "ball"."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = nn.Conv3d(1, 1, 3, padding=1)
        nn.init.constant_(self.bright.weight, 1 / 27)
        nn.init.constant_(self.bright.bias, -0.4)
        self.pool = nn.Sequential(nn.ReLU(), nn.AvgPool3d(2))

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits of "no ball" and "ball"."""
        strength = 200 * self.pool(self.bright(volumes)).mean(dim=(1, 2, 3, 4))
        return torch.stack([torch.ones_like(strength), strength], dim=1)


volumes, inside = volumes_with_balls(12)
model = BrightBall()

# %%
# Where do the maps peak, and what do they score?

maps = xaieval.explain(model, volumes, "pool", target=1)["pool"]  # [N, 32, 32, 32]
peaks = maps.flatten(1).argmax(dim=1)
found = inside.flatten(1).gather(1, peaks[:, None]).sum()
print(f"{found} of {len(volumes)} maps peak inside the ball")

scores = xaieval.score(model, [volumes], "pool", ["gradcam", "center", "random"], target=1, progress=False)
print(scores.summary().round(1).to_string())

# %%
# A slice through the middle.

middle = SIDE // 2
pictures = {"middle slice": volumes[0, 0], "Grad-CAM": maps[0], "ball": inside[0].float()}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.8), layout="constrained")
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture[middle].numpy(), cmap="gray" if title != "Grad-CAM" else "magma", vmin=0, vmax=1)
    axis.set_title(title)
    axis.set_axis_off()
figure.savefig(folder / "volume.png", dpi=100)
