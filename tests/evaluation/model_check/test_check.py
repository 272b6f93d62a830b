"""The check of the first batch: what it finds, what it costs, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from xaieval.data.batches import read_batch
from xaieval.errors import CheckError
from xaieval.evaluation import loop
from xaieval.evaluation.first_pass import FirstPass
from xaieval.evaluation.model_check import ModelCheck, check_model
from xaieval.evaluation.request import check_request
from xaieval.inference.borrowing import borrow
from xaieval.inference.options import Inference


class Linear(nn.Module):
    """Logits of a model without normalisation layers, which say nothing of its weights."""

    def __init__(self, last: nn.Module | None = None, scale: float = 40.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6))
        self.last, self.scale = last or nn.Identity(), scale

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.net(images) * self.scale)


class Tuple(Linear):
    """A tuple of logits [N, 6] and features [N, 16] in an order, or of two heads."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order, self.other = order, nn.Linear(16, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.net[:-1](images)
        parts = {"logits": self.net[-1](features) * self.scale, "features": features, "other head": self.other(features)}
        parts["direction"] = functional.normalize(features)
        return tuple(parts[name] for name in self.order.split(", "))


def images(count: int = 4) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(count, 3, 16, 16) * torch.rand(count, 3, 1, 1)


def names(model: nn.Module, count: int = 4, **options) -> list[str]:
    return [finding.name for finding in xaieval.check(model, [images(count)], **options).findings()]


def test_nothing_is_found_in_a_plain_model():
    assert names(Linear()) == []


# Outputs.


def test_features_before_the_logits_are_said():
    *_, found = xaieval.check(Tuple("features, logits"), [images()]).findings()
    assert found.name == "several_outputs"
    assert found.evidence == {"shapes": [[4, 16], [4, 6]]}
    for words in ("[4, 16] at 0, [4, 6] at 1", "the others are computed from it", "output=1 takes another", "output=0"):
        assert words in found.text


@pytest.mark.parametrize("order", ["logits, other head", "direction, logits"])
def test_two_outputs_of_which_none_is_computed_from_the_other_are_said(order):
    assert "several_outputs" in names(Tuple(order))
    for place in (0, 1, "1"):
        assert "several_outputs" not in names(Tuple(order), output=place)


def test_two_decoders_of_a_segmentation_network_are_said():
    class Decoders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.mask, self.edge = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3), nn.Conv2d(8, 1, 3)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features = self.encoder(images)
            return self.mask(features), self.edge(features), features.mean((2, 3))

    assert "several_outputs" in names(Decoders(), task="segmentation")
    assert "several_outputs" not in names(Decoders(), task="segmentation", output=1)


@pytest.mark.parametrize("order", ["logits", "logits, features", "logits, features, features"])
def test_logits_before_the_features_are_no_finding(order):
    assert names(Tuple(order)) == []


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_probabilities_are_not_logits(last):
    [found] = xaieval.check(Linear(last), [images()]).findings()
    assert found.name == "probabilities_for_logits"
    assert 0 <= found.evidence["minimum"] < found.evidence["maximum"] <= 1
    for words in ("probabilities", "output=", "confidence='identity'"):
        assert words in found.text
    taken = xaieval.Protocol(confidence="identity")
    assert names(Linear(last), protocol=taken) == []


def test_logarithms_of_probabilities_are_logits_of_the_softmax_alone():
    assert names(Linear(nn.LogSoftmax(1))) == []
    assert names(Linear(nn.LogSoftmax(1)), protocol=xaieval.Protocol(confidence="sigmoid")) == ["probabilities_for_logits"]
    assert names(Linear(nn.LogSigmoid())) == ["probabilities_for_logits"]


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Hardsigmoid(), nn.Sequential(nn.Softmax(1), nn.Flatten(0, 0))])
def test_one_image_is_enough_where_the_last_operation_is_known(last):
    assert "probabilities_for_logits" in names(Linear(last, scale=3), count=1)


def test_logits_that_happen_to_lie_between_0_and_1_are_logits():
    model = nn.Sequential(Linear(), nn.Linear(6, 4))
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.9]))
    assert "probabilities_for_logits" not in names(model, count=8)


def test_percentages_are_probabilities():
    assert "probabilities_for_logits" in names(Linear(Percent()))


