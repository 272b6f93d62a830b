"""Loaders from arrays, Hugging Face data sets, torchvision data sets and webdataset archives."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FakeData, ImageFolder

import xaieval
from xaieval.data import Preprocessing, arrays, huggingface, image_folder, pairs
from xaieval.data.batches import check_images, read_batch, read_batches
from xaieval.errors import DataError, TargetError
from xaieval.evaluation.image_order import has_indices

with warnings.catch_warnings():
    # Both are about the packages' own insides: a deprecated numpy attribute, and torch's renamed functions.
    warnings.simplefilter("ignore")
    import datasets
    import webdataset

PREPARE = Preprocessing(image_size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)
COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10), (10, 250, 250)]


def _picture(number: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[number])


def _bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    _picture(number).save(buffer, format="PNG")
    return buffer.getvalue()


def _prepared() -> torch.Tensor:
    return torch.stack([PREPARE(_picture(number)) for number in range(5)])


def _read(loader: Any) -> tuple[torch.Tensor, list[int] | None, list[str], list[Any]]:
    batches = list(read_batches(loader))
    labels = [label for batch in batches if batch.labels is not None for label in batch.labels.tolist()]
    ids = [name for batch in batches for name in batch.ids]
    failed = [failure for batch in batches for failure in batch.failed]
    return torch.cat([batch.images for batch in batches if len(batch)]), labels or None, ids, failed


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


# ---- arrays in batches


IMAGES = np.random.default_rng(0).random((5, 3, 8, 6), dtype=np.float32)
LABELS = np.arange(5)


@pytest.mark.parametrize(
    "item",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS.astype(np.uint8)],
        {"image": IMAGES, "label": LABELS},
        {"pixel_values": IMAGES.astype(np.float64), "labels": LABELS.astype(np.int32)},
        (list(IMAGES), list(LABELS)),
        (tuple(torch.from_numpy(IMAGES)), LABELS),
    ],
)
def test_batches_of_arrays_are_those_of_tensors(item):
    (batch,) = read_batches([item])
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, torch.from_numpy(IMAGES))
    assert batch.labels.tolist() == [0, 1, 2, 3, 4]


def test_the_memory_of_an_array_is_not_copied_where_a_tensor_can_have_it():
    assert check_images(IMAGES).data_ptr() == IMAGES.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "odd",
    [IMAGES[::-1], IMAGES[:, ::-1], IMAGES[..., ::2], np.broadcast_to(IMAGES[:1], (5, 3, 8, 6)), IMAGES.astype(">f4")],
    ids=["backwards", "colours backwards", "strided", "read-only", "other byte order"],
)
def test_arrays_of_odd_memory_come_out_as_their_numbers(odd):
    np.testing.assert_array_equal(check_images(odd).numpy(), odd)


def test_half_precision_stays():
    assert check_images(IMAGES.astype(np.float16)).dtype == torch.float16


FLOATS = "; make them floats and normalise each channel, as in (images - mean) / std, in the unit of mean and std"
WANTED = "images are a floating-point tensor [N, C, H, W], normalised as the model expects; got "
MOVE = "; move the channels to the second place, as in images.transpose(0, 3, 1, 2) of an array"
SCALE = "; scale and normalise the bytes, as in (images / 255 - mean) / std"
SIZES = "; bring them to one size in the loader's collate function (resize or pad), or use batches of one image"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 24, 3), np.float32), f"{WANTED}float32 [2, 32, 24, 3]{MOVE}"),
        (torch.zeros(2, 32, 24, 3), f"{WANTED}float32 [2, 32, 24, 3]{MOVE}"),
        (np.zeros((2, 32, 24, 3), np.uint8), f"{WANTED}uint8 [2, 32, 24, 3]{MOVE}{SCALE}"),
        (np.zeros((2, 3, 32, 24), np.uint8), f"{WANTED}uint8 [2, 3, 32, 24]{SCALE}"),
        (np.zeros((2, 3, 32, 24), np.int64), f"{WANTED}int64 [2, 3, 32, 24]{FLOATS}"),
        ([], f"{WANTED}list"),
        (
            [torch.zeros(3, 32, 24), torch.zeros(3, 32, 24), torch.zeros(3, 20, 24)],
            f"a batch has images of several sizes, such as [3, 32, 24] and [3, 20, 24]{SIZES}",
        ),
    ],
)
def test_images_that_cannot_be_a_batch_are_refused_word_for_word(images, message):
    with pytest.raises(DataError) as caught:
        list(read_batches([{"image": images}]))
    assert str(caught.value) == message


def test_a_bare_list_of_images_is_a_batch_if_they_are_of_one_size():
    (batch,) = read_batches([list(torch.from_numpy(IMAGES))])
    assert torch.equal(batch.images, torch.from_numpy(IMAGES))
    with pytest.raises(DataError, match="several sizes"):
        list(read_batches([[torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)]]))


def test_an_array_of_objects_is_a_list_of_images():
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.zeros((3, 8, 8), np.float32), np.zeros((3, 9, 8), np.float32)]
    with pytest.raises(DataError, match="several sizes"):
        check_images(ragged)
    ragged[1] = ragged[0]
    assert check_images(ragged).shape == (2, 3, 8, 8)


def test_small_maps_with_many_channels_are_not_taken_for_channels_last():
    for shape in ((2, 64, 4, 4), (2, 12, 32, 3), (2, 3, 32, 3)):
        assert check_images(torch.zeros(shape)).shape == shape


# ---- whole arrays


def test_whole_arrays_are_cut_into_batches():
    ids = ["a", "b", "c", "d", "e"]
    loader = arrays(IMAGES, LABELS, ids, batch_size=2)
    assert [len(batch["image"]) for batch in loader] == [2, 2, 1]
    images, labels, names, _ = _read(loader)
    assert torch.equal(images, torch.from_numpy(IMAGES))
    assert (labels, names) == ([0, 1, 2, 3, 4], ids)
    assert _read(arrays(torch.from_numpy(IMAGES), list(LABELS), batch_size=3))[1:3] == (labels, ["0", "1", "2", "3", "4"])
    assert _read(arrays(IMAGES))[1] is None


def test_whole_arrays_can_be_shared_and_shuffled():
    loader = arrays(IMAGES, LABELS, batch_size=2)
    assert has_indices(loader), "a process loads only the batches that it measures"
    scores = xaieval.score(_model(), loader, ["0", "1"], stop=xaieval.Stop(rule="best", min_images=5), progress=False)
    assert sorted(scores.rows["image_id"].unique()) == ["0", "1", "2", "3", "4"]


def test_a_file_of_numbers_is_read_batch_by_batch(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert torch.equal(_read(arrays(mapped, batch_size=2))[0], torch.from_numpy(IMAGES))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((IMAGES, LABELS[:3]), "5 images have 3 labels; as many are expected"),
        ((IMAGES, LABELS, ["a"]), "5 images have 1 ids; as many are expected"),
        ((IMAGES.transpose(0, 2, 3, 1).repeat(4, 1).repeat(4, 2),), f"{WANTED}float32 [1, 32, 24, 3]{MOVE}"),
    ],
)
def test_whole_arrays_that_do_not_fit_are_refused_word_for_word(given, message):
    with pytest.raises(DataError) as caught:
        arrays(*given)
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_a_pair_of_whole_arrays_is_no_loader(kind, make):
    with pytest.raises(DataError) as caught:
        xaieval.score(_model(), kind([make(IMAGES), make(LABELS)]), "1", progress=False)
    assert str(caught.value) == (
        "an array of images and an array of labels are not a loader; xaieval.data.arrays(images, labels) makes one, and "
        "[(images, labels)] is a loader of one batch"
    )


def test_arrays_are_explained_and_probed_like_tensors():
    model = _model()
    given, expected = IMAGES[:2], torch.from_numpy(IMAGES[:2])
    assert torch.equal(xaieval.explain(model, given, "1")["1"], xaieval.explain(model, expected, "1")["1"])
    assert xaieval.list_layers(model, given).equals(xaieval.list_layers(model, expected))


# ---- Hugging Face


def _columns(**more: list[Any]) -> dict[str, list[Any]]:
    return {"image": [_picture(number) for number in range(5)], "label": [4, 3, 2, 1, 0]} | more


@pytest.fixture
def in_memory() -> Any:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=5)})
    return datasets.Dataset.from_dict(_columns(), features=features)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_hugging_face_data_set_is_its_pictures_and_labels(in_memory, streamed):
    dataset = in_memory.to_iterable_dataset() if streamed else in_memory
    loader = huggingface(dataset, PREPARE, batch_size=2)
    for _ in range(2):  # it can be read again
        images, labels, ids, failed = _read(loader)
        assert torch.equal(images, _prepared())
        assert labels == [4, 3, 2, 1, 0]
        assert ids == ["0", "1", "2", "3", "4"]
        assert not failed
    assert [len(batch["image"]) for batch in loader] == [2, 2, 1]


@pytest.mark.parametrize("streamed", [False, True])
def test_columns_of_other_names_and_ids_are_taken(streamed):
    columns = _columns(id=list("abcde"), name=list("vwxyz"))
    dataset = datasets.Dataset.from_dict({"img": columns.pop("image"), "fine": columns.pop("label"), **columns})
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    loader = huggingface(dataset, PREPARE, image="img", label="fine")
    assert _read(loader)[1:3] == ([4, 3, 2, 1, 0], list("abcde"))
    assert _read(huggingface(dataset, PREPARE, image="img", label=None, id="name"))[1:3] == (None, list("vwxyz"))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_broken_picture_of_an_undecoded_data_set_becomes_a_failed_row(streamed):
    files = [{"bytes": _bytes(0), "path": None}, {"bytes": b"no picture", "path": None}, {"bytes": _bytes(2), "path": None}]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"image": files, "label": [7, 8, 9]}, features=features)
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    images, labels, ids, failed = _read(huggingface(dataset, PREPARE, batch_size=2))
    assert torch.equal(images, _prepared()[[0, 2]])
    assert (labels, ids) == ([7, 9], ["0", "2"])
    ((name, label, reason),) = failed
    assert (name, label) == ("1", 8)
    assert reason.startswith("UnidentifiedImageError: ")


def test_a_broken_picture_of_a_decoded_data_set_becomes_a_failed_row_with_its_label():
    files = [{"bytes": _bytes(0), "path": None}, {"bytes": b"no picture", "path": None}]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"image": files, "label": [7, 8]}, features=features)
    _, labels, ids, failed = _read(huggingface(dataset, PREPARE))
    assert (labels, ids) == ([7], ["0"])
    assert [failure[:2] for failure in failed] == [("1", 8)]


def test_a_stream_that_breaks_off_says_after_how_many_images_and_what_to_do():
    def broken() -> Iterator[dict[str, Any]]:
        yield {"image": _picture(0), "label": 0}
        raise OSError("the wire was cut")

    with pytest.raises(DataError) as caught:
        _read(huggingface(broken(), PREPARE, batch_size=1))
    assert str(caught.value) == (
        "the stream failed after 1 images: OSError: the wire was cut; with dataset.decode(False), an image that cannot be "
        "read becomes a failed row instead"
    )


def test_pictures_of_a_data_set_are_read_from_their_paths(tmp_path):
    _picture(3).save(tmp_path / "3.png")
    loader = huggingface(iter([{"image": {"bytes": None, "path": str(tmp_path / "3.png")}}]), PREPARE, label=None)
    assert torch.equal(_read(loader)[0], _prepared()[3:4])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"image": "picture"}, "no column 'picture'; give the name of the column with image=; known: image, label"),
        (
            {"label": "labels"},
            "no column 'labels'; give the name of the column with label= (None for data without labels); did you mean 'label'? "
            "known: image, label",
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_columns_that_are_not_there_are_refused_word_for_word(in_memory, choices, message, streamed):
    dataset = in_memory.to_iterable_dataset() if streamed else in_memory
    with pytest.raises(DataError) as caught:
        list(huggingface(dataset, PREPARE, **choices))
    assert str(caught.value) == message
    with pytest.raises(DataError, match="no column"):  # where a stream does not know its columns
        list(huggingface(iter([{"image": _picture(0), "label": 0}]), PREPARE, **choices))


def test_a_dictionary_of_splits_is_refused_word_for_word(in_memory):
    with pytest.raises(DataError) as caught:
        huggingface(datasets.DatasetDict(train=in_memory, test=in_memory), PREPARE)
    assert str(caught.value) == "this is a dictionary of the splits train, test; give one of them"


def test_a_data_set_with_a_format_of_its_own_is_refused_word_for_word(in_memory):
    with pytest.raises(DataError) as caught:
        list(huggingface(in_memory.with_format("torch"), PREPARE))
    assert str(caught.value) == (
        "a Pillow image is expected, got a Tensor; give the data set without its own transform or format, or, if that "
        "prepares images for the model, use a DataLoader of it instead"
    )


def test_a_data_set_that_prepares_its_images_itself_is_read_by_a_data_loader(in_memory):
    def prepare(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixel_values": [PREPARE(picture) for picture in rows["image"]], "labels": rows["label"]}

    images, labels, _, _ = _read(DataLoader(in_memory.with_transform(prepare), batch_size=2))
    assert torch.equal(images, _prepared())
    assert labels == [4, 3, 2, 1, 0]


def test_labels_of_a_data_set_are_integers(in_memory):
    words = datasets.Dataset.from_dict({"image": [_picture(0)], "label": ["cat"]})
    with pytest.raises(TargetError) as caught:
        list(huggingface(words, PREPARE))
    assert str(caught.value) == "a label is an integer, the index of a class; got 'cat'"


def test_a_data_set_with_and_without_labels_at_once_is_refused():
    with pytest.raises(DataError, match=r"^some images have labels and others, such as '1', have none$"):
        list(huggingface(iter([{"image": _picture(0), "label": 1}, {"image": _picture(1), "label": None}]), PREPARE))


def test_a_hugging_face_data_set_is_scored_in_random_order(in_memory):
    stop = xaieval.Stop(rule="best", min_images=5)
    scores = xaieval.score(_model(), huggingface(in_memory, PREPARE, batch_size=2), ["0", "1"], stop=stop, progress=False)
    assert dict(zip(scores.rows["image_id"], scores.rows["label"], strict=True)) == {str(n): 4 - n for n in range(5)}


@pytest.mark.slow
def test_no_package_of_the_data_is_imported_by_ours():
    names = ["datasets", "webdataset", "lightning"]
    program = f"import sys, xaieval.data, xaieval.evaluation.loop; print([name for name in {names} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# ---- torchvision


def _folder(root: Path) -> Path:
    for number, name in enumerate(("a/0.png", "a/1.png", "b/2.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        _picture(number).save(root / name)
    return root


def test_a_torchvision_data_set_of_pairs_is_that_of_the_folder(tmp_path):
    root = _folder(tmp_path)
    images, labels, ids, _ = _read(pairs(ImageFolder(root), PREPARE, batch_size=2))
    expected = _read(image_folder(root, PREPARE).loader(2))
    assert torch.equal(images, expected[0])
    assert labels == expected[1] == [0, 0, 1]
    assert ids == ["0", "1", "2"]


def test_a_part_of_a_data_set_and_one_without_targets_are_pairs_too(tmp_path):
    part = Subset(ImageFolder(_folder(tmp_path)), [2, 0])
    images, labels, ids, _ = _read(pairs(part, PREPARE))
    assert torch.equal(images, _prepared()[[2, 0]])
    assert (labels, ids) == ([1, 0], ["0", "1"])
    fake = FakeData(size=4, image_size=(3, 20, 24), num_classes=3)  # its labels are tensors of no dimension
    assert _read(pairs(fake, PREPARE))[1] == [int(fake[number][1]) for number in range(4)]


def test_broken_files_of_a_torchvision_data_set_are_failed_rows_with_their_label(tmp_path):
    root = _folder(tmp_path)
    (root / "b/3.png").write_bytes(b"no picture")
    _, labels, ids, failed = _read(pairs(ImageFolder(root), PREPARE, batch_size=3))
    assert (labels, ids) == ([0, 0, 1], ["0", "1", "2"])
    assert [failure[:2] for failure in failed] == [("3", 1)]


def test_a_data_set_with_a_transform_of_its_own_needs_no_adapter(tmp_path):
    dataset = ImageFolder(_folder(tmp_path), transform=PREPARE)
    images, labels, _, _ = _read(DataLoader(dataset, batch_size=2))
    assert torch.equal(images, _prepared()[:3])
    assert labels == [0, 0, 1]
    with pytest.raises(DataError, match=r"^a Pillow image is expected, got a Tensor; "):
        list(pairs(dataset, PREPARE))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter(()), "a data set of pairs needs a length and indices; a tuple_iterator does not have both"),
        ([_picture(0)], "an item of the data set is a Image; a pair (image, label) is expected"),
        ([(_picture(0), 1, 2)], "an item of the data set is a tuple; a pair (image, label) is expected"),
    ],
)
def test_what_are_no_pairs_is_refused_word_for_word(dataset, message):
    with pytest.raises(DataError) as caught:
        list(pairs(dataset, PREPARE))
    assert str(caught.value) == message


# ---- webdataset

# It leaves its archives open, and Python remarks on that when they are collected.
LEFT_OPEN = pytest.mark.filterwarnings(
    r"ignore:unclosed file .*shard-000\.tar:ResourceWarning",
    r"ignore:.*shard-000\.tar:pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """A webdataset shard: files of one sample share their name up to the first dot."""
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for number in range(5):
            for ending, content in (("png", _bytes(number)), ("cls", str(4 - number).encode())):
                member = tarfile.TarInfo(f"train/{number:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(tmp_path / "shard-000.tar")


def _samples(archive: str) -> Any:
    return webdataset.WebDataset(archive, shardshuffle=False).decode("pil")


@LEFT_OPEN
def test_tuples_of_a_webdataset_pipeline_are_read(archive):
    loader = _samples(archive).to_tuple("png", "cls").map_tuple(PREPARE, int).batched(2)
    images, labels, ids, _ = _read(loader)
    assert torch.equal(images, _prepared())
    assert (labels, ids) == ([4, 3, 2, 1, 0], ["0", "1", "2", "3", "4"])


@LEFT_OPEN
def test_mappings_of_a_webdataset_pipeline_keep_their_keys_as_ids(archive):
    loader = _samples(archive).rename(image="png", label="cls").map_dict(image=PREPARE).batched(2)
    images, labels, ids, _ = _read(loader)
    assert torch.equal(images, _prepared())
    assert (labels, ids) == ([4, 3, 2, 1, 0], [f"train/{number:03d}" for number in range(5)])
    scores = xaieval.score(_model(), loader, "1", progress=False)
    assert list(scores.rows["image_id"]) == ids


def test_a_batch_that_has_keys_has_ids():
    assert read_batch({"__key__": ["x", "y"], "image": torch.zeros(2, 3, 8, 8)}, start=7).ids == ["x", "y"]
