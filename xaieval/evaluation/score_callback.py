"""Score the layers of a model again and again while it trains, in a loop of any kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from xaieval.config.counts import check_count
from xaieval.data.batches import Batch, read_batches
from xaieval.errors import UsageError, choose_from
from xaieval.evaluation.explain import explain
from xaieval.evaluation.loop import score
from xaieval.evaluation.scores import Scores
from xaieval.explainers import Method, resolve_methods
from xaieval.inference.options import Inference
from xaieval.inference.reproducibility import same_random_numbers
from xaieval.metrics import Metric, resolve_metrics
from xaieval.probe.requested_layers import Layers
from xaieval.report.figures.overlays import blended, check_maps, to_pixels
from xaieval.report.figures.slices import check_slices, strips

__all__ = ["Drawing", "LogPicture", "ScoreCallback", "extended", "logged_means", "map_pictures"]

Log = Callable[[str, float, int], Any]
LogPicture = Callable[[str, NDArray[np.uint8], int], Any]

OF_MAPS = ("target", "protocol", "seed", "inference", *(field.name for field in fields(Inference)))  # arguments of `explain`
ALPHA = 0.5


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures of maps are drawn.

    Attributes:
        images: The number of images, the first ones; 0 draws none.
        preprocessing: As of `xaieval.show`, as are all that follow.
        mean: See there.
        std: See there.
        bands: See there.
    """

    images: int = 0
    preprocessing: Any = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    bands: Sequence[int] | None = None


