"""A model whose forward pass is a function given to it, for tests that need unusual models."""

from __future__ import annotations

from torch import nn


class Wired(nn.Module):
    """A model with named modules, run by a function of the model and the images."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images):
        return self.run(self, images)
