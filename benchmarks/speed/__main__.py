"""Speed of xaieval: compared with other libraries, metric by metric, with the lower bound, with growing work, and at start-up.

`python benchmarks/speed all` writes tables, figures and `manifest.json`; see docs/speed.md. Absolute times say more about the
machine than about the code, so the results are ratios of times that were measured in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import compare
import compiled
import cyclopts
import figures
import growth
import limit
import metric_times
import speed_tables
import startup
from networks import GREY, NETWORKS, Network, Scale, build
from record import write_manifest

app = cyclopts.App(name="speed", help=__doc__)

RESULTS = Path(__file__).parent / "results"


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """Options of all commands.

    Attributes:
        quick: Tiny settings that test the scripts; their numbers mean nothing.
        out: Folder of the results; rows of the same configuration are replaced, others stay.
        only: Networks, separated by commas: resnet50, mobilenetv2, vit_small; for metrics resnet18, vit_tiny. Default: all.
        images: Folder of images with one sub-folder per class. Default: generated scenes.
        weights: Weights of MobileNetV2 (safetensors). Default: random weights.
        rounds: Number of runs of each contestant. Default: depends on command and setting.
        seed: Seed of random weights.
        device: Device of models and images, such as cuda: for `peers`, `limit`, and the parts axes and maps of `growth`.
    """

    quick: bool = False
    out: Path = RESULTS
    only: str | None = None
    images: Path | None = None
    weights: Path | None = None
    rounds: int | None = None
    seed: int = 0
    device: str = "cpu"

    @property
    def scale(self) -> Scale:
        """Size and number of the images, and their device."""
        if self.quick:
            return Scale(side=64, pool=16, quick=True, device=self.device)
        return Scale(pool=64 if self.device == "cpu" else 256, device=self.device)

    def names(self, default: Sequence[str] = NETWORKS) -> Sequence[str]:
        """Names of the networks."""
        return self.only.split(",") if self.only else default

    def networks(self, default: Sequence[str] = NETWORKS) -> Iterator[Network]:
        """The networks, built one at a time."""
        for name in self.names(default):
            yield build(name, self.scale, self.images, self.weights, self.seed)

    def record(self, command: str, **more: object) -> None:
        """Write the manifest; of paths only the last part, since the rest depends on the machine."""
        given = {key: value.name if isinstance(value, Path) else value for key, value in asdict(self).items() if key != "out"}
        write_manifest(self.out, command, {**given, **more})


DEFAULT = Options()


@app.command
def peers(settings: str | None = None, *, prepare: bool = True, compiling: bool = True, options: Options = DEFAULT) -> None:
    """Speed compared with pytorch-grad-cam, torch-cam and captum, after a check that all give the same numbers.

    Args:
        settings: Layers x methods, such as 4x1,8x4. Default: the main settings and the cheap ones.
        prepare: Compare the numbers and try batch sizes first; otherwise the sizes that an earlier run has found are taken.
        compiling: Measure `compile=True`, too.
        options: See `Options`.
    """
    for network in options.networks():
        plans = compare.plan_of(network.name, settings, options.rounds, options.scale)
        compare.compare(network, plans, options.scale, options.out, prepare=prepare)
        if compiling:
            compiled.compiling(network, options.scale, options.out)
    options.record("peers", settings=settings)
    figures.draw(options.out)


@app.command
def metrics(metrics: str | None = None, count: int | None = None, *, options: Options = DEFAULT) -> None:
    """Time of each metric and image compared with Quantus, captum, pytorch-grad-cam and Xplique's formulas.

    Args:
        metrics: Names in the table, separated by commas. Default: all.
        count: Number of images. Default: that of the metric, see `metric_cases.Size`.
        options: See `Options`.
    """
    for network in options.networks(GREY):
        metric_times.measure(network, options.scale, options.rounds, options.out, metrics, count)
    options.record("metrics", metrics=metrics, count=count)


@app.command(name="limit")
def limit_(settings: str = "1x1,4x1,4x4,8x4", *, options: Options = DEFAULT) -> None:
    """Time of `score` compared with the forward and backward passes that it needs at least.

    Args:
        settings: Layers x methods, a selection of the default.
        options: See `Options`.
    """
    for network in options.networks():
        limit.efficiency(network, options.scale, options.rounds, options.out, compare.parse_settings(settings))
    options.record("limit", settings=settings)
    figures.draw(options.out)


@app.command(name="growth")
def growth_(parts: str = ",".join(growth.PARTS), *, options: Options = DEFAULT) -> None:
    """Time and memory over images, layers, methods, batch size and processes. Default: ResNet-50.

    Args:
        parts: axes, maps (32 compared with 1) and processes, separated by commas.
        options: See `Options`.
    """
    for name in options.names(NETWORKS[:1]):
        growth.grow(name, options.scale, options.out, parts.split(","))
    options.record("growth", parts=parts)
    figures.draw(options.out)


@app.command(name="startup")
def startup_(*, options: Options = DEFAULT) -> None:
    """Seconds until the import, the help, and the first result."""
    startup.start(options.quick, options.rounds, options.out)
    options.record("startup")


@app.command(name="all")
def all_(*, options: Options = DEFAULT) -> None:
    """All measurements, then the tables."""
    peers(options=options)
    metrics(options=options)
    limit_(options=options)
    growth_(options=options)
    startup_(options=options)
    print(speed_tables.markdown(options.out))


@app.command(name="tables")
def tables_(page: Path | None = None, *, options: Options = DEFAULT) -> None:
    """Print the tables of docs/speed.md, and redraw the figures.

    Args:
        page: Page whose tables are replaced.
        options: See `Options`.
    """
    print(speed_tables.markdown(options.out))
    if page is not None:
        speed_tables.write_into(page, options.out)
    figures.draw(options.out)


@app.command(show=False)
def point(point: str, scale: str) -> None:
    """Measure one point of `growth`, in a new process."""
    print(json.dumps(growth.measure_point(growth.Point(**json.loads(point)), Scale(**json.loads(scale)))))


@app.command(show=False)
def forwards(name: str, scale: str) -> None:
    """Forward passes in one of several processes of `growth`."""
    growth.forwards(name, Scale(**json.loads(scale)))


if __name__ == "__main__":
    app()
