"""Weights from files, and whether they fit a model."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from xaieval.errors import ModelError, WeightsError, for_command_line
from xaieval.models import FPNClassifier, load_model, read_weights
from xaieval.models.weights import below_prefix, check_fit, load_weights


def test_a_fit_names_a_few_of_all_faults():
    wanted = {name: torch.zeros(2) for name in "abcdef"}
    check_fit({name: torch.ones(2) for name in "fedcba"}, wanted, "the file", "the model")
    with pytest.raises(WeightsError) as caught:
        check_fit({"f": torch.zeros(2, 1), "x": torch.zeros(1)}, wanted, "the file", "the model")
    assert str(caught.value) == (
        "the file does not fit the model: missing: a, b, c and 2 more; left over: x; of another shape: f [2, 1] instead of [2]"
    )


def test_weights_are_read_by_name(tmp_path):
    wanted, content = {"a": torch.rand(2), "b.c": torch.rand(1)}, {}
    content["nested.pth"], content["plain.pth"] = {"epoch": 1, "model": wanted}, wanted
    for name, saved in content.items():
        torch.save(saved, tmp_path / name)
    save_file(wanted, tmp_path / "plain.safetensors")
    for name in (*content, "plain.safetensors"):
        found = read_weights(tmp_path / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(WeightsError, match=r"no weights file '.*none\.pth'"):
        FPNClassifier("test_resnet", 10, pretrained=str(tmp_path / "none.pth"))


# ---- checkpoints as training scripts leave them


def _network(classes: int = 3) -> nn.Module:
    torch.manual_seed(classes)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


class Module(lightning.LightningModule):
    """A network under the name of an attribute, beside a loss with weights of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))

    def training_step(self, batch):
        return self.criterion(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _of_lightning(network: nn.Module, path: Path) -> None:
    trainer = lightning.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    loader = torch.utils.data.DataLoader([(torch.rand(3, 8, 8), 0), (torch.rand(3, 8, 8), 1)], batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning on few processors and few batches
        trainer.fit(Module(network), loader)
    trainer.save_checkpoint(path)


SAVED = {
    "DataParallel": lambda network, path: torch.save(nn.DataParallel(network).state_dict(), path),
    "torch.compile": lambda network, path: torch.save(torch.compile(network).state_dict(), path),
    "a compiled part": lambda network, path: torch.save(
        {name.replace("4.", "4._orig_mod."): tensor for name, tensor in network.state_dict().items()}, path
    ),
    "two wrappers": lambda network, path: torch.save(nn.DataParallel(torch.compile(network)).state_dict(), path),
    "a script": lambda network, path: torch.save({"epoch": 3, "model_state_dict": network.state_dict()}, path),
    "a script of its own": lambda network, path: torch.save({"epoch": 3, "weights": network.state_dict()}, path),
    "a backbone": lambda network, path: save_file(
        {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}, path.with_suffix(".safetensors")
    ),
    "Lightning": _of_lightning,
}


@pytest.mark.parametrize("kind", SAVED)
def test_weights_are_found_below_the_prefix_of_what_they_were_trained_in(tmp_path, kind):
    trained = _network()
    SAVED[kind](trained, tmp_path / "saved.pth")
    [path] = tmp_path.iterdir()
    fresh = _network()
    with torch.no_grad():
        for tensor in fresh.parameters():
            tensor.zero_()
    load_weights(fresh, path)
    wanted = trained.state_dict()
    assert all(torch.equal(value.float(), wanted[name].float()) for name, value in fresh.state_dict().items())


def test_weights_below_two_prefixes_are_refused(tmp_path):
    state = _network().state_dict()
    torch.save({f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in state.items()}, tmp_path / "both.pth")
    with pytest.raises(WeightsError, match=r"'both\.pth' holds the whole model below each of 'model\.', 'ema\.'; save the one"):
        load_weights(_network(), tmp_path / "both.pth")
    torch.save({"net": state, "ema": state}, tmp_path / "nested.pth")
    with pytest.raises(WeightsError, match=r"holds no state dict .*; it has several, 'net', 'ema': save the one that is meant"):
        read_weights(tmp_path / "nested.pth")


def test_a_prefix_of_a_part_is_named_with_what_is_missing():
    state = _network().state_dict()
    part = {f"model.{name}": tensor for name, tensor in state.items() if name[0] != "4"}
    found, prefix = below_prefix(part | {"model.extra": torch.ones(1), "loss": torch.ones(1)}, state, "it")
    assert prefix == "model."
    with pytest.raises(WeightsError, match=r"^it does not fit m: missing: 4\.weight, 4\.bias; left over: extra$"):
        check_fit(found, state, "it", "m")
    exact, none = below_prefix(state | {"model.0.weight": torch.ones(1)}, state, "it")
    assert none == ""
    assert "model.0.weight" in exact, "what fits without a prefix is looked at as it is"


def test_a_head_of_other_classes_is_loaded_or_named(tmp_path):
    own = timm.create_model("test_resnet", num_classes=5)
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(WeightsError, match=r"if it was trained on 5 classes, say so by num_classes=5$"):
        load_model("timm:test_resnet", tmp_path / "own.safetensors")
    loaded = load_model("timm:test_resnet", tmp_path / "own.safetensors", num_classes=5)
    assert loaded.model(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    assert not loaded.random
    with pytest.raises(
        ModelError, match=r"num_classes= goes with a weights file .*; the head of timm:test_resnet would be random"
    ):
        load_model("timm:test_resnet", pretrained=True, num_classes=5)
    with pytest.raises(ModelError, match=r"onnx:x\.onnx has its classes from its file or its texts; leave num_classes= out"):
        load_model("onnx:x.onnx", num_classes=5)
    with for_command_line(), pytest.raises(WeightsError, match=r"say so by --num-classes 5$"):
        load_model("timm:test_resnet", tmp_path / "own.safetensors")