class Percent(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return 100 * logits.softmax(dim=1)


class Both(nn.Module):
    """Probabilities and logits."""

    def __init__(self, kind: type = dict) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, logits: Tensor) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        both = {"logits": logits.softmax(dim=1), "raw": logits}
        return both if self.kind is dict else tuple(both.values())


def test_the_place_of_the_logits_is_named():
    [found] = xaieval.check(Linear(Both()), [images()]).findings()
    assert "output='raw' has their logits" in found.text
    assert names(Linear(Both()), output="raw") == []


def test_logits_after_their_softmax_are_taken():
    """As ultralytics' classifiers give them."""
    assert names(Linear(Both(tuple))) == []
    found, named = (
        xaieval.score(Linear(Both(tuple)), [images()], methods="edges", progress=False, output=output).rows["confidence"]
        for output in (None, 1)
    )
    assert found.equals(named)


def test_a_binary_model_that_ends_in_a_sigmoid():
    model = nn.Sequential(Linear(), nn.Linear(6, 1), nn.Sigmoid())
    for count in (1, 16):
        found = {f.name: f.text for f in xaieval.check(model, [images(count)], task="classification").findings()}
        assert "output=lambda o: o.logit()" in found["probabilities_for_logits"]
    assert names(model, output=lambda output: output.logit()) == ["one_output"]


def test_two_outputs_of_opposite_sign_are_logits():
    head = nn.Linear(6, 2, bias=False)
    with torch.no_grad():
        head.weight[1] = -head.weight[0].abs_()
    model = nn.Sequential(Linear(), nn.Sigmoid(), head)
    assert "probabilities_for_logits" not in names(model, count=20)


@pytest.mark.parametrize("layers", [(), "0"])
def test_probabilities_of_pixels(layers):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Softmax(1))
    assert "probabilities_for_logits" in names(net, task="segmentation", layers=layers)


def test_a_model_that_gives_nan():
    class Nan(Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits / (logits[:, :1] > logits[:, :1].median())

    found = {f.name: f.evidence for f in xaieval.check(Nan(), [images()]).findings()}
    assert 0 < found["nan_outputs"]["broken"] < found["nan_outputs"]["images"] == 4
    assert found["nan_outputs"]["broken_images"] == 0


def test_images_that_contain_nan_are_the_reason_for_outputs_that_do():
    given = images()
    given[1, 0, 2, 2] = torch.nan
    (found,) = (one for one in xaieval.check(Linear(), [given]).findings() if one.name == "nan_outputs")
    assert (found.evidence["broken"], found.evidence["broken_images"]) == (1, 1)
    assert "1 of these images contain NaN or infinite values themselves" in found.text


def test_outputs_that_are_nearly_uniform():
    assert names(Linear(scale=0.01)) == ["near_uniform_outputs"]


# Weights.


def test_the_weights_of_a_new_network_are_random_and_those_of_a_trained_one_are_not():
    assert "random_weights" in names(torchvision.models.resnet18(num_classes=6))
    assert "random_weights" in names(torchvision.models.vit_b_16(image_size=16, num_classes=6))
    assert names(xaieval.models.fpn_scenes(), count=2) == []


def test_one_trained_layer_is_enough():
    model = torchvision.models.resnet18(num_classes=6)
    with torch.no_grad():
        model.layer4[1].bn2.weight.add_(0.1)
    assert "random_weights" not in names(model)


# Company and chance.


class Coupled(Linear):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) / 20 + 4 * images[-1, :, 0, 0].mean() * torch.arange(6)


class Chance(Linear):
    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(super().forward(images), 0.5, training=True)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("model", "name"), [(Coupled, "batch_coupled"), (Chance, "nondeterministic")])
def test_numbers_that_depend_on_the_batch_or_on_chance(model, name, count):
    found = xaieval.check(model(), [images(count)]).findings()
    assert [finding.name for finding in found if finding.name in ("batch_coupled", "nondeterministic")] == [name]
    assert next(f for f in found if f.name == name).evidence["relative_change"] > 0.01


