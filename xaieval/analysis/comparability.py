"""Whether two runs can be compared: whether they have the same images under the same ids, and what else they differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy  # whose `stats` takes long to import, and is loaded when it is used

from xaieval.analysis.stats.permutation import Floats
from xaieval.errors import MetricError, ProtocolError, advice
from xaieval.results.record import RunRecord
from xaieval.results.rows import NO_LAYER

__all__ = [
    "OTHER_MODEL",
    "Names",
    "check_protocols",
    "check_same_images",
    "definition_of",
    "first_difference",
    "notes_on",
    "protocols_of",
    "same_definition",
    "same_measurement",
    "setting_differences",
    "state_of",
]

Names = tuple[str, str]  # what the two runs are called in sentences

_HERE: Names = ("this run", "the other")
_UNCLEAR = "the preprocessing or the images differ"  # the beginning of a note
_SAME = 1e-3  # confidences of one image by one model differ by less, whatever the device and the batch
_SAME_REDUCED = 0.05  # the same in bfloat16 or float16
_ROUNDING = 1e-5  # mean difference of confidences that rounding alone can explain
_FEW_ODD = 0.05  # share of images whose confidences may differ
_ENOUGH = 10  # images from which a missing association means something
_LIKELY = 2.33  # standard errors, one-sided 1 %
_SHOWN = 3  # names in a note
_MEND = "give 'id' in the loader's batches, or do not shuffle, so that an id means the same image in both runs"
OTHER_MODEL = (
    "models also differ in how they bear masking, so the better numbers need not come from the better maps; "
    "xaieval.cross_score measures both parts (docs/compare_models.md)"
)
# of a run, beside its protocol, that change what is measured; the seed that of random methods and control maps
_SETTINGS = ("task", "forward", "method settings", "judge", "precision", "seed")
_MOST = 6  # choices of protocols in a note
_OPTIONS = ("model_args", "data")  # of the command line, that its manifest names in no other way
_DEFINITION = ("higher_is_better", "interval", "settings", "control")  # of a metric; labels may differ


def check_same_images(first: RunRecord, second: RunRecord, names: Names) -> list[str]:
    """Raise an error if rows of one id belong to different images; return what remains doubtful, as sentences.

    Labels under one id have to agree, unless the two runs only number the classes differently. If the model is the same, so are
    its confidences on the original images; where they are those of other images, there is an error, and where they only
    differ, as with another normalisation, there is a note. Two parts of one run may always be compared.

    Args:
        first: A run.
        second: A run that has images in common with it.
        names: What the two runs are called in the notes.

    Raises:
        MetricError: Labels contradict, or the confidences of the same model are those of other images, or the ids are positions
            in an order that a loader draws anew for each run.
    """
    images = _images_of_both(first.sample.rows, second.sample.rows)
    renumbered = _check_labels(images)
    note = _check_confidences(first, second, images, names) if same_measurement(first, second) else ""
    if first.manifest is not second.manifest and any(run.manifest.get("ids_by_chance") for run in (first, second)):
        raise MetricError(
            f"images have no ids that last: they are named by their position in an order that the loader shuffles, so {_MEND}"
        )
    return [note for note in ("the runs number the classes differently" if renumbered else "", note) if note]


def notes_on(first: RunRecord, second: RunRecord, both: pd.DataFrame, names: Names) -> list[str]:
    """What was compared, and how the runs differ, one sentence each.

    Args:
        first: A run.
        second: Another one.
        both: The rows that are compared, one per image, layer and method.
        names: What the two runs are called in the notes.
    """
    return [
        _took_part(first.sample.rows, second.sample.rows, both, names),
        *state_of(first, names[0]),
        *state_of(second, names[1]),
        *_other_protocol(first, second, names),
        *_other_settings(first, second, names),
        *_other_preprocessing(first, second, names),
        *_other_model(first, second, names),
        *_other_versions(first, second, names),
    ]


def state_of(run: RunRecord, name: str) -> Iterator[str]:
    """What to know of a run before it is compared: whether it is unfinished, and what the check before it found."""
    if not run.complete:
        yield f"{name} is unfinished"
    found = [finding["name"] for finding in run.manifest.get("findings", ())]
    if found:
        yield f"the check of {name} found {', '.join(found)}, so its numbers may mean little; its warnings say more"


def setting_differences(first: RunRecord, second: RunRecord, names: Names, protocols: bool = True) -> list[str]:
    """In what two runs differ apart from their models, one sentence each.

    Args:
        first: A run.
        second: Another one.
        names: What the two runs are called.
        protocols: Whether protocols can differ.
    """
    return [
        *(_other_protocol(first, second, names) if protocols else ()),
        *_other_settings(first, second, names),
        *_other_preprocessing(first, second, names),
        *_other_options(first, second, ("data",), names),
        *_other_versions(first, second, names),
    ]


def same_definition(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries of a manifest define the same metric, whatever their labels are."""
    return definition_of(one) == definition_of(other)


