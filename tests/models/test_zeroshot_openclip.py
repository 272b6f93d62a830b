"""OpenCLIP's models as zero-shot classifiers: by name, and explained as their copies in transformers are."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import xaieval
from tests.models.tiny_clip import PROMPTS, openclip_tiny, sequence_first, transformers_copy
from xaieval.errors import ExplainerError, ModelError, UsageError, WeightsError
from xaieval.models import ZeroShot, load_model

open_clip = pytest.importorskip("open_clip")

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
METHODS = ["legrad", "clip-surgery", "maskclip", "transformer-attribution"]
METHODS += ["grad-eclip", "generic-attention", "gradient-rollout", "attn-lrp"]
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def models() -> dict[str, ZeroShot]:
    """One CLIP of OpenCLIP, its copy in transformers, and the same with tokens [T, N, C]."""
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    ours = openclip_tiny()
    made = {"openclip": ours, "sequence first": sequence_first(copy.deepcopy(ours))}
    zero_shot = {name: ZeroShot(model, PROMPTS, tokenizer).eval() for name, model in made.items()}
    return zero_shot | {"transformers": ZeroShot(transformers_copy(ours), PROMPTS, tokenizer(PROMPTS)).eval()}


def test_logits_are_those_of_openclip_and_of_the_copy(models):
    ours = models["openclip"]
    with torch.no_grad():
        expected, _ = ours.model.get_logits(IMAGES, open_clip.SimpleTokenizer(context_length=8)(PROMPTS))
        for model in models.values():
            torch.testing.assert_close(model(IMAGES), expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(ours.similarities(expected) * ours.model.logit_scale.exp(), expected)


@pytest.mark.parametrize("method", ["gradcam", "gscorecam"])
def test_layers_are_found_and_maps_at_them_are_those_of_the_copy(models, method):
    expected = xaieval.explain(models["transformers"], IMAGES, "auto", method=method, target=1)
    for name in ("openclip", "sequence first"):
        found = xaieval.explain(models[name], IMAGES, "auto", method=method, target=1)
        assert list(found) == [f"model.visual.transformer.resblocks.{number}" for number in range(2)]
        assert list(expected) == [f"model.vision_model.encoder.layers.{number}" for number in range(2)]
        for ours, theirs in zip(found.values(), expected.values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_methods_for_transformers_give_the_maps_of_the_copy(models, method):
    found, expected = (
        xaieval.explain(models[name], IMAGES, method=method, target=1)["input"] for name in ("openclip", "transformers")
    )
    assert (expected.flatten(1).std(dim=1) > 0.01).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 3, 17])  # of 17 tokens
def test_tokens_before_images_give_the_same_maps(models, method, count):
    images = IMAGES.repeat(6, 1, 1, 1)[:count]
    found = xaieval.explain(models["sequence first"], images, method=method, target=1)["input"]
    expected = xaieval.explain(models["openclip"], images, method=method, target=1)["input"]
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)


def test_as_many_images_as_tokens_are_no_tokens_before_images(models):
    images = IMAGES.repeat(6, 1, 1, 1)[:17]
    found = xaieval.explain(models["openclip"], images, method="maskclip", target=1)["input"]
    torch.testing.assert_close(found[:3], xaieval.explain(models["openclip"], IMAGES, method="maskclip", target=1)["input"])


def test_a_tower_that_averages_its_tokens_is_read_in_all_rows():
    torch.manual_seed(0)
    tower = open_clip.model.CLIP(16, CONFIG["vision_cfg"] | {"pool_type": "avg"}, CONFIG["text_cfg"])
    model = ZeroShot(tower.eval(), PROMPTS, open_clip.SimpleTokenizer(context_length=8)).eval()
    with pytest.raises(ExplainerError, match=r"^method 'grad-eclip' needs a class token .* this model averages its tokens"):
        xaieval.explain(model, IMAGES, method="grad-eclip")
    for method in ("maskclip", "clip-surgery"):
        with pytest.raises(
            ExplainerError, match="reads each token alone, and this model averages those that are not its class"
        ):
            xaieval.explain(model, IMAGES, method=method)


class _SigLIP(nn.Module):
    """A vision tower of timm with a pooling query and, as OpenCLIP's has it, a head of no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = timm.create_model(
            "vit_base_patch16_siglip_224", img_size=64, num_classes=0, depth=3, embed_dim=32, num_heads=2
        )
        self.head = nn.Sequential()
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.text = nn.Embedding(9, 32)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.text(tokens).mean(dim=1)


