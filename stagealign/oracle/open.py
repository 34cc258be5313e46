"""The catalogue of oracles, for the boundary meter and for the labels of the grid: one row each."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from stagealign.base.errors import StagealignError
from stagealign.base.kind import code_at
from stagealign.grid import preferences
from stagealign.scoring.contest import Contest, Oracle


@dataclass(frozen=True)
class OracleAccess:
    """URL and token budget of a served oracle; not part of its identity."""

    url: str | None = None
    most_tokens: int | None = None
    """Most tokens that may be billed; None for no limit."""


Fact = Literal["truncated_for_oracle", "compared", "changed_with_order", "oracle"]


def plain_contest(prompt: str, first: str, second: str) -> Contest:
    """Contest of two candidates without changes to the texts."""
    return Contest(prompt, (first,), (second,))


def conversation_contest(prompt: str, first: str, second: str) -> Contest:
    """Contest of two candidates in a conversation of one turn, for training pairs alone.

    Votes of a boundary score read the prompt as it is, in the grid as by the meter. Source: the authors' labelling
    script for PairRM.
    """
    return Contest(
        f"{INSTRUCTION}USER: {prompt}\nAssistant: <Response 1>",
        (f"<Response 1>: {first}",),
        (f"<Response 1>: {second}",),
    )


INSTRUCTION = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
"""Instruction before a prompt that PairRM labels, with the spelling of its checkpoint's README."""


@dataclass(frozen=True)
class OracleRow:
    """One kind of oracle: its name for users, the function that opens it, and the rules for its verdicts."""

    key: str
    opens: Callable[[str, OracleAccess], Oracle]
    """Loads the oracle or connects to it; the first argument is the text after the colon, or empty."""
    usage: str = ""
    """Form of its name in `--oracle`; empty if the meter cannot use it."""
    needs_name: bool = True
    """Whether something must stand after the colon."""
    contest: Callable[[str, str, str], Contest] = plain_contest
    """Builds the contest of a training pair from (prompt, first, second)."""
    scores_all: bool = False
    """True if unusable candidates are scored, too: cheap scorers do, so that a broken scorer is noticed."""
    facts: tuple[Fact, ...] = ("truncated_for_oracle", "compared", "changed_with_order", "oracle")
    """Facts of the verdicts that a record of labels contains."""

    @property
    def served(self) -> bool:
        """Whether it needs the URL of a server."""
        return preferences.ORACLES[self.key].served


def _pairrm(name: str, access: OracleAccess) -> Oracle:
    from stagealign.oracle import pairrm

    if name:
        return pairrm.load(name)
    try:
        return pairrm.load()
    except StagealignError as error:
        raise StagealignError(f"{error}; or name a local copy of PairRM: --oracle pairrm:PATH") from error


def _reward(name: str, access: OracleAccess) -> Oracle:
    from stagealign.scoring import reward_model

    return reward_model.load(name)


def _completion_reward(name: str, access: OracleAccess) -> Oracle:
    from stagealign.scoring import reward_model

    return reward_model.load(name, text="completion")


def _judge(name: str, access: OracleAccess) -> Oracle:
    from stagealign.base.server import Server
    from stagealign.oracle import judge

    return judge.connect(name, Server(str(access.url), timeout=judge.TIMEOUT), most_tokens=access.most_tokens)


def _recorded(name: str, access: OracleAccess) -> Oracle:
    from stagealign.oracle.recorded import RecordedOracle
    from stagealign.oracle.recorded_file import read_recorded

    folder = Path(name)
    return RecordedOracle(read_recorded(min(folder.glob("recorded*")) if folder.is_dir() else name))


ORACLES: Mapping[str, OracleRow] = {
    row.key: row
    for row in (
        OracleRow("pairrm", _pairrm, "pairrm[:ID_OR_PATH]", needs_name=False, contest=conversation_contest,
                  facts=("truncated_for_oracle",)),
        OracleRow("reward", _reward, "reward:ID_OR_PATH", facts=("truncated_for_oracle", "oracle")),
        OracleRow("completion-reward", _completion_reward, "completion-reward:ID_OR_PATH",
                  facts=("truncated_for_oracle", "oracle")),
        OracleRow("judge", _judge, "judge:MODEL", facts=("compared", "changed_with_order", "oracle")),
        OracleRow("recorded", _recorded, "recorded:FILE", facts=("compared", "changed_with_order", "oracle")),
    )
}  # fmt: skip
"""Oracles by key; `grid.preferences.ORACLES` has a row for each of them, and for oracles that score single texts."""
METER = tuple(key for key, row in ORACLES.items() if row.usage)
"""Keys that `--oracle` accepts."""


def usages() -> str:
    """Forms of the oracles' names in `--oracle`, joined to an English list."""
    names = [ORACLES[key].usage for key in METER]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def kind_of(oracle: str) -> tuple[str, str]:
    """(key in lower case, text after the colon) of an oracle's name; the key may be unknown."""
    kind, _, rest = oracle.partition(":")
    return kind.strip().lower(), rest


def nothing_billed() -> int:
    """Returns 0, the tokens billed by an oracle that is not served."""
    return 0


def row_of(kind: str) -> OracleRow | None:
    """Row of an oracle by key, also for oracles of the grid that are a scorer of texts; None if it is unknown."""
    row = ORACLES.get(kind)
    labels = preferences.ORACLES.get(kind)
    if row is not None or labels is None or not labels.scorer:
        return row

    def opens(name: str, access: OracleAccess) -> Oracle:
        from stagealign.oracle.learned import LearnedOracle

        return LearnedOracle(kind, partial(code_at(labels.scorer), Path(name)))

    return OracleRow(kind, opens, scores_all=True, facts=())


def open_oracle(oracle: str, access: OracleAccess = OracleAccess()) -> Oracle:
    """Loads the oracle of that name or, if it is served, connects to it and asks one question.

    Raises StagealignError for an unknown key, or a served oracle without a URL.
    """
    kind, name = kind_of(oracle)
    row = row_of(kind)
    if row is None:
        known = dict.fromkeys([*ORACLES, *preferences.ORACLES])
        raise StagealignError(f"oracle {oracle!r}: unknown; choose one of {', '.join(known)}")
    if row.served and not access.url:
        raise StagealignError(
            f"oracle {oracle!r}: no server is named; give the URL of a server of this model, for example "
            "http://127.0.0.1:8000/v1"
        )
    return row.opens(name, access)


@contextmanager
def opened(oracle: str, access: OracleAccess = OracleAccess()) -> Iterator[Oracle]:
    """Context with the oracle of that name; closes its connections at the end."""
    opened_oracle = open_oracle(oracle, access)
    try:
        yield opened_oracle
    finally:
        close: Callable[[], None] | None = getattr(opened_oracle, "close", None)
        if close is not None:
            close()


def billed_by(oracle: Oracle) -> Callable[[], int]:
    """Function that returns the tokens an oracle has billed so far."""
    billed: Callable[[], int] = getattr(oracle, "billed", nothing_billed)
    return billed
