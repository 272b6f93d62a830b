"""A Lightning callback that scores layers while a model trains (`pip install 'xaieval[fal]'`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
from torch import nn

from xaieval.config.counts import check_count
from xaieval.data.batches import Batch, read_batch, read_batches
from xaieval.errors import UsageError
from xaieval.evaluation.loop import score
from xaieval.evaluation.score_callback import Drawing, LogPicture, extended, logged_means, map_pictures
from xaieval.evaluation.scores import Scores
from xaieval.explainers import Method, resolve_methods
from xaieval.metrics import Metric, resolve_metrics
from xaieval.probe.requested_layers import Layers
from xaieval.training.picture_loggers import picture_logger

try:
    import lightning
    from lightning.pytorch.utilities.seed import isolate_rng
except ModuleNotFoundError as missing:
    raise UsageError("scoring during training needs Lightning, which is missing: pip install 'xaieval[fal]'") from missing

__all__ = ["ScoreLayers"]


class ScoreLayers(lightning.Callback):
    """Score layers of a model every few epochs and log the means of the metrics to all loggers.

    Each value is logged as `METRIC/LAYER/METHOD`, such as `average_drop/layer4/gradcam`, and other callbacks can monitor it.
    The images are the validation batches as the model received them. Training is not affected: modes, flags and gradients of
    the model and the state of all random generators are restored.

    With several processes, the first one scores images of its own share of the data while the others wait, and all of them log
    its values. Each process must hold the whole model, as with the strategy "ddp".

    Args:
        layers: Layer addresses, patterns or modules, of what `model` returns.
        methods: Explanation methods, as in `xaieval.score`.
        every: Score after every this many epochs.
        max_images: Largest number of images to score, the first ones of the validation data.
        metrics: Metrics, as in `xaieval.score`.
        loader: Images to score, as in `xaieval.score`. Default: those of the first validation loader.
        pictures: How many images are drawn with their maps and logged as `maps/LAYER/METHOD`, the images in a row and the maps
            over them below, to the loggers that take pictures: those of Lightning for TensorBoard, Weights & Biases, MLflow and
            Comet.
        preprocessing: For pictures, the preprocessing whose normalisation is undone; see `xaieval.show`.
        mean: Instead, the mean of the normalisation.
        std: The standard deviation of the normalisation.
        bands: The channels that are shown; see `xaieval.show`.
        model: Function from the Lightning module to the network that is scored. Default: the module itself, which then needs
            a `forward`.
        choices: Other arguments of `xaieval.score`, such as `protocol`, `target` or `task`.

    Attributes:
        scores: Rows of the last scoring, in the process that scored; None before the first.
        history: A row for each scoring, layer and method, as of `xaieval.ScoreCallback`, in the process that scored.

    Raises:
        UsageError: `every` or `max_images` is below 1, or a method or metric is unknown; at the start of training, if the
            module has no `forward`, or if there are pictures and no logger takes them.

    Example:
        >>> callback = ScoreLayers(["layer3", "layer4"], every=5, model=lambda module: module.model)
        >>> trainer = lightning.Trainer(callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        layers: Layers = (),
        methods: Method | Sequence[Method] = ("gradcam",),
        every: int = 1,
        max_images: int = 64,
        metrics: str | Metric | Sequence[str | Metric] = ("average_drop", "increase_in_confidence"),
        loader: Iterable[Any] | None = None,
        model: Callable[[Any], nn.Module] | None = None,
        *,
        pictures: int = 0,
        preprocessing: Any = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bands: Sequence[int] | None = None,
        **choices: Any,
    ) -> None:
        super().__init__()
        check_count("every", every)
        check_count("max_images", max_images, optional=True)
        self.layers = [layers] if isinstance(layers, str | nn.Module) else list(layers)
        self.methods = resolve_methods(methods)
        self.metrics = resolve_metrics(metrics)
        self.every = every
        self.max_images = max_images
        self.loader = loader
        self.model = model
        self.drawing = Drawing(images=pictures, preprocessing=preprocessing, mean=mean, std=std, bands=bands)
        self.choices = choices
        self.scores: Scores | None = None
        self.history = pd.DataFrame()
        self._kept: list[Batch] = []

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse a module without `forward`, and pictures that no logger takes."""
        if self.model is None and type(pl_module).forward is lightning.LightningModule.forward:
            raise UsageError(
                f"{type(pl_module).__name__} has no forward(), so it cannot be scored; name the network to score, as in "
                "ScoreLayers(..., model=lambda module: module.net)"
            )
        if self.drawing.images and trainer.is_global_zero and not self._picture_loggers(trainer):
            names = [type(logger).__name__ for logger in trainer.loggers]
            raise UsageError(
                f"pictures= are logged, and no logger takes them: {', '.join(names) or 'there is none'}; add one such as "
                "lightning.pytorch.loggers.TensorBoardLogger, or leave pictures= out"
            )

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Drop the images of the previous validation."""
        self._kept = []

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep copies of the first batches, before the module can write into them."""
        if self.loader is None and dataloader_idx == 0 and self._is_due(trainer):
            count = sum(len(kept) for kept in self._kept)
            if count < self.max_images:
                self._kept.append(read_batch(batch, count).copied())

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Score the kept images and log the means."""
        if not self._is_due(trainer):
            return
        kept, self._kept = [batch.to_mapping() for batch in self._kept], []
        means: dict[str, float] = {}
        if trainer.is_global_zero:
            with isolate_rng():
                scores = self._score(pl_module, kept if self.loader is None else self.loader)
                means = logged_means(scores)
                self.history = extended(self.history, scores, trainer.current_epoch, trainer.global_step)
                if self.drawing.images:
                    self._log_pictures(trainer, pl_module, kept if self.loader is None else self.loader)
        means = trainer.strategy.broadcast(means)
        pl_module.log_dict(means, sync_dist=trainer.world_size > 1)  # equal in all processes, so averaging changes nothing

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        """Whether to score after this validation: always outside of training, and never in Lightning's sanity check."""
        if trainer.sanity_checking:
            return False
        return trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every == 0

    def _score(self, module: lightning.LightningModule, loader: Iterable[Any]) -> Scores:
        self.scores = score(
            self._network(module),
            loader,
            self.layers,
            self.methods,
            self.metrics,
            max_images=self.max_images,
            progress=False,
            **self.choices,
        )
        return self.scores

    def _log_pictures(self, trainer: lightning.Trainer, module: lightning.LightningModule, loader: Iterable[Any]) -> None:
        batches = list(read_batches(loader, max_images=self.drawing.images))
        pictures = map_pictures(self._network(module), batches, self.layers, self.methods, self.drawing, self.choices)
        for log in self._picture_loggers(trainer):
            for name, picture in pictures.items():
                log(name, picture, trainer.global_step)

    def _picture_loggers(self, trainer: lightning.Trainer) -> list[LogPicture]:
        return [log for log in map(picture_logger, trainer.loggers) if log is not None]

    def _network(self, module: lightning.LightningModule) -> nn.Module:
        return module if self.model is None else self.model(module)
