"""Models of which several classes can be true at once: sigmoid confidences, and labels of zeros and ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xaieval import Protocol, explain, score
from xaieval.data.batches import read_batch
from xaieval.errors import TargetError
from xaieval.inference.targets import choose_targets
from xaieval.inference.tasks import Segmentation

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, 4.0]])
LABELS = torch.tensor([[1, 0, 1], [0, 1, 0]])
SIGMOID = Protocol(confidence="sigmoid")


class Channels(nn.Module):
    """As many logits as channels: each is its channel's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).mean(dim=(2, 3))


def _images(logits: Tensor = LOGITS) -> Tensor:
    return logits[:, :, None, None].expand(-1, -1, 4, 4) + torch.linspace(-1, 1, 16).view(4, 4)


def _likeliest_true(logits: Tensor, labels: Tensor) -> Tensor:
    """The class of the highest logit among those that are true."""
    return logits.masked_fill(labels == 0, -torch.inf).argmax(dim=1)


# ---- numbers


@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_class_is_followed_by_its_own_sigmoid(target):
    rows = score(Channels(), [(_images(), LABELS)], "body", target=target, protocol=SIGMOID, progress=False).rows
    assert rows["target"].tolist() == [target] * 2
    assert rows["confidence"].to_list() == pytest.approx(LOGITS[:, target].double().sigmoid().tolist(), abs=1e-6)
    assert rows["predicted"].tolist() == [0, 2]
    for number, image in enumerate(_images()):
        # Channel k has the gradient 1 / 16 everywhere if it is the target's, else none; positive parts, scaled.
        cam = image[target].clamp(min=0)
        cam = (cam - cam.min()) / (cam.max() - cam.min()) if cam.max() > cam.min() else torch.zeros_like(cam)
        expected = (image[target] * cam).mean().double().sigmoid().item()
        assert rows["masked_confidence"].iloc[number] == pytest.approx(expected, abs=1e-6)


def test_a_function_gets_the_labels_as_they_are():
    seen = []

    def target(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append((logits, labels))
        return _likeliest_true(logits, labels)

    rows = score(Channels(), [(_images(), LABELS)], "body", target=target, protocol=SIGMOID, progress=False).rows
    assert rows["target"].tolist() == [0, 1]
    torch.testing.assert_close(seen[0][0], LOGITS)
    assert torch.equal(seen[0][1], LABELS)
    maps = explain(Channels(), _images(), "body", target=target, labels=LABELS)["body"]
    assert maps.shape == (2, 4, 4)


def test_rows_have_no_label_where_there_are_several():
    rows = score(Channels(), [(_images(), LABELS)], "body", target=0, protocol=SIGMOID, progress=False).rows
    assert rows["label"].isna().all()
    assert rows["label"].dtype == "Int64"


def test_splitting_a_batch_keeps_labels_with_their_images():
    loader = [(_images(), LABELS), {"image": _images().flip(0), "label": LABELS.flip(0), "id": ["c", "d"]}]
    options = {"target": _likeliest_true, "protocol": SIGMOID, "progress": False}
    rows = score(Channels(), loader, "body", batch_size=1, **options).rows
    assert rows["target"].tolist() == [0, 1, 1, 0]


# ---- what labels can be


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.uint8, torch.float32])
def test_zeros_and_ones_of_any_type_are_labels(kind):
    batch = read_batch((_images(), LABELS.to(kind)), 0)
    assert batch.labels.dtype == torch.long
    assert torch.equal(batch.labels, LABELS)
    assert torch.equal(read_batch((_images(), LABELS.tolist()), 0).labels, LABELS)


@pytest.mark.parametrize(
    ("labels", "came"),
    [
        (LABELS * 2, "int64 [2, 3]"),
        (LABELS * 0.5, "float32 [2, 3]"),
        (LABELS[:1], "int64 [1, 3]"),
        (LABELS[:, :, None], "int64 [2, 3, 1]"),
    ],
    ids=["twos", "soft", "too few", "3-d"],
)
def test_other_tables_are_refused_where_labels_are_needed(labels, came):
    assert score(Channels(), [(_images(), labels)], "body", target=0, progress=False).rows["label"].isna().all()
    with pytest.raises(TargetError) as caught:
        score(Channels(), [(_images(), labels)], "body", target="label", progress=False)
    assert str(caught.value) == (
        f"target 'label' needs one class per image: integers [2], such as [3, 0]; the labels are {came}, and zeros and ones "
        "for each class, [2, K], would name several; give target= as a class index, or as a function of logits and labels"
    )


def test_unreadable_images_with_several_labels_have_none_in_their_rows():
    failed = [
        ("x", torch.tensor([1, 0, 1]), "gone"),
        ("y", [0, 1, 0], "gone"),
        ("z", torch.tensor(2), "gone"),
        ("w", None, "gone"),
    ]
    loader = [{"image": _images(), "label": LABELS, "id": ["a", "b"], "failed": failed}]
    rows = score(Channels(), loader, "body", target=0, protocol=SIGMOID, progress=False).rows.set_index("image_id")
    assert rows["label"].isna().to_dict() == {"a": True, "b": True, "x": True, "y": True, "z": False, "w": True}
    assert rows["status"]["x"] == "unreadable"


# ---- what they cannot say

MESSAGE = (
    "target 'label' needs one class per image, but the labels are zeros and ones for each class, [2, 3]; give target= as a "
    "class index, or as a function of logits and labels"
)


def test_label_names_no_class_among_several():
    with pytest.raises(TargetError) as caught:
        score(Channels(), [(_images(), LABELS)], "body", target="label", protocol=SIGMOID, progress=False)
    assert str(caught.value) == MESSAGE
    with pytest.raises(TargetError) as caught:
        choose_targets("label", LOGITS, LABELS)
    assert str(caught.value) == MESSAGE
    with pytest.raises(TargetError) as caught:
        Segmentation().follow(torch.zeros(2, 3, 1, 1), "label", LABELS)
    assert str(caught.value) == MESSAGE


def test_correct_images_are_undefined():
    protocol = Protocol(confidence="sigmoid", images="correct")
    with pytest.raises(
        TargetError, match="images='correct' needs one class per image, but the labels are zeros and ones for each class"
    ):
        score(Channels(), [(_images(), LABELS)], "body", target=0, protocol=protocol, progress=False)
