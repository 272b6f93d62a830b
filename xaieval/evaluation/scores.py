"""The result of a run: one row per (image, layer, method), and the manifest that says how the rows came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from xaieval.analysis.agreement import Agreement, agreement
from xaieval.analysis.comparison import compare
from xaieval.analysis.controls import compare_with_controls, fooled_metrics, rivals
from xaieval.analysis.matched import compare_with_matched_controls
from xaieval.analysis.pooled import pooled, pooled_numbers
from xaieval.analysis.predictions import IMAGE_COLUMNS, Predictions, predictions_of
from xaieval.analysis.ranking import RankedItems, Ranking, rank
from xaieval.analysis.selection import Selection, select_layers
from xaieval.analysis.stats.paired import PairedTest
from xaieval.analysis.summary import summarise_run, why_missing
from xaieval.analysis.warnings import find_warnings
from xaieval.analysis.wins import win_percentages
from xaieval.results.findings import Finding
from xaieval.results.manifest import measured_text
from xaieval.results.metric_display import groups_text
from xaieval.results.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from xaieval.report.html.thumbnails import Maps
    from xaieval.report.result_table import ResultTable

__all__ = ["Scores"]


@dataclass(frozen=True, repr=False)
class Scores(RunRecord):
    """Rows and manifest of a run; summaries are computed from them alone.

    Attributes:
        rows: columns `image_id`, `layer`, `method`, `group` (if the images come in groups), `label`, `predicted`, `target`,
            `confidence`, `masked_confidence` (missing if no metric needs it), `mask_area` (mean of the mask, in [0, 1]), one
            column per metric (percent), for a run with matched controls the values of each metric for them and its excess,
            `status`. A row counts if its status
            is "ok" or "constant_map"; all other statuses have NaN in the metrics.
        manifest: versions, protocol, seed, fingerprints of model and data.
    """

    def __repr__(self) -> str:
        together = f" in {groups_text(self.n_groups, self.group_weights)}" if self.n_groups is not None else ""
        images = f"Scores of {self.n_images} images{together}"
        head = ", ".join(filter(None, [images, str(self.predictions)]))
        table = self.table()
        missing = why_missing(table.frame, [entry["name"] for entry in self.metrics], 0.95, self.group_weights)
        measured = measured_text(self.manifest)
        return "\n".join(filter(None, [head, repr(table), missing, self.sample_note, measured]))

    def _repr_html_(self) -> str:
        from xaieval.report import summary_html

        return summary_html(self)

    def summary(self, level: float = 0.95, resamples: int | None = None, *, tests: pd.DataFrame | None = None) -> pd.DataFrame:
        """The mean of each metric over the images, with its interval, per layer and method.

        See `xaieval.analysis.summary.summarise` for the columns.

        Args:
            level: Level of the intervals, in (0, 1).
            resamples: Number of bootstrap samples (with the run's seed); intervals of means are then bootstrap intervals.
            tests: The result of `controls_table(level)` (default: computed here).

        Returns:
            Index `(layer, method)`; each metric with `<metric>_low` and `<metric>_high`, `mask_area`, `n_images`, `n_groups`
            (if the images come in groups), `n_failed`, and for a run with control maps `beats_controls`.
        """
        if tests is None and rivals(self.controls):
            tests = self.controls_table(level)
        return summarise_run(self, level, resamples, tests)

    def table(self, level: float = 0.95, letters: bool | None = None) -> ResultTable:
        """The table of the run for a paper: means with intervals, and letters for what cannot be told apart.

        See `xaieval.report.ResultTable`: printed it is text, and `to_latex`, `to_markdown` and `to_csv` write it.

        Args:
            level: Level of the intervals and of the tests, in (0, 1).
            letters: Test all pairs of layer and method in each metric. Default: up to 32 of them, up to 100,000 rows.

        Raises:
            MetricError: The level is not in (0, 1).
        """
        from xaieval.report.result_table import result_table

        return result_table(self, level, letters)

    def controls_table(self, level: float = 0.95) -> pd.DataFrame:
        """One-sided tests of each method against each control map but Fake-CAM, in every metric that has a direction.

        See `xaieval.analysis.controls.compare_with_controls` for the tests, the columns and an example.

        Args:
            level: 1 minus the probability of even one false positive among all tests, in (0, 1).

        Returns:
            One row per test, with the p-value, the p-value corrected by Holm, and `beats`.

        Raises:
            MetricError: The run has no controls, or the level is not in (0, 1).
        """
        return compare_with_controls(self.sample.rows, self.metrics, self.controls, level, self.seed, self.group_weights)

    def fooled_metrics(self, level: float = 0.95) -> dict[str, str]:
        """The metrics by which no method is significantly better than Fake-CAM, each with a sentence; see `fooled_metrics`.

        Args:
            level: 1 minus the probability of even one false positive among all tests, in (0, 1).
        """
        return fooled_metrics(self.sample.rows, self.metrics, self.controls, self.group_weights, level, self.seed)

    def matched_table(self, level: float = 0.95) -> pd.DataFrame:
        """One-sided tests of each method at each layer against the matched controls of its maps: is it the map, or its size?

        See `xaieval.analysis.matched.compare_with_matched_controls` for the tests, the columns and an example.

        Args:
            level: Level of the intervals, and 1 minus the probability of even one false positive among all tests, in (0, 1).

        Returns:
            One row per layer, method, metric and control: both means, their difference `excess` with its interval, the p-value,
            the p-value corrected by Holm, and `beats`.

        Raises:
            MetricError: The run has no matched controls, or the level is not in (0, 1).
        """
        return compare_with_matched_controls(
            self.sample.rows, self.metrics, self.matched_controls, self.controls, level, self.seed, self.group_weights
        )

    @property
    def predictions(self) -> Predictions:
        """Accuracy and mean confidence of the model on the images of the run; printed they are one line."""
        return predictions_of(self.images(IMAGE_COLUMNS), self.manifest.get("classes"))

    def findings(self, level: float = 0.95) -> list[Finding]:
        """Reasons not to trust the numbers, with name and evidence; an empty list does not prove that they are right.

        See `xaieval.analysis.warnings.find_warnings` and docs/checks.md for the list of reasons.

        Args:
            level: 1 minus the probability of even one false disagreement of metrics, in (0, 1).

        Raises:
            MetricError: The level is not in (0, 1).
        """
        return find_warnings(self, level)

    def warnings(self, level: float = 0.95) -> list[str]:
        """The `findings`, with the same `level`, as one sentence each."""
        return [finding.text for finding in self.findings(level)]

    def select_layers(
        self,
        k: int | None = None,
        by: str | Sequence[str] | None = None,
        *,
        method: str | None = None,
        level: float = 0.95,
    ) -> Selection:
        """The layers that need attention, worst first.

        See `xaieval.analysis.selection.select_layers` for the rules and an example.

        Args:
            k: Select the k worst layers, whatever the tests say.
            by: The name of a rule (ad-ic, excess, oracle-gate or probe), or metrics of the run, at least one. Default:
                oracle-gate if the run has its column, which `xaieval.training.fal.with_oracle_gate` adds, else ad-ic.
            method: The method whose rows are used; required if several methods have layers.
            level: 1 minus the probability of even one false positive among all tests, in (0, 1).

        Returns:
            A sequence of addresses, empty if no layer is worse; its repr and `comparisons` give the reasons.

        Raises:
            MetricError: A metric, a column that the rule needs, the method or the layers are not in the rows, or `k` is not
                between 1 and the number of layers.
        """
        return select_layers(self.sample.rows, self.metrics, k, by, method, level, self.seed, self.group_weights)

    def win_percentages(self, by: str = "average_drop", level: float = 0.95) -> pd.DataFrame:
        """How often each method is the best one at its layer, in percent of the images.

        See `xaieval.analysis.wins.win_percentages` for ties and an example.

        Args:
            by: A metric of the run that has a direction.
            level: Level of the intervals, in (0, 1).

        Returns:
            Index `(layer, method)`; `win` with its Wilson interval `win_low` and `win_high`, `tied`, and `n_images`.

        Raises:
            MetricError: The run has no such metric, or no layer with two methods.
        """
        return win_percentages(self.sample.rows, self.metrics, by, level, self.group_weights, controls=self.controls)

    def compare(
        self,
        other: Scores,
        metrics: Sequence[str] | None = None,
        *,
        test: PairedTest = "signs",
        level: float = 0.95,
        across_protocols: bool = False,
    ) -> pd.DataFrame:
        """This run and another one on the same images, paired by image, per layer, method and metric.

        See `xaieval.analysis.comparison.compare` for the tests and an example.

        Args:
            other: A run on the same images, or on some of them, with the same names of layers and methods.
            metrics: Names of metrics (default: those of both runs that have a direction).
            test: Test of means: "signs" or "wilcoxon".
            level: Level of the intervals, and 1 minus the probability of even one false positive, in (0, 1).
            across_protocols: Compare although the runs were measured under different protocols; no run is then called better.

        Returns:
            Index `(layer, method, metric)`; both means, `difference` (this minus other) with its interval, `effect_size`,
            `n_images`, `p_value`, `p_holm`, and `better`: "this", "other", or "" if the difference is not significant.
            `attrs["notes"]` lists what took part, and in what the runs differ.

        Raises:
            MetricError: The runs have no image, no layer and method, or no metric in common; or a name is unknown; or the same
                id belongs to different images; or their images are in different groups.
            ProtocolError: They were measured under different protocols.
        """
        return compare(self, other, metrics, test, level, across_protocols=across_protocols)

    def rank(
        self,
        by: str = "average_drop",
        over: RankedItems = "layer",
        *,
        layer: str | None = None,
        method: str | None = None,
        test: PairedTest = "signs",
        level: float = 0.95,
        resamples: int = 1000,
    ) -> Ranking:
        """Layers, methods or both in order of a metric, best first, with letters for those that do not differ significantly.

        Control maps are listed after the ranking. See `xaieval.analysis.ranking.rank` for the tests and an example.

        Args:
            by: A metric of the run that has a direction.
            over: "layer", the layers of one method; "method", the methods at one layer; "both", all pairs of layer and method.
            layer: The layer whose methods are ranked; required if the run has several. With "both", only this one.
            method: The method whose layers are ranked; required if several methods have layers. With "both", only this one.
            test: Test of means: "signs" or "wilcoxon".
            level: Level of the intervals, and 1 minus the probability of even one false positive, in (0, 1).
            resamples: Number of bootstrap samples of the images, which show how stable the order is.

        Returns:
            See `xaieval.analysis.ranking.Ranking`; `xaieval.report.ranking_figure` draws it.

        Raises:
            MetricError: A metric, method or layer is not in the rows, is required, or leaves fewer than two items.
        """
        return rank(
            self.sample.rows, self.metrics, by, over, layer, method, level, test, resamples, self.seed, self.group_weights,
            controls=self.controls,
        )  # fmt: skip

    def agreement(self, metrics: Sequence[str] | None = None, *, level: float = 0.95, resamples: int = 1000) -> Agreement:
        """How far metrics agree on which layers and methods are better: rank correlations over the pairs of both.

        See `xaieval.analysis.agreement.agreement` for the intervals and an example.

        Args:
            metrics: Names of metrics, at least two (default: all that have a direction).
            level: Level of the intervals, in (0, 1).
            resamples: Number of bootstrap samples of the images.

        Returns:
            See `xaieval.analysis.agreement.Agreement`; `plot("agreement")` draws it.

        Raises:
            MetricError: A metric is unknown or has no direction, or there are fewer than two metrics, or fewer than four pairs
                of layer and method without control maps.
        """
        rows = self.sample.rows
        return agreement(rows, self.metrics, metrics, self.controls, level, resamples, self.seed, self.group_weights)

    def pooled(self, by: str | None = None, *, level: float = 0.95, resamples: int = 1000) -> pd.DataFrame:
        """Numbers over all images at once that are no means over images, such as MaxBoxAccV2 and PxAP, with intervals.

        See `xaieval.analysis.pooled.pooled` for the columns and an example.

        Args:
            by: A metric that keeps what it takes: `box_accuracy`, `pixel_average_precision`, `mean_iou(keep_curve=True)`
                (default: all of them that the run has).
            level: Level of the intervals, in (0, 1).
            resamples: Number of bootstrap samples of the images, or of their groups.

        Returns:
            Index `(layer, method)`; each number with `_low`, `_high` and the number of images, `_n`.

        Raises:
            MetricError: The run has no such metric, or the level is not in (0, 1).
        """
        return pooled(self.sample.rows, self.metrics, by, level, resamples, self.seed, self.group_weights)

    def plot(
        self,
        kind: str = "tradeoff",
        ax: Axes | None = None,
        *,
        metrics: str | Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        classes: Sequence[str] | Mapping[int, str] | None = None,
        level: float = 0.95,
        size: float | tuple[float, float] | None = None,
    ) -> Figure:
        """Draw a figure of the run; docs/figures.md shows one of each kind.

        - "tradeoff": two metrics (default: AD and IC) against each other, per layer and method, with both intervals.
        - "heatmap": one metric per layer and method, as numbers in coloured cells.
        - "curves": the mean curves of metrics that kept them, such as `insertion(keep_curve=True)`, with intervals.
        - "ranking": one metric, best first, with letters for those that do not differ, and how stable the order is.
        - "matched": one metric beside its matched controls, per layer and method.
        - "classes": one metric per class (the labels of the images), with intervals and numbers of images.
        - "spread": the distribution of one metric over the images, per layer and method.
        - "agreement": the rank correlations of metrics over the pairs of layer and method, as a matrix.

        Args:
            kind: One of these kinds.
            ax: Axes to draw on (default: those of a new figure); not for "ranking" and not for the curves of several metrics.
            metrics: Names of metrics of the run (default for kinds that show one metric: the first one).
            layers: Addresses of the layers to show (default: all).
            methods: Names of the methods to show (default: all).
            classes: For "classes", names of the classes 0, 1, ...; or a mapping from classes to names, to show only these.
            level: Level of the intervals, in (0, 1).
            size: Width in inches, with a fitted height, or (width, height); 3.5 fits one column of most journals.

        Returns:
            A new figure that is not shown in a window, or the figure of `ax`; `xaieval.report.save_figure` saves it for print.

        Raises:
            MetricError: The run lacks what is to be drawn, or has more of it than can be told apart.
            UsageError: The kind is unknown, `ax` is given for several axes, or both `ax` and `size` are given.
        """
        from xaieval.report.figures.kinds import Request, plot

        return plot(self, kind, layers, methods, Request(metrics, classes, level, size, ax))

    def save(self, path: str | Path, level: float = 0.95, summary: pd.DataFrame | None = None) -> None:
        """Write `rows.parquet`, `summary.csv` and `manifest.json` into a folder. Each file is replaced as a whole.

        A run with metrics that `pooled()` takes gets `pooled.csv`, too, and one that kept maps `maps.safetensors`.

        Args:
            path: The folder; created if it does not exist.
            level: Level of the intervals in the tables.
            summary: The result of `summary(level)`, to save computing it again.

        Raises:
            OutputError: The folder cannot be written.
        """
        pooled = self.pooled(level=level) if pooled_numbers(self.column_names, self.metrics) else None
        self._write(path, self.summary(level) if summary is None else summary, pooled)
        if self.maps is not None:
            self.maps.save(path)

    def to_html(self, path: str | Path, maps: Maps | None = None, **options: Any) -> None:
        """Write a report of the run as one self-contained HTML file; docs/report.md explains how to read it.

        Args:
            path: The file.
            maps: Images with their maps; `xaieval.report.images_to_show` lists those to show. Default: what `keep_maps=` kept.
            options: Other fields of `xaieval.report.ReportOptions`, such as `methods`, `classes`, `level`, `other`, a run to
                compare with, and `cross`, the result of `xaieval.cross_score`.

        Raises:
            OutputError: The file cannot be written.
            MetricError: A method is not in the rows, or the runs cannot be compared.
            ProtocolError: The runs were measured under different protocols.
        """
        from xaieval.report.html.page import ReportOptions, write_report

        write_report(self, path, ReportOptions(maps=maps, **options))
