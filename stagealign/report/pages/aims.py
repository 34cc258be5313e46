"""Rows of the speed benchmark with their peers and targets."""

from dataclasses import dataclass
from typing import Literal

BOTH = ("cpu", "cuda")


@dataclass(frozen=True)
class Against:
    """One of our sides against a peer. A target is a speed ratio, ours over the peer's; None if none was set."""

    peer: str
    cpu: float | None = None
    cuda: float | None = None
    ours: str = "ours"
    memory: float | None = None
    """Largest allowed memory, as a share of the peer's."""

    def aim(self, device: str) -> float | None:
        """Target on this kind of device."""
        return self.cuda if device == "cuda" else self.cpu


@dataclass(frozen=True)
class SpeedRow:
    """One row of the benchmark."""

    key: str
    title: str
    unit: str
    against: tuple[Against, ...] = ()
    limits: tuple[tuple[str, float], ...] = ()
    """Rows without a peer: (command, largest number of seconds)."""
    growth: Literal["", "pairs", "tokens", "parameters", "cells"] = ""
    exponent: float | None = None
    """Largest allowed exponent of time in the size; None if none was set."""
    devices: tuple[str, ...] = BOTH


def _training(cpu: tuple[float | None, ...], bf16: float | None, cuda: float | None) -> tuple[Against, ...]:
    """Against TRL by default and at its best, in fp32 and bf16; our bf16 has its target against TRL by default."""
    return (
        Against("TRL", cpu[0], cuda),
        Against("TRL best", cpu[1], cuda),
        Against("TRL", bf16, None, ours="ours bf16"),
        Against("TRL best bf16", None, None, ours="ours bf16"),
    )


ROWS = (
    SpeedRow("train-14m", "training, Pythia-14m shape", "pairs/s", _training((10, 5), None, 3)),
    SpeedRow("train-160m", "training, Pythia-160m shape", "pairs/s", _training((4, None), 8, 3)),
    SpeedRow("train-135m", "training, SmolLM2-135M", "pairs/s", _training((4, None), 8, 3)),
    SpeedRow("train-1b", "training, 1B shape, bf16", "pairs/s", (Against("TRL", None, 2),), devices=("cuda",)),
    SpeedRow("train-8b", "training, 8B shape, bf16", "pairs/s", (Against("TRL", None, 1.5),), devices=("cuda",)),
    SpeedRow(
        "memory-160m",
        "a step of 8 pairs x 512 tokens, 160m shape",
        "pairs/s",
        (Against("TRL"), Against("TRL", ours="ours, micro-batch 1 and activation checkpointing", memory=0.5)),
    ),
    SpeedRow("sweep", "sweep: DPO and SLiC x 3 betas x 2 seeds", "runs/s", (Against("TRL", 6, 4),)),
    SpeedRow("reference", "reference log-probs, Pythia-160m shape", "pairs/s", (Against("TRL precompute", 3, 2),)),
    SpeedRow(
        "sampling",
        "sampling two candidates a prompt",
        "tokens/s",
        (Against("one prompt at a time", 6), Against("batches", 1.5, 2)),
    ),
    SpeedRow("votes-reviews", "PairRM's votes, film reviews", "prompts/s", (Against("README", 5, 8),)),
    SpeedRow("votes-answers", "PairRM's votes, AlpacaEval answers", "prompts/s", (Against("README", 5, 8),)),
    SpeedRow(
        "votes-reward",
        "a reward model's votes, film reviews",
        "prompts/s",
        (Against("one pair at a time", 5, 8), Against("one candidate at a time")),
    ),
    SpeedRow(
        "round",
        "a round: sample, label, reference, train, evaluate",
        "rounds/s",
        (Against("recipe scripts", 4, 3), Against("recipe scripts", ours="ours bf16")),
    ),
    SpeedRow(
        "start",
        "start-up",
        "calls/s",
        limits=(("stagealign list", 0.5), ("stagealign plan", 1.0), ("pytest benchmarks --collect-only", 2.0)),
        devices=("cpu",),
    ),
    SpeedRow(
        "store",
        "store and report",
        "calls/s",
        limits=(("open 10,000 artifacts", 2.0), ("report over 1,000 results", 10.0)),
        devices=("cpu",),
    ),
    SpeedRow("growth-pairs", "training over pairs", "pairs", growth="pairs", exponent=1.1),
    SpeedRow("growth-length", "training over length", "tokens", growth="tokens"),
    SpeedRow("growth-parameters", "training over parameters", "parameters", growth="parameters"),
    SpeedRow("growth-cells", "cells that share their artifacts", "cells", growth="cells", exponent=1.1),
)
BY_KEY = {row.key: row for row in ROWS}
