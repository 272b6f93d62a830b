"""CLIP and SigLIP of transformers by name, with prompts as their classes."""

from __future__ import annotations

import pytest
import torch
import transformers

import xaieval
from tests.models.tiny_clip import PROMPTS, SMALL, save_clip
from xaieval.errors import ModelError
from xaieval.models import ZeroShot, load_model

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module", params=["CLIP", "Siglip"])
def saved(request, tmp_path_factory):
    """A model of images and texts and the folder that it is in."""
    folder = tmp_path_factory.mktemp(request.param)
    return save_clip(folder, request.param), folder


def test_a_folder_with_prompts_gives_the_logits_of_the_whole_model(saved):
    whole, folder = saved
    images = torch.rand(2, 3, 32, 32)
    loaded = load_model(f"hf:{folder}", prompts=PROMPTS)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(PROMPTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = whole(**tokens, pixel_values=images).logits_per_image
        torch.testing.assert_close(loaded.model(images), expected, rtol=1e-5, atol=1e-5)
    assert loaded.random is False
    assert (loaded.model.prompts, loaded.model.training) == (PROMPTS, False)


def test_images_are_prepared_as_the_saved_processor_says(saved):
    _, folder = saved
    prepared = load_model(f"hf:{folder}", prompts=PROMPTS).preprocessing
    assert prepared.image_size == 32
    assert prepared.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_the_text_tower_has_no_layers(saved):
    model = load_model(f"hf:{saved[1]}", prompts=PROMPTS).model
    images = torch.rand(2, 3, 32, 32)
    addresses = list(xaieval.list_layers(model, images[:1])["address"])
    assert any(address.startswith("model.vision_model.encoder.layers.2") for address in addresses)
    assert not [address for address in addresses if "text" in address]
    assert all(address.startswith("model.vision_model.encoder.layers.") for address in xaieval.explain(model, images, "auto"))


def test_models_of_images_and_texts_need_prompts_and_others_refuse_them(saved):
    with pytest.raises(ModelError, match=r"compares images with texts and has no classes of its own; name them by prompts="):
        load_model(f"hf:{saved[1]}")
    with pytest.raises(
        ModelError, match=r"^timm:test_vit has classes of its own, and prompts are for models .* leave them out"
    ):
        load_model("timm:test_vit", prompts=PROMPTS)


def test_prompts_that_the_model_cannot_tell_apart_or_read_are_refused(saved):
    spec = f"hf:{saved[1]}"
    with pytest.raises(ModelError, match=r"'a photo of a dog a dog a dog' has 11 tokens, and the model reads 8"):
        load_model(spec, prompts=["a cat", "a photo of a dog a dog a dog"])
    with pytest.raises(ModelError, match=r"'a lynx' and 'a tram' have the same tokens: the tokenizer does not know"):
        load_model(spec, prompts=["a lynx", "a cat", "a tram"])


def test_a_folder_without_a_tokenizer_is_refused(saved, tmp_path):
    whole, _ = saved
    whole.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"(has no tokenizer for its prompts|cannot get the tokenizer of hf:)"):
        load_model(f"hf:{tmp_path}", prompts=PROMPTS)


def _small(kind: str) -> object:
    """A model of images and texts with a text tower of another kind."""
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": 20, "max_position_embeddings": 12, "eos_token_id": 2, "pad_token_id": 1}
    text |= {"project_dim": 16} if kind == "AltCLIP" else {}
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    more = {} if kind == "Siglip2" else {"projection_dim": 8}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **more)
    return getattr(transformers, f"{kind}Model")(config).eval()


@pytest.mark.parametrize("kind", ["AltCLIP", "ChineseCLIP", "MetaClip2"])
def test_other_models_of_images_and_texts_give_their_own_logits(kind):
    whole, images = _small(kind), torch.rand(2, 3, 32, 32)
    tokens = {"input_ids": torch.tensor([[0, 5, 6, 2], [0, 7, 6, 2]]), "attention_mask": torch.ones(2, 4).long()}
    with torch.no_grad():
        expected = whole(**tokens, pixel_values=images).logits_per_image
        torch.testing.assert_close(ZeroShot(whole, ["a", "b"], tokens)(images), expected, rtol=1e-5, atol=1e-5)


def test_models_that_take_patches_are_refused():
    with pytest.raises(
        ModelError, match=r"^a Siglip2Model takes patches and not images; checkpoints of one size load as Siglip"
    ):
        ZeroShot(_small("Siglip2"), ["a", "b"], torch.tensor([[0, 5, 6, 2], [0, 7, 6, 2]]))


def test_other_prompts_are_another_run(saved, tmp_path):
    whole, _ = saved
    images, tokens = torch.rand(2, 3, 32, 32), torch.tensor([[1, 4, 8, 2], [1, 4, 9, 2]])
    settings = {"methods": "center", "progress": False, "output_dir": tmp_path}
    first = xaieval.score(ZeroShot(whole, ["a cat", "a dog"], tokens), [images], **settings)
    assert first.manifest["model"]["settings"] == {"prompts": ["a cat", "a dog"]}
    with pytest.raises(xaieval.XaievalError, match=r'its prompts is .*"a cat", "a dog".* this run\'s is .*"a cat", "the dog"'):
        xaieval.score(ZeroShot(whole, ["a cat", "the dog"], tokens), [images], **settings)