class ScoreCallback:
    """Score layers of a model every few epochs, keep the history, and log it; for training loops of any kind.

    In a loop of one's own it is called at the end of each epoch; `transformers()` and `ultralytics` are for the trainers of
    these libraries, and `xaieval.training.callbacks.ScoreLayers` is for Lightning. The images are the same every time: the
    first ones that the loader gives, which are kept in memory. The training is not affected: modes, hooks, flags and gradients
    of the model and the state of all random generators are restored.

    Args:
        loader: Images to score, as in `xaieval.score`.
        layers: Layer addresses, patterns or modules, as in `xaieval.score`.
        methods: Explanation methods, as in `xaieval.score`.
        metrics: Metrics, as in `xaieval.score`.
        every: Score after every this many epochs.
        max_images: Largest number of images.
        model: A function from the model of the loop to the network that is scored. Default: the model itself.
        log: A function `(name, value, step)` that is given the mean of each metric, such as `writer.add_scalar` of TensorBoard.
            Names are METRIC/LAYER/METHOD.
        log_picture: A function `(name, picture, step)` that is given pictures `[H, W, 3]` of bytes, named maps/LAYER/METHOD:
            the images in a row, and the map over each of them below.
        pictures: How many images are drawn for it.
        preprocessing: For pictures, the preprocessing whose normalisation is undone; as of `xaieval.show`.
        mean: Instead, the mean of the normalisation.
        std: The standard deviation of the normalisation.
        bands: The channels that are shown; as of `xaieval.show`.
        on_error: "raise" ends the training with the error of a scoring that fails; "warn" gives a warning, and goes on.
        **choices: Other arguments of `xaieval.score`, such as `protocol`, `target`, `controls` or `device`.

    Attributes:
        scores: The last scores; None before the first.
        history: A row for each scoring, layer and method: epoch (from 0), step, layer, method, and the columns of
            `Scores.summary`.

    Raises:
        UsageError: A choice is out of range, or a method or metric is unknown.

    Example:
        >>> import torch, torchvision
        >>> model, batches = torchvision.models.resnet18(num_classes=3), [torch.rand(2, 3, 32, 32)]
        >>> watch = ScoreCallback(batches, ["layer4"], every=2)
        >>> for epoch in range(4):
        ...     _ = model.train()  # here the model trains
        ...     _ = watch(model, epoch)
        >>> watch.history[["epoch", "layer", "method", "n_images"]].values.tolist()
        [[1, 'layer4', 'gradcam', 2], [3, 'layer4', 'gradcam', 2]]
    """

    def __init__(
        self,
        loader: Iterable[Any],
        layers: Layers = (),
        methods: Method | Sequence[Method] = ("gradcam",),
        metrics: str | Metric | Sequence[str | Metric] = ("average_drop", "increase_in_confidence"),
        *,
        every: int = 1,
        max_images: int = 64,
        model: Callable[[Any], nn.Module] | None = None,
        log: Log | None = None,
        log_picture: LogPicture | None = None,
        pictures: int = 4,
        preprocessing: Any = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bands: Sequence[int] | None = None,
        on_error: Literal["raise", "warn"] = "raise",
        **choices: Any,
    ) -> None:
        check_count("every", every)
        check_count("max_images", max_images, optional=True)
        check_count("pictures", pictures)
        if on_error not in ("raise", "warn"):
            raise UsageError(f"no on_error={on_error!r}; {choose_from(str(on_error), ('raise', 'warn'))}")
        self.loader = loader
        self.layers, self.methods, self.metrics = layers, resolve_methods(methods), resolve_metrics(metrics)
        self.every, self.max_images, self.model = every, max_images, model
        self.log, self.log_picture, self.on_error = log, log_picture, on_error
        self.drawing = Drawing(images=pictures, preprocessing=preprocessing, mean=mean, std=std, bands=bands)
        self.choices = {"progress": False, **choices}
        self.scores: Scores | None = None
        self.history = pd.DataFrame()
        self._batches: list[Batch] = []
        self._stopped = False  # a trainer of ultralytics

    def __call__(self, model: Any, epoch: int, step: int | None = None) -> Scores | None:
        """Score the model if it is time.

        Args:
            model: What is trained.
            epoch: The number of the epoch that has ended, from 0.
            step: What the logged values stand at. Default: the epoch.

        Returns:
            The scores; None if it is not time, or if the scoring failed and `on_error` is "warn".
        """
        if (epoch + 1) % self.every:
            return None
        try:
            with same_random_numbers():
                return self._scored(model, epoch, epoch if step is None else step)
        except Exception as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"scoring after epoch {epoch} failed: {type(error).__name__}: {error}", stacklevel=2)
            return None

    def _scored(self, model: Any, epoch: int, step: int) -> Scores:
        network = model if self.model is None else self.model(model)
        self._batches = self._batches or list(read_batches(self.loader, max_images=self.max_images))
        batches = [batch.copied().to_mapping() for batch in self._batches]
        self.scores = score(network, batches, self.layers, self.methods, self.metrics, **self.choices)
        self.history = extended(self.history, self.scores, epoch, step)
        if self.log is not None:
            for name, value in logged_means(self.scores).items():
                self.log(name, value, step)
        if self.log_picture is not None:
            shown = map_pictures(network, self._batches, self.layers, self.methods, self.drawing, self.choices)
            for name, picture in shown.items():
                self.log_picture(name, picture, step)
        return self.scores

    def transformers(self) -> Any:
        """A callback for `transformers.Trainer(callbacks=[...])`, which scores at the end of an epoch.

        The values are also put into the trainer's `state.log_history`. With several processes, the first one scores.

        Raises:
            UsageError: transformers is not installed.
        """
        try:
            from transformers import TrainerCallback
        except ModuleNotFoundError as missing:
            raise UsageError("a callback for transformers needs transformers: pip install 'xaieval[hf]'") from missing
        watch = self

        class Scoring(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
            def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                if state.is_world_process_zero:
                    scores = watch(model, round(state.epoch) - 1, state.global_step)
                    means = {} if scores is None else logged_means(scores)
                    if means:
                        state.log_history.append({**means, "epoch": state.epoch, "step": state.global_step})

        return Scoring()

    def ultralytics(self, trainer: Any) -> None:
        """A callback for `YOLO.add_callback("on_fit_epoch_end", ...)`, which scores the averaged weights that YOLO saves.

        With several processes, the first one scores.
        """
        again, self._stopped = self._stopped and trainer.stop, bool(trainer.stop)
        is_other = dist.is_available() and dist.is_initialized() and dist.get_rank() > 0
        if not again and not is_other:  # after the last epoch the event comes once more, for the best weights
            self(trainer.ema.ema if trainer.ema else trainer.model, trainer.epoch)


def extended(history: pd.DataFrame, scores: Scores, epoch: int, step: int) -> pd.DataFrame:
    """A history with the rows of another scoring: epoch, step, layer, method, and the columns of `Scores.summary`."""
    rows = scores.summary().reset_index()
    rows.insert(0, "epoch", epoch)
    rows.insert(1, "step", step)
    return pd.concat([history, rows], ignore_index=True) if len(history) else rows


def logged_means(scores: Scores) -> dict[str, float]:
    """The means of a run by the names under which they are logged, METRIC/LAYER/METHOD."""
    names = [metric["name"] for metric in scores.metrics]
    rows = scores.summary().reset_index().to_dict("records")
    return {f"{name}/{row['layer']}/{row['method']}": float(row[name]) for row in rows for name in names}


def map_pictures(
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Layers,
    methods: Sequence[Any],
    drawing: Drawing,
    choices: Mapping[str, Any],
) -> dict[str, NDArray[np.uint8]]:
    """Pictures `[2 H, n W, 3]` of the first images, in a row, and of each map over them below, named maps/LAYER/METHOD.

    Of volumes, slices or frames are drawn, as by `xaieval.show`.

    Args:
        model: The network.
        batches: The images; those of the first batch that can be read are drawn.
        layers: As of `xaieval.explain`.
        methods: See there.
        drawing: How many images are drawn, and how.
        choices: Arguments of `xaieval.score`, of which those that maps depend on are used.

    Raises:
        DataError: The images are not in [0, 1], and how they were normalised is not known.
    """
    batch = next((one for one in batches if len(one)), None)
    if batch is None or not drawing.images:
        return {}
    few = batch.part(0, drawing.images, [])
    pixels = to_pixels(few.images, drawing.preprocessing, drawing.mean, drawing.std, drawing.bands)
    settings = {name: value for name, value in choices.items() if name in OF_MAPS}
    found = explain(model, few.images, layers, list(methods), labels=few.labels, ids=few.ids, **settings)
    maps = {f"maps/{layer}/{method}": check_maps(layer, one, few.images) for (layer, method), one in found.items()}
    if few.images.ndim == 5:
        pixels, maps = strips(pixels, maps, check_slices(None, few.images.shape[1]))
    images = [blended(one, None) for one in pixels]
    over = {name: [blended(*pair, ALPHA) for pair in zip(pixels, of_all, strict=True)] for name, of_all in maps.items()}
    return {name: np.concatenate([np.concatenate(row, axis=1) for row in (images, below)]) for name, below in over.items()}
