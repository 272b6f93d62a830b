"""One output per image or pixel: read as two classes, or as a number."""

from __future__ import annotations

import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

import xaieval
from xaieval.errors import ModelError, UsageError
from xaieval.inference.one_output import has_one_output
from xaieval.inference.tasks import Classification, Segmentation, predicted_score

Z = torch.tensor([[2.0], [-0.5], [40.0]])
BINARY = Classification(single="binary")


@pytest.mark.parametrize(
    ("shape", "images", "axes", "one"),
    [
        ((4, 1), 4, 2, True),
        ((4,), 4, 2, True),
        ((), 1, 2, True),
        ((1,), 1, 2, True),
        ((1, 1), 1, 2, True),
        ((7,), 1, 2, False),  # seven classes of one image, squeezed
        ((4, 2), 4, 2, False),
        ((4, 1, 8, 8), 4, 4, True),
        ((4, 8, 8), 4, 4, True),
        ((4, 21, 8, 8), 4, 4, False),
        ((21, 8, 8), 1, 4, False),
        ((2, 8, 8, 8), 2, 5, True),  # volumes
        ((2, 3, 8, 8, 8), 2, 5, False),
    ],
)
def test_one_output_is_recognised_by_its_shape(shape, images, axes, one):
    assert has_one_output(torch.zeros(shape), images, axes) is one


@pytest.mark.parametrize("output", [None, [torch.zeros(2)], torch.zeros(2, 1, dtype=torch.long)])
def test_other_outputs_are_not_one_output(output):
    assert not has_one_output(output, 2, 2)


@pytest.mark.parametrize("output", [Z, Z[:, 0], {"logits": Z}, (Z[:, 0], Z)])
def test_the_two_classes_of_a_binary_classifier_by_hand(output):
    read = BINARY.read(output)
    assert BINARY.predicted(read).tolist() == [1, 0, 1]
    followed = BINARY.follow(read, "predicted", None)
    assert BINARY.score(read, followed).tolist() == [2.0, 0.5, 40.0]
    expected = expit(torch.tensor([2.0, 0.5, 40.0], dtype=torch.float64).numpy())
    assert BINARY.confidence(read, followed, "sigmoid").numpy() == pytest.approx(expected, rel=1e-12)
    negative = BINARY.follow(read, 0, None)
    assert BINARY.score(read, negative).tolist() == [-2.0, 0.5, -40.0]
    assert BINARY.confidence(read, negative, "sigmoid").numpy() == pytest.approx(expit([-2.0, 0.5, -40.0]), rel=1e-12)
    assert BINARY.follow(read, "label", torch.tensor([0, 1, 1])).classes.tolist() == [0, 1, 1]


def test_one_image_whose_output_was_squeezed():
    assert BINARY.read(torch.tensor(3.0)).tolist() == [[-3.0, 3.0]]
    assert Classification(single="value").read(torch.tensor(3.0)).tolist() == [[3.0]]


def test_a_number_has_the_class_zero():
    task = Classification(single="value")
    read = task.read(Z[:, 0])
    followed = task.follow(read, "predicted", None)
    assert followed.classes.tolist() == [0, 0, 0]
    assert task.confidence(read, followed, "identity").tolist() == [2.0, -0.5, 40.0]


LOGITS = torch.tensor([[[2.0, -1.0], [-3.0, 4.0]], [[-1.0, -2.0], [-3.0, -4.0]]])  # two images of 2 x 2 pixels


@pytest.mark.parametrize("output", [LOGITS[:, None], LOGITS])
def test_the_region_of_a_one_channel_segmentation_is_where_it_is_positive(output):
    task = Segmentation(single="binary")
    read = task.read(output)
    followed = task.follow(read, "predicted", None)
    assert followed.classes.tolist() == [1, -1]  # nothing but background on the second
    assert followed.has_target.tolist() == [True, False]
    assert task.score(read, followed).tolist() == [3.0, 0.0]
    assert task.confidence(read, followed, "sigmoid")[0].item() == pytest.approx((expit(2.0) + expit(4.0)) / 2)
    background = task.follow(read, 0, None)
    assert background.has_target.tolist() == [True, True]
    assert task.score(read, background).tolist() == [2.0, 2.5]
    assert task.confidence(read, background, "sigmoid")[0].item() == pytest.approx((expit(1.0) + expit(3.0)) / 2)


def test_a_map_of_numbers_is_one_class_everywhere():
    task = Segmentation(single="value")
    read = task.read(LOGITS)
    followed = task.follow(read, "predicted", None)
    assert followed.classes.tolist() == [0, 0]
    assert task.confidence(read, followed, "identity").tolist() == [0.5, -2.5]


@pytest.mark.parametrize("task", [Classification(single="binary"), Classification(single="value")])
def test_several_outputs_are_refused_where_one_is_expected(task):
    with pytest.raises(ModelError, match=r"one output is expected .*, but the model's output is torch.float32 \[2, 3\]"):
        task.read(torch.zeros(2, 3))


@pytest.mark.parametrize("kind", [Classification, Segmentation])
def test_an_unknown_way_to_read_one_output_is_refused(kind):
    with pytest.raises(UsageError, match="no single 'binry'; did you mean 'binary'"):
        kind(single="binry")


@pytest.mark.parametrize("output", [Z, Z[:, 0], torch.tensor(2.0)])
def test_the_first_pass_needs_no_axis_of_classes(output: Tensor):
    assert predicted_score(Classification(), output).shape == (output.numel(),)


def test_one_image_of_a_one_channel_segmentation_that_was_squeezed():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1))
    nn.init.ones_(plain[2].bias)
    squeezed = nn.Sequential(plain, Squeeze())
    loader = list(torch.rand(3, 3, 8, 8).split([2, 1]))
    for batches in (loader, loader[::-1]):
        rows = [
            xaieval.score(model, batches, layer, task="segmentation", progress=False).rows["masked_confidence"]
            for model, layer in ((plain, "0"), (squeezed, "0.0"))
        ]
        assert rows[0].notna().all()
        assert rows[0].tolist() == pytest.approx(rows[1].tolist(), abs=1e-6)


class Squeeze(nn.Module):
    def forward(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze()
