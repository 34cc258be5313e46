"""Results of the speed benchmark: one JSON file for each device and row, written by `python -m benchmarks.speed`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from stagealign.base.errors import BadData
from stagealign.report.pages.aims import BY_KEY, Against

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
COMMAND = {"cpu": "make speed", "cuda": "make speed DEVICE=cuda"}
"""Command that fills a device's column."""


class Spread(TypedDict):
    """One quantity over all turns."""

    median: float
    least: float
    most: float


class MeasuredProcessor(TypedDict):
    """The same quantity in processor time."""

    median: float


class SpeedRatio(TypedDict):
    """One of our sides against a peer: how many times as fast."""

    ours: str
    peer: str
    time: Spread
    processor: MeasuredProcessor
    memory: NotRequired[float]
    """Peak memory as a share of the peer's."""


class SpeedTurn(TypedDict):
    """One turn of one side."""

    seconds: float
    cpu_seconds: float
    per_second: float
    """Units of the row a second."""
    tokens_per_second: NotRequired[float]
    peak_mb: NotRequired[int]
    roof_percent: NotRequired[float]
    """Percent of the machine's peak arithmetic rate."""
    recorded_forwards: NotRequired[int]
    reference_tokens: NotRequired[int]


class TimedCall(TypedDict):
    """Time of one command over all turns, seconds."""

    seconds: Spread
    cpu_seconds: MeasuredProcessor


class GrowthPoint(TypedDict):
    """Cost at one size."""

    size: int
    seconds: float
    peak_mb: int


class Exponents(TypedDict):
    """Powers of the size with which time grows."""

    seconds: float
    cpu_seconds: float


class Bf16Decision(TypedDict):
    """How often bf16 prefers the same completion as fp32."""

    same_preference: float
    """Share of held-out pairs."""
    held_out: int


class Machine(TypedDict):
    """Hardware of a measurement."""

    processor: str
    cores: int
    threads: int
    gpu: NotRequired[str | None]


class Settings(TypedDict):
    """Options of a measurement."""

    small: bool
    """Whether models were too small to measure speed."""


class Origin(TypedDict):
    """Where and with what a row was measured."""

    hardware: Machine
    packages: dict[str, str]
    settings: Settings


class SpeedResult(TypedDict):
    """One row on one device; which of the last fields it has depends on the kind of row."""

    row: str
    made: Origin
    ratios: NotRequired[list[SpeedRatio]]
    runs: NotRequired[dict[str, list[SpeedTurn]]]
    """By side."""
    decision: NotRequired[Bf16Decision]
    times: NotRequired[dict[str, TimedCall]]
    """By command."""
    left_out: NotRequired[dict[str, str]]
    """Command -> why it was not timed."""
    points: NotRequired[list[GrowthPoint]]
    exponents: NotRequired[Exponents]


SpeedResults = Mapping[str, Mapping[str, SpeedResult]]
"""By device and row key."""


def read(results: Path) -> SpeedResults:
    """Results by device and row key.

    Raises BadData for a damaged file, an unknown row, or a measurement with `--small`.
    """
    return {device: dict(_read_device(results, device)) for device in DEVICES}


def _read_device(results: Path, device: str) -> list[tuple[str, SpeedResult]]:
    """(row key, result) of each file of one device."""
    rows = []
    for file in sorted((results / "speed" / device).glob("*.json")):
        try:
            result: SpeedResult = json.loads(file.read_text(encoding="utf-8"))
            key = result["row"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadData(f"{file}: not a result of `python -m benchmarks.speed` ({error}); remove it") from error
        if key not in BY_KEY or file.stem != key:
            raise BadData(f"{file}: row {key!r} is unknown or does not match the file name; remove it")
        if result["made"]["settings"]["small"]:
            raise BadData(
                f"{file}: measured with `--small`, so its speed means nothing; remove it and run `{COMMAND[device]}`"
            )
        rows.append((key, result))
    return rows


def ratio_of(result: SpeedResult, comparison: Against) -> SpeedRatio | None:
    """The comparison's numbers in a result; None if they were not measured."""
    sides = (comparison.ours, comparison.peer)
    return next((ratio for ratio in result["ratios"] if (ratio["ours"], ratio["peer"]) == sides), None)
