"""What an early stop does to score, interval and prompts, and rare prompts to intervals; the true score is known."""

import math
from typing import Any

import numpy as np

from benchmarks.boundary.world import world_at
from stagealign.boundary.meter import batches
from stagealign.stats.decision import SHARES, Decision, log_payoffs
from stagealign.stats.narrow import too_narrow
from stagealign.stats.streams import Ended, first_decisions, shares_on, unstopped_shares
from stagealign.stats.votes import boundary_score

Row = dict[str, Any]


def estimates(seed: int, streams: int, prompts: int = 1000) -> list[Row]:
    """Mean and root mean square error of the share of votes won and of the estimate, one row a true score and zone."""
    ends = np.cumsum([len(batch) for batch in batches(range(prompts), growing=True)])
    rows = []
    for score, zone in [(0.5 + step / 20, None) for step in range(6)] + [(0.5, 0.05), (0.52, 0.05)]:
        rng, shown = np.random.default_rng([seed, round(100 * score)]), []
        votes = world_at(score).votes(rng, (streams, prompts))
        for stream, at in zip(votes, first_decisions(votes, 4, indifference=zone)[0], strict=True):
            last = int(np.searchsorted(ends, at)) if at else len(ends) - 1
            used = stream[: ends[last]]
            ended = Ended(int(ends[0]), int(ends[last - 1]) if last else 0, bool(ends[last] < prompts))
            estimate = unstopped_shares(used, used[:, None], ended, Decision(4, indifference=zone), orders=100)
            shown.append((len(used), shares_on(used[:, None])[0], math.nan if estimate is None else estimate[0]))
        count, share, estimate = np.array(shown).T
        known = ~np.isnan(estimate)
        rows.append(
            {
                "score": score,
                "zone": zone,
                "streams": streams,
                "mean_prompts": float(count.mean()),
                "share": float(share.mean()),
                "estimate": float(estimate[known].mean()),
                "not_known": float(1 - known.mean()),
                "error_of_share": float(np.sqrt(((share - score) ** 2).mean())),
                "error_of_estimate": float(np.sqrt(((estimate[known] - score) ** 2).mean())),
            }
        )
    return rows


def sequences(seed: int, streams: int, prompts: int = 400) -> list[Row]:
    """Share of streams whose interval of 95% holds the true score at every look up to `prompts`; one row a score.

    The interval of `Decision` holds a score as long as neither gambler against it has 2 / alpha.
    """
    rows = []
    for score in (0.3, 0.5, 0.55, 0.7, 0.9):
        votes = world_at(score).votes(np.random.default_rng([seed, round(100 * score)]), (streams, prompts))
        capital = np.exp(np.cumsum(log_payoffs(votes, 4, score), axis=1)) @ SHARES  # [streams, prompts, side]
        held = (capital.max((1, 2)) < 2 / 0.05).mean()
        _, sign = first_decisions(votes, 4)
        wrong = None if score == 0.5 else float((sign == (-1 if score > 0.5 else 1)).mean())
        rows.append({"score": score, "streams": streams, "always_held": float(held), "wrong_stage": wrong})
    return rows


def zones(seed: int, streams: int, prompts: int = 8000) -> list[Row]:
    """Mean prompts with and without a zone of 0.05, and wrong answers, one row a gap; no more than `prompts`."""
    rows = []
    for gap in (0.0, 0.01, 0.02, 0.03, 0.05, 0.1):
        votes = world_at(0.5 + gap).votes(np.random.default_rng([seed, round(100 * gap)]), (streams, prompts))
        row: Row = {"gap": gap, "streams": streams, "at_most": prompts}
        for name, zone in (("without", None), ("with_zone", 0.05)):
            at, sign = first_decisions(votes, 4, indifference=zone)
            row[name] = float(np.where(at > 0, at, prompts).mean())
            wrong = (sign < 0) | ((at > 0) & (sign == 0) & (gap >= 0.05))
            row[f"wrong_{name}"] = float(wrong.mean()) if gap else None
            row[f"same_{name}"] = float(((at > 0) & (sign == 0)).mean())
        rows.append(row | {"saved": 1 - row["with_zone"] / row["without"]})
    return rows


def against_bound(seed: int, streams: int) -> list[Row]:
    """Mean prompts until the stage is named over log(1 / alpha) / KL, which no test can undercut; one row a gap."""
    rows = []
    for gap in (0.05, 0.1, 0.16, 0.25):
        for reading in ("cross", "top"):
            horizon = min(4000, math.ceil(6 / gap**2))
            rng = np.random.default_rng([seed, round(100 * gap), reading == "top"])
            votes = world_at(0.5 + gap).votes(rng, (streams, horizon), reading)
            most = 4 if reading == "cross" else 1
            gains = 2 * votes[..., 0].ravel() / most - 1
            values, counts = np.unique(gains, return_counts=True)
            bets = np.linspace(0, 0.999, 1000)
            growth = float((np.log1p(bets[:, None] * values) @ (counts / counts.sum())).max())
            at, _ = first_decisions(votes, most)
            mean, bound = float(np.where(at > 0, at, horizon).mean()), math.log(20) / growth
            rows.append({"gap": gap, "reading": reading, "streams": streams, "mean": mean, "bound": bound})
            rows[-1]["ratio"] = mean / bound
    return rows


def rare_losses(seed: int, repetitions: int) -> list[Row]:
    """Coverage of the 95% interval for fixed prompts, of which some lose all votes and the others win 3 of 4."""
    rows = []
    for share, count, prompts in ((0.05, 4, 30), (0.05, 20, 30), (0.02, 4, 50), (0.02, 4, 100)):
        rng, truth = np.random.default_rng([seed, prompts, count]), (1 - share) * 3 / ((1 - share) * 4 + share * count)
        covered, warned = [], []
        for lost in rng.random((repetitions, prompts)) < share:
            votes = np.stack([np.where(lost, 0.0, 3.0), np.where(lost, count, 1.0)], axis=1)
            found = boundary_score(votes)
            covered.append(found.interval[0] <= truth <= found.interval[1])
            warned.append(any("may be too narrow" in line for line in too_narrow(votes, found)))
        either = np.array(covered) | np.array(warned)
        row: Row = {"share_of_losses": share, "votes_of_a_loss": count, "prompts": prompts, "repetitions": repetitions}
        row |= {"covered": float(np.mean(covered)), "warned": float(np.mean(warned)), "either": float(either.mean())}
        rows.append(row)
    return rows
