"""Networks of Ultralytics by name, with their preprocessing: YOLO for detection, segmentation, classification and pose."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from xaieval.data import Preprocessing
from xaieval.errors import ModelError, UsageError, WeightsError, choose_from
from xaieval.inference.yolo_detections import Suppression
from xaieval.models.pickled_modules import read_pickled_modules, state_of
from xaieval.models.weights import check_fit, read_weights

__all__ = ["others_kept", "ultralytics"]

THREADS = "OMP_NUM_THREADS"

KINDS = {
    "detect": "DetectionModel",
    "segment": "SegmentationModel",
    "classify": "ClassificationModel",
    "pose": "PoseModel",
    "semantic": "SemanticSegmentationModel",
}
SIDES = {"classify": 224}  # pixels of the images; 640 for the others
GREY = 114 / 255  # of the border
FUSED = "model.0.conv.bias"  # which a convolution has once it holds its BatchNorm
SCALE = re.compile(r"(\d+)([nslmx])(.+)$")  # in the names of networks, which share a configuration
BUILT_WITH = ("nc", "ch")  # arguments of the constructors
CONVERT = "save the state dict of the network as safetensors, where you trust the file (docs/models.md, Ultralytics YOLO)"


def ultralytics(
    name: str, pretrained: bool, arguments: Mapping[str, Any], weights: str | Path | None = None
) -> tuple[nn.Module, Preprocessing, bool]:
    """Build a network of ultralytics, with its preprocessing; and whether its weights are random.

    Files of whole models (.pt) are pickles. Only their tensors, class names and settings are read; the classes that they name
    are not imported, and the network is built from the configuration of that name in the installed package.

    Args:
        name: A configuration of the package, such as "yolo11n.yaml"; or a file that ultralytics has saved (.pt).
        pretrained: Refused, since ultralytics downloads pickles.
        arguments: "nc", the number of classes, and "ch", of channels; "conf", "iou", "max_det" and "agnostic_nms", which boxes
            are detections, as `YOLO.predict` takes them.
        weights: A weights file to load, of tensors or of ultralytics.

    Raises:
        ModelError: There is no such configuration, it is for another task, or an argument is unknown.
        WeightsError: The file cannot be read, or does not fit.
        UsageError: The extra [ultralytics] is not installed.
    """
    settings = Suppression.__dataclass_fields__
    unknown = next((key for key in arguments if key not in (*BUILT_WITH, *settings)), None)
    if unknown is not None:
        raise ModelError(f"ultralytics:{name} has no argument {unknown!r}; {choose_from(unknown, (*BUILT_WITH, *settings))}")
    if pretrained:
        raise ModelError(
            "ultralytics downloads its weights as pickles, which xaieval does not do; give a file of them: "
            f"ultralytics:{_stem(name)}.pt"
        )
    held: dict[str, Any] = {}
    if not name.endswith((".yaml", ".yml")):
        held, weights = _held(name), name if weights is None else weights
        name, arguments = held["yaml_file"], held["built_with"] | arguments
    network, task = _built(name, {key: arguments[key] for key in BUILT_WITH if key in arguments})
    network.args = {key: arguments[key] for key in settings if key in arguments}
    network.names = held.get("names", network.names)
    if weights is not None:
        found = _state(Path(weights))
        if FUSED in found:
            raise WeightsError(
                f"'{Path(weights).name}' holds a fused network, whose BatchNorms are gone; give one from before YOLO.fuse()"
            )
        check_fit(found, network.state_dict(), f"'{Path(weights).name}'", f"ultralytics:{name}")
        network.load_state_dict(found)
    return network, _preprocessing(task, held.get("imgsz"), arguments.get("ch", 3)), weights is None


def _built(name: str, arguments: Mapping[str, Any]) -> tuple[Any, str]:
    """A network with random weights, and its task.

    Configurations are those of the package: ultralytics runs code that one of another file may name.
    """
    tasks = _tasks()
    known = {path.name: path for path in Path(tasks.__file__).parents[1].glob("cfg/models/**/*.yaml")}
    path = known.get(name) or known.get(SCALE.sub(r"\1\3", name))
    if path is None:
        hint = choose_from(name, sorted(known)).split("known:")[0]
        raise ModelError(
            f"ultralytics has no configuration {name!r}; {hint}one of its package is expected, such as yolo11n.yaml or "
            "yolov8s-seg.yaml; a network of your own is loaded by package.module:factory"
        )
    config = tasks.yaml_model_load(path) | {"scale": tasks.guess_model_scale(name), "yaml_file": name}
    task = tasks.guess_model_task(config)
    if task not in KINDS or any(row[2] == "TorchVision" for row in config["backbone"]):
        what = "downloads the weights of its backbone" if task in KINDS else f"is for the task {task!r}"
        raise ModelError(f"ultralytics:{name} {what}; known are its own networks for the tasks {', '.join(KINDS)}")
    logger = logging.getLogger("ultralytics")
    level = logger.level
    try:
        logger.setLevel(logging.WARNING)  # it prints a summary of some networks among the results
        return getattr(tasks, KINDS[task])(config, verbose=False, **arguments), task
    finally:
        logger.setLevel(level)


def _held(name: str) -> dict[str, Any]:
    """What a file of ultralytics says of its network."""
    path = Path(name)
    if not path.is_file():
        raise ModelError(
            f"no file {name!r}; a file that ultralytics has saved (.pt) is expected, or a configuration such as "
            f"ultralytics:{_stem(name)}.yaml"
        )
    content, network = _read(path)
    module, trained_with = vars(network), content.get("train_args")
    config, names = module.get("yaml"), module.get("names")
    if not isinstance(config, Mapping) or not isinstance(config.get("yaml_file"), str):
        raise WeightsError(f"'{path.name}' does not say which configuration of ultralytics it has; {CONVERT}")
    sizes = {"nc": config.get("nc"), "ch": config.get("channels", config.get("ch"))}
    size = trained_with.get("imgsz") if isinstance(trained_with, Mapping) else None
    return {
        "yaml_file": Path(config["yaml_file"]).name,
        "built_with": {key: value for key, value in sizes.items() if isinstance(value, int)},
        **({"names": dict(names)} if isinstance(names, Mapping) else {}),
        **({"imgsz": size} if isinstance(size, int) else {}),
    }


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, also of a file of ultralytics."""
    try:
        return read_weights(path)
    except WeightsError:
        if path.suffix != ".pt" or not path.is_file():
            raise
    return state_of(_read(path)[1])