@pytest.mark.parametrize("method", ["legrad", "maskclip", "clip-surgery", "grad-eclip", "generic-attention", "attn-lrp"])
def test_modules_without_layers_pass_on_what_they_get(method):
    torch.manual_seed(0)
    tower, tokens = _SigLIP().eval(), torch.tensor([[1, 2], [1, 3]])
    whole = ZeroShot(tower, ["a", "b"], tokens).eval()
    found = xaieval.explain(whole, IMAGES, method=method, target=1)["input"]
    tower.head = nn.Identity()
    torch.testing.assert_close(found, xaieval.explain(whole, IMAGES, method=method, target=1)["input"])
    assert (found.flatten(1).std(dim=1) > 0.01).all()


@pytest.fixture
def folder(tmp_path):
    """A folder as OpenCLIP writes it."""
    config = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "resize_mode": "squash"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(openclip_tiny().state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


def test_a_folder_is_that_model_with_its_preprocessing(folder, models):
    loaded = load_model(f"openclip:{folder}", prompts=PROMPTS)
    torch.testing.assert_close(loaded.model(IMAGES), models["openclip"](IMAGES))
    assert loaded.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (loaded.preprocessing.image_size, loaded.preprocessing.squash) == (64, True)
    assert loaded.preprocessing.interpolation == "bicubic"
    assert not loaded.random


def test_weights_come_from_a_file_too(folder, models):
    weights = (folder / "open_clip_model.safetensors").rename(folder.parent / f"{folder.name}.safetensors")
    assert load_model(f"openclip:{folder}", prompts=PROMPTS).random
    with pytest.raises(ModelError, match=r"^cannot get openclip:.*Required pretrained weights"):
        load_model(f"openclip:{folder}", pretrained=True, prompts=PROMPTS)
    loaded = load_model(f"openclip:{folder}", weights, prompts=PROMPTS)
    torch.testing.assert_close(loaded.model(IMAGES), models["openclip"](IMAGES))
    assert not loaded.random


def test_borders_that_are_filled_in_another_way_are_refused(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "longest"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="resizes the longer side and fills the rest, which is no preprocessing of xaieval"):
        load_model(f"openclip:{folder}", prompts=PROMPTS)


def test_a_folder_brings_no_code_for_its_tokenizer_and_downloads_nothing(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    text = config["model_cfg"]["text_cfg"]
    text |= {"hf_tokenizer_name": "anything", "tokenizer_kwargs": {"trust_remote_code": True}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match=r"^cannot get openclip:.*(trust_remote_code|custom code)"):
        load_model(f"openclip:{folder}", prompts=PROMPTS)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG | {"text_cfg": {"hf_model_name": "owner/text"}}})
    )
    with pytest.raises(ModelError, match="takes its tokenizer or text tower from the Hugging Face Hub"):
        load_model(f"openclip:{folder}", prompts=PROMPTS, pretrained=True)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no text_cfg of a model_cfg in its open_clip_config\.json"):
        load_model(f"openclip:{folder}", prompts=PROMPTS)


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ("openclip:ViT-B-33", {}, ModelError, r"OpenCLIP has no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        ("openclip:ViT-B-16-SigLIP", {}, ModelError, r"takes its tokenizer or text tower from the Hugging Face Hub; load"),
        ("openclip:ViT-B-32", {"pretrained": True}, WeightsError, r"name those to load as openclip:ViT-B-32/TAG.*: openai, "),
        ("openclip:ViT-B-32/nothing", {}, WeightsError, r"^no pretrained weights 'nothing' of ViT-B-32; name those"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_anything_is_downloaded(spec, options, error, message):
    with pytest.raises(error, match=message):
        load_model(spec, prompts=PROMPTS, **options)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UsageError, match=r"need open_clip, which is missing: pip install 'xaieval\[openclip\]'$"):
        load_model("openclip:ViT-B-32", prompts=PROMPTS)
