"""The FPN classifier, and loading of models with weights and preprocessing."""

from __future__ import annotations

import io
import pickle
import re
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from xaieval.data import Preprocessing, scenes
from xaieval.data.scenes import CLASSES
from xaieval.errors import DataError, ModelError, WeightsError
from xaieval.models import FPNClassifier, fpn_scenes, load_model, load_weights
from xaieval.models.loading import names_code
from xaieval.probe.hooks import list_layers, probe

# The FPN classifier


def _fpn(head, classes=3):
    return FPNClassifier("test_resnet", num_classes=classes, channels=8, head=head).eval()


@pytest.mark.parametrize("head", ["mean", "concat"])
@pytest.mark.parametrize(("size", "classes"), [((64, 64), 3), ((64, 96), 1)])
def test_levels_and_logits_have_the_shapes_of_the_definition(head, size, classes):
    model = _fpn(head, classes)
    with torch.no_grad():
        levels = model.pyramid(torch.rand(2, 3, *size))
        assert model(torch.rand(2, 3, *size)).shape == (2, classes)
    assert {name: tuple(maps.shape) for name, maps in levels.items()} == {
        name: (2, 8, size[0] // stride, size[1] // stride) for name, stride in [("p2", 4), ("p3", 8), ("p4", 16), ("p5", 32)]
    }


@pytest.mark.parametrize("head", ["mean", "concat"])
def test_logits_are_those_of_a_hand_computed_head(head):
    model, images = _fpn(head), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits, levels = model(images), model.pyramid(images)
    for image in range(2):
        pooled = {
            level: [sum(channel.flatten().tolist()) / channel.numel() for channel in maps[image]]
            for level, maps in levels.items()
        }
        for index in range(3):
            if head == "mean":
                terms = [(model.head.classifiers[level], vector) for level, vector in pooled.items()]
            else:
                terms = [(model.head.classifier, [number for vector in pooled.values() for number in vector])]
            votes = [
                linear.bias[index].item() + sum(w * v for w, v in zip(linear.weight[index].tolist(), vector, strict=True))
                for linear, vector in terms
            ]
            assert logits[image, index].item() == pytest.approx(sum(votes) / len(votes), abs=1e-5)


@pytest.mark.parametrize("head", ["mean", "concat"])
def test_every_level_has_an_address_and_a_gradient(head):
    model, images = _fpn(head), torch.rand(2, 3, 64, 64)
    for index in range(3):
        seen = probe(model, images, ["fpn[*]"], score=lambda logits, index=index: logits[:, index])
        assert list(seen.activations) == ["fpn[p2]", "fpn[p3]", "fpn[p4]", "fpn[p5]"]
        for gradient in seen.gradients.values():
            assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    rows = list_layers(model, images).set_index("address")
    assert list(rows["stride"][list(seen.activations)]) == [4, 8, 16, 32]


def test_features_finer_than_the_finest_level_are_left_out():
    assert timm.create_model("mobilenetv2_035", features_only=True).feature_info.reduction() == [2, 4, 8, 16, 32]
    model = FPNClassifier("mobilenetv2_035", num_classes=2, channels=4)
    assert model.backbone.feature_info.reduction() == [4, 8, 16, 32]


def _unless_refused(make, word):
    """What `make` gives, or None if it says by a ModelError with this word that it cannot."""
    try:
        return make()
    except ModelError as error:
        if word not in str(error):
            raise
        return None


@pytest.mark.parametrize("backbone", ["test_convnext", "test_efficientnet", "test_mambaout"])
def test_backbones_of_other_families_serve_or_are_refused_clearly(backbone):
    # timm's MambaOut and Swin give features with channels last, which a pyramid's convolutions do not take.
    model = _unless_refused(lambda: FPNClassifier(backbone, num_classes=2, channels=4).eval(), backbone)
    if model is None:
        return
    with torch.no_grad():
        assert [tuple(maps.shape) for maps in model.pyramid(torch.rand(1, 3, 64, 64)).values()] == [
            (1, 4, 16, 16),
            (1, 4, 8, 8),
            (1, 4, 4, 4),
            (1, 4, 2, 2),
        ]


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ModelError) as caught:
        FPNClassifier("resnet81", num_classes=2)
    assert str(caught.value) == "timm has no backbone 'resnet81'; see timm.list_models()"


