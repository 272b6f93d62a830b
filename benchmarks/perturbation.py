"""Speed of perturbation methods compared with pytorch-grad-cam, torch-cam and captum: same model, same images, same maps.

    python benchmarks/perturbation.py [--weights FILE]

compares the maps first, then times all tools in turn, and writes `benchmarks/perturbation.csv`. ResNet-18 has random weights;
MobileNetV2 is included if its ImageNet weights are given. The other libraries get passes of 32 images. `score` is a complete
call of `xaieval.score` with passes of the same size, including masked images and both metrics; `explain` makes only the maps,
as the other libraries do, in passes of 16. None of these libraries has RISE: it is compared with a loop as a user would write
it, which holds all masks in memory.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import captum.attr
import cyclopts
import numpy as np
import pandas as pd
import pytorch_grad_cam
import timm
import torch
import torchcam.methods
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "speed"))  # for record and timing
from record import read, replace_rows
from timing import alternate, spread

import xaieval
from xaieval.data import Preprocessing, scenes
from xaieval.explainers.ablation import AblationCAM
from xaieval.explainers.perturbation import RISE, Occlusion, RandomMasks, ScoreCAM

RESULTS = Path(__file__).with_suffix(".csv")
HALF = (0.5, 0.5, 0.5)
SIZE = 32  # images in a pass
AGREE = 1e-3  # of a map's range, which is [0, 1]
PACKAGES = ("xaieval", "torch", "grad-cam", "torchcam", "captum")
KEYS = ("model", "method")


@dataclass(frozen=True)
class Case:
    """A model with a layer, images, and the classes to explain."""

    name: str
    model: nn.Module
    layer: str
    images: Tensor
    targets: list[int]

    def explain(self, method: object, layer: bool) -> Tensor:
        """Maps by xaieval, in [0, 1]."""
        maps = xaieval.explain(self.model, self.images, self.layer if layer else (), method, self.target)
        return next(iter(maps.values()))

    def score(self, method: object, layer: bool) -> object:
        """A complete run of xaieval."""
        batches = [(self.images, torch.tensor(self.targets))]
        layers = self.layer if layer else ()
        return xaieval.score(self.model, batches, layers, [method], target="label", batch_size=SIZE, progress=False)

    def target(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        """The classes as a target function."""
        return torch.tensor(self.targets)


def cases(weights: str | None, images: int, side: int) -> Iterator[Case]:
    """ResNet-18 with random weights, and MobileNetV2 if ImageNet weights are given."""
    data = scenes(Preprocessing(side, side, mean=HALF, std=HALF))
    pictures = torch.stack([data[number]["image"] for number in range(images)])
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18().eval()
    yield Case("resnet18", resnet, "layer4", pictures, [number % 1000 for number in range(3, 3 + images)])
    if weights is not None:
        mobilenet = timm.create_model("mobilenetv2_100", pad_type="same").eval()
        mobilenet.load_state_dict(load_file(weights))
        with torch.no_grad():
            yield Case("mobilenetv2", mobilenet, "bn2", pictures, mobilenet(pictures).argmax(dim=1).tolist())


# ---- the other libraries: maps as they return them, at the size of the layer or of the image


def grad_cam(peer: type, case: Case) -> np.ndarray:
    """A method of pytorch-grad-cam, before its resizing and normalisation."""
    targets = [ClassifierOutputTarget(target) for target in case.targets]
    with contextlib.redirect_stderr(io.StringIO()), peer(case.model, [case.model.get_submodule(case.layer)]) as cam:
        cam.batch_size = SIZE
        with torch.no_grad():
            cam.activations_and_grads(case.images)
        activations = cam.activations_and_grads.activations[0].numpy()
        maps = cam.get_cam_image(case.images, cam.target_layers[0], targets, activations, None)
    return np.maximum(maps, 0)


def torch_cam(case: Case) -> np.ndarray:
    """Score-CAM of torch-cam."""
    with torchcam.methods.ScoreCAM(case.model, case.layer, batch_size=SIZE) as extractor, torch.no_grad():
        case.model(case.images)
        return extractor(case.targets, normalized=False)[0].numpy()


def captum_occlusion(window: int, stride: int, case: Case) -> np.ndarray:
    """Occlusion of captum, whose maps have a channel per colour."""
    maps = captum.attr.Occlusion(case.model).attribute(
        case.images,
        (3, window, window),
        (3, stride, stride),
        target=torch.tensor(case.targets),
        perturbations_per_eval=max(1, SIZE // len(case.images)),
    )
    return maps[:, 0].detach().numpy()


def rise_loop(rise: RISE, case: Case) -> np.ndarray:
    """RISE as a user would write it: all masks at once, image by image."""
    size = (case.images.shape[2], case.images.shape[3])
    masks = RandomMasks.draw(rise, 0, size, case.images.device).make(0, rise.n_masks)
    maps = []
    with torch.inference_mode():
        for image, target in zip(case.images, case.targets, strict=True):
            scores = [case.model(image * some[:, None]).softmax(dim=1)[:, target] for some in masks.split(SIZE)]
            maps.append(torch.einsum("m,mhw->hw", torch.cat(scores), masks) / (rise.n_masks * rise.probability))
    return torch.stack(maps).numpy()


# ---- the comparisons


@dataclass(frozen=True)
class Contest:
    """One of our methods, and each peer with our settings that give the peer's maps."""

    method: str
    needs_layer: bool
    ours: object
    peers: dict[str, tuple[Callable[[Case], np.ndarray], object]]


