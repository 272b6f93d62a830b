"""Prompts of the command line: filled in with the class names of the data, and held against them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from xaieval.config.options import CheckOptions, ModelOptions, RunOptions, parts_of_data
from xaieval.errors import UsageError

__all__ = ["class_prompts", "with_prompts"]

CODE = re.compile(r"n\d{8}|[\d\W_]+")  # WordNet's, such as n01440764 in ImageNet's folders, or a number


def with_prompts(
    model: ModelOptions, options: RunOptions | CheckOptions, target: str | None, order: Sequence[str] | str | None
) -> ModelOptions:
    """The options of a model with a prompt for each class of the data.

    Args:
        model: Of the model; without prompts, they stay as they are.
        options: What names the data; without a name the classes are not known.
        target: The class to explain.
        order: The order of the classes, as of `image_folder(classes=...)`.

    Raises:
        UsageError: The prompts do not fit the classes.
        DataError: The data cannot be found.
    """
    if model.prompts is None:
        return model
    where = parts_of_data(options) | {"download": options.download}
    names = _class_names(options.data, order, where) if options.data else ()
    data = options.data or "files of images"
    return replace(model, prompts=class_prompts(model.prompts, names, data, target in ("label", "each")))


def class_prompts(prompts: Sequence[str], names: Sequence[str], data: str, labelled: bool) -> tuple[str, ...]:
    """One prompt for each class: a template with `{}` filled in by the class names, or prompts as they are.

    Args:
        prompts: The template, or the prompts.
        names: The class names of the data, empty where they are unknown. Underscores become spaces.
        data: The name of the data, for errors.
        labelled: Whether the class to explain is the label, so that there has to be a prompt for each class.

    Raises:
        UsageError: There is no class name for a template, class names are no words, prompts are missing, or they are in another
            order than the classes.

    Example:
        >>> class_prompts(["a photo of a {}"], ["cat", "polar_bear"], "folder:photos", False)
        ('a photo of a cat', 'a photo of a polar bear')
    """
    words = [" ".join(name.replace("_", " ").split()) for name in names]
    templates = [prompt for prompt in prompts if "{}" in prompt]
    if not templates:
        if labelled and names and len(prompts) != len(words):
            raise UsageError(
                f"{data!r} has {len(words)} classes and --prompts {len(prompts)}; the label of an image is the place of its "
                "prompt, so give one for each class in their order, or a text with {} for their names"
            )
        if len(prompts) == len(words):
            _check_order(prompts, words, data)
        return tuple(prompts)
    if len(prompts) > 1:
        raise UsageError(
            f"--prompts takes one text with {{}} for the names of all classes, got it beside others: {list(prompts)}"
        )
    if not words:
        raise UsageError(f"{data!r} does not name classes to fill in {templates[0]!r}; give one prompt for each class")
    codes = [word for word in words if CODE.fullmatch(word)]
    if codes:
        raise UsageError(
            f"{data!r} names classes by codes or numbers, such as {codes[0]!r}, which are no words for {templates[0]!r}; give "
            "one prompt for each class in their order, or a .txt file with one on each line"
        )
    if len({word.lower() for word in words}) < len(words):
        raise UsageError(f"{data!r} has class names that are the same words: {words}; give one prompt for each class")
    return tuple(templates[0].replace("{}", word) for word in words)


def _check_order(prompts: Sequence[str], words: Sequence[str], data: str) -> None:
    """Refuse prompts that are the classes of the data in another order, so that labels would be wrong.

    Raises:
        UsageError: A class stands in another prompt than its own.
    """
    for place, (word, own) in enumerate(zip(words, prompts, strict=True)):
        others = [other for other in prompts if _has(other, word)]
        if others and not _has(own, word):
            raise UsageError(
                f"class {place} of {data!r} is {word!r}, but prompt {place} is {own!r}, and {others[0]!r} is at another place; "
                f"give the prompts in the order of the classes: {', '.join(words)}"
            )


def _has(prompt: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", prompt, re.IGNORECASE) is not None


def _class_names(spec: str, order: Sequence[str] | str | None, parts: Mapping[str, Any]) -> Sequence[str]:
    """The class names of data; of mosaics, those of the data they are made of; none of a factory."""
    from xaieval.data import Preprocessing, is_mosaics, load_pictures

    while is_mosaics(spec):
        spec = spec.partition(":")[2]
    pictures = load_pictures(spec, Preprocessing(), classes=order, **parts)
    return () if pictures is None else pictures.classes