class Function(Linear):
    """Statistics of the batch by a function, which no module shows."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(functional.batch_norm(images, None, None, training=True))


class Crop(Linear):
    """The same random crop for all images of a batch, which is sometimes the same twice."""

    def forward(self, images: Tensor) -> Tensor:
        start = int(torch.randint(0, 3, ()))
        return super().forward(images[..., start : start + 13])


class OwnGenerator(Linear):
    """Noise from a generator of the model's own."""

    noise = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.1 * torch.randn(images.shape, generator=self.noise))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    ("model", "name"), [(Function, "batch_coupled"), (Chance, "nondeterministic"), (OwnGenerator, "nondeterministic")]
)
def test_company_and_chance_are_told_apart(model, name, count):
    assert {*names(model(), count)} - {"near_uniform_outputs"} == {name}


def test_crops_that_are_the_same_twice_are_chance_and_not_company():
    assert names(Crop(), 8) == ["nondeterministic"]


def test_chance_is_found_in_a_run_of_one_image_at_a_time():
    assert names(Chance(), deterministic=True) == ["nondeterministic"]


def test_a_batch_norm_without_statistics_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(784, 6))
    with torch.no_grad():
        model[1].weight.uniform_(1, 2)
    found = {f.name: f for f in xaieval.check(model, [images()]).findings()}
    assert found["batch_coupled"].evidence["modules"] == ["1"]
    assert "'1' is a BatchNorm without running statistics" in found["batch_coupled"].text


def test_one_image_at_a_time_has_no_company():
    assert "batch_coupled" not in names(Coupled(), deterministic=True)


# Cost, and what stays the same.


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7, 32, 50])
def test_at_most_three_passes_of_the_first_images(trained, count):
    model = xaieval.models.fpn_scenes() if trained else Chance()
    seen: list[int] = []
    deepest = model.head if trained else model
    deepest.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    how = Inference()
    request = check_request(model, (), "random", (), None, "default", how, 0)
    batch = read_batch(torch.rand(count, 3, 64, 64), 0)
    with borrow(model) as device:
        check_model(FirstPass(request, ()), batch, device, how.limit(count))
    assert sum(seen) <= 3 * count or (count == 1 and len(seen) <= 3)


def test_random_numbers_and_rows_are_the_same_as_without_the_check(monkeypatch):
    model, loader = Linear(), [images()]
    before = torch.random.get_rng_state()
    rows = xaieval.score(model, loader, "net.0", progress=False).rows
    assert torch.equal(torch.random.get_rng_state(), before)
    monkeypatch.setattr(loop, "check_model", lambda *_: ModelCheck())
    assert xaieval.score(model, loader, "net.0", progress=False).rows.equals(rows)


class Fixed(Linear):
    """Takes batches of four images only, as an exported program does."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) != 4:
            raise ValueError("four images")
        return super().forward(images)


def test_a_model_that_cannot_run_a_check_is_not_judged_by_it():
    assert names(Fixed()) == []


# In a run.


def test_findings_stand_in_manifest_and_warnings_and_come_back(tmp_path):
    scores = xaieval.score(Linear(nn.Softmax(1)), [images()], "net.0", progress=False, output_dir=tmp_path)
    [entry] = scores.manifest["findings"]
    assert entry["name"] == "probabilities_for_logits"
    assert scores.warnings()[0] == entry["text"]
    loaded = xaieval.Scores.load(tmp_path)
    assert loaded.findings()[0].to_dict() == entry
    assert loaded.manifest["classes"] == 6


def test_a_strict_run_raises_before_its_first_image(tmp_path):
    with pytest.raises(
        CheckError, match=r"strict: 1 finding before the first image was scored: .*\[probabilities_for"
    ) as caught:
        xaieval.score(Linear(nn.Softmax(1)), [images()], "net.0", progress=False, strict=True, output_dir=tmp_path / "run")
    assert caught.value.scores is None
    assert not (tmp_path / "run").exists()
    assert len(xaieval.score(Linear(), [images()], "net.0", progress=False, strict=True).rows) == 4


def test_a_strict_run_keeps_its_rows_where_they_show_the_reason(tmp_path):
    labelled = [(images(16), torch.arange(16) % 5)]
    model = nn.Sequential(Linear(), nn.Linear(6, 1000))
    with pytest.raises(CheckError, match=r"whose rows are kept: accuracy is 0\.0 %") as caught:
        xaieval.score(model, labelled, "0.net.0", progress=False, strict=True, output_dir=tmp_path)
    assert len(caught.value.scores.rows) == len(xaieval.Scores.load(tmp_path).rows) == 16
