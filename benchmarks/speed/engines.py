"""Other engines for the masked passes beside the best of torch: OpenVINO, ONNX Runtime, and linear layers by oneDNN.

    python benchmarks/speed/engines.py --only resnet50

writes `results/engines.csv`. Needs `openvino` and `onnxruntime`, neither of which xaieval installs for this; a missing one is
left out. Every engine gets the same network, batches of the size of a run, and one thread. Times are those of the processor,
which other work on the machine hardly changes. Before anything is timed, its probabilities are compared with those of float64.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd
import torch
from networks import Scale, build
from record import read, replace_rows, write_manifest
from timing import spread
from torch import Tensor, nn

from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import sped_up
from xaieval.inference.precision import PRECISIONS

RESULTS = Path(__file__).parent / "results"
NAME = "engines.csv"
BEST = "torch, as score runs it"

Run = Callable[[Tensor], Tensor]


def main(only: str = "resnet50,vit_small", batch: int = 8, rounds: int = 5, side: int = 224, out: Path = RESULTS) -> None:
    """Measure networks, and write the table."""
    torch.set_num_threads(1)
    for name in only.split(","):
        network = build(name, Scale(side=side, pool=batch), None, None, 0)
        replace_rows(out / NAME, measured(network.name, network.model, network.images[:batch], rounds), ["model", "batch"])
    write_manifest(out, "engines", {"only": only, "batch": batch, "rounds": rounds, "side": side, **versions()})
    print(read(out / NAME).round(4).to_string(index=False))


def measured(name: str, model: nn.Module, images: Tensor, rounds: int) -> list[dict[str, Any]]:
    """The rows of a network."""
    with torch.no_grad():
        expected = model.double()(images.double()).softmax(1)
        model.float()
    runs = dict(others(model, images))
    with borrow(model, None), sped_up(model, images, [], BatchLimit(len(images))) as runner:
        inside = {BEST: runner.output, "torch, bf16": replace(runner, precision=PRECISIONS["bf16"]).output, **runs}
        apart = {engine: float((run(images).float().softmax(1) - expected).abs().max()) for engine, run in inside.items()}
        seconds = pd.DataFrame([{engine: busy(run, images) for engine, run in inside.items()} for _ in range(rounds)])
    rows = []
    for engine in seconds:
        times = spread(1000 * seconds[engine] / len(images), "ms")
        ratio = spread(seconds[BEST] / seconds[engine], "faster")
        rows.append({"model": name, "batch": len(images), "engine": engine, **times, **ratio, "apart": apart[engine]})
    return rows


def busy(run: Run, images: Tensor) -> float:
    """Seconds of the processor for a pass."""
    start = time.process_time()
    run(images)
    return time.process_time() - start


def others(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Run]]:
    """The unmodified model, and the engines that are installed."""
    yield "torch, model unchanged", torch.inference_mode()(deepcopy(model))
    yield "torch, linear layers by oneDNN", torch.inference_mode()(with_packed_layers(deepcopy(model)))
    with suppress(ImportError):
        yield "OpenVINO", openvino_run(model, images, "f32")
        yield "OpenVINO, bf16", openvino_run(model, images, "bf16")
    with suppress(ImportError):
        yield "ONNX Runtime", onnx_run(model, images)


class PackedLinear(nn.Module):
    """A linear layer whose weights oneDNN has laid out for it once, by the operators that torch.compile uses."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, values: Tensor) -> Tensor:
        """Values `[..., C]` to `[..., D]`."""
        return torch.ops.mkldnn._linear_pointwise(values, self.weight, self.bias, "none", [], "")


def with_packed_layers(model: nn.Module) -> nn.Module:
    """The model with `PackedLinear` in place of its linear layers."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child))
    return model


def openvino_run(model: nn.Module, images: Tensor, precision: str) -> Run:
    """The model compiled by OpenVINO for one thread and the size of these images."""
    import openvino

    network = openvino.convert_model(model, example_input=images, input=[images.shape])
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(network, "CPU", settings)
    return lambda batch: torch.from_numpy(compiled(batch.numpy())[0].copy())


def onnx_run(model: nn.Module, images: Tensor) -> Run:
    """The model in ONNX Runtime with one thread and all of its optimisations."""
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, (images,), file, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])


def versions() -> dict[str, str]:
    """Of the engines."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("openvino", "onnxruntime"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    cyclopts.run(main)
