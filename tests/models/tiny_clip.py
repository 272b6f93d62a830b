"""Tiny CLIPs: one of transformers in a folder with its tokenizer, and one of OpenCLIP with its copy in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, PATCH, SIDE, JOINT, LONGEST = 32, 16, 64, 16, 8
PROMPTS = ["a photo of a cat", "a photo of a dog", "a bus"]
WORDS = ["a", "photo", "of", "the", "cat", "dog", "polar", "bear", "bus"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


def save_clip(folder: Path, kind: str = "CLIP") -> Any:
    """Save a CLIP or SigLIP of transformers with a tokenizer of a few words and its processor, as their own save does."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    words = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    rules = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=rules, **named, model_max_length=LONGEST)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = SMALL | ids | {"vocab_size": len(words), "max_position_embeddings": LONGEST}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text,
        vision_config=SMALL | {"image_size": 32, "patch_size": 8},
        **({"projection_dim": 8} if kind == "CLIP" else {}),
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return model


def openclip_tiny(layers: int = 3) -> Any:
    """A CLIP of OpenCLIP with a small vision transformer; its text tower has the words of the real ones."""
    from open_clip.model import CLIP

    torch.manual_seed(0)
    vision = {"image_size": SIDE, "patch_size": PATCH, "width": WIDTH, "layers": layers, "head_width": 16}
    text = {"context_length": LONGEST, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1}
    return _sharpened(CLIP(JOINT, vision, text).eval())


def _sharpened(model: Any) -> Any:
    """The model with larger weights in attention, so that the tokens of random weights are not all alike."""
    with torch.no_grad():
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(4)
            block.attn.in_proj_bias.normal_(std=0.5)
            block.attn.out_proj.weight.mul_(4)
        model.visual.positional_embedding.mul_(3)
        model.visual.class_embedding.mul_(3)
    return model


def sequence_first(model: Any) -> Any:
    """The same model with tokens `[T, N, C]` in its blocks, as older versions and OpenAI's package have them."""
    for transformer in (model.visual.transformer, model.transformer):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    return model


def transformers_copy(model: Any) -> Any:
    """The CLIPModel of transformers with the weights of a tiny model of OpenCLIP."""
    import transformers

    visual, text = model.visual, model.transformer
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 2, "hidden_act": "gelu"}
    copy = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=shape
            | {"image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": len(visual.transformer.resblocks)},
            text_config=shape
            | {"num_hidden_layers": 1, "vocab_size": 49408, "max_position_embeddings": LONGEST, "eos_token_id": 49407},
            projection_dim=JOINT,
        )
    ).eval()
    with torch.no_grad():
        copy.logit_scale.copy_(model.logit_scale)
        copy.visual_projection.weight.copy_(visual.proj.T)
        copy.text_projection.weight.copy_(model.text_projection.T)
        seen, read = copy.vision_model, copy.text_model
        seen.embeddings.class_embedding.copy_(visual.class_embedding)
        seen.embeddings.patch_embedding.weight.copy_(visual.conv1.weight)
        seen.embeddings.position_embedding.weight.copy_(visual.positional_embedding)
        seen.pre_layrnorm.load_state_dict(visual.ln_pre.state_dict())
        seen.post_layernorm.load_state_dict(visual.ln_post.state_dict())
        read.embeddings.token_embedding.weight.copy_(model.token_embedding.weight)
        read.embeddings.position_embedding.weight.copy_(model.positional_embedding)
        read.final_layer_norm.load_state_dict(model.ln_final.state_dict())
        for source, target in ((visual.transformer, seen), (text, read)):
            for one, other in zip(source.resblocks, target.encoder.layers, strict=True):
                _copy_block(one, other)
    return copy


def _copy_block(one: Any, other: Any) -> None:
    weights: tuple[Tensor, ...] = one.attn.in_proj_weight.chunk(3)
    biases: tuple[Tensor, ...] = one.attn.in_proj_bias.chunk(3)
    names = ("q_proj", "k_proj", "v_proj")
    for name, weight, bias in zip(names, weights, biases, strict=True):
        _set(getattr(other.self_attn, name), weight, bias)
    _set(other.self_attn.out_proj, one.attn.out_proj.weight, one.attn.out_proj.bias)
    _set(other.mlp.fc1, one.mlp.c_fc.weight, one.mlp.c_fc.bias)
    _set(other.mlp.fc2, one.mlp.c_proj.weight, one.mlp.c_proj.bias)
    other.layer_norm1.load_state_dict(one.ln_1.state_dict())
    other.layer_norm2.load_state_dict(one.ln_2.state_dict())


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
