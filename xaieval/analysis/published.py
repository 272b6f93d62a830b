"""Tables of Average Drop and Increase in Confidence as papers and tools printed them, to put beside a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from xaieval.analysis.comparability import first_difference
from xaieval.config.presets import PRESETS, Preset
from xaieval.config.spelling import plain_name
from xaieval.errors import MetricError, advice, choose_from
from xaieval.results.paths import last_name
from xaieval.results.record import RunRecord
from xaieval.results.rows import NO_LAYER

__all__ = [
    "PUBLISHED",
    "PublishedTable",
    "beside_published",
    "network_rows",
    "printed_text",
    "published_table",
]

FOLDER = Path(__file__).parent / "published_tables"
METRICS = ("average_drop", "average_gain", "increase_in_confidence")  # in print, and of a run
_OF_THE_DATA = ("mean", "std")  # choices of a protocol that follow the model
_MOST = 6  # choices in which protocols differ that are named


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table as it was printed.

    Attributes:
        name: Its name, which is that of its protocol.
        source: Paper or tool.
        where: The table in the source.
        read_in: From what the numbers were copied.
        doubts: What stands in the way of the same numbers; empty if nothing is known.
        fractions: Whether its numbers are fractions of 1, and not percent.

    Example:
        >>> table = published_table("score-cam")
        >>> table.rows.set_index("method")["average_drop"].to_dict()["Score-CAM"]
        31.5
    """

    name: str
    source: str
    where: str
    read_in: str
    doubts: str = ""
    fractions: bool = False

    @property
    def preset(self) -> Preset:
        """The protocol of the table."""
        return next(preset for preset in PRESETS if preset.name == self.name)

    @property
    def rows(self) -> pd.DataFrame:
        """The rows, in percent.

        Columns: `data`, `images` (NaN if the source does not say how many), `network` and `method` as printed, the metrics and
        `win_percentage` (NaN if not printed), `table`; and by what a row is measured again, empty if it cannot be: `model`,
        `layer` and `rerun` (the method).
        """
        rows = pd.read_csv(FOLDER / f"{self.name}.csv", dtype={"table": str})
        if self.fractions:
            rows[list(METRICS)] = (100 * rows[list(METRICS)]).round(6)
        return rows


PUBLISHED = (
    PublishedTable(
        name="grad-cam++",
        source='Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063)',
        where="Tables 1 and 2, section 4.1",
        read_in="a transcription of the paper to Markdown",
        doubts="Grad-CAM++ used the VGG-16 of the Caffe Model Zoo, and torchvision's has other weights; of Table 2's networks "
        "there are no weights, and its two win percentages add up to 100.91 in print",
    ),
    PublishedTable(
        name="score-cam",
        source='Wang et al., "Score-CAM", CVPRW 2020 (arXiv 1910.01279)',
        where="Table 1, section 4.2",
        read_in="a transcription of the paper to Markdown",
        doubts="the paper drew 2,000 images and does not say which",
    ),
    PublishedTable(
        name="opti-cam-normalised",
        source='Zhang et al., "Opti-CAM", CVIU 248, 2024 (arXiv 2301.07002)',
        where="Tables 1 and 2",
        read_in="the text of the journal's PDF",
        doubts="its VGG16 is the one with BatchNorm, whose layer 42 is the last ReLU",
    ),
    PublishedTable(
        name="opti-cam",
        source='Zhang et al., "Opti-CAM", CVIU 248, 2024 (arXiv 2301.07002)',
        where="Table A.14, appendix H",
        read_in="the text of the journal's PDF",
        doubts="its VGG16 is the one with BatchNorm, whose layer 42 is the last ReLU",
    ),
    PublishedTable(
        name="torch-cam",
        source="frgfm/torch-cam, README.zh-CN.md at commit 0e23dd8f",
        where="its table of Average Drop and Increase in Confidence",
        read_in="the file",
        doubts="the script in torch-cam's repository that makes its table (scripts/eval_perf.py) does not put the model into "
        "eval mode itself; whether the version that made the table did is not recorded, nor which version of torchvision's "
        "weights it was",
        fractions=True,
    ),
)


def published_table(name: str) -> PublishedTable:
    """A table by its name, in any spelling, such as "Grad-CAM++".

    Raises:
        MetricError: There is none of that name.
    """
    found = {plain_name(table.name): table for table in PUBLISHED}
    if plain_name(name) not in found:
        raise MetricError(f"no published table {name!r}; {choose_from(name, [table.name for table in PUBLISHED])}")
    return found[plain_name(name)]


def network_rows(table: PublishedTable, network: str | None = None, model: str = "") -> pd.DataFrame:
    """The rows of one network of a table.

    Args:
        table: The table.
        network: The network as printed, in any spelling. Default: the one that is measured again by the model; or the only one.
        model: The name of a model, such as "torchvision:vgg16"; "" if it is not known.

    Raises:
        MetricError: The network is unknown or has to be named.

    Example:
        >>> network_rows(published_table("score-cam"), "vgg16")["method"].tolist()
        ['Mask', 'RISE', 'Grad-CAM', 'Grad-CAM++', 'Score-CAM']
    """
    rows = table.rows
    names = list(rows["network"].unique())
    if network is not None:
        spelled = {plain_name(name): name for name in names}
        if plain_name(network) not in spelled:
            raise MetricError(f"no network {network!r} in {table.name}; {choose_from(network, names)}")
        return rows[rows["network"] == spelled[plain_name(network)]]
    own = rows[rows["model"] == model]
    if own.empty and len(names) > 1:
        raise MetricError(
            f"{table.name} has the networks {', '.join(names)}, and the run's model is {model or 'not known by name'}; say "
            "which of them it is to be beside, such as "
            + advice(f"network={names[0]!r}", f"--published '{table.name}/{names[0]}'")
        )
    return rows[rows["network"] == (own["network"].iloc[0] if len(own) else names[0])]