def _read(path: Path) -> tuple[Mapping[str, Any], Any]:
    """The content of a file of ultralytics, and the network in it, as an object that holds its tensors."""
    content = read_pickled_modules(path)
    module = (content.get("ema") or content.get("model")) if isinstance(content, Mapping) else None
    if module is None:
        raise WeightsError(f"'{path.name}' holds no network of ultralytics ('model' or 'ema'); {CONVERT}")
    state_of(module)  # raises if it is no module
    return content, module


def _preprocessing(task: str, size: int | None, channels: int) -> Preprocessing:
    """How `YOLO.predict` prepares square images: the shorter side and a crop for classes, otherwise a grey border."""
    side = size or SIDES.get(task, 640)
    plain = Preprocessing(side, side, mean=(0.0,) * channels, std=(1.0,) * channels)
    return plain if task == "classify" else replace(plain, border=True, fill=GREY)


@contextmanager
def others_kept() -> Iterator[None]:
    """Import ultralytics without what it changes in other libraries.

    It puts a function of its own in the place of `PIL.Image.open`, which installs a package for an image that Pillow does not
    know, and sets print options of NumPy and the number of threads of processes to come.
    """
    opened, printed, threads = Image.open, np.get_printoptions(), os.environ.get(THREADS)
    try:
        yield
    finally:
        Image.open = opened
        np.set_printoptions(**printed)
        if threads is None:
            os.environ.pop(THREADS, None)


def _tasks() -> Any:
    """The module of ultralytics that builds networks."""
    try:
        with redirect_stdout(sys.stderr), others_kept():  # it tells of its settings file
            from ultralytics.nn import tasks
    except ModuleNotFoundError as error:
        raise UsageError(
            "models ultralytics:NAME need ultralytics (AGPL-3.0), which is missing: pip install 'xaieval[ultralytics]'"
        ) from error
    return tasks


def _stem(name: str) -> str:
    return Path(name).stem or name