def definition_of(metric: Mapping[str, Any]) -> dict[str, Any]:
    """What a metric is by its entry in a manifest: direction, kind of interval, settings."""
    return {key: metric.get(key) for key in _DEFINITION}


def check_protocols(first: RunRecord, second: RunRecord, names: Names = _HERE) -> None:
    """Raise an error if two runs were measured under different protocols.

    Raises:
        ProtocolError: With the differences.
    """
    one, other = protocols_of(first, second)
    if one != other:
        raise ProtocolError(
            f"the runs have different protocols: {first_difference(one, other, names, _MOST)}; numbers of different protocols "
            "are not comparable, so use the same protocol in both, or compare them anyway by "
            + advice("across_protocols=True", "--across-protocols")
        )


def protocols_of(first: RunRecord, second: RunRecord) -> list[dict[str, Any]]:
    """The choices of the protocols of two runs."""
    return [
        {key: value for key, value in run.manifest.get("run", {}).items() if key.startswith("protocol.")}
        for run in (first, second)
    ]


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any], names: Names = _HERE, most: int = 1) -> str:
    """The first entries in which two tables differ, at most `most`, in words, and how many more there are.

    Example:
        >>> first_difference({"fill": "zero", "seed": 0}, {"fill": "black", "seed": 0})
        "fill is 'zero' in this run and 'black' in the other"
    """
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
    shown = [f"{key} is {one.get(key)!r} in {names[0]} and {other.get(key)!r} in {names[1]}" for key in keys[:most]]
    return "; ".join(shown) + (f", and {len(keys) - most} more" if len(keys) > most else "")


# ---- the same images


