"""The table of a run for a paper: means with intervals, and letters for what cannot be told apart, in several forms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from xaieval.analysis.published import beside_published, printed_text, published_table
from xaieval.analysis.published_order import order_notes
from xaieval.analysis.ranking import rank
from xaieval.analysis.summary import summarise_run, why_missing
from xaieval.errors import MetricError, OutputError, UsageError, printable
from xaieval.report.html.protocol_text import preset_of, protocol_sentences
from xaieval.report.html.provenance import subject_of
from xaieval.report.markup import DOWN, UP, html_table, in_latex, in_markdown, latex_table, markdown_text
from xaieval.report.significance import best_in_words
from xaieval.results.metric_display import counts_text, label_of, mean_text
from xaieval.results.record import RunRecord

__all__ = ["MOST_TESTED", "ResultTable", "protocol_of", "published_beside", "result_table"]

MOST_TESTED = 32  # pairs of layer and method that are tested without being asked to: 496 tests a metric
MOST_ROWS = 100_000  # of a run that is tested without being asked to, which takes a second or two
_MINUS = re.compile(r"-(?=\d)")


@dataclass(frozen=True, repr=False)
class ResultTable:
    r"""The means of one or more runs, with their intervals. Printed it is a table of text.

    Attributes:
        frame: Index `(layer, method)`, or `(model, layer, method)` for several runs; of each metric its mean, `_low`, `_high`,
            `_letters` and `_best`, and `_published` if printed numbers stand beside it; then `mask_area`, in [0, 1],
            `n_images`, `n_groups` (if the run has groups) and `n_failed`. Items that share a letter cannot be told apart; there
            are none for control maps, for a metric without a direction, for several runs, and where nothing was tested.
        metrics: The entries of the metrics in the manifest.
        caption: What was measured, on what, and how it was tested.
        notes: What to know before the numbers are compared with others, such as in what runs differ.
        tests: How the letters were found; "" if nothing was tested.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p_2"] * 9 + ["p_5"] * 9, "method": "gradcam"})
        >>> rows = rows.assign(status="ok", average_drop=[90.0, 80, 85] * 3 + [10.0, 20, 15] * 3, mask_area=0.25)
        >>> metrics = [{"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}]
        >>> table = result_table(RunRecord(rows, {"metrics": metrics}))
        >>> table
        layer  method                AD % ↓  mask area %  n  failed
        p_2    gradcam  85.0 [80.4, 89.6] b         25.0  9       0
        p_5    gradcam  15.0 [10.4, 19.6] a         25.0  9       0
        >>> print(table.to_latex().splitlines()[10].strip())
        p\_5 & gradcam & \textbf{15.0} [10.4, 19.6] & \textsuperscript{a} & 25.0 \\
    """

    frame: pd.DataFrame
    metrics: Sequence[Mapping[str, Any]]
    caption: str
    notes: Sequence[str] = ()
    tests: str = ""

    def __repr__(self) -> str:
        lines = _behind(self.lines(apart=True))
        names, widths = len(self.names), [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(f"{cell:{'<' if place < names else '>'}{widths[place]}}" for place, cell in enumerate(line)).rstrip()
            for line in lines
        ]
        return "\n".join([*(f"note: {note}" for note in self.notes), *text])

    def _repr_html_(self) -> str:
        return self.to_html()

    @property
    def names(self) -> list[str]:
        """The columns that name a row: `layer` and `method`, for several runs after `model`."""
        return [str(name) for name in self.frame.index.names]

    def in_words(self) -> str:
        """For each metric with a direction, which layer and method is the best and how significant that is, in sentences.

        "" for several runs, which are not tested against each other, and for a single pair of layer and method.
        """
        if self.names != ["layer", "method"]:
            return ""
        sentences = [*filter(None, (best_in_words(self.frame, metric) for metric in self.metrics))]
        how = f"Significance: {self.tests}." if self.tests else ""
        return "\n".join([*sentences, *([how] if sentences and how else [])])

    def to_markdown(self) -> str:
        """The table in Markdown, with the best mean of each metric in bold, and the caption below."""
        return markdown_text(self.lines("**{}**", in_markdown), self.caption, self.notes)

    def to_html(self) -> str:
        """The table in HTML, with the best mean of each metric in bold, and names escaped. Notebooks show it."""
        return html_table(self.lines("<strong>{}</strong>", escape), len(self.names), self.caption, self.notes)

    def to_latex(self, label: str = "") -> str:
        """The table for LaTeX, which needs the package booktabs, with the best mean of each metric in bold.

        Letters are superscripts. The numbers of images and of failed rows are left out if all rows have the same number of
        images, which the caption says, and none has failed. A table that is wider than a page is set in smaller letters.

        Args:
            label: The name for references, such as "tab:levels". Default: none.

        Raises:
            UsageError: The label has a character that LaTeX does not take in one.
        """
        names = len(self.names)
        lines = [
            [*line[:names], *(_MINUS.sub("$-$", cell) for cell in line[names:])]
            for line in self.lines(r"\textbf{{{}}}", in_latex, apart=True, counts=not self._same_counts)
        ]
        return latex_table(lines, names, self.caption, label, self.notes)

    def to_csv(self) -> str:
        """All columns of `frame`, as numbers."""
        return str(self.frame.to_csv())

    def to_excel(self, path: str | Path) -> None:
        """Write an Excel file: all columns of `frame`, as numbers, and a second sheet with the caption and the notes.

        Args:
            path: The file, such as "table.xlsx".

        Raises:
            UsageError: The name does not end in .xlsx, or openpyxl, which writes such files, is not installed.
            OutputError: The file cannot be written.
        """
        if Path(path).suffix != ".xlsx":
            raise UsageError(f"an Excel file has a name such as table.xlsx; got '{path}'")
        try:
            import openpyxl  # noqa: F401  # pandas writes by it
        except ModuleNotFoundError as error:
            raise UsageError("Excel files need openpyxl, which is missing: pip install 'xaieval[excel]'") from error
        told = pd.DataFrame([self.caption, *self.notes]).map(printable)
        try:
            with pd.ExcelWriter(path, engine="openpyxl") as writer:
                self.frame.reset_index().map(_plain).to_excel(writer, sheet_name="results", index=False)
                told.to_excel(writer, sheet_name="caption", index=False, header=False)
                _keep_texts(writer)
        except OSError as error:
            raise OutputError(f"cannot write '{path}': {error.strerror or error}; choose another file") from error

    def lines(
        self, bold: str = "{}", escaped: Callable[[str], str] = str, apart: bool = False, counts: bool = True
    ) -> list[list[str]]:
        """The headings and the cells of each row, as text.

        Args:
            bold: How the best means are written, such as "**{}**".
            escaped: What is done to names and headings.
            apart: Put the letters of a metric into a column of their own, with the heading "", so that numbers line up.
            counts: With the numbers of images and of failed rows.
        """
        area = ["mask area %"] if "mask_area" in self.frame else []
        heads = [head for metric in self.metrics for head in self._heads(metric, apart)]
        lines = [[escaped(head) for head in (*self.names, *heads, *area, *(["n", "failed"] if counts else []))]]
        for row in self.frame.reset_index().to_dict("records"):
            cells = [escaped(str(row[name])) for name in self.names]
            for metric in self.metrics:
                numbers, letters = _mean(row, metric, bold), row.get(f"{metric['name']}_letters", "")
                own = [numbers, letters] if apart and self._has_letters(metric) else [f"{numbers} {letters}".rstrip()]
                cells += [*own, *([_published(row, metric)] if self._has_published(metric) else [])]
            cells += [f"{100 * row['mask_area']:.1f}" for _ in area]
            lines.append([*cells, *([str(int(row[name])) for name in ("n_images", "n_failed")] if counts else [])])
        return lines

    def _heads(self, metric: Mapping[str, Any], apart: bool) -> list[str]:
        """The headings of a metric."""
        arrow = {True: f" {UP}", False: f" {DOWN}", None: ""}[metric["higher_is_better"]]
        letters = [""] if apart and self._has_letters(metric) else []
        printed = [f"{label_of(metric)} published"] if self._has_published(metric) else []
        return [label_of(metric) + arrow, *letters, *printed]

    @property
    def _same_counts(self) -> bool:
        """Whether all rows have the same number of images, and none has failed."""
        return len({*self.frame["n_images"]}) == 1 and not self.frame["n_failed"].any()

    def _has_letters(self, metric: Mapping[str, Any]) -> bool:
        return any(self.frame.get(f"{metric['name']}_letters", ()))

    def _has_published(self, metric: Mapping[str, Any]) -> bool:
        return f"{metric['name']}_published" in self.frame


def result_table(scores: RunRecord, level: float = 0.95, letters: bool | None = None) -> ResultTable:
    """The table of a run.

    Args:
        scores: The run.
        level: Level of the intervals, and 1 minus the probability of even one false difference in a column, in (0, 1).
        letters: Test all pairs of layer and method in each metric. Default: up to 32 of them, in runs of up to 100,000 rows.

    Raises:
        MetricError: The level is not in (0, 1); or tests are asked for, and no image counts for all pairs, or more than 52
            letters would be needed.
    """
    summary = summarise_run(scores, level)
    frame = summary.copy()
    tested = [pair for pair in summary.index if pair[1] not in scores.controls]
    asked = len(tested) <= MOST_TESTED and scores.n_rows <= MOST_ROWS if letters is None else letters
    for metric in scores.metrics:
        name, own = metric["name"], dict[Any, str]()
        if asked and len(tested) > 1 and metric["higher_is_better"] is not None:
            with suppress(MetricError) if letters is None else nullcontext():
                own = _letters(scores, name, level)
        frame[f"{name}_letters"] = pd.Series([own.get(pair, "") for pair in frame.index], index=frame.index, dtype=object)
        frame[f"{name}_best"] = _best(frame[name], tested, metric["higher_is_better"])
    order = [metric["name"] + end for metric in scores.metrics for end in ("", "_low", "_high", "_letters", "_best")]
    rest = [name for name in ("mask_area", "n_images", "n_groups", "n_failed") if name in frame]
    lettered = any((frame[f"{metric['name']}_letters"] != "").any() for metric in scores.metrics)
    tests = f"paired tests of all pairs, corrected by Holm, family-wise error rate {100 * (1 - level):g} %" if lettered else ""
    return ResultTable(frame[[*order, *rest]], scores.metrics, _caption(scores, summary, level, tests), tests=tests)


def published_beside(scores: RunRecord, name: str, network: str | None = None, level: float = 0.95) -> ResultTable:
    """The table of a run, with the numbers that a paper or tool printed beside its own, and what still differs as notes.

    Args:
        scores: The run.
        name: The published table, such as "opti-cam"; `xaieval.analysis.published.PUBLISHED` lists them.
        network: Its network, as printed. Default: the one that is the run's model, if it is named; or the only one.
        level: Level of the intervals, in (0, 1).

    Returns:
        A `ResultTable` with a column `<metric>_published` for each metric that was printed; NaN where it has no row.

    Raises:
        MetricError: There is no such table or network, or the run has none of its methods; or the level is not in (0, 1).
    """
    found = result_table(scores, level)
    numbers, notes = beside_published(scores, published_table(name), network)
    printed = numbers.reindex(found.frame.index)
    columns = {f"{metric['name']}_published": printed[metric["name"]] for metric in found.metrics if metric["name"] in printed}
    order = order_notes(found.frame, numbers, found.metrics)
    return replace(found, frame=found.frame.assign(**columns), notes=[*notes[:1], *order, *notes[1:]])


def _mean(row: Mapping[Any, Any], metric: Mapping[str, Any], bold: str) -> str:
    """A mean and its interval."""
    name = metric["name"]
    if pd.isna(row[name]):
        return "no value"
    mean, _, interval = mean_text(row[name], row[f"{name}_low"], row[f"{name}_high"], metric).partition(" ")
    return f"{bold.format(mean) if row[f'{name}_best'] else mean} {interval}"


def _behind(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Lines with the cells of each column without a heading put behind those of the column before it, all as wide."""
    merged: list[list[str]] = []
    for column in zip(*lines, strict=True):
        if column[0]:
            merged.append([*column])
        else:
            width = max(map(len, column))
            numbers = [f"{cell} {letters:{width}}" for cell, letters in zip(merged[-1][1:], column[1:], strict=True)]
            merged[-1][1:] = numbers
    return [[*line] for line in zip(*merged, strict=True)]


def _published(row: Mapping[Any, Any], metric: Mapping[str, Any]) -> str:
    """A number as it was printed."""
    value = row[f"{metric['name']}_published"]
    return "-" if pd.isna(value) else printed_text(value)


def _plain(value: Any) -> Any:
    """A cell of an Excel file, which must not have control characters."""
    return printable(value) if isinstance(value, str) else value


def _keep_texts(writer: pd.ExcelWriter[Any]) -> None:
    """Keep a name that begins with "=" a text, and no formula."""
    cells = (cell for sheet in writer.sheets.values() for row in sheet.iter_rows() for cell in row)
    for cell in cells:
        if cell.data_type == "f":
            cell.data_type = "s"


def _letters(scores: RunRecord, metric: str, level: float) -> dict[Any, str]:
    """The letters of each pair of layer and method.

    Raises:
        MetricError: No image counts for all pairs, or there are too few letters.
    """
    found = rank(
        scores.sample.rows, scores.metrics, metric, "both", level=level, resamples=2, seed=scores.seed,
        weights=scores.group_weights, controls=scores.controls,
    ).table  # fmt: skip
    return dict(zip(zip(found["layer"], found["method"], strict=True), found["letters"], strict=True))


def _best(means: pd.Series[float], tested: Sequence[Any], higher_is_better: bool | None) -> pd.Series[bool]:
    """Which means are the best of those that are no controls; none of a metric without a direction."""
    known = means[means.index.isin(tested)].dropna()
    if higher_is_better is None or known.empty:
        return pd.Series(False, index=means.index)
    best = known.max() if higher_is_better else known.min()
    return means.index.isin(tested) & means.apply(lambda mean: math.isclose(mean, best))


def _caption(scores: RunRecord, summary: pd.DataFrame, level: float, tests: str) -> str:
    """What was measured, on what, and how it was tested."""
    images = int(summary["n_images"].max()) if len(summary) else 0
    share = f"{100 * level:g} %"
    counts = counts_text(images, scores.n_groups, scores.group_weights)
    sentences = [f"Means with {share} intervals ({counts}){_subject(scores)}.", protocol_of(scores)]
    names = [metric["name"] for metric in scores.metrics]
    if any(metric["higher_is_better"] is not None for metric in scores.metrics):
        sentences.append("Bold: the best mean of a column.")
    if tests:
        sentences.append(f"Means in a column that share a letter do not differ significantly ({tests}).")
    if scores.controls:
        sentences.append(f"Control maps, which ignore the model: {', '.join(scores.controls)}.")
    why = why_missing(summary, names, level, scores.group_weights)
    sentences += [f"{text[0].upper()}{text[1:]}." for text in (why, scores.sample_note) if text]
    return " ".join(filter(None, sentences))


def _subject(scores: RunRecord) -> str:
    """The model and the data, as far as they are known."""
    model, data = subject_of(scores.manifest)
    known = (f"of {model}" if model != "a model" else "", f"on {data}" if data else "")
    return "".join(f" {words}" for words in known if words)


def protocol_of(scores: RunRecord) -> str:
    """The protocol by its name, or by what differs from the default one."""
    run = scores.manifest.get("run", {})
    choices = {name.removeprefix("protocol."): value for name, value in run.items() if name.startswith("protocol.")}
    if not choices:
        return ""
    preset = preset_of(choices)
    if preset is not None:
        return f"Protocol {preset[0]}, target {choices.get('target', 'predicted')}."
    return " ".join(["Protocol:", *(sentence.text for sentence in protocol_sentences(choices) if sentence.differs)])
