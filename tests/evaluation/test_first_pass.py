"""What the first pass decides: a model of one output has two classes, unless its output is a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

import xaieval
from xaieval import Protocol, score
from xaieval.errors import ModelError, ProtocolError, TargetError
from xaieval.inference.tasks import Classification
from xaieval.results.findings import Finding

LABELS = torch.tensor([0, 1, 1, 0])


class Binary(nn.Module):
    """The mean of a convolution's map minus that of all images, as `[N, 1]` or squeezed."""

    def __init__(self, squeezed: str = "no", outputs: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4, outputs)
        self.squeezed = squeezed
        with torch.no_grad():
            self.head.weight *= 50
            self.head.bias -= self.logits(images()).mean()

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        return {"no": logits, "one": logits[:, 0] if len(logits[0]) == 1 else logits, "all": logits.squeeze()}[self.squeezed]


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module | None = None) -> np.ndarray:
    with torch.no_grad():
        return (model or Binary())(images()).flatten().double().numpy()


def run(model: nn.Module, data: object = None, layers: str = "body", **options: object) -> xaieval.Scores:
    return score(model, [images()] if data is None else data, layers, progress=False, **options)


def found_first(scores):
    """What the first pass has put into the manifest; the check of the model adds more."""
    return [Finding.from_dict(entry) for entry in scores.manifest["findings"] if entry["name"] == "one_output"]


@pytest.mark.parametrize("squeezed", ["no", "one", "all"])
@pytest.mark.parametrize("protocol", ["default", Protocol(confidence="sigmoid"), "torch-cam"])
def test_a_binary_classifier_is_sure_by_its_sigmoid(squeezed, protocol):
    scores = run(Binary(squeezed), protocol=protocol)
    z = logits()
    assert min(z) < 0 < max(z)
    rows = scores.rows
    assert rows["predicted"].tolist() == rows["target"].tolist() == (z > 0).astype(int).tolist()
    assert rows["confidence"].to_numpy() == pytest.approx(expit(np.abs(z)), abs=1e-5)
    assert scores.manifest["run"]["protocol.confidence"] == "sigmoid"
    assert scores.manifest["run"]["task"]["single"] == "binary"


def test_the_finding_says_what_came_and_the_way_out():
    scores = run(Binary())
    [found] = found_first(scores)
    assert found.name == "one_output"
    assert found.evidence == {"shape": [2, 1], "images": 2, "confidence": "sigmoid"}
    for words in ("[2, 1] for 2 images", "sigmoid", "protocol=Protocol(confidence="):
        assert words in found.text
    assert scores.warnings()[0] == found.text
    assert not found_first(run(Binary(), protocol=Protocol(confidence="sigmoid")))
    assert not found_first(run(Binary(), task=Classification(single="binary")))
    assert not found_first(run(Binary(outputs=2)))


@pytest.mark.parametrize("labels", [LABELS, LABELS.float(), LABELS[:, None].float(), LABELS.bool()], ids=str)
def test_labels_of_zeros_and_ones_are_its_classes(labels):
    rows = run(Binary(), [(images(), labels)], target="label").rows
    z, positive = logits(), LABELS.numpy() == 1
    assert rows["label"].tolist() == rows["target"].tolist() == LABELS.tolist()
    assert rows["confidence"].to_numpy() == pytest.approx(expit(np.where(positive, z, -z)), abs=1e-5)
    assert (rows["label"] == rows["predicted"]).mean() == ((z > 0) == positive).mean()


def test_the_negative_class_is_explained_by_the_negative_logit():
    model = Binary()
    positive, negative = (xaieval.explain(model, images(), "body", target=target)["body"] for target in (1, 0))
    activation = model.body(images()).detach()
    weight = model.head.weight.detach()[0]
    for maps, sign in ((positive, 1), (negative, -1)):
        raw = (sign * weight[:, None, None] * activation).sum(1).clamp(min=0)
        low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
        torch.testing.assert_close(maps, ((raw - low) / (high - low)).nan_to_num(0), atol=1e-4, rtol=0)
    with pytest.raises(TargetError, match="no class 2; the model has 2 classes, 0 to 1"):
        xaieval.explain(model, images(), "body", target=2)


