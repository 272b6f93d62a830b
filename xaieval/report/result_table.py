"""The table of a run for a paper: means with intervals, and letters for what cannot be told apart, as text or for LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from xaieval.analysis.ranking import rank
from xaieval.analysis.summary import summarise_run, why_missing
from xaieval.errors import MetricError
from xaieval.report.html.protocol_text import preset_of, protocol_sentences
from xaieval.results.markdown import markdown_table
from xaieval.results.metric_display import counts_text, label_of, mean_text
from xaieval.results.record import RunRecord

__all__ = ["MOST_TESTED", "ResultTable", "result_table"]

MOST_TESTED = 32  # pairs of layer and method that are tested without being asked to: 496 tests a metric
MOST_ROWS = 100_000  # of a run that is tested without being asked to, which takes a second or two
UP, DOWN = "\u2191", "\u2193"
ESCAPED = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", UP: r"$\uparrow$", DOWN: r"$\downarrow$"},
}


@dataclass(frozen=True, repr=False)
class ResultTable:
    r"""The means of a run, per layer and method. Printed it is a table of text.

    Attributes:
        frame: Index `(layer, method)`; of each metric its mean, `_low`, `_high`, `_letters` and `_best`; then `mask_area`, in
            [0, 1], `n_images`, `n_groups` (if the run has groups) and `n_failed`. Items that share a letter cannot be told
            apart; there are none for control maps, for a metric without a direction, and where nothing was tested.
        metrics: The entries of the metrics in the manifest.
        caption: What was measured, on what, and how it was tested.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p_2"] * 9 + ["p_5"] * 9, "method": "gradcam"})
        >>> rows = rows.assign(status="ok", average_drop=[90.0, 80, 85] * 3 + [10.0, 20, 15] * 3, mask_area=0.25)
        >>> metrics = [{"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}]
        >>> table = result_table(RunRecord(rows, {"metrics": metrics}))
        >>> table
        layer  method                AD % ↓  mask area %  n  failed
        p_2    gradcam  85.0 [80.4, 89.6] b         25.0  9       0
        p_5    gradcam  15.0 [10.4, 19.6] a         25.0  9       0
        >>> print(table.to_latex().splitlines()[6].strip())
        p\_5 & gradcam & \textbf{15.0} [10.4, 19.6] a & 25.0 & 9 & 0 \\
    """

    frame: pd.DataFrame
    metrics: Sequence[Mapping[str, Any]]
    caption: str

    def __repr__(self) -> str:
        lines = self.lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:{'<' if place < 2 else '>'}{widths[place]}}" for place, cell in enumerate(line)).rstrip()
            for line in lines
        )

    def to_markdown(self) -> str:
        """The table in Markdown, with the best mean of each metric in bold, and the caption below."""
        heads, *lines = self.lines(bold="**{}**")
        return f"{markdown_table(heads, lines)}\n\n{self.caption}"

    def to_latex(self, label: str = "") -> str:
        """The table for LaTeX, which needs the package booktabs, with the best mean of each metric in bold.

        Args:
            label: The name for references, such as "tab:levels". Default: none.
        """
        heads, *lines = (" & ".join(cells) for cells in self.lines(r"\textbf{{{}}}", in_latex))
        return "\n".join(
            [
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{in_latex(self.caption)}}}",
                *([rf"  \label{{{label}}}"] if label else []),
                rf"  \begin{{tabular}}{{ll{'r' * (heads.count(' & ') - 1)}}}",
                rf"    \toprule {heads} \\ \midrule",
                *(rf"    {line} \\" for line in lines),
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
            ]
        )

    def to_csv(self) -> str:
        """All columns of `frame`, as numbers."""
        return str(self.frame.to_csv())

    def lines(self, bold: str = "{}", escaped: Callable[[str], str] = str) -> list[list[str]]:
        """The headings and the cells of each row, as text.

        Args:
            bold: How the best means are written, such as "**{}**".
            escaped: What is done to names and headings.
        """
        arrows = {True: f" {UP}", False: f" {DOWN}", None: ""}
        heads = [label_of(metric) + arrows[metric["higher_is_better"]] for metric in self.metrics]
        area = ["mask area %"] if "mask_area" in self.frame else []
        lines = [[escaped(head) for head in ("layer", "method", *heads, *area, "n", "failed")]]
        for row in self.frame.reset_index().to_dict("records"):
            cells = [escaped(str(row[name])) for name in ("layer", "method")]
            cells += [_cell(row, metric, bold) for metric in self.metrics]
            cells += [f"{100 * row['mask_area']:.1f}" for _ in area]
            lines.append([*cells, str(int(row["n_images"])), str(int(row["n_failed"]))])
        return lines


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
    return ResultTable(frame[[*order, *rest]], scores.metrics, _caption(scores, summary, level, asked))


def in_latex(text: str) -> str:
    r"""Text for LaTeX, with its special characters escaped.

    Example:
        >>> print(in_latex("fpn[p_2] 50 %"))
        fpn[p\_2] 50 \%
    """
    return "".join(ESCAPED.get(sign, sign) for sign in text)


def _cell(row: Mapping[Any, Any], metric: Mapping[str, Any], bold: str) -> str:
    """A mean, its interval and its letters."""
    name = metric["name"]
    if pd.isna(row[name]):
        return "no value"
    mean, _, interval = mean_text(row[name], row[f"{name}_low"], row[f"{name}_high"], metric).partition(" ")
    return " ".join(filter(None, [bold.format(mean) if row[f"{name}_best"] else mean, interval, row[f"{name}_letters"]]))


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


def _caption(scores: RunRecord, summary: pd.DataFrame, level: float, tested: bool) -> str:
    """What was measured, on what, and how it was tested."""
    images = int(summary["n_images"].max()) if len(summary) else 0
    share = f"{100 * level:g} %"
    sentences = [
        f"Means with {share} intervals ({counts_text(images, scores.n_groups, scores.group_weights)}).",
        _protocol(scores),
    ]
    names = [metric["name"] for metric in scores.metrics]
    if tested and any(metric["higher_is_better"] is not None for metric in scores.metrics):
        tests = f"paired tests of all pairs, corrected by Holm, {share}"
        sentences.append(f"Items that share a letter in a column cannot be told apart ({tests}).")
    if scores.controls:
        sentences.append(f"Control maps, which ignore the model: {', '.join(scores.controls)}.")
    why = why_missing(summary, names, level, scores.group_weights)
    sentences += [f"{text[0].upper()}{text[1:]}." for text in (why, scores.sample_note) if text]
    return " ".join(filter(None, sentences))


def _protocol(scores: RunRecord) -> str:
    """The protocol by its name, or by what differs from the default one."""
    run = scores.manifest.get("run", {})
    choices = {name.removeprefix("protocol."): value for name, value in run.items() if name.startswith("protocol.")}
    if not choices:
        return ""
    preset = preset_of(choices)
    if preset is not None:
        return f"Protocol {preset[0]}, target {choices.get('target', 'predicted')}."
    return " ".join(["Protocol:", *(sentence.text for sentence in protocol_sentences(choices) if sentence.differs)])