def _images_of_both(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """One row per image that both runs have, with those of its columns that both runs have."""
    columns = [name for name in ("label", "target", "confidence") if name in first and name in second]
    tables = [rows.drop_duplicates("image_id")[["image_id", *columns]] for rows in (first, second)]
    return tables[0].merge(tables[1], on="image_id", suffixes=("", "_other"))


def _check_labels(images: pd.DataFrame) -> bool:
    """Raise an error if labels contradict; return whether the runs only number the classes differently."""
    if "label" not in images:
        return False
    known = images.dropna(subset=["label", "label_other"])
    odd = known[(known["label"] != known["label_other"]).astype(bool)]
    if odd.empty:
        return False
    if _are_renumbered(known):
        return True
    row = odd.iloc[0]
    raise MetricError(
        f"{len(odd)} of {len(known)} images have contradicting labels under one id, such as '{row['image_id']}': "
        f"{row['label']} in this run and {row['label_other']} in the other; {_MEND}"
    )


def _are_renumbered(known: pd.DataFrame) -> bool:
    """Whether each label of one run always goes with the same label of the other, in more images than by chance."""
    pairs = known[["label", "label_other"]].drop_duplicates()
    one_to_one = not pairs["label"].duplicated().any() and not pairs["label_other"].duplicated().any()
    return one_to_one and len(known) - len(pairs) >= _ENOUGH


def same_measurement(first: RunRecord, second: RunRecord) -> bool:
    """Whether the confidence of an image has to be the same in both runs: same weights, and confidence read the same way."""
    prints = [(run.manifest.get("model") or {}).get("fingerprint") for run in (first, second)]
    runs = [run.manifest.get("run", {}) for run in (first, second)]
    ways = [
        {key: run.get(key) for key in ("protocol.confidence", "protocol.target", "task", "forward", "judge")} for run in runs
    ]
    return prints[0] is not None and prints[0] == prints[1] and ways[0] == ways[1]


def _check_confidences(first: RunRecord, second: RunRecord, images: pd.DataFrame, names: Names) -> str:
    """Raise an error if the confidences of one model are those of other images; "" if they agree, or a doubt."""
    if "confidence" not in images or "target" not in images:
        return ""
    known = images.dropna(subset=["confidence", "confidence_other"])
    one, other = (known[name].to_numpy(dtype=float) for name in ("confidence", "confidence_other"))
    targets = [np.asarray(known[name].astype(float).fillna(-1), dtype=np.float64) for name in ("target", "target_other")]
    reduced = any(run.manifest.get("run", {}).get("precision", "float32") != "float32" for run in (first, second))
    same = (np.abs(one - other) <= (_SAME_REDUCED if reduced else _SAME)) & (targets[0] == targets[1])
    swapped = _are_permuted(one, other, targets)
    if not swapped and (~same).sum() <= _FEW_ODD * len(known):
        return ""
    odd = known[np.abs(one - other) == np.abs(one - other).max()].iloc[0] if swapped else known[~same].iloc[0]
    found = (
        f"the model is the same, but not its confidence on the original images: it differs on {int((~same).sum())} of "
        f"{len(known)}, such as '{odd['image_id']}': {odd['confidence']:.4f} in {{}} and {odd['confidence_other']:.4f} in {{}}"
    )
    if swapped:
        raise MetricError(f"{found.format(*_HERE)}; both runs have the same confidences in another order, so {_MEND}")
    if cause := _cause(first, second):
        return f"{found.format(*names)}, as {cause}"
    if len(known) < _ENOUGH or _are_associated(one, other, targets, _labels(known)):
        return f"{found.format(*names)}, so the images or their preprocessing differ, or the model is not deterministic"
    raise MetricError(f"{found.format(*_HERE)}; the ids do not belong to the same images, so {_MEND}")


def _are_permuted(one: Floats, other: Floats, targets: Sequence[Floats]) -> bool:
    """Whether two runs have the same confidences of the same targets in another order."""
    orders = np.lexsort([one, targets[0]]), np.lexsort([other, targets[1]])
    if not np.array_equal(targets[0][orders[0]], targets[1][orders[1]]):
        return False
    apart = np.abs(one - other).mean() if len(one) else 0.0
    sorted_apart = np.abs(one[orders[0]] - other[orders[1]]).max(initial=0.0)
    return bool(apart > _ROUNDING and sorted_apart <= 0.01 * apart)


def _are_associated(one: Floats, other: Floats, targets: Sequence[Floats], labels: Sequence[Floats]) -> bool:
    """Whether confidences, targets or labels go together more than those of other images would."""
    ranks = [scipy.stats.rankdata(values) for values in (one, other)]
    if all(np.ptp(values) > 0 for values in ranks) and np.corrcoef(ranks[0], ranks[1])[0, 1] * np.sqrt(len(one) - 1) > _LIKELY:
        return True
    return any(_agree(*pair) for pair in (targets, labels) if pair)


def _agree(one: Floats, other: Floats) -> bool:
    """Whether classes agree more often than by chance."""
    classes = np.union1d(one, other)
    chance = sum(float((one == each).mean() * (other == each).mean()) for each in classes)
    spread = np.sqrt(chance * (1 - chance) / len(one))
    return bool(spread > 0 and (one == other).mean() - chance > _LIKELY * spread)


def _labels(known: pd.DataFrame) -> list[Floats]:
    """The labels of both runs; empty if they are not all known."""
    if "label" not in known or known[["label", "label_other"]].isna().any(axis=None):
        return []
    return [known[name].to_numpy(dtype=float) for name in ("label", "label_other")]


def _cause(first: RunRecord, second: RunRecord) -> str:
    """The difference that changes confidences, if the manifests name one; else ""."""
    found = {"the preprocessing differs": [*_other_preprocessing(first, second, _HERE)]}
    found["the arguments of the model differ"] = [*_other_options(first, second, ("model_args",), _HERE)]
    return " and ".join(cause for cause, notes in found.items() if any(not note.startswith(_UNCLEAR) for note in notes))


# ---- what took part, and what differs


def _took_part(first: pd.DataFrame, second: pd.DataFrame, both: pd.DataFrame, names: Names) -> str:
    """The numbers of images, layers and methods that are compared, and what is left out of each run."""
    layers = set(both["layer"]) - {NO_LAYER}
    counts = [_counted(both["image_id"].nunique(), "image"), _counted(both["method"].nunique(), "method")]
    counts[1:1] = [_counted(len(layers), "layer")] if layers else []
    left = [text for rows, name in zip((first, second), names, strict=True) for text in _left_out(rows, both, name)]
    return f"{', '.join(counts[:-1])} and {counts[-1]} took part; left out: {'; '.join(left) or 'nothing'}"


def _left_out(rows: pd.DataFrame, both: pd.DataFrame, name: str) -> Iterator[str]:
    """What of a run takes no part, with the names of layers and methods."""
    images = rows["image_id"].nunique() - both["image_id"].nunique()
    if images:
        yield f"{_counted(images, 'image')} of {name}"
    for column in ("layer", "method"):
        missing = [str(value) for value in rows[column].unique() if value not in {*both[column], NO_LAYER}]
        if missing:
            yield f"the {column}{'s' if len(missing) > 1 else ''} {_listed(missing)} of {name}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _listed(values: Sequence[str]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(values[:_SHOWN]) + more


def _other_protocol(first: RunRecord, second: RunRecord, names: Names) -> Iterator[str]:
    one, other = protocols_of(first, second)
    if one != other:
        yield (
            f"the protocols differ: {first_difference(one, other, names, _MOST)}; numbers of different protocols are not "
            "comparable, so no run is called better"
        )


def _other_settings(first: RunRecord, second: RunRecord, names: Names) -> Iterator[str]:
    one, other = ({key: run.manifest.get("run", {}).get(key) for key in _SETTINGS} for run in (first, second))
    if one != other:
        yield f"the settings differ: {first_difference(one, other, names, _SHOWN)}"


def _other_preprocessing(first: RunRecord, second: RunRecord, names: Names) -> list[str]:
    """In what the preprocessing differs: as it is named in the manifests, or as the first image shows."""
    one, other = (run.manifest.get("preprocessing") or {} for run in (first, second))
    if one and other and one != other:
        return [f"the preprocessing differs: {first_difference(one, other, names, most=_SHOWN)}"]
    return _other_first_image(first, second, names)


def _other_first_image(first: RunRecord, second: RunRecord, names: Names) -> list[str]:
    """What differs between the first images of both runs, if they have the same id."""
    one, other = (run.manifest.get("first_image") or {} for run in (first, second))
    if not one or not other or one["id"] != other["id"]:
        return []
    if one["shape"] != other["shape"]:
        return [
            f"the size of the images differs: {first_difference({'shape': one['shape']}, {'shape': other['shape']}, names)}"
        ]
    statistics = ("minimum", "maximum", "mean", "std")
    values, others = (np.nan_to_num([entry[name] for name in statistics]) for entry in (one, other))
    if np.allclose(values, others, rtol=1e-3, atol=1e-3 * np.ptp(values)):
        return []
    means = [", ".join(f"{value:.3g}" for value in entry["mean"]) for entry in (one, other)]
    seen = f"the channel means of '{one['id']}' are {means[0]} in {names[0]} and {means[1]} in {names[1]}"
    if np.allclose(_without_scale(values), _without_scale(others), atol=2e-3):
        return [f"the images are normalised differently: {seen}"]
    return [f"{_UNCLEAR}: {seen}"]


def _without_scale(values: Floats) -> Floats:
    """Mean and deviation `[2, C]` of an image as shares of its range, which no normalisation changes."""
    low, high, mean, deviation = values
    span = np.where(high > low, high - low, 1.0)
    return np.stack([(mean - low) / span, deviation / span])


def _other_model(first: RunRecord, second: RunRecord, names: Names) -> Iterator[str]:
    one, other = (run.manifest.get("model") or {} for run in (first, second))
    if one.get("class") != other.get("class"):
        yield f"the models differ: {first_difference({'class': one.get('class')}, {'class': other.get('class')}, names)}"
    elif one.get("fingerprint") != other.get("fingerprint"):
        yield f"the weights differ: {_weights(first, one)} in {names[0]} and {_weights(second, other)} in {names[1]}"
    if (one.get("class"), one.get("fingerprint")) != (other.get("class"), other.get("fingerprint")):
        yield OTHER_MODEL
    yield from _other_options(first, second, _OPTIONS, names)


def _other_versions(first: RunRecord, second: RunRecord, names: Names) -> Iterator[str]:
    one, other = (run.manifest.get("versions") or {} for run in (first, second))
    if one and other and one != other:
        yield f"the versions differ: {first_difference(one, other, names, most=_SHOWN)}"


def _weights(run: RunRecord, model: Mapping[str, Any]) -> str:
    """What identifies the weights of a run: their file if the command line named one, and their fingerprint."""
    file = (run.manifest.get("options") or {}).get("weights")
    known = str(model.get("fingerprint"))
    return f"{file} ({known})" if isinstance(file, str) else known


def _other_options(first: RunRecord, second: RunRecord, keys: Sequence[str], names: Names) -> Iterator[str]:
    """In which of these options of the command line two runs differ."""
    options = [run.manifest.get("options") or {} for run in (first, second)]
    one, other = ({key: entry.get(key) for key in keys} for entry in options)
    if all(options) and one != other:
        yield f"the options differ: {first_difference(one, other, names)}"
