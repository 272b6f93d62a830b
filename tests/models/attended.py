"""Small networks with attention, whose every weight matters."""

from __future__ import annotations

import itertools

import torch

from xaieval.models import FAL, LEVELS, ABNClassifier, Design, FPNClassifier
from xaieval.models.branch_stages import resized

SUBSETS = [levels for count in (1, 2, 3, 4) for levels in itertools.combinations(LEVELS, count)]
BACKBONE = "test_resnet"


def shuffled(model):
    """Random numbers for every bias, scale and statistic, so that none of them can be left out without a difference."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.normal_(0, 0.3)
    return model


def small_fal(levels=("p2", "p3"), backbone=BACKBONE, **options):
    return shuffled(FAL(backbone, 10, levels, channels=16, **options)).eval()


def small_abn(backbone=BACKBONE, **options):
    return shuffled(ABNClassifier(backbone, 10, **options)).eval()


def small_fpn(head="mean", backbone=BACKBONE, **options):
    return shuffled(FPNClassifier(backbone, 10, channels=16, head=head, **options)).eval()


def some_images(count=2, side=64):
    return torch.rand(count, 3, side, side)


def all_designs():
    """Every design that there can be."""
    names = {
        "place": ("backbone", "features", "laterals", "levels"),
        "gate": ("amplify", "focus"),
        "perception": (False, True),
        "branch": ("block", "stage"),
        "evidence": (False, True),
        "shared": (False, True),
    }
    for values in itertools.product(*names.values()):
        design = dict(zip(names, values, strict=True))
        if design["branch"] == "stage" and design["place"] not in ("backbone", "features"):
            continue
        if design["shared"] and design["place"] != "levels":
            continue
        yield Design(**design)


def gated(gate, features, maps):
    """Features after a gate, written anew."""
    maps = resized(maps, features)
    if gate == "amplify":
        return features + maps * features
    cells = maps.shape[2] * maps.shape[3]
    return features * maps * cells / maps.sum(dim=(2, 3), keepdim=True)