def printed_text(value: float) -> str:
    """A number of a published table, with its decimals, at least one.

    Example:
        >>> printed_text(47.0), printed_text(36.84)
        ('47.0', '36.84')
    """
    return f"{value:.{max(1, len(f'{value:.6f}'.rstrip('0').partition('.')[2]))}f}"


def beside_published(run: RunRecord, table: PublishedTable, network: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """The printed numbers of the layers and methods of a run, and what still differs.

    Args:
        run: The run.
        table: The table.
        network: The network of the table; see `network_rows`.

    Returns:
        Numbers in percent, with the index `(layer, method)` and the metrics as columns, for the pairs of the run that have a
        row in the table (of another network than that of the run, those of the same method, whatever their layer); and
        sentences: in what protocol, images, model, layers and weights differ, what is open in the source, and which rows the
        run lacks.

    Raises:
        MetricError: The network is unknown or has to be named, or the run has none of its methods.
    """
    model = str((run.manifest.get("options") or {}).get("model", ""))
    rows = network_rows(table, network, model)
    pairs = run.sample.rows[["layer", "method"]].drop_duplicates()
    found: dict[tuple[str, str], list[float]] = {}
    lacking, alone = [], []
    for row in rows.to_dict("records"):
        places = _places(pairs, row, model)
        found |= {place: [row[metric] for metric in METRICS] for place in places}
        if pd.isna(row["rerun"]):
            alone.append(row["method"])
        elif not places:
            lacking.append(row["rerun"] if pd.isna(row["layer"]) else f"{row['rerun']} at {row['layer']}")
    if not found:
        raise MetricError(
            f"the run has no row of {table.name}: for {rows['network'].iloc[0]} it needs {', '.join(lacking) or 'nothing that'}"
            f"{'' if lacking else ' can be measured again'}"
        )
    index = pd.MultiIndex.from_tuples(list(found), names=["layer", "method"])
    numbers = pd.DataFrame(list(found.values()), index=index, columns=list(METRICS)).astype(float)
    return numbers.dropna(axis="columns", how="all"), list(_notes(run, table, rows, model, list(found), lacking, alone))


def _places(pairs: pd.DataFrame, row: Mapping[Any, Any], model: str) -> list[tuple[str, str]]:
    """The pairs of a run that a row belongs to: those of its method, at its layer if the network is the same."""
    same = pairs[pairs["method"] == row["rerun"]]
    exact = same if pd.isna(row["layer"]) else same[same["layer"] == row["layer"]]
    if exact.empty and model != row["model"]:
        exact = same  # another network has other layers
    return [(str(layer), str(method)) for layer, method in exact.itertuples(index=False)]


def _notes(
    run: RunRecord,
    table: PublishedTable,
    rows: pd.DataFrame,
    model: str,
    places: Sequence[tuple[str, str]],
    lacking: Sequence[str],
    alone: Sequence[str],
) -> Iterator[str]:
    """What still differs between print and run."""
    first, options = rows.iloc[0], run.manifest.get("options") or {}
    yield f"published: {table.source}, {table.where}, {first['network']}"
    chosen = {
        key.removeprefix("protocol."): value
        for key, value in run.manifest.get("run", {}).items()
        if key.startswith("protocol.") and not key.endswith(_OF_THE_DATA)
    }
    printed = {key: value for key, value in table.preset.protocol.to_dict().items() if key in chosen}
    if not chosen:
        yield "the protocol of the run is not known"
    elif printed != chosen:
        told = first_difference(printed, chosen, ("print", "this run"), most=_MOST)
        yield f"the protocols differ: {told}; numbers of different protocols are not comparable"
    many = "" if pd.isna(first["images"]) else f" ({int(first['images']):,})"
    here = f"{last_name(options.get('data', 'those of the loader'))} ({run.n_images:,})"
    yield f"the images: {first['data']}{many} in print, {here} here"
    again = rows["model"].dropna()
    if again.empty or model != again.iloc[0]:
        yield f"the networks differ: {first['network']} in print, {model or 'a model from Python'} here"
    yield from _layers(rows, places)
    weights = last_name(options.get("weights")) or (
        "those of the library" if options.get("pretrained") else "not known by name"
    )
    yield f"the weights: {weights} here; that they are those of the source is not known"
    for text in (table.doubts, table.preset.open_choices):
        if text:
            yield f"open: {text}"
    if lacking:
        yield f"the run lacks: {', '.join(lacking)}"
    if alone:
        yield f"in print, and not measured again: {', '.join(alone)}"


def _layers(rows: pd.DataFrame, places: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Which layers stand beside the table, if they are not those at which it is measured again."""
    again = dict.fromkeys(rows["layer"].dropna())
    here = dict.fromkeys(layer for layer, _ in places if layer != NO_LAYER)
    if again and not here.keys() <= again.keys():
        several = ", so a printed number stands beside each of them" if len(here) > len(again) else ""
        yield f"the layers: the table is measured again at {', '.join(again)}; here {', '.join(here)}{several}"
