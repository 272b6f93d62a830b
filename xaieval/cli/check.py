"""The command `check`: reasons not to trust the numbers of a run, before they are measured."""

from __future__ import annotations

from typing import Annotated, Any

from xaieval.cli.app import MODEL_OPTIONS, NO_PREFIX, PROTOCOL_OPTIONS, app
from xaieval.cli.bands import check_bands
from xaieval.cli.json_output import findings_document
from xaieval.cli.loading import class_order, load_forward, load_trained, names_code
from xaieval.cli.tables import print_findings, print_text
from xaieval.config.option_types import Json, Switch
from xaieval.config.options import CheckOptions, ModelOptions, ProtocolOptions, model_settings, parts_of_data
from xaieval.errors import CheckError

__all__ = ["check"]


@app.command
def check(
    *,
    options: Annotated[CheckOptions | None, NO_PREFIX] = None,
    model_options: Annotated[ModelOptions | None, MODEL_OPTIONS] = None,
    protocol_options: Annotated[ProtocolOptions | None, PROTOCOL_OPTIONS] = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Look for reasons not to trust the scores of a model on these images, without scoring.

    Random or badly loaded weights, the wrong normalisation of the images, labels of another model, probabilities instead of
    logits, outputs that depend on the batch or on chance, and layers whose maps are constant.

    Args:
        as_json: Print one JSON document instead of the text.
        debug: Show the traceback of an error.
    """
    options, model_options = options or CheckOptions(), model_options or ModelOptions()
    from xaieval.data import load_data
    from xaieval.evaluation.check import check as look

    loaded = load_trained(options, model_options)
    prepared = loaded.preprocessing
    data = load_data(
        options.data,
        prepared,
        options.batch_size,
        options.max_images,
        download=options.download,
        classes=class_order(options.classes),
        **parts_of_data(options),
    )
    if not names_code("data", options.data):
        check_bands(model_options, prepared, data)
    checked = look(
        loaded.model,
        data.loader,
        options.layers,
        protocol=(protocol_options or ProtocolOptions()).resolve(prepared.mean, prepared.std, options.target),
        max_images=options.max_images,
        seed=options.seed,
        device=options.device,
        **model_settings(options),
        forward=load_forward(model_options.forward),
    )
    findings = checked.findings()
    if options.strict and findings:
        raise CheckError(findings)
    images = int(checked.rows["image_id"].nunique())
    if as_json:
        return {"model": options.model, "data": options.data, "images": images, **findings_document(checked, findings)}
    print_findings(checked, findings)
    if not findings:
        print_text(f"nothing found on {images} images; this does not prove that all is right")
    return None