def test_the_original_cam_knows_both_classes():
    rows = run(Binary(), layers="body", methods=["cam", "gradcam"], target=0).rows
    assert set(rows["status"]) <= {"ok", "constant_map"}


def test_a_function_of_one_output_has_two_classes_without_any_layer():
    model = Binary()
    scores = run(lambda x: model(x)[:, 0], layers=(), methods="uniform", target=0)
    assert scores.rows["confidence"].to_numpy() == pytest.approx(expit(-logits()), abs=1e-5)
    assert len(found_first(scores)) == 1


@pytest.mark.parametrize("squeezed", ["no", "one", "all"])
def test_the_number_of_a_regression_is_its_value(squeezed):
    model = Binary(squeezed)
    with torch.no_grad():
        model.head.bias += 10
    scores = run(model, protocol=Protocol(confidence="identity"))
    assert scores.rows["confidence"].to_numpy() == pytest.approx(logits(model), rel=1e-5)
    assert set(scores.rows["target"]) == {0}
    assert not found_first(scores)
    of_a_function = run(model, protocol=Protocol(confidence=lambda z: z / 2)).rows
    assert of_a_function["confidence"].to_numpy() == pytest.approx(logits(model) / 2, rel=1e-5)


def test_the_softmax_of_a_number_is_refused():
    with pytest.raises(ProtocolError, match="the softmax of one number is 1"):
        run(Binary(), task=Classification(single="value"))


def test_the_classes_of_one_image_are_not_taken_for_one_output_of_several():
    with pytest.raises(ModelError, match=r"no logits \[N, K\]: got torch.float32 \[3\]"):
        run(Binary("all", outputs=3), [images()[:1]])
    with pytest.raises(ModelError, match=r"no logits \[N, K\]: got torch.float32 \[3\]"):
        run(Binary("all", outputs=3), [images()[:3], images()[3:]], methods="eigencam")


def test_a_last_batch_of_one_image_whose_output_is_squeezed():
    rows = run(Binary("all"), [images()[:3], images()[3:]]).rows
    assert rows["confidence"].to_numpy() == pytest.approx(expit(np.abs(logits())), abs=1e-5)


@pytest.mark.parametrize("squeezed", [False, True])
def test_a_one_channel_segmentation_is_scored_where_it_is_predicted(squeezed):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), nn.Flatten(1, 1 + squeezed))
    with torch.no_grad():
        net[2].bias -= net(images()).reshape(4, 64).amax(dim=1).min() + 1e-3  # nothing is predicted on one image
        z = net(images()).reshape(4, 8, 8)
    expected = [float(one.sigmoid()[one > 0].mean()) if (one > 0).any() else float("nan") for one in z]
    assert np.isfinite(expected).sum() == 3
    scores = run(net, layers="0", task="segmentation")
    rows = scores.rows
    assert [found.name for found in found_first(scores)] == ["one_output"]
    assert rows["confidence"].to_numpy() == pytest.approx(np.array(expected), abs=1e-5, nan_ok=True)
    assert (rows["status"] == "no_target").tolist() == np.isnan(expected).tolist()


def test_sanity_checks_and_explanations_read_one_output_alike():
    model = Binary()
    predicted = torch.from_numpy((logits() > 0).astype(int))
    maps = xaieval.explain(model, images(), "body")["body"]
    by_class = [xaieval.explain(model, images(), "body", target=target)["body"] for target in (0, 1)]
    torch.testing.assert_close(maps, torch.stack([by_class[one][i] for i, one in enumerate(predicted)]))
    large = [torch.rand(2, 3, 16, 16)]
    assert len(xaieval.sanity_check(model, large, "body", target=0, modes=(), progress=False).rows) == 2


