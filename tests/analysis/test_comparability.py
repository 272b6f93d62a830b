"""Whether two runs have the same images under their ids, and what else they differ in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset

import xaieval
from xaieval.analysis.comparability import first_difference
from xaieval.cli import main
from xaieval.errors import MetricError, OutputError
from xaieval.evaluation.scores import Scores
from xaieval.results.tensors import describe_image
from xaieval.results.validation import check_manifest

AD = "average_drop"
METRICS = [{"name": AD, "higher_is_better": False, "interval": "mean", "label": "AD %"}]
IMAGES = 40


def run(order: Any = None, labels: Any = None, confidence: Any = None, fingerprint: str = "a", **entries: Any) -> Scores:
    """A run of one layer and method; image i has the label i % 4, and a confidence of its own."""
    rng = np.random.default_rng(0)
    images = np.arange(IMAGES) if order is None else order
    known = rng.random(IMAGES)[images] if confidence is None else confidence
    rows = pd.DataFrame({"image_id": [str(place) for place in range(len(images))], "layer": "p5", "method": "gradcam"})
    rows["label"] = pd.array(images % 4 if labels is None else labels, dtype="Int64")
    rows = rows.assign(target=1, confidence=known, status="ok", **{AD: 100 * rng.random(IMAGES)[images]})
    return Scores(rows, {"metrics": METRICS, "model": {"class": "Net", "fingerprint": fingerprint}} | entries)


def notes(one: Scores, other: Scores, **options: Any) -> list[str]:
    return one.compare(other, **options).attrs["notes"]


SHUFFLED = np.random.default_rng(1).permutation(IMAGES)
NO_LABELS = [pd.NA] * IMAGES


# ---- other images under the same ids


def test_contradicting_labels_are_an_error_that_counts_them_and_shows_one():
    odd = np.flatnonzero(np.arange(IMAGES) % 4 != SHUFFLED % 4)
    with pytest.raises(MetricError) as error:
        run().compare(run(SHUFFLED, fingerprint="b"))
    assert str(error.value) == (
        f"{len(odd)} of 40 images have contradicting labels under one id, such as '{odd[0]}': {odd[0] % 4} in this run and "
        f"{SHUFFLED[odd[0]] % 4} in the other; give 'id' in the loader's batches, or do not shuffle, so that an id means "
        "the same image in both runs"
    )


def test_one_contradicting_label_is_enough():
    with pytest.raises(MetricError, match=r"1 of 40 images have contradicting labels .* such as '7': 3 in this run and 0"):
        run().compare(run(labels=[0 if image == 7 else image % 4 for image in range(IMAGES)]))


@pytest.mark.parametrize("known", [[pd.NA] * IMAGES, [pd.NA, *(np.arange(1, IMAGES) % 4)]])
def test_labels_that_only_one_run_knows_contradict_nothing(known):
    assert len(notes(run(), run(labels=known))) == 3
    assert len(Scores(run().rows.drop(columns="label"), run().manifest).compare(run())) == 1


def test_classes_that_are_numbered_differently_are_said():
    assert "the runs number the classes differently" in notes(run(), run(labels=(np.arange(IMAGES) + 1) % 4, fingerprint="b"))


def test_labels_that_are_all_different_are_not_only_numbered_differently():
    with pytest.raises(MetricError, match="40 of 40 images have contradicting labels"):
        run(labels=range(IMAGES)).compare(run(labels=range(1, IMAGES + 1)))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_confidences_of_the_same_model_in_another_order_are_an_error(scale):
    confidence = 0.5 + scale * np.random.default_rng(3).random(IMAGES)
    one, other = run(labels=NO_LABELS, confidence=confidence), run(labels=NO_LABELS, confidence=confidence[SHUFFLED])
    with pytest.raises(
        MetricError, match=r"the model is the same, but not its confidence .* in another order, so give 'id' in"
    ):
        one.compare(other)


def test_confidences_of_the_same_model_that_have_nothing_in_common_are_an_error():
    other = run(labels=NO_LABELS, confidence=np.random.default_rng(9).random(IMAGES))
    with pytest.raises(
        MetricError, match=r"differs on \d\d of 40, such as '0': 0\.\d{4} in .*; the ids do not belong to the same"
    ):
        run(labels=NO_LABELS).compare(other)
    assert len(notes(run(labels=NO_LABELS), run(labels=NO_LABELS, confidence=other.rows["confidence"], fingerprint="b"))) == 3


@pytest.mark.parametrize(
    ("noise", "entries", "said"),
    [
        (1e-6, {}, 0),  # another device or batch size
        (9e-4, {}, 0),
        (0.02, {"run": {"precision": "bf16"}}, 0),
        (0.1, {}, 1),  # another normalisation, or a model that is not deterministic
    ],
)
@pytest.mark.parametrize("labels", [None, NO_LABELS])
def test_rounding_is_no_other_image_and_a_larger_difference_is_said(noise, entries, said, labels):
    confidence = run().rows["confidence"] + noise * np.random.default_rng(2).uniform(-1, 1, IMAGES)
    found = notes(run(labels=labels), run(labels=labels, confidence=confidence, **entries))
    assert sum("the model is the same, but not its confidence" in note for note in found) == said
    assert not said or "the images or their preprocessing differ, or the model is not deterministic" in found[1]


def test_the_reason_for_other_confidences_is_the_one_that_differs():
    known, args = {"mean": [0.5]}, {"model_args": {"pad_type": "same"}}
    one = run(preprocessing=known, options={"data": "scenes"})
    other = np.random.default_rng(9).random(IMAGES)
    reasons = {
        "the arguments of the model differ": {"options": {"data": "scenes"} | args},
        "the preprocessing differs": {"preprocessing": {"mean": [0.0]}},
        "the preprocessing differs and the arguments of the model differ": {
            "preprocessing": {"mean": [0.0]},
            "options": {"data": "scenes"} | args,
        },
    }
    for reason, entries in reasons.items():
        found = notes(one, run(confidence=other, **({"preprocessing": known, "options": {"data": "scenes"}} | entries)))
        [note] = [note for note in found if "the model is the same" in note]
        assert note.endswith(f" in the other, as {reason}")


def test_confidences_of_equal_images_and_of_few_images_raise_no_alarm():
    saturated = np.where(np.arange(IMAGES) % 2, 1.0, 1 - 1e-7)
    assert len(notes(run(confidence=saturated), run(confidence=saturated[::-1]))) == 3
    one, other = (Scores(each.rows[:4], each.manifest) for each in (run(), run(confidence=np.linspace(1, 0, IMAGES))))
    assert any("differs on 4 of 4" in note for note in notes(one, other)), "too few to say what is the reason"


@pytest.mark.parametrize("key", ["protocol.confidence", "protocol.target", "task", "forward"])
def test_confidences_that_are_read_differently_prove_nothing(key):
    one, other = run(run={key: "this"}), run(confidence=np.random.default_rng(9).random(IMAGES), run={key: "that"})
    assert not any("the model is the same" in note for note in notes(one, other, across_protocols=True))


# ---- notes


def test_the_first_note_says_what_took_part_and_what_was_left_out():
    one, other = run(), run()
    more = pd.concat([one.rows.assign(layer=layer, method=method) for layer, method in (("p5", "gradcam"), ("p2", "gradcam"))])
    one = Scores(pd.concat([more, one.rows.assign(layer="input", method="rise")]), one.manifest)
    other = Scores(pd.concat([other.rows[:30], other.rows[:3].assign(image_id=["x", "y", "z"])]), other.manifest)
    assert notes(one, other)[0] == (
        "30 images, 1 layer and 1 method took part; left out: 10 images of this run; the layer p2 of this run; the method rise "
        "of this run; 3 images of the other"
    )
    assert notes(run(), run())[0] == "40 images, 1 layer and 1 method took part; left out: nothing"


def test_notes_say_what_differs():
    known = {"image_size": 64, "mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0]}
    one = run(preprocessing=known, options={"weights": "a.pth"}, run={"task": {"name": "classification"}})
    other = run(
        preprocessing=known | {"mean": [0.0, 0.0, 0.0], "image_size": 32},
        options={"weights": None, "model_args": {"pad_type": "same"}},
        run={"task": {"name": "detection"}},
        fingerprint="b",
        complete=False,
    )
    assert notes(one, other)[1:] == [
        "the other is unfinished",
        "the settings differ: task is {'name': 'classification'} in this run and {'name': 'detection'} in the other",
        "the preprocessing differs: image_size is 64 in this run and 32 in the other; mean is [0.5, 0.5, 0.5] in this run and "
        "[0.0, 0.0, 0.0] in the other",
        "the weights differ: a.pth (a) in this run and b in the other",
        "models also differ in how they bear masking, so the better numbers need not come from the better maps; "
        "xaieval.cross_score measures both parts (docs/compare_models.md)",
        "the options differ: model_args is None in this run and {'pad_type': 'same'} in the other",
        "no interval: a mean takes at least 4 images, and at least 59 if their values are all equal",
    ]
    [_, differ, part, *_] = notes(run(), run(model={"class": "Other", "fingerprint": "a"}))
    assert differ.startswith("the models differ: class is 'Net' in")
    assert part.startswith("models also differ in how they bear masking")


def test_no_run_is_better_across_protocols():
    one, other = run(run={"protocol.fill": "zero"}), run(run={"protocol.fill": "black"})
    other.rows[AD] += 200
    table = one.compare(other, across_protocols=True)
    assert (table["p_holm"] < 0.05).all()
    assert table["better"].tolist() == [""]
    assert table.attrs["notes"][1] == (
        "the protocols differ: protocol.fill is 'zero' in this run and 'black' in the other; numbers of different protocols "
        "are not comparable, so no run is called better"
    )
    other.manifest["run"] = one.manifest["run"]
    assert one.compare(other, across_protocols=True)["better"].tolist() == ["this"]


def test_several_differences_are_counted():
    assert first_difference({"a": 1, "b": 2}, {"a": 2, "c": 3}) == "a is 1 in this run and 2 in the other, and 2 more"


IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (IMAGE, ""),
        ((IMAGE - 0.45) / 0.22, "the images are normalised differently: the channel means of '0' are 0."),
        (IMAGE * 255, "the images are normalised differently"),
        ((IMAGE - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2, "the images are normalised differently"),
        (torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)), "the preprocessing or the images differ"),
        (IMAGE[:, :6], "the size of the images differs: shape is [3, 8, 8] in this run and [3, 6, 8] in the other"),
        (IMAGE.flip(0) * torch.nan, "the preprocessing or the images differ"),
    ],
)
def test_the_first_image_shows_another_preprocessing(image, said):
    one, other = (run(first_image=describe_image("0", each)) for each in (IMAGE, image))
    found = notes(one, other)[1:-2]
    assert len(found) == bool(said)
    assert all(note.startswith(said) for note in found)
    assert notes(one, run(first_image=describe_image("1", image)))[1:-2] == [], "another id, as in random order"


def test_the_description_of_an_image_is_as_worked_by_hand():
    described = describe_image("a", torch.tensor([[[0, 4], [2, 2]]], dtype=torch.uint8))
    assert described == {
        "id": "a",
        "shape": [1, 2, 2],
        "minimum": [0.0],
        "maximum": [4.0],
        "mean": [2.0],
        "std": [1.41421],
    }
    assert describe_image("v", torch.zeros(2, 4, 5, 6))["shape"] == [2, 4, 5, 6]


@pytest.mark.parametrize(
    "change",
    [{"id": 1}, {"mean": [0.1]}, {"mean": ["a", "b", "c"]}, {"shape": []}, {"shape": None}, {"std": None}, {"std": [[]] * 3}],
)
def test_a_damaged_description_is_refused_when_it_is_read(change):
    described = describe_image("0", IMAGE)
    assert check_manifest(json.loads(json.dumps({"first_image": described})), "m.json")
    with pytest.raises(OutputError, match="first_image is the id, shape and channels of an image"):
        check_manifest({"first_image": described | change}, "m.json")
    with pytest.raises(OutputError, match="preprocessing is a table"):
        check_manifest({"preprocessing": ["mean"]}, "m.json")


# ---- runs as they are made


class Unlabelled:
    """A loader of images without labels and ids."""

    def __init__(self, images: Tensor, batch: int = 8) -> None:
        self.images, self.batch = images, batch

    def __iter__(self) -> Any:
        return iter(self.images.split(self.batch))


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def scored(loader: Any, model: nn.Module | None = None, **options: Any) -> Scores:
    return xaieval.score(model or small(), loader, "1", progress=False, **options)


def test_shuffled_loaders_are_refused_and_what_gives_the_same_images_is_not():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(24, 3, 16, 16, generator=generator) * torch.rand(24, 1, 1, 1, generator=generator)
    order = torch.randperm(24, generator=generator)
    data = TensorDataset(images, torch.arange(24) % 3)
    labelled = scored(DataLoader(data, batch_size=8))
    with pytest.raises(MetricError, match="contradicting labels"):
        labelled.compare(scored(DataLoader(data, batch_size=8, shuffle=True, generator=generator)))
    for _ in range(2):  # a run gives the global random numbers back, so that the next one happens to have the same order
        alike = scored(DataLoader(TensorDataset(images), batch_size=8, shuffle=True))
        with pytest.raises(
            MetricError, match="images have no ids that last: they are named by their position in an order that"
        ):
            alike.compare(Scores(alike.rows.copy(), dict(alike.manifest)))
        assert len(alike.compare(Scores(alike.rows, alike.manifest))) == 2, "two parts of one run"
    plain = scored(Unlabelled(images))
    with pytest.raises(MetricError, match="in another order"):
        plain.compare(scored(Unlabelled(images[order])))
    named = [{"image": images[order], "id": [str(int(place)) for place in order]}]
    for other in (
        scored(Unlabelled(images, 5)),
        scored(named),
        scored(Unlabelled(images.double()), small().double()),
        labelled,
    ):
        assert not [note for note in notes(plain, other) if "confidence" in note or "preprocessing" in note]
    found = notes(plain, scored(Unlabelled((images - 0.5) / 0.25)))
    assert found[1].startswith("the images are normalised differently")
    assert found[2].endswith("as the preprocessing differs")
    assert any("the weights differ" in note for note in notes(plain, scored(Unlabelled(images), small(1))))


@pytest.mark.parametrize(
    ("loader", "by_chance"),
    [
        (lambda data: DataLoader(data, batch_size=3), False),
        (lambda data: DataLoader(data, batch_size=3, shuffle=True), True),
        (lambda data: DataLoader(data, batch_size=3, sampler=SubsetRandomSampler(range(4))), True),
        (lambda data: DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 3, False)), True),
        (lambda data: DataLoader(data, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0)), False),
        (lambda data: DataLoader([{"image": each, "id": f"{n}.png"} for n, each in enumerate(data)], 3, shuffle=True), False),
        (lambda data: list(data.split(3)), False),
    ],
)
def test_ids_are_by_chance_where_a_loader_without_ids_shuffles(loader, by_chance):
    manifest = scored(loader(torch.rand(6, 3, 16, 16))).manifest
    assert manifest.get("ids_by_chance", False) == by_chance


def test_the_command_line_notes_another_preprocessing_in_text_and_json(tmp_path, capsys):
    common = ["--layers", "fpn[p5]", "--max-images", "6", "--no-progress"]
    main(["score", *common, "--out", str(tmp_path / "a")])
    main(["score", *common, "--mean", "0,0,0", "--out", str(tmp_path / "b")])
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert "first_image" not in manifest["run"]
    assert manifest["first_image"]["shape"] == [3, 128, 128]
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in "ab"]
    note = "the preprocessing differs: mean is [0.5, 0.5, 0.5] in the first run and [0.0, 0.0, 0.0] in the second run"
    main(["compare", *folders])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["note: 6 images, 1 layer and 1 method took part; left out: nothing", f"note: {note}"]
    main(["compare", *folders, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["notes"][1] == note
    main(["report", *folders, "--no-maps"])
    page = (tmp_path / "a" / "report.html").read_text()
    assert "6 images, 1 layer and 1 method took part; left out: nothing." in page
    assert "the preprocessing differs: mean is [0.5, 0.5, 0.5] in a and [0.0, 0.0, 0.0] in b" in page


def test_the_same_model_on_the_same_images_is_said_where_the_predictions_show_it():
    said = "the model is the same, and so is all that it predicts of the 40 original images, but for rounding"
    near = run().rows["confidence"] + 1e-4
    assert said in notes(run(), run(confidence=near))
    far = near.where(near.index != 3, near + 0.002)
    for other in (run(fingerprint="b"), run(confidence=far), run(confidence=near.where(near.index != 3))):
        assert not any("the model is the same" in note for note in notes(run(), other))
    classes = run()
    classes.rows.loc[5, "target"] = 2
    assert not any("the model is the same" in note for note in notes(run(), classes))
    part = run()
    part = Scores(part.rows[:30], part.manifest)
    assert said.replace("40", "30") in notes(run(), part)


def test_another_seed_is_said():
    one, other = (run(run={"seed": seed}) for seed in (0, 1))
    assert "the settings differ: seed is 0 in this run and 1 in the other" in notes(one, other)


def test_the_findings_of_a_run_are_named():
    found = {"name": "wrong_normalisation", "text": "the images seem to have the wrong normalisation", "evidence": {}}
    assert notes(run(), run(fingerprint="b", findings=[found]))[1] == (
        "the check of the other found wrong_normalisation, so its numbers may mean little; its warnings say more"
    )
