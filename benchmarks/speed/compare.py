"""Speed compared with other libraries: the same numbers from the same model and images, timed in turn in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from networks import METHODS, Batches, Network, Scale
from peer_loops import PEERS, Peer, available_variants, ours
from record import processor, read, replace_rows
from same_numbers import agreement, without_counterpart
from timing import alternate, spread, stopwatch

__all__ = ["Plan", "Setting", "compare", "parse_settings", "plan_of", "summarise"]

OURS = "xaieval"
Run = Callable[..., object]
FASTER = {"resnet50": 1, "mobilenetv2": 2, "vit_small": 1}
CONFIGURATION = ("model", "layers", "methods", "processor")  # rows of several machines stand side by side
CONTESTANT = ("tool", "variant", "batch_size")


@dataclass(frozen=True)
class Setting:
    """A number of layers and a number of methods."""

    layers: int
    methods: int

    @property
    def maps(self) -> int:
        """Maps per image."""
        return self.layers * self.methods


@dataclass(frozen=True)
class Plan:
    """How a setting is timed.

    Attributes:
        setting: Number of layers and methods.
        rounds: Number of runs of each contestant.
        faster: Factor for the number of images, for networks and devices that are faster than ResNet-50 on a CPU.
    """

    setting: Setting
    rounds: int
    faster: int = 1

    @property
    def images(self) -> int:
        """Images for the peers: few, because some take seconds per image."""
        return (16 if self.setting.maps == 1 else 8) * self.faster

    @property
    def our_images(self) -> int:
        """Images for xaieval: more, so that the fixed cost of a call counts less."""
        return 2 * self.images if self.setting.maps <= 4 else self.images


def parse_settings(text: str) -> list[Setting]:
    """Settings from "4x1,8x4": layers x methods."""
    return [Setting(*(int(number) for number in part.split("x"))) for part in text.split(",")]


def plan_of(name: str, settings: str | None, rounds: int | None, scale: Scale) -> list[Plan]:
    """Plans of a network: five rounds of its main settings, three of others. Default: main settings and 1x1."""
    headline = {"resnet50": "4x1,8x4"}.get(name, "4x1")
    chosen = parse_settings(settings or f"1x1,{headline}")
    first = parse_settings(headline)
    return [Plan(setting, rounds or (5 if setting in first else 3), FASTER[name] * scale.more) for setting in chosen]


def compare(network: Network, plans: Sequence[Plan], scale: Scale, out: Path, *, prepare: bool = True) -> None:
    """Check the numbers, find each peer's best batch size, and time the settings; writes the CSV files.

    Args:
        network: The network.
        plans: The settings.
        scale: The size of the measurements.
        out: Where the files are.
        prepare: False skips the first two, and takes the batch sizes that an earlier run has written there.
    """
    if prepare:
        checked = agreement(network, 2 if scale.quick else 4)
        replace_rows(out / "agreement.csv", [*checked, *without_counterpart(network)], ("model",))
        _try_sizes(network, scale, out)
    best = _best_sizes(network, out)
    for plan in plans:
        rows = _time(network, plan, best, scale)
        replace_rows(out / "rounds.csv", rows, CONFIGURATION)
        print(
            summarise(rows)[[*CONFIGURATION, *CONTESTANT, "images_per_second", "ours_is_faster"]].to_string(index=False),
            flush=True,
        )
    replace_rows(out / "peers.csv", summarise(read(out / "rounds.csv")), CONFIGURATION)


# ---- batch sizes


def _try_sizes(network: Network, scale: Scale, out: Path) -> None:
    """Images per second of each peer by batch size, at the deepest layer by the first method."""
    rows = []
    for peer in PEERS:
        if peer.serves(network, METHODS[:1]):
            rows += [_trial(network, peer, size, scale) for size in scale.sizes]
    if not rows:
        return
    frame = pd.DataFrame(rows)
    frame["best"] = frame.groupby("tool")["images_per_second"].transform("max") == frame["images_per_second"]
    replace_rows(out / "batch_trials.csv", frame, ("model",))


def _best_sizes(network: Network, out: Path) -> dict[str, int]:
    """By peer, the batch size with the most images per second."""
    frame = read(out / "batch_trials.csv")
    chosen = frame[(frame["model"] == network.name) & frame["best"]] if len(frame) else frame
    return {row.tool: row.batch_size for row in chosen.itertuples()}


def _trial(network: Network, peer: Peer, size: int, scale: Scale) -> dict[str, Any]:
    count = min(max(2 * size, 8), scale.sizes[-1])
    work = _work(peer.run, network, network.batches(count, size), Setting(1, 1))
    _work(peer.run, network, network.batches(size, size), Setting(1, 1))()  # the first call of a shape is slower
    seconds = min(stopwatch(work) for _ in range(2))
    return {
        "model": network.name,
        "tool": peer.name,
        "batch_size": size,
        "n_images": count,
        "images_per_second": count / seconds,
    }


# ---- times


@dataclass(frozen=True)
class Entry:
    """A contestant and its images."""

    tool: str
    variant: str
    size: int
    images: int
    work: Callable[[], object]


def _time(network: Network, plan: Plan, best: dict[str, int], scale: Scale) -> list[dict[str, Any]]:
    """Seconds of each contestant in each round, one row each."""
    entries = [*_ours(network, plan, scale), *_peers(network, plan, best, scale)]
    by_name = {f"{entry.tool}, {entry.variant}, {entry.size}": entry for entry in entries}
    for entry in entries:
        _warm(network, entry, plan.setting)
    seconds = alternate({name: entry.work for name, entry in by_name.items()}, plan.rounds)
    return [
        {
            "model": network.name,
            "layers": plan.setting.layers,
            "methods": plan.setting.methods,
            "tool": entry.tool,
            "variant": entry.variant,
            "processor": torch.cuda.get_device_name() if scale.device != "cpu" else processor(),
            "batch_size": entry.size,
            "n_images": entry.images,
            "round": number,
            "seconds": taken,
        }
        for name, entry in by_name.items()
        for number, taken in enumerate(seconds[name])
    ]


def _ours(network: Network, plan: Plan, scale: Scale) -> list[Entry]:
    """Entries of xaieval for its batch sizes and variants; compiling needs many images and is measured separately.

    With many maps per image, small batches of images already fill batches of masked images, so one batch size represents all.
    The variants have one batch size, too.
    """
    sizes = scale.sizes if plan.setting.maps < 16 or scale.quick else (8,)
    images = 4 if scale.quick else plan.our_images
    return [
        _entry(OURS, variant, size, min(max(images, size), len(network.images)), network, plan, ours, **given)
        for variant, given in available_variants().items()
        if variant != "compile"
        for size in (sizes if variant == "eager" else sizes[-2:-1] or sizes)
    ]


def _peers(network: Network, plan: Plan, best: dict[str, int], scale: Scale) -> list[Entry]:
    """Entries of the peers at their best batch sizes, or fewer images per batch if there are many maps per image."""
    entries = []
    for peer in PEERS:
        if peer.serves(network, METHODS[: plan.setting.methods]):
            size = best[peer.name]
            count = 4 if scale.quick else max(plan.images, size) if plan.setting.maps <= 4 else plan.images
            count = min(count, len(network.images))
            entries.append(_entry(peer.name, "", min(size, count), count, network, plan, peer.run))
    return entries


def _entry(tool: str, variant: str, size: int, count: int, network: Network, plan: Plan, run: Run, **given: Any) -> Entry:
    return Entry(tool, variant, size, count, _work(run, network, network.batches(count, size), plan.setting, **given))


def _work(run: Run, network: Network, batches: Batches, setting: Setting, **given: Any) -> Callable[[], object]:
    return partial(run, network, batches, network.layers(setting.layers), METHODS[: setting.methods], **given)


def _warm(network: Network, entry: Entry, setting: Setting) -> None:
    """Run once, since the first pass of a shape is slower. Peers had their trial; our shapes depend on the setting."""
    if entry.tool == OURS:
        _work(ours, network, network.batches(entry.size, entry.size), setting, **available_variants()[entry.variant])()


# ---- tables


def summarise(rows: pd.DataFrame | list[dict[str, Any]]) -> pd.DataFrame:
    """One row per contestant: its rate, and how much faster xaieval is at its best eager batch size, and with bf16.

    The ratios are medians over rounds, so that a temporary slowdown of the machine affects both sides of a ratio.
    """
    return pd.concat(
        [_of_configuration(part) for _, part in pd.DataFrame(rows).groupby(list(CONFIGURATION))], ignore_index=True
    )


def _of_configuration(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.assign(variant=rows["variant"].fillna(""), rate=rows["n_images"] / rows["seconds"])
    rates = rows.pivot_table("rate", "round", list(CONTESTANT), sort=False)
    mine = rates.loc[:, (OURS, "eager")]
    reference = mine[mine.median().idxmax()]
    reduced = rates.get((OURS, "bf16"))  # of one batch size; None where the processor has no instructions for it
    first = rows.groupby(list(CONTESTANT), sort=False).first()
    table = []
    for contestant, rate in rates.items():
        known = {
            **dict(zip(CONTESTANT, contestant, strict=True)),
            **first.loc[contestant, [*CONFIGURATION, "n_images"]],
        }
        table.append(
            {
                **{name: known[name] for name in (*CONFIGURATION, *CONTESTANT, "n_images")},
                "rounds": int(rate.count()),
                **spread(rate.dropna(), "images_per_second"),
                "relative_to_first": float((rate / rates.iloc[:, 0]).median()),
                **spread((reference / rate).dropna(), "ours_is_faster"),
                **({} if reduced is None else spread((reduced.iloc[:, 0] / rate).dropna(), "bf16_is_faster")),
            }
        )
    return pd.DataFrame(table)
