"""Opens the oracle that a name asks for."""

from collections.abc import Callable

from stagealign.base.errors import StagealignError
from stagealign.scoring.contest import Oracle

ORACLES = ("pairrm", "reward", "completion-reward", "judge", "recorded")
KINDS = "pairrm[:ID_OR_PATH], reward:ID_OR_PATH, completion-reward:ID_OR_PATH, judge:MODEL or recorded:FILE"


def kind_of(oracle: str) -> tuple[str, str]:
    """(kind of oracle, what stands after its colon); kinds are known in any letter case."""
    kind, _, rest = oracle.partition(":")
    return kind.strip().lower(), rest


def nothing_billed() -> int:
    """Tokens that an oracle on this machine bills."""
    return 0


def open_oracle(
    oracle: str, judge_url: str | None = None, most_tokens: int | None = None
) -> tuple[Oracle, Callable[[], int]]:
    """The oracle of that name, loaded or, for a judge, asked one question; and what it has billed."""
    kind, rest = kind_of(oracle)
    if kind == "pairrm":
        from stagealign.oracle import pairrm

        try:
            return (pairrm.load(rest) if rest else pairrm.load()), nothing_billed
        except StagealignError as error:
            if rest:
                raise
            raise StagealignError(f"{error}; a local copy of PairRM is named by --oracle pairrm:PATH") from error
    if kind in ("reward", "completion-reward"):
        from stagealign.scoring import reward_model as rewards

        return rewards.load(rest, text="completion" if kind == "completion-reward" else "auto"), nothing_billed
    from stagealign.oracle import judge

    asked = judge.connect(rest, str(judge_url), most_tokens=most_tokens)
    return asked, lambda: asked.server.tokens
