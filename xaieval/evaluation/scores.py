"""The result of a run: one row per (image, layer, method), and the manifest that says how the rows came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from xaieval.analysis.comparison import compare
from xaieval.analysis.controls import compare_with_controls
from xaieval.analysis.ranking import Over, Ranking, rank
from xaieval.analysis.selection import Selection, select_layers
from xaieval.analysis.stats.paired import PairedTest
from xaieval.analysis.summary import summarise
from xaieval.analysis.warnings import find_doubts
from xaieval.analysis.wins import win_percentages
from xaieval.results.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from xaieval.report.html.thumbnails import Maps

__all__ = ["Scores"]


@dataclass(frozen=True, repr=False)
class Scores(RunRecord):
    """Rows and manifest of a run; summaries are computed from them alone.

    Attributes:
        rows: columns `image_id`, `layer`, `method`, `label`, `predicted`, `target`, `confidence`, `masked_confidence`,
            `mask_area` (mean of the mask, in [0, 1]), one column per metric (percent), `status`. A row counts if its status is
            "ok" or "constant_map"; all other statuses have NaN in the metrics.
        manifest: versions, protocol, seed, fingerprints of model and data.
    """

    def __repr__(self) -> str:
        return f"Scores of {self.rows['image_id'].nunique()} images\n{self.summary()}"

    def _repr_html_(self) -> str:
        from xaieval.report import summary_html

        return summary_html(self)

    def summary(self, level: float = 0.95, resamples: int | None = None, *, tests: pd.DataFrame | None = None) -> pd.DataFrame:
        """The mean of each metric over the images, with its interval, per layer and method.

        Args:
            level: of the intervals, in (0, 1).
            resamples: take the percentile bootstrap with so many samples and the run's seed for means.
            tests: what `controls_table(level)` gave, where that is at hand; computed unless told.

        Returns:
            Index `(layer, method)` in order of execution; columns of each metric, `<metric>_low` and `<metric>_high` (Wilson
            for proportions, `stats.mean_interval` for means); `<metric>_n` where a metric has no value for
            some of the rows that count, such as images without an object; then `n_images` (rows that count) and `n_failed`
            (rows that do not, other than images that the protocol excludes); and where the run has controls,
            `beats_controls`, the metrics in which the method beats every control beyond chance: see `controls_table`.
        """
        if tests is None and self._controls:
            tests = self.controls_table(level)
        metrics, seed = self.manifest["metrics"], int(self.manifest.get("seed", 0))
        return summarise(self.rows, metrics, self._controls, level, resamples, seed, tests)

    def controls_table(self, level: float = 0.95) -> pd.DataFrame:
        """Whether each method beats each control map beyond chance, in every metric that has a direction.

        The tests are paired by image and one-sided (exact McNemar for yes or no, random signs for means) and corrected by
        Holm for all of them together. A control without a value in a metric is no rival in it.

        Args:
            level: 1 minus the probability of a false verdict among all tests, in (0, 1).

        Returns:
            One row a test: `layer`, `method`, `metric`, `control`, the means `value` and `control_value` over the `n_images` on
            which both count, `p_value` (see `xaieval.analysis.stats.permutation`), `p_holm` and `beats`.

        Raises:
            MetricError: the run has no controls, or the level is not in (0, 1).

        Example:
            >>> import pandas as pd
            >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p5"] * 9 + ["input"] * 9, "status": "ok"})
            >>> rows = rows.assign(method=["gradcam"] * 9 + ["random"] * 9, average_drop=[10.0] * 9 + [90.0] * 9)
            >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
            >>> scores = Scores(rows, {"metrics": [drop], "controls": ["random"]})
            >>> scores.controls_table()[["method", "control", "value", "control_value", "p_holm", "beats"]]
                method control  value  control_value    p_holm  beats
            0  gradcam  random   10.0           90.0  0.001953   True
            >>> scores.summary()["beats_controls"].to_list()
            ['average_drop', None]
        """
        metrics, seed = self.manifest.get("metrics", []), self.manifest.get("seed", 0)
        return compare_with_controls(self.rows, metrics, self._controls, level, seed)

    def warnings(self, level: float = 0.95) -> list[str]:
        """Reasons to doubt the numbers, a sentence each; none is no proof that they are right.

        - The run broke off, and was not gone on with.
        - More than 5 % of a method's maps are constant, or more than 5 % of its rows failed.
        - No method is better than the best control map in a metric (where the run has controls).
        - Metrics disagree: by Average Drop a method is better than the mean of the other methods, by insertion or coherency it
          is worse, both beyond chance (paired by image, random signs, the larger of the two p-values, corrected by Holm for
          all methods). Controls do not take part.

        Args:
            level: 1 minus the probability of a false disagreement, in (0, 1).

        Raises:
            MetricError: the level is not in (0, 1).
        """
        return find_doubts(self.rows, self.metrics, self.controls, level, self.seed, self.complete)

    @property
    def _controls(self) -> list[str]:
        """The methods that are control maps, if the run was asked for them."""
        return list(self.manifest.get("controls", []))

    def select_layers(
        self,
        k: int | None = None,
        by: Sequence[str] = ("increase_in_confidence", "average_drop"),
        *,
        method: str | None = None,
        level: float = 0.95,
    ) -> Selection:
        """The layers that need attention, worst first.

        A layer needs attention if in a metric it is worse than the metric's best layer beyond chance, and not better than
        that layer beyond chance in another metric. The tests are paired by image and one-sided (exact McNemar for yes or no,
        random signs for means) and corrected by Holm for all pairs of layers. Layers are put in order by their mean rank over
        the metrics, then by the metrics one after the other, then in order of execution; of layers that are equally good in a
        metric, the first in order of execution counts as its best.

        Args:
            k: take the k worst instead, whatever the tests say.
            by: metrics of the run, at least one.
            method: whose rows decide; needed where the run has several methods with layers.
            level: 1 minus the probability of a false verdict among all tests, in (0, 1).

        Returns:
            A sequence of addresses, empty if no layer is worse; its repr and `comparisons` give the reasons. Only images
            whose rows count at every layer take part.

        Raises:
            MetricError: a metric, the method or the layers are not in the rows, or `k` is not between 1 and the number of
                layers.

        Example:
            >>> import pandas as pd
            >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p2"] * 9 + ["p5"] * 9, "method": "gradcam"})
            >>> rows = rows.assign(status="ok", average_drop=[90.0] * 9 + [10.0] * 9)
            >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
            >>> Scores(rows, {"metrics": [drop]}).select_layers(by=["average_drop"])
            needs attention, worst first: p2
              p2, average_drop: 90.0, worse than the best, 10.0 at p5 (p = 0.0039)
            paired by image, n = 9, method gradcam, p corrected by Holm for all pairs of layers, level 0.95
        """
        return select_layers(self.rows, self.manifest.get("metrics", []), k, by, method, level, self.manifest.get("seed", 0))

    def win_percentages(self, by: str = "average_drop", level: float = 0.95) -> pd.DataFrame:
        """How often each method is the best one at its layer, image by image, in percent.

        With two methods and the drop this is the win percentage of Grad-CAM++ (Chattopadhay et al., WACV 2018, section 4.1). A
        method wins an image if no other is as good; where several are the best, they tie. Ties are common: every map
        under which the confidence does not fall has the drop 0. Methods without a layer, such as control maps, take part at
        every layer.

        Args:
            by: a metric of the run that has a direction.
            level: of the intervals, in (0, 1).

        Returns:
            Index `(layer, method)` for every layer with at least two methods; `win` with its Wilson interval `win_low` and
            `win_high`, `tied` (the best, but not alone), and `n_images`: those whose rows count for every method there.

        Raises:
            MetricError: the run has no such metric, or no layer with two methods.

        Example:
            >>> import pandas as pd
            >>> rows = pd.DataFrame({"image_id": [*range(4)] * 2, "layer": "p2", "method": ["gradcam"] * 4 + ["random"] * 4})
            >>> rows = rows.assign(status="ok", average_drop=[0.0, 10.0, 5.0, 90.0, 0.0, 40.0, 30.0, 80.0])
            >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
            >>> print(Scores(rows, {"metrics": [drop]}).win_percentages()[["win", "tied", "n_images"]])
                           win  tied  n_images
            layer method
            p2    gradcam  50.0  25.0         4
                  random   25.0  25.0         4
        """
        return win_percentages(self.rows, self.manifest.get("metrics", []), by, level)

    def compare(
        self,
        other: Scores,
        metrics: Sequence[str] | None = None,
        *,
        test: PairedTest = "signs",
        level: float = 0.95,
        across_protocols: bool = False,
    ) -> pd.DataFrame:
        """This run beside another one of the same images, paired by image, per layer, method and metric.

        Means are tested by random signs of the differences, or by Wilcoxon's signed ranks; yes or no by McNemar's exact test.
        All tests are two-sided, and corrected together by Holm.

        Args:
            other: scored on the same images, or some of them; with layers and methods of the same names.
            metrics: names; those of both runs that have a direction unless told.
            test: "signs" or "wilcoxon".
            level: of the intervals, and 1 minus the probability of a false verdict among all tests, in (0, 1).
            across_protocols: compare although the runs were measured under other protocols.

        Returns:
            Index `(layer, method, metric)`; columns `mean` (of this run) and `other_mean` over the images that both have,
            `difference` (this minus other) with its interval `low` and `high` (Student, or Newcombe for proportions),
            `effect_size` (matched-pairs rank-biserial, in [-1, 1]), `n_images`, `p_value`, `p_holm`, and `better`: "this",
            "other", or "" where that is not certain at the level.

        Raises:
            MetricError: the runs share no image, no layer with its method, or no metric; or a name is unknown.
            ProtocolError: they were measured under other protocols.

        Example:
            >>> import pandas as pd
            >>> rows = pd.DataFrame({"image_id": range(9), "layer": "p5", "method": "gradcam", "status": "ok"})
            >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
            >>> one, two = (Scores(rows.assign(average_drop=value), {"metrics": [drop]}) for value in (10.0, 30.0))
            >>> one.compare(two)[["difference", "p_holm", "better"]]
                                          difference    p_holm better
            layer method  metric
            p5    gradcam average_drop       -20.0  0.003906   this
        """
        runs = (self.rows, self.manifest), (other.rows, other.manifest)
        return compare(*runs, metrics, test, level, across_protocols=across_protocols)

    def rank(
        self,
        by: str = "average_drop",
        over: Over = "layer",
        *,
        layer: str | None = None,
        method: str | None = None,
        test: PairedTest = "signs",
        level: float = 0.95,
        resamples: int = 1000,
    ) -> Ranking:
        """Layers, methods or both in order of a metric, best first, with groups that cannot be told apart.

        All pairs are tested, paired by image and two-sided, and corrected by Holm. Only images whose rows count everywhere
        take part.

        Args:
            by: a metric of the run that has a direction.
            over: "layer", for one method; "method", at one layer, beside which stand the methods that have no layer; "both".
            layer: at which methods are ranked; needed where the run has several. With "both", only this one.
            method: whose layers are ranked; needed where several methods have layers. With "both", only this one.
            test: "signs", of means, or "wilcoxon", of ranks; yes or no is tested by McNemar's exact test.
            level: of the intervals, and 1 minus the probability of a false difference among all pairs, in (0, 1).
            resamples: sets of images drawn anew, which say how stable the order is.

        Returns:
            See `xaieval.analysis.ranking.Ranking`; `xaieval.report.ranking_figure` draws it.

        Raises:
            MetricError: a metric, method or layer is not in the rows, is missing, or leaves fewer than two items.

        Example:
            >>> import pandas as pd
            >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p2"] * 9 + ["p5"] * 9, "method": "gradcam"})
            >>> rows = rows.assign(status="ok", average_drop=[90.0] * 9 + [10.0] * 9)
            >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
            >>> Scores(rows, {"metrics": [drop]}).rank("average_drop")
            average_drop, lower is better (method gradcam), best first
              p5  10 [10, 10]  a  first in 100%, rank 1 to 1
              p2  90 [90, 90]  b  first in 0%, rank 2 to 2
            a letter in common: cannot be told apart (1 paired tests, corrected by Holm, level 0.95, n = 9)
        """
        metrics, seed = self.manifest.get("metrics", []), self.manifest.get("seed", 0)
        return rank(self.rows, metrics, by, over, layer, method, level, test, resamples, seed)

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
        - "ranking": one metric, best first, with groups that do not differ significantly and how stable the order is.
        - "classes": one metric per class (the labels of the images), with intervals and numbers of images.
        - "spread": the distribution of one metric over the images, per layer and method.

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

        Args:
            path: The folder; created if it does not exist.
            level: Level of the intervals in the summary.
            summary: The result of `summary(level)`, to save computing it again.

        Raises:
            OutputError: The folder cannot be written.
        """
        super().save(path, summary=self.summary(level) if summary is None else summary)

    def to_html(self, path: str | Path, maps: Maps | None = None, **options: Any) -> None:
        """Write a report of the run as one self-contained HTML file; docs/report.md explains how to read it.

        Args:
            path: The file.
            maps: Images with their maps; `xaieval.report.images_to_show` lists the images that the report shows.
            options: Other fields of `xaieval.report.ReportOptions`, such as `methods`, `classes`, `level`, and `other`, a run
                to compare with.

        Raises:
            OutputError: The file cannot be written.
            MetricError: A method is not in the rows, or the runs cannot be compared.
            ProtocolError: The runs were measured under different protocols.
        """
        from xaieval.report.html.page import ReportOptions, write_report

        write_report(self, path, ReportOptions(maps=maps, **options))
