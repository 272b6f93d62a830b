"""The result of `cross_score`: the maps of each model on each model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from xaieval.analysis.cross import PARTS, cross_notes, cross_table, split_differences
from xaieval.analysis.stats.paired import PairedTest
from xaieval.results.findings import Finding
from xaieval.results.metric_display import decimals_of, interval_text, label_of, mean_text
from xaieval.results.record import RunRecord
from xaieval.results.rows import CROSS_KEYS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CrossScores"]

_SPLIT: list[Hashable] = ["layer", "method", "metric", "first", "second"]
_MOST_SHOWN = 12  # tables in the text of a result


@dataclass(frozen=True, repr=False)
class CrossScores(RunRecord):
    """Rows and manifest of `xaieval.cross_score`; tables are computed from them alone.

    Attributes:
        rows: Columns `image_id`, `layer`, `method`, `group` if images have groups, `masks_of` (the model whose map masks the
            image, or a control map), `model` (the model that is shown the masked image), and the columns of `Scores.rows`. The
            layers of models whose names differ are joined by " / ". The status "models_disagree" means that the models predict
            different classes.
        manifest: As of `Scores`; `cross` has the names of the models and the layers of each, `models` describes them.
    """

    keys: ClassVar[Sequence[str]] = CROSS_KEYS

    def __repr__(self) -> str:
        head = (
            f"cross scores of {self.rows['image_id'].nunique()} images: maps of (rows) on models (columns); "
            "differences between models = part of the maps + part of the models"
        )
        blocks = list(self._blocks())
        more = [f"and {len(blocks) - _MOST_SHOWN} more, see table() and split()"] if len(blocks) > _MOST_SHOWN else []
        return "\n".join([head, *self.notes, *blocks[:_MOST_SHOWN], *more])

    @property
    def models(self) -> list[str]:
        """The names of the models."""
        return list(self.manifest["cross"]["models"])

    @property
    def notes(self) -> list[str]:
        """How many images do not count, and why, as sentences; none if all count."""
        return cross_notes(self.rows)

    @property
    def findings(self) -> list[Finding]:
        """Reasons not to trust the numbers, found on the first batch; those of single models begin with their names."""
        return [Finding.from_dict(entry) for entry in self.manifest.get("findings", ())]

    def table(self, metrics: str | Sequence[str] | None = None, *, level: float = 0.95) -> pd.DataFrame:
        """The mean of each metric for the maps of each model, and of each control map, on each model.

        See `xaieval.analysis.cross.cross_table` for an example.

        Args:
            metrics: Names of metrics (default: all).
            level: Level of the intervals, in (0, 1).

        Returns:
            Index `(layer, method, metric, masks_of, model)`; columns `mean`, `low`, `high`, and `n_images`. The images are
            those whose rows count for all maps and models at a layer.

        Raises:
            MetricError: A metric is unknown, or the level is not in (0, 1).
        """
        return cross_table(self.rows, self.metrics, metrics, level, self.group_weights)

    def split(
        self, metrics: str | Sequence[str] | None = None, *, level: float = 0.95, test: PairedTest = "signs"
    ) -> pd.DataFrame:
        """The difference between two models' own scores, split into the part of the maps and the part of the models.

        See `xaieval.analysis.cross.split_differences` for the formulas and an example.

        Args:
            metrics: Names of metrics (default: those that have a direction).
            level: Level of the intervals, in (0, 1).
            test: Test of means: "signs" or "wilcoxon".

        Returns:
            Index `(layer, method, metric, first, second, part)` with the parts "difference", "map" and "model"; columns `value`
            (first minus second), `low`, `high`, `n_images`, `p_value`, and `p_holm`, corrected for all tests of the table.

        Raises:
            MetricError: A metric or the test is unknown, or the level is not in (0, 1).
        """
        return split_differences(
            self.rows, self.metrics, self.models, metrics, level, test, seed=self.seed, weights=self.group_weights
        )

    def plot(
        self,
        metric: str | None = None,
        ax: Axes | None = None,
        *,
        method: str | None = None,
        level: float = 0.95,
        size: float | tuple[float, float] | None = None,
    ) -> Figure:
        """Draw the means of a metric for all maps on all models, with intervals.

        See `xaieval.report.cross_figure` for how to read it.

        Args:
            metric: Name of the metric (default: the first one).
            ax: Axes to draw on (default: those of a new figure).
            method: The method whose maps are shown (default: the only one).
            level: Level of the intervals, in (0, 1).
            size: Width in inches, with a fitted height, or (width, height).

        Returns:
            A new figure that is not shown in a window, or the figure of `ax`.

        Raises:
            MetricError: A metric or method is unknown, or there are several methods and none is named.
            UsageError: Both `ax` and `size` are given.
        """
        from xaieval.report.figures.crosses import cross_figure

        return cross_figure(self, metric, method, level=level, size=size, ax=ax)

    def save(self, path: str | Path, level: float = 0.95, summary: pd.DataFrame | None = None) -> None:
        """Write `rows.parquet`, `summary.csv` (the table) and `manifest.json` into a folder; `load` reads them.

        Args:
            path: The folder; created if it does not exist.
            level: Level of the intervals in the table.
            summary: The result of `table(level=level)`, to save computing it again.

        Raises:
            OutputError: The folder cannot be written.
        """
        self._write(path, self.table(level=level) if summary is None else summary)

    def _blocks(self) -> Iterator[str]:
        """A small table for each layer, method and metric, with the parts of the differences below it."""
        table, parts = self.table(), self.split()
        entries = {metric["name"]: metric for metric in self.metrics}
        control = table.index.get_level_values("masks_of").isin(self.controls)
        for key, cells in table[~control].groupby(["layer", "method", "metric"], sort=False):
            layer, method, metric = key
            shown = pd.concat([cells, table[control & (table.index.get_level_values("metric") == metric)]])
            texts = pd.Series([_cell(row, entries[metric]) for row in shown.to_dict("records")], index=shown.index)
            wide = texts.droplevel(["layer", "method", "metric"]).unstack("model", sort=False)  # noqa: PD010  # of text
            own = parts[[name[:3] == key for name in parts.index]]
            lines = [_sentence(names, split, entries[metric]) for names, split in own.groupby(["first", "second"], sort=False)]
            yield "\n".join([f"{label_of(entries[metric])}, {method} at {layer}", _without_names(wide), *lines])


def _without_names(table: pd.DataFrame) -> str:
    """A table as text, without the names of its index and columns."""
    return table.rename_axis(index=None, columns=None).to_string()


def _cell(row: Mapping[Any, Any], metric: Mapping[str, Any]) -> str:
    return mean_text(row["mean"], row["low"], row["high"], metric)


def _sentence(names: Any, parts: pd.DataFrame, metric: Mapping[str, Any]) -> str:
    """A difference and its parts in one line."""
    form = f"+.{decimals_of(metric)}f"
    words = [
        f"{row['value']:{form}} {interval_text(row['low'], row['high'], form)}"
        for row in parts.droplevel(_SPLIT).loc[list(PARTS)].to_dict("records")
    ]
    return f"  {names[0]} - {names[1]}: {words[0]} = maps {words[1]} + models {words[2]}"