@pytest.mark.parametrize(("backbone", "reductions"), [("vit_tiny_patch16_224", [16] * 3), ("levit_128s", [16, 32, 64])])
def test_a_backbone_without_four_reductions_is_refused(backbone, reductions):
    with pytest.raises(ModelError) as caught:
        FPNClassifier(backbone, num_classes=2)
    assert str(caught.value) == (
        f"backbone '{backbone}' has features at reductions {reductions}, but a pyramid needs [4, 8, 16, 32]; "
        "take a backbone with four stages, such as 'resnet18' or 'mobilenetv2_100'"
    )


@pytest.fixture
def _unchecked_types():
    """Without the type checks of the tests, which would catch the wrong argument before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("_unchecked_types")
def test_an_unknown_head_is_refused():
    with pytest.raises(ModelError) as caught:
        FPNClassifier("test_resnet", num_classes=2, head="means")
    assert str(caught.value) == "no head 'means' of an FPNClassifier; did you mean 'mean'? known: mean, concat"


# The built-in model


@pytest.mark.slow
def test_the_built_in_model_knows_its_scenes():
    loaded = load_model("xaieval:fpn-scenes")
    right = 0
    with torch.inference_mode():
        for batch in scenes(loaded.preprocessing, size=100).loader(50):
            right += int((loaded.model(batch["image"]).argmax(dim=1) == batch["label"]).sum())
    assert right >= 90


def test_the_built_in_model_can_be_had_untrained():
    trained, fresh = (load_model("xaieval:fpn-scenes", model_args=options).model for options in ({}, {"trained": False}))
    assert trained.state_dict().keys() == fresh.state_dict().keys()
    assert not torch.equal(trained.fpn.layer_blocks[0][0].weight, fresh.fpn.layer_blocks[0][0].weight)
    assert fpn_scenes().head.classifiers["p2"].out_features == len(CLASSES) == 10


# Loading by name


@pytest.mark.parametrize(
    ("spec", "options", "classes"),
    [
        ("timm:test_resnet", {"num_classes": 7}, 7),
        ("timm:test_resnet.r160_in1k", {}, 1000),
        ("torchvision:shufflenet_v2_x0_5", {"num_classes": 5}, 5),
        ("xaieval:fpn-scenes", {}, 10),
    ],
)
def test_a_model_by_name_is_in_eval_mode_and_takes_its_arguments(spec, options, classes):
    loaded = load_model(spec, model_args=options)
    assert not any(module.training for module in loaded.model.modules())
    with torch.no_grad():
        assert loaded.model(torch.rand(1, 3, 64, 64)).shape == (1, classes)


@pytest.mark.parametrize(
    ("spec", "arguments", "shape"),
    [
        ("timm:test_resnet", {"in_chans": 13}, (13, 160, 160)),
        ("timm:test_resnet", {"in_chans": 1}, (1, 160, 160)),
        ("timm:test_vit", {"img_size": (64, 96)}, (3, 64, 96)),
        ("timm:test_vit", {"img_size": 64}, (3, 64, 64)),
    ],
)
def test_preprocessing_follows_the_arguments_of_the_model(spec, arguments, shape):
    loaded = load_model(spec, model_args=arguments)
    assert loaded.preprocessing.input_shape == shape
    with torch.no_grad():
        loaded.model(torch.rand(1, *shape))


def test_a_border_of_timm_is_a_border(monkeypatch):
    config = timm.data.resolve_model_data_config(timm.create_model("test_resnet")) | {"input_size": (3, 64, 96)}
    monkeypatch.setattr(timm.data, "resolve_model_data_config", lambda model: config | {"crop_mode": "border", "crop_pct": 0.8})
    found = load_model("timm:test_resnet").preprocessing
    assert (found.image_size, found.resize, found.border, found.squash) == ((64, 96), (80, 120), True, False)


def test_a_detector_loads_without_downloading_a_backbone():
    loaded = load_model("torchvision:ssdlite320_mobilenet_v3_large")
    assert isinstance(loaded.model, torchvision.models.detection.ssd.SSD)


FORMS = (
    "a model is 'timm:NAME', 'torchvision:NAME', 'hf:NAME', 'openclip:NAME', 'ultralytics:NAME', 'onnx:NAME', 'xaieval:NAME', "
    "'FILE.onnx' or "
    "'package.module:factory'"
)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", f"no model 'resnet18'; {FORMS}"),
        ("timm:", f"no model 'timm:'; {FORMS}"),
        (":x", f"no model ':x'; {FORMS}"),
        (
            "xaieval:fpn_scenes",
            "xaieval has no model 'fpn_scenes'; did you mean 'fpn-scenes'? known: fpn-scenes, scenes-watermark, scenes-colour, "
            "scenes-texture, scenes-object",
        ),
        ("torchvision:zzzzz", "torchvision has no model 'zzzzz'; see the list of models of torchvision"),
        ("timm:zzzzz", "timm has no model 'zzzzz'; see the list of models of timm"),
        ("no_such_module:make", "no model 'no_such_module:make': there is no module 'no_such_module'"),
        ("math:make", "no model 'math:make': module 'math' has no 'make'"),
        ("math:floor", "math:floor cannot be built with {}: math.floor() takes exactly one argument (0 given)"),
        ("random:random", "random:random gave a float; a function that returns a torch.nn.Module is expected"),
    ],
)
def test_a_name_that_is_no_model_is_refused_with_the_forms_there_are(spec, message):
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    assert str(caught.value).split(" (/")[0] == message  # in brackets: the file that was imported


@pytest.mark.parametrize(("library", "near"), [("timm", "resnet18"), ("torchvision", "resnet18")])
def test_an_unknown_name_gets_near_matches_but_not_a_library_s_whole_list(library, near):
    with pytest.raises(ModelError) as caught:
        load_model(f"{library}:resnett18")
    assert str(caught.value).startswith(f"{library} has no model 'resnett18'; did you mean '{near}'")
    assert str(caught.value).endswith(f"? see the list of models of {library}")
    assert len(str(caught.value)) < 200


def test_an_unknown_tag_of_a_timm_model_is_refused():
    with pytest.raises(ModelError, match="no_such_tag"):
        load_model("timm:resnet18.no_such_tag")


@pytest.mark.parametrize("spec", ["timm:test_resnet", "torchvision:shufflenet_v2_x0_5", "xaieval:fpn-scenes"])
def test_arguments_that_a_model_does_not_take_are_named(spec):
    with pytest.raises(ModelError) as caught:
        load_model(spec, model_args={"depht": 3})
    assert str(caught.value).startswith(f"{spec} cannot be built with {{'depht': 3}}: ")
    assert "unexpected keyword argument 'depht'" in str(caught.value)


FACTORY = """
from torch import nn


