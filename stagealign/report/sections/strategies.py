"""Gain of following the boundary score, against constant choices and a coin: the paper's central claim."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stagealign.report.read.contrasts import Contrast, counted
from stagealign.report.read.sides import COMPARED
from stagealign.report.sections.claims import decided
from stagealign.report.sections.rows import Table, TableRow
from stagealign.report.sections.words import DASH, gain, plain, score, signed
from stagealign.stats.statistics import Metric, mean_metric, proportion


@dataclass(frozen=True)
class Strategy:
    """One way to choose the next round's data, evaluated over all cases."""

    name: str
    right: float
    """Decided cases in which it takes the better source; for a coin, the expected number."""
    share: Metric | None
    """`right` as a share of the decided cases; None for a coin, or without decided cases."""
    gain: Metric
    """Mean gain of the chosen source over all cases with both sources."""
    lost: float
    """Mean of the larger gain minus the chosen source's gain; 0 for perfect choices."""


CHOICES: dict[str, Callable[[Contrast], str]] = {
    "follow the boundary score": lambda contrast: contrast.named,
    "always off-policy": lambda contrast: "off",
    "always on-policy": lambda contrast: "on",
}


def cases(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Contrasts that claims count and that have a boundary score and both sources."""
    return [
        contrast
        for contrast in counted(contrasts)
        if contrast.boundary is not None and set(COMPARED) <= contrast.best.keys()
    ]


def strategies(contrasts: Sequence[Contrast]) -> list[Strategy]:
    """The boundary score, both constant choices and a coin; empty without cases."""
    every, sure = cases(contrasts), decided(contrasts)
    if not every:
        return []
    chosen = []
    for name, choose in CHOICES.items():
        right = sum(choose(contrast) == contrast.better for contrast in sure)
        share = proportion(right, len(sure)) if sure else None
        chosen.append(_strategy(name, right, share, [_gain(contrast, choose(contrast)) for contrast in every], every))
    coin = [(_gain(contrast, "off") + _gain(contrast, "on")) / 2 for contrast in every]
    return [*chosen, _strategy("a coin, on average", len(sure) / 2, None, coin, every)]


def _strategy(name: str, right: float, share: Metric | None, gains: list[float], every: list[Contrast]) -> Strategy:
    most = [max(_gain(contrast, "off"), _gain(contrast, "on")) for contrast in every]
    lost = sum(best - taken for best, taken in zip(most, gains, strict=True)) / len(every)
    return Strategy(name, right, share, mean_metric(gains, _unit(every)), lost)


def _gain(contrast: Contrast, source: str) -> float:
    return float(contrast.best[source].gain["value"])


def _unit(every: list[Contrast]) -> str:
    return str(every[0].best["on"].gain["unit"])


def advantage(contrasts: Sequence[Contrast], over: str) -> Metric | None:
    """Mean gain of following the score minus that of always taking `over` (`off` or `on`), paired by case."""
    every = cases(contrasts)
    if not every:
        return None
    return mean_metric([_gain(contrast, contrast.named) - _gain(contrast, over) for contrast in every], _unit(every))


def table(contrasts: Sequence[Contrast]) -> Table:
    """Table with one row for each strategy."""
    sure, every = decided(contrasts), cases(contrasts)
    rows = [
        TableRow(
            (
                strategy.name,
                f"{strategy.right:g} of {len(sure)}",
                score(strategy.share) if strategy.share else DASH,
                gain(strategy.gain),
                signed(-strategy.lost) if strategy.lost else plain(0.0),
            )
        )
        for strategy in strategies(contrasts)
    ]
    versus = [(over, advantage(contrasts, over)) for over in COMPARED]
    differences = "; ".join(f"minus always {over}: {gain(metric)}" for over, metric in versus if metric)
    return Table(
        "strategies",
        "Does the boundary score choose well?",
        f"All {len(every)} starting policies from which both sources were run, each source at its best learning rate; "
        f"one source was better in {len(sure)}. Lost: mean gain below the better source in hindsight. Mean gain of "
        f"following the score, paired by case, {differences}. Cases share policies and data, so intervals over cases "
        "are too narrow.",
        ("Choice", "Better source taken", "Share", "Mean gain", "Lost to hindsight"),
        tuple(rows),
    )
