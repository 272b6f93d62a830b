"""Explanations scored while a model trains, by a callback of Lightning (`pip install 'xaieval[fal]'`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from xaieval.data.batches import Batch, read_batch
from xaieval.errors import UsageError
from xaieval.evaluation.loop import score
from xaieval.evaluation.scores import Scores
from xaieval.explainers import Method, resolve_methods
from xaieval.metrics import Metric, resolve_metrics

try:
    import lightning
    from lightning.pytorch.utilities.seed import isolate_rng
except ModuleNotFoundError as missing:
    raise UsageError(
        "scoring during training is a callback of Lightning, which is missing: pip install 'xaieval[fal]'"
    ) from missing

__all__ = ["ScoreLayers"]


class ScoreLayers(lightning.Callback):
    """Scores layers of the model after every few validations, and logs the means to whatever loggers there are.

    A value is called `METRIC/LAYER/METHOD`, such as `average_drop/layer4/gradcam`, and can be monitored by other callbacks. The
    validation batches are scored as the model was given them. Training goes on as if nothing had been: the model's modes,
    flags and gradients and all random numbers are put back.

    With several processes the first one scores images of its own share of the data while the others wait, and all of them log
    what it found. That needs a model that is whole in each process, as with the strategy "ddp".

    Args:
        layers: addresses or patterns, below what `model` gives.
        methods: as for `xaieval.score`.
        every: score after each so many epochs, the first time after `every` of them.
        max_images: at most so many images, the first ones of the validation.
        metrics: as for `xaieval.score`.
        loader: other images than those of the first validation loader; anything that `xaieval.score` takes.
        model: from the Lightning module to what is scored; the module itself, if it has a `forward`, unless told.
        choices: anything else that `xaieval.score` takes, such as `protocol`, `target` or `task`.

    Attributes:
        scores: the rows of the last scoring, in the process that scored; None before.

    Raises:
        UsageError: a number below 1, or no such method or metric; when training starts, a module without `forward`.

    Example:
        >>> callback = ScoreLayers(["layer3", "layer4"], every=5, model=lambda module: module.model)
        >>> trainer = lightning.Trainer(callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        layers: str | Iterable[str] = (),
        methods: Method | Sequence[Method] = ("gradcam",),
        every: int = 1,
        max_images: int = 64,
        metrics: str | Metric | Sequence[str | Metric] = ("average_drop", "increase_in_confidence"),
        loader: Iterable[Any] | None = None,
        model: Callable[[Any], nn.Module] | None = None,
        **choices: Any,
    ) -> None:
        super().__init__()
        if every < 1 or max_images < 1:
            raise UsageError(f"every and max_images are at least 1, got {every} and {max_images}")
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        self.methods = resolve_methods(methods)
        self.metrics = resolve_metrics(metrics)
        self.every = every
        self.max_images = max_images
        self.loader = loader
        self.model = model
        self.choices = choices
        self.scores: Scores | None = None
        self._kept: list[Batch] = []

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse a module that cannot be run."""
        if self.model is None and type(pl_module).forward is lightning.LightningModule.forward:
            raise UsageError(
                f"{type(pl_module).__name__} has no forward(), so it cannot be scored itself; say what is, as in "
                "ScoreLayers(..., model=lambda module: module.net)"
            )

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget the images of an earlier validation."""
        self._kept = []

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first batches, as they came to the model."""
        if self.loader is None and dataloader_idx == 0 and self._is_due(trainer):
            have = sum(len(kept) for kept in self._kept)
            if have < self.max_images:
                self._kept.append(read_batch(batch, have))

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Score, and log."""
        if not self._is_due(trainer):
            return
        kept, self._kept = [batch.to_mapping() for batch in self._kept], []
        found: dict[str, float] = {}
        if trainer.is_global_zero:
            with isolate_rng():
                found = self._score(pl_module, kept if self.loader is None else self.loader)
        found = trainer.strategy.broadcast(found)
        pl_module.log_dict(found, sync_dist=trainer.world_size > 1)  # the same everywhere, so their mean is what it was

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        """Whether this validation is one to score after: each one outside of training, but not the trial before it."""
        if trainer.sanity_checking:
            return False
        return trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every == 0

    def _score(self, module: lightning.LightningModule, loader: Iterable[Any]) -> dict[str, float]:
        self.scores = score(
            module if self.model is None else self.model(module),
            loader,
            self.layers,
            self.methods,
            self.metrics,
            max_images=self.max_images,
            progress=False,
            **self.choices,
        )
        names = [metric.name for metric in self.metrics]
        rows = self.scores.summary().reset_index().to_dict("records")
        return {f"{name}/{row['layer']}/{row['method']}": float(row[name]) for row in rows for name in names}