class Frames(nn.Module):
    """Frames of all clips in axis 0, and one output per clip."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.frames = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), frames

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean((2, 3))).view(-1, self.frames, 3).mean(1)


@pytest.mark.parametrize(("frames", "words"), [(2, "gives 1 outputs for 2 images"), (4, "runs on 8 images and fails on fewer")])
def test_frames_in_axis_0_are_refused_with_the_way_to_give_clips(frames, words):
    with pytest.raises(ModelError, match=rf"{words}.*flatten\(0, 1\)"):
        xaieval.explain(Frames(frames), torch.rand(8, 3, 8, 8), "body")
    with pytest.raises(ModelError, match=r"outputs for (2|8) images"):  # two are tried first
        run(Frames(frames), [torch.rand(8, 3, 8, 8)], methods="random")


def test_the_way_to_give_clips_is_right():
    clips = torch.rand(2, 3, 4, 8, 8)

    def forward(model: nn.Module, given: Tensor) -> Tensor:
        return model(given.transpose(1, 2).flatten(0, 1))

    model = Frames(4)
    found = run(model, [clips], methods="captum:Saliency", forward=forward).rows["confidence"]
    with torch.no_grad():
        right = torch.stack([model(clip.transpose(0, 1))[0] for clip in clips]).softmax(1).amax(1)
    assert found.to_numpy() == pytest.approx(right.numpy(), abs=1e-5)


def test_a_model_that_fails_on_all_images_keeps_its_error():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("of its own")

    with pytest.raises(ZeroDivisionError, match="of its own"):
        run(Broken())


IDENTITY = Protocol(confidence="identity")


def test_the_similarity_of_an_embedding_is_its_confidence():
    model, reference = Binary(outputs=6), torch.linspace(-1, 1, 6)[None]
    found = run(model, output=lambda out: torch.cosine_similarity(out, reference), protocol=IDENTITY).rows["confidence"]
    with torch.no_grad():
        embeddings = model(images()).double()
    right = (embeddings @ reference[0].double()) / embeddings.norm(dim=1) / reference.double().norm()
    assert found.to_numpy() == pytest.approx(right.numpy(), abs=1e-5)


def test_the_peak_of_a_key_point_is_its_confidence():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    found = run(model, layers="1", output=lambda out: out.amax((2, 3)), target=3, protocol=IDENTITY).rows["confidence"]
    with torch.no_grad():
        right = [float(heat[3].max()) for heat in model(images())]
    assert found.to_numpy() == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize(
    ("last", "came"), [(lambda out: out[..., None, None], r"\[4, 6, 1, 1\]"), (lambda out: out.argmax(1), "int64")]
)
def test_outputs_that_are_no_logits_are_refused_with_the_way_to_say_it(last, came):
    class Last(Binary):
        def forward(self, x: Tensor) -> Tensor:
            return last(super().forward(x))

    with pytest.raises(ModelError, match=rf"no logits \[N, K\]: got .*{came}.*output="):
        run(Last(outputs=6))


class AtOneSize(nn.Module):
    """A network of colour images of 12 x 12 pixels: its linear head takes all cells of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(400, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


WRONG = {
    "size": ((2, 3, 16, 16), "mat1 and mat2 shapes cannot be multiplied"),
    "channels": ((4, 13, 12, 12), "to have 3 channels, but got 13 channels instead"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "call",
    [
        lambda data: run(AtOneSize(), [data]),
        lambda data: run(AtOneSize(), [data], layers="auto"),
        lambda data: run(AtOneSize(), [data], methods="occlusion"),
        lambda data: xaieval.explain(AtOneSize(), data, "body"),
        lambda data: xaieval.check(AtOneSize(), [data]),
        lambda data: xaieval.sanity_check(AtOneSize(), [data], "body", progress=False),
        lambda data: xaieval.list_layers(AtOneSize(), data),
    ],
    ids=["score", "auto", "without layers", "explain", "check", "sanity check", "list_layers"],
)
def test_images_of_another_size_or_other_channels_are_one_error(call, wrong):
    shape, own = WRONG[wrong]
    with pytest.raises(ModelError) as caught:
        call(torch.rand(shape))
    assert f"the model fails on images of the shape {list(shape)} (RuntimeError: " in str(caught.value)
    assert own in str(caught.value)
    assert "Preprocessing(image_size=" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert own in str(caught.value.__cause__)


@pytest.mark.parametrize("methods", ["gradcam", "occlusion"])
def test_full_memory_stays_an_error_of_memory(methods):
    class Greedy(AtOneSize):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(xaieval.errors.RunError, match="a single image does not fit in memory"):
        run(Greedy(), [torch.rand(2, 3, 12, 12)], methods=methods)
