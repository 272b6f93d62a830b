"""Speed of xaieval: beside other libraries, against the limit, with growing work, and at the start.

`python benchmarks/speed all` writes tables, figures and `manifest.json`; see docs/speed.md. Absolute times say more about the
machine than about the code, so the results are ratios of times that were taken in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import compare
import compiled
import cyclopts
import figures
import growth
import limit
import startup
import tables
from networks import NETWORKS, Network, Scale, build
from record import write_manifest

app = cyclopts.App(name="speed", help=__doc__)

RESULTS = Path(__file__).parent / "results"


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the commands have in common.

    Attributes:
        quick: tiny settings that show that everything works; their numbers mean nothing.
        out: folder of the results; rows of the same configuration are replaced, others stay.
        only: networks, separated by commas: resnet50, mobilenetv2, vit_small.
        images: folder of images with one sub-folder a class; generated scenes unless told.
        weights: weights of MobileNetV2 (safetensors); random unless told.
        rounds: how often every contestant runs; chosen by command and setting unless told.
        seed: of random weights.
    """

    quick: bool = False
    out: Path = RESULTS
    only: str | None = None
    images: Path | None = None
    weights: Path | None = None
    rounds: int | None = None
    seed: int = 0

    @property
    def scale(self) -> Scale:
        """Size of the measurements."""
        return Scale(side=64, pool=16, quick=True) if self.quick else Scale()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the networks."""
        return tuple(self.only.split(",")) if self.only else NETWORKS

    def networks(self) -> Iterator[Network]:
        """One at a time."""
        for name in self.names:
            yield build(name, self.scale, self.images, self.weights, self.seed)

    def record(self, command: str, **more: object) -> None:
        """Write the manifest; of paths the last part alone, since the rest says nothing to others."""
        given = {key: value.name if isinstance(value, Path) else value for key, value in asdict(self).items() if key != "out"}
        write_manifest(self.out, command, {**given, **more})


DEFAULT = Options()


@app.command
def peers(settings: str | None = None, *, options: Options = DEFAULT) -> None:
    """Speed beside pytorch-grad-cam, torch-cam and captum, after a check that the numbers are the same.

    Args:
        settings: layers x methods, such as 4x1,8x4; the headline and the cheap ones unless told.
        options: see there.
    """
    for network in options.networks():
        compare.compare(network, compare.plan_of(network.name, settings, options.rounds), options.scale, options.out)
        compiled.compiling(network, options.scale, options.out)
    options.record("peers", settings=settings)
    figures.draw(options.out)


@app.command(name="limit")
def limit_(settings: str = "1x1,4x1,4x4,8x4", *, options: Options = DEFAULT) -> None:
    """How near `score` comes to the forward and backward passes that it cannot do without.

    Args:
        settings: layers x methods, some of these.
        options: see there.
    """
    for network in options.networks():
        limit.efficiency(network, options.scale, options.rounds, options.out, compare.parse_settings(settings))
    options.record("limit", settings=settings)
    figures.draw(options.out)


@app.command(name="growth")
def growth_(parts: str = ",".join(growth.PARTS), *, options: Options = DEFAULT) -> None:
    """Time and memory over images, layers, methods, batch size and processes; ResNet-50 unless told.

    Args:
        parts: axes, maps (32 against 1) and processes, separated by commas.
        options: see there.
    """
    for name in options.names if options.only else NETWORKS[:1]:
        growth.grow(name, options.scale, options.out, parts.split(","))
    options.record("growth", parts=parts)
    figures.draw(options.out)


@app.command(name="startup")
def startup_(*, options: Options = DEFAULT) -> None:
    """Seconds of the first import, the help, and the first result."""
    startup.start(options.quick, options.rounds, options.out)
    options.record("startup")


@app.command(name="all")
def all_(*, options: Options = DEFAULT) -> None:
    """The four measurements, then the tables."""
    peers(options=options)
    limit_(options=options)
    growth_(options=options)
    startup_(options=options)
    print(tables.markdown(options.out))


@app.command(name="tables")
def tables_(page: Path | None = None, *, options: Options = DEFAULT) -> None:
    """Print the tables of docs/speed.md, and draw the figures anew.

    Args:
        page: write the tables into this page as well, in the places that it has for them.
        options: see there.
    """
    print(tables.markdown(options.out))
    if page is not None:
        tables.write_into(page, options.out)
    figures.draw(options.out)


@app.command(show=False)
def point(point: str, scale: str) -> None:
    """One point of `growth`, asked for by it in a process of its own."""
    print(json.dumps(growth.measure_point(growth.Point(**json.loads(point)), Scale(**json.loads(scale)))))


@app.command(show=False)
def forwards(name: str, scale: str) -> None:
    """Forward passes of one process beside others, asked for by `growth`."""
    growth.forwards(name, Scale(**json.loads(scale)))


if __name__ == "__main__":
    app()