def make(classes=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, classes))
"""


@pytest.fixture
def factory(tmp_path, monkeypatch, request):
    """A module of a user's, with a name of its own because Python keeps modules; the folder it is in, and its name."""

    def write(code):
        (tmp_path / f"{name}.py").write_text(code)
        return name

    name = "models_of_" + re.sub(r"\W", "_", request.node.name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield write
    sys.modules.pop(name, None)


def test_a_factory_in_the_working_directory_is_found(factory, tmp_path, monkeypatch):
    name = factory(FACTORY)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    loaded = load_model(f"{name}:make")
    assert loaded.preprocessing == Preprocessing()
    assert not loaded.model.training
    assert not loaded.model[3].training


def test_a_factory_on_the_path_is_found_and_takes_arguments(factory, tmp_path, monkeypatch):
    name = factory(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_model(f"{name}:make", model_args={"classes": 6}).model[4].out_features == 6
    with pytest.raises(ModelError, match=r"make cannot be built with \{'kinds': 6\}: .*unexpected keyword argument 'kinds'"):
        load_model(f"{name}:make", model_args={"kinds": 6})


def test_a_module_that_a_factory_lacks_is_the_one_named(factory, tmp_path, monkeypatch):
    name = factory("import no_such_dependency\n" + FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(f"{name}:make")
    assert str(caught.value) == f"no model '{name}:make': there is no module 'no_such_dependency'"


def test_a_fault_inside_a_factory_s_module_is_not_blamed_on_a_missing_name(factory, tmp_path, monkeypatch):
    name = factory("from torch import nn\nnn.NoSuchLayer\n" + FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((ModelError, AttributeError), match="NoSuchLayer"):
        load_model(f"{name}:make")


# Weights


def _tiny(outputs=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, outputs))


def _save(content, path):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def _same(model, expected):
    return all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin"])
def test_weights_come_back_from_a_file(tmp_path, ending):
    saved = load_model("timm:test_resnet").model.state_dict()
    path = _save(saved, tmp_path / f"weights{ending}")
    assert not _same(load_model("timm:test_resnet").model, saved)
    assert _same(load_model("timm:test_resnet", weights=path).model, saved)
    assert _same(load_model("timm:test_resnet", weights=str(path)).model, saved)


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_nested_state_dict_of_a_parallel_model_is_found(tmp_path, key, prefix):
    saved = _tiny().state_dict()
    content = {"epoch": 3, key: {prefix + name: value for name, value in saved.items()}, "optimizer": {"lr": 0.1}}
    model = _tiny()
    load_weights(model, _save(content, tmp_path / "weights.pth"))
    assert _same(model, saved)


@pytest.mark.parametrize("name", ["module", "model", "state_dict_"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_model_s_own_part_called_module_is_no_prefix(tmp_path, name, ending):
    first, second = nn.Module(), nn.Module()
    for model in (first, second):
        model.add_module(name, nn.Linear(2, 2))
    load_weights(second, _save(first.state_dict(), tmp_path / f"weights{ending}"))
    assert _same(second, first.state_dict())


def _misfit(tmp_path, change, ending=".pth"):
    model = _tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    content = dict(_tiny().state_dict())
    change(content)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, _save(content, tmp_path / f"weights{ending}"), "my model")
    assert _same(model, before)
    return str(caught.value).replace(f"weights{ending}", "FILE")


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_missing_keys_are_named_and_nothing_is_loaded(tmp_path, ending):
    message = _misfit(tmp_path, lambda content: content.pop("3.bias"), ending)
    assert message == "'FILE' does not fit my model: missing: 3.bias"


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_left_over_keys_are_named(tmp_path, ending):
    message = _misfit(tmp_path, lambda content: content.update({"4.weight": torch.ones(1)}), ending)
    assert message == "'FILE' does not fit my model: left over: 4.weight"


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_keys_of_another_shape_are_named_with_both_shapes(tmp_path, ending):
    message = _misfit(tmp_path, lambda content: content.update({"3.weight": torch.ones(5, 4)}), ending)
    assert message == "'FILE' does not fit my model: of another shape: 3.weight [5, 4] instead of [2, 4]"


def test_all_faults_are_told_at_once_and_long_lists_are_counted(tmp_path):
    def change(content):
        for name in list(content)[2:]:
            content[f"old.{name}"] = content.pop(name)
        content["0.bias"] = torch.ones(7)

    assert _misfit(tmp_path, change) == (
        "'FILE' does not fit my model: missing: 1.weight, 1.bias, 1.running_mean and 4 more; "
        "left over: old.1.weight, old.1.bias, old.1.running_mean and 4 more; of another shape: 0.bias [7] instead of [4]"
    )


def test_the_message_of_a_model_by_name_says_its_name(tmp_path):
    path = _save(_tiny().state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"'other\.pth' does not fit timm:test_resnet: missing: "):
        load_model("timm:test_resnet", weights=path)


class Plants:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_code_in_a_weights_file_is_refused_and_does_not_run(tmp_path, save):
    planted, path = tmp_path / "planted", tmp_path / "weights.pth"
    content = {**_tiny().state_dict(), "evil": Plants(planted)}
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match=r"cannot read 'weights\.pth': ") as caught:
        load_weights(_tiny(), path)
    assert not planted.exists()
    # torch's advice on such files is to load them in the unsafe way, which is nothing to pass on.
    assert "you have two options" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    # The file is what it is taken for: read without care, it does run.
    if save == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert planted.read_text() == "ran"


def _bytes_of(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


BROKEN = {
    "empty": lambda: b"",
    "text": lambda: b"hello, this is no weights file\n",
    "html": lambda: b"<!DOCTYPE html><html>404</html>",
    "picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "half": lambda: _bytes_of(_tiny().state_dict())[:2000],
    "half of the old format": lambda: _bytes_of(_tiny().state_dict(), _use_new_zipfile_serialization=False)[:500],
    "almost all of the old format": lambda: _bytes_of(_tiny().state_dict(), _use_new_zipfile_serialization=False)[:-3],
}


def _says_what_is_wrong(error, name):
    """The message says what the file is and what is expected, in one line without torch's advice or colours."""
    message = str(error.value)
    assert message.startswith(f"cannot read '{name}': it is damaged, or holds more than tensors, which would take code to load")
    assert ".safetensors, or a .pth file of tensors alone, is expected" in message
    return message.isprintable()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_holds_no_weights_is_a_clear_error(tmp_path, kind, ending):
    path = tmp_path / f"broken{ending}"
    path.write_bytes(BROKEN[kind]())
    with pytest.raises(WeightsError) as caught:
        load_weights(_tiny(), path)
    assert _says_what_is_wrong(caught, f"broken{ending}")


def test_a_file_of_the_old_format_may_be_cut_anywhere(tmp_path):
    # torch's reader of that format raises a dozen different exceptions, depending on where the file ends.
    whole, path = BROKEN["almost all of the old format"](), tmp_path / "cut.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError) as caught:
            load_weights(_tiny(), path)
        assert _says_what_is_wrong(caught, "cut.pth")


@pytest.mark.parametrize("keep", [4, 100, -5])
def test_a_truncated_safetensors_file_is_a_clear_error(tmp_path, keep):
    path = _save(_tiny().state_dict(), tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError) as caught:
        load_weights(_tiny(), path)
    assert _says_what_is_wrong(caught, "cut.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {"weight": 3}, torch.ones(3), {"state_dict": [torch.ones(1)]}, {1: torch.ones(1)}])
def test_a_file_without_a_state_dict_is_a_clear_error(tmp_path, content):
    path = _save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(_tiny(), path)
    assert str(caught.value) == "'weights.pth' holds no state dict (a mapping from names to tensors)"


def test_a_missing_file_and_a_folder_are_no_weights(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError) as caught:
            load_weights(_tiny(), path)
        assert str(caught.value) == f"no weights file '{path}'"


# Preprocessing


def _picture(width=300, height=260):
    """Noise: the picture on which two ways of resizing differ most."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _difference(preprocessing, transform, picture):
    found, expected = preprocessing(picture), transform(picture)
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",  # bilinear, mean and std 0.5
        "test_vit",  # bicubic, 160 / 0.95 is no whole number
        "mobilenetv2_035",  # bicubic, ImageNet's mean
        "tf_mobilenetv3_small_minimal_100",  # bilinear, 0.875
        "mixer_s32_224",
    ],
)
@pytest.mark.parametrize("size", [(300, 260), (150, 420)])
def test_the_preprocessing_of_a_timm_model_is_timm_s(name, size):
    loaded = load_model(f"timm:{name}")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded.model))
    assert _difference(loaded.preprocessing, transform, _picture(*size)) < 1e-5


def test_the_preprocessing_of_a_timm_model_that_squashes_is_timm_s_or_is_refused():
    # One timm model in thirteen was trained on pictures squeezed to a square, not cut to one.
    loaded = _unless_refused(lambda: load_model("timm:tf_efficientnetv2_b3"), "squash")
    if loaded is None:
        return
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded.model))
    assert _difference(loaded.preprocessing, transform, _picture()) < 1e-5


def test_the_data_config_of_a_timm_model_s_arguments_is_taken():
    overlay = {"mean": (0.1, 0.2, 0.3), "crop_pct": 0.8, "interpolation": "nearest", "input_size": (3, 96, 96)}
    loaded = load_model("timm:test_resnet", model_args={"pretrained_cfg_overlay": overlay})
    assert loaded.preprocessing == Preprocessing(96, 120, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "nearest")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded.model))
    assert _difference(loaded.preprocessing, transform, _picture()) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",  # bilinear
        "efficientnet_b0",  # bicubic
        "regnet_y_400mf",  # 232 to 224
        "mobilenet_v3_small",
    ],
)
@pytest.mark.parametrize("size", [(300, 260), (150, 420)])
def test_the_preprocessing_of_a_torchvision_classifier_is_torchvision_s(name, size):
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert _difference(load_model(f"torchvision:{name}").preprocessing, transform, _picture(*size)) < 1e-5


def test_a_torchvision_detector_gets_pixels_because_it_normalises_inside():
    preprocessing = load_model("torchvision:ssdlite320_mobilenet_v3_large").preprocessing
    picture = _picture(224, 224)
    expected = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
    assert torch.allclose(preprocessing(picture), expected)


def test_a_torchvision_segmentation_model_gets_normalised_images_because_it_does_not():
    transform = torchvision.models.get_model_weights("lraspp_mobilenet_v3_large").DEFAULT.transforms()
    preprocessing = load_model("torchvision:lraspp_mobilenet_v3_large").preprocessing
    assert preprocessing.mean == tuple(transform.mean)
    assert preprocessing.std == tuple(transform.std)


@pytest.mark.parametrize(("size", "resize"), [(112, 128), (448, 512), (224, 256), (100, 114), (1, 1)])
def test_another_size_keeps_the_share_of_the_picture_that_is_seen(size, resize):
    whole = Preprocessing(224, 256, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert whole.with_size(size) == Preprocessing(size, resize, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")


def test_another_size_is_that_of_timm_s_transform():
    loaded = load_model("timm:mobilenetv2_035")
    config = {**timm.data.resolve_model_data_config(loaded.model), "input_size": (3, 112, 112)}
    assert _difference(loaded.preprocessing.with_size(112), timm.data.create_transform(**config), _picture()) < 1e-5


def test_pixels_come_back_for_display():
    picture = _picture(32, 32)
    preprocessing = Preprocessing(32, 32)
    pixels = preprocessing.to_pixels(preprocessing(picture)[None])
    assert torch.allclose(pixels[0], torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "cubic"}, "no interpolation 'cubic'; did you mean 'bicubic'? known: nearest, "),
        ({"image_size": 300}, "an image is resized to at least its crop: got 256 px for a crop of 300"),
        ({"image_size": 0}, "an image is resized to at least its crop: got 256 px for a crop of 0"),
        (
            {"std": (1.0, 0.0, 1.0)},
            "mean and std are one number per channel each, as many of one as of the other, std positive; "
            "got (0.485, 0.456, 0.406) and (1.0, 0.0, 1.0)",
        ),
        (
            {"mean": (0.5,)},
            "mean and std are one number per channel each, as many of one as of the other, std positive; "
            "got (0.5,) and (0.229, 0.224, 0.225)",
        ),
    ],
)
@pytest.mark.usefixtures("_unchecked_types")
def test_a_preprocessing_that_cannot_be_is_refused(options, message):
    with pytest.raises(DataError) as caught:
        Preprocessing(**options)
    assert str(caught.value).startswith(message)


# ---- timm's models of the Hub


def test_a_folder_of_timm_is_its_model(tmp_path):
    saved = timm.create_model("test_resnet", num_classes=7).eval()
    timm.models.save_for_hf(saved, str(tmp_path), safe_serialization=True)
    loaded = load_model(f"timm:local-dir:{tmp_path}", pretrained=True)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.model(images), saved(images))
    assert not loaded.random
    assert load_model(f"timm:local-dir:{tmp_path}").random
    with pytest.raises(
        ModelError, match=r"^local-dir:.*none: timm keeps a model in a folder with a config\.json, and there is none$"
    ):
        load_model(f"timm:local-dir:{tmp_path / 'none'}")


@pytest.mark.parametrize("name", ["hf_hub:timm/test_resnet.r160_in1k", "hf-hub:timm/test_resnet.r160_in1k"])
def test_a_name_of_timm_on_the_hub_is_timms_and_nothing_is_downloaded_unasked(name):
    assert not names_code(name)
    for spec in (name, f"timm:{name}"):
        with pytest.raises(ModelError, match=rf"^{name} is on the Hugging Face Hub; it is downloaded by pretrained=True$"):
            load_model(spec)
