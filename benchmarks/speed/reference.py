"""Reference log-probs of a set of pairs: ours against the precomputation of TRL's trainer.

The clock runs from text and loaded weights to two log-probs for each pair, on both sides.
"""

import tempfile
from typing import Any

from benchmarks.speed import models, roof
from benchmarks.speed.training import BEST, MAX_LENGTH, chosen, trainer
from benchmarks.speed.turns import Given, Run, child, clock, turns

PAIRS, SHAPE, TOLERANCE = 32, "160m", 1e-5
PATH = "benchmarks.speed.reference"


def measure(given: Given) -> dict[str, Any]:
    """Check of equal log-probs, and interleaved runs."""
    pairs = 4 if given.small else 512 if given.device == "cuda" else PAIRS
    checked = child(f"{PATH}:check", given, pairs=pairs)
    assert checked["largest_relative_difference"] < TOLERANCE, f"the two sides give different log-probs: {checked}"
    sides = {
        "ours": (f"{PATH}:side", {"peer": False, "pairs": pairs}),
        "TRL precompute": (f"{PATH}:side", {"peer": True, "pairs": pairs}),
    }
    return {"sizes": {"shape": SHAPE, "pairs": pairs}, "check": checked, "runs": turns(sides, given)}


def side(given: Given, peer: bool, pairs: int) -> Run:
    """Time of one run, and its log-probs."""
    from stagealign.train.reference import reference_logps, tokenize

    lm = models.policy(SHAPE, given)
    data, _ = chosen(pairs, given)
    tokens = tokenize(lm, data, MAX_LENGTH)
    flops = roof.pair_flops(lm.model, tokens, passes=1)
    with tempfile.TemporaryDirectory() as folder:
        if peer:
            reference = models.shifted(lm).model
            with clock(given.device) as took:
                rows = trainer(lm, data, reference, folder, given.device, **BEST).train_dataset
                logps = [rows["ref_chosen_logps"], rows["ref_rejected_logps"]]
        else:
            reference = models.shifted(lm)
            with clock(given.device) as took:
                logps = reference_logps(reference, tokenize(reference, data, MAX_LENGTH), None, None).T.tolist()
    numbers = [list(map(float, column)) for column in logps]
    return {**took, "work": pairs, "tokens": sum(t.tokens for t in tokens), "flops": flops, "logps": numbers}


def check(given: Given, pairs: int) -> Run:
    """Largest difference between the two sides' log-probs, relative to the log-prob."""
    ours, theirs = ([logp for column in side(given, peer, pairs)["logps"] for logp in column] for peer in (False, True))
    different = max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(ours, theirs, strict=True))
    return {"completions": len(ours), "largest_relative_difference": different}