def contests(masks: int, side: int) -> list[Contest]:
    """The comparisons of all methods."""
    window = -(-side // 7)
    stride = -(-window // 2)
    rise = RISE(n_masks=masks)
    return [
        Contest(
            "score-cam",
            True,
            ScoreCAM(),
            {
                "pytorch-grad-cam": (partial(grad_cam, pytorch_grad_cam.ScoreCAM), ScoreCAM(align_corners=True)),
                "torch-cam": (torch_cam, ScoreCAM(normalise_at="layer")),
            },
        ),
        Contest(
            "ablation-cam",
            True,
            AblationCAM(),
            {"pytorch-grad-cam": (partial(grad_cam, pytorch_grad_cam.AblationCAM), AblationCAM())},
        ),
        Contest(
            "occlusion", False, Occlusion(), {"captum": (partial(captum_occlusion, window, stride), Occlusion(window, stride))}
        ),
        Contest("rise", False, rise, {"own loop": (partial(rise_loop, rise), rise)}),
    ]


def disagreement(case: Case, contest: Contest) -> dict[str, float]:
    """By peer, the largest difference between maps scaled to [0, 1]."""
    differences = {}
    for name, (peer, setting) in contest.peers.items():
        theirs = nn.functional.interpolate(torch.from_numpy(peer(case))[:, None], case.images.shape[2:], mode="bilinear")
        differences[name] = float((case.explain(setting, contest.needs_layer) - _unit(theirs[:, 0].float())).abs().max())
    return differences


def _unit(maps: Tensor) -> Tensor:
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)


def compare(case: Case, contest: Contest, rounds: int) -> list[dict[str, object]]:
    """One row per tool."""
    apart = disagreement(case, contest)
    print(f"{case.name}, {contest.method}: largest difference of maps {apart}", flush=True)
    wrong = [name for name, difference in apart.items() if not difference < AGREE]
    if wrong:
        raise SystemExit(f"the maps of {', '.join(wrong)} differ from ours, so their times mean nothing")
    runs: dict[str, Callable[[], object]] = {
        "xaieval explain": partial(case.explain, contest.ours, contest.needs_layer),
        "xaieval score": partial(case.score, contest.ours, contest.needs_layer),
        **{name: partial(peer, case) for name, (peer, _) in contest.peers.items()},
    }
    runs["xaieval score"]()  # warm-up; explain and the peers have already run
    seconds = alternate(runs, rounds) / len(case.images)
    rows: list[dict[str, object]] = [
        {
            "model": case.name,
            "method": contest.method,
            "tool": name,
            "n_images": len(case.images),
            "batch_size": SIZE,
            "rounds": rounds,
            **spread(seconds[name], "seconds_per_image"),
            **spread(seconds[name] / seconds["xaieval explain"], "explain_is_faster"),
            **spread(seconds[name] / seconds["xaieval score"], "score_is_faster"),
            "map_difference": apart.get(name),
            **circumstances(),
        }
        for name in runs
    ]
    print(pd.DataFrame(rows)[["tool", "seconds_per_image", "explain_is_faster", "score_is_faster"]].to_string(index=False))
    return rows


def circumstances() -> dict[str, object]:
    """Threads, device, date and versions of the measurement."""
    versions = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"threads": torch.get_num_threads(), "device": "cpu", "date": date, "versions": versions}


def main(
    weights: str | None = None,
    images: int = 2,
    rounds: int = 3,
    masks: int = 500,
    side: int = 224,
    methods: str = "score-cam,ablation-cam,occlusion,rise",
    out: Path = RESULTS,
) -> None:
    """Compare maps, time the tools, and write the table."""
    for case in cases(weights, images, side):
        for contest in contests(masks, side):
            if contest.method in methods.split(","):
                replace_rows(out, compare(case, contest, rounds), KEYS)
    print(read(out)[["model", "method", "tool", "seconds_per_image", "score_is_faster"]].to_string(index=False))


if __name__ == "__main__":
    cyclopts.run(main)
