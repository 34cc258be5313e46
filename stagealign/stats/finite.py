"""Checks for numbers that are not finite, with the prompts that they belong to, and for collapsed policies."""

import math
from collections.abc import Sequence
from typing import Any

from stagealign.base.errors import BadNumbers

NAMED = 5
"""Maximum prompts that an error names."""
COLLAPSED_KL = 3.0
"""Mean KL to the round's start, nats a token, above which a policy counts as collapsed. Rounds of the lab reached at
most 0.72."""


def check_finite(values: Sequence[float], prompts: Sequence[str], what: str, advice: str) -> None:
    """Raises BadNumbers, naming the prompts by their hashes, if a value is NaN or infinite."""
    bad = list(dict.fromkeys(name for value, name in zip(values, prompts, strict=True) if not math.isfinite(value)))
    if bad:
        raise BadNumbers(f"{what}: not finite for {prompts_named(bad)}; {advice}")


def prompts_named(hashes: Sequence[str]) -> str:
    """`prompt 1a2b`, `prompts 1a2b, 3c4d`, or the first few of many with the total number."""
    names = ", ".join(hashes[:NAMED])
    if len(hashes) > NAMED:
        return f"{len(hashes)} prompts, such as {names}"
    return f"prompt{'s' * (len(hashes) > 1)} {names}"


def collapsed(completions: Sequence[str], kl: float | None, tokens: float) -> str | None:
    """Reason why the policy of these completions collapsed, so that its win rate is meaningless; None if it did not.

    `kl`: mean KL to the round's start, nats a completion; `tokens`: mean length.
    """
    if not any(text.strip() for text in completions):
        return "all completions are empty"
    if len(completions) > 1 and len(set(completions)) == 1:
        return "all completions are equal"
    if kl is not None and kl > COLLAPSED_KL * max(tokens, 1.0):
        return f"KL {kl / max(tokens, 1.0):.1f} nats a token, more than {COLLAPSED_KL:g}"
    return None


def stop_unless_finite(what: str) -> Any:
    """A callback of transformers' Trainer that raises BadNumbers at the first logged number that is not finite."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            for name, value in (logs or {}).items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise BadNumbers(f"{what}, step {state.global_step}: {name} is not finite; lower the learning rate")

    return Stop()
