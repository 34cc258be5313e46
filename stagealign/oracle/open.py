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
class Asking:
    """Where a served oracle is asked, and how much; execution, not identity."""

    url: str | None = None
    most_tokens: int | None = None
    """Tokens that may be billed; None: no limit."""


Fact = Literal["truncated_for_oracle", "compared", "changed_with_order", "oracle"]


def plain_contest(prompt: str, first: str, second: str) -> Contest:
    """Two candidates of a prompt, one against the other, as they are."""
    return Contest(prompt, (first,), (second,))


def conversation_contest(prompt: str, first: str, second: str) -> Contest:
    """Two candidates as one turn of a conversation. Source: the authors' labelling script, for PairRM."""
    return Contest(
        f"{INSTRUCTION}USER: {prompt}\nAssistant: <Response 1>",
        (f"<Response 1>: {first}",),
        (f"<Response 1>: {second}",),
    )


INSTRUCTION = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
"""What PairRM reads before a labelled prompt, as its checkpoint's README spells it."""


@dataclass(frozen=True)
class OracleRow:
    """One kind of oracle: how a user names it, how it is opened, and how its verdicts become labels."""

    key: str
    opens: Callable[[str, Asking], Oracle]
    """Called with what stands after the colon (empty: nothing does); loads it, or connects to it."""
    usage: str = ""
    """How `--oracle` names it; empty: the meter does not take it."""
    needs_name: bool = True
    """Whether something must stand after the colon."""
    contest: Callable[[str, str, str], Contest] = plain_contest
    """(prompt, first, second) to what is judged for a training pair."""
    scores_vote: bool = False
    """Whether votes are taken from scores, also where the verdict has pairs."""
    scores_all: bool = False
    """Whether candidates that cannot teach are scored too: it costs next to nothing, and a broken scorer shows."""
    facts: tuple[Fact, ...] = ("truncated_for_oracle", "compared", "changed_with_order", "oracle")
    """What a record of labels says of the verdicts."""

    @property
    def served(self) -> bool:
        """Whether it needs the URL of a server."""
        return preferences.ORACLES[self.key].served


def _pairrm(name: str, asking: Asking) -> Oracle:
    from stagealign.oracle import pairrm

    if name:
        return pairrm.load(name)
    try:
        return pairrm.load()
    except StagealignError as error:
        raise StagealignError(f"{error}; a local copy of PairRM is named by --oracle pairrm:PATH") from error


def _reward(name: str, asking: Asking) -> Oracle:
    from stagealign.scoring import reward_model

    return reward_model.load(name)


def _completion_reward(name: str, asking: Asking) -> Oracle:
    from stagealign.scoring import reward_model

    return reward_model.load(name, text="completion")


def _judge(name: str, asking: Asking) -> Oracle:
    from stagealign.base.server import Server
    from stagealign.oracle import judge

    return judge.connect(name, Server(str(asking.url), timeout=judge.TIMEOUT), most_tokens=asking.most_tokens)


def _recorded(name: str, asking: Asking) -> Oracle:
    from stagealign.oracle.recorded import RecordedOracle
    from stagealign.oracle.recorded_file import read_recorded

    folder = Path(name)
    return RecordedOracle(read_recorded(min(folder.glob("recorded*")) if folder.is_dir() else name))


ORACLES: Mapping[str, OracleRow] = {
    row.key: row
    for row in (
        OracleRow("pairrm", _pairrm, "pairrm[:ID_OR_PATH]", needs_name=False, contest=conversation_contest,
                  scores_vote=True, facts=("truncated_for_oracle",)),
        OracleRow("reward", _reward, "reward:ID_OR_PATH", facts=("truncated_for_oracle", "oracle")),
        OracleRow("completion-reward", _completion_reward, "completion-reward:ID_OR_PATH",
                  facts=("truncated_for_oracle", "oracle")),
        OracleRow("judge", _judge, "judge:MODEL", facts=("compared", "changed_with_order", "oracle")),
        OracleRow("recorded", _recorded, "recorded:FILE", facts=("compared", "changed_with_order", "oracle")),
    )
}  # fmt: skip
"""By key; `grid.preferences.ORACLES` has a row for each, and for those that score each text alone."""
METER = tuple(key for key, row in ORACLES.items() if row.usage)
"""Keys that `--oracle` takes."""


def usages() -> str:
    """How `--oracle` names each oracle, as a list in words."""
    names = [ORACLES[key].usage for key in METER]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def kind_of(oracle: str) -> tuple[str, str]:
    """(key of the oracle in lower case, name after its colon); the key need not be in the catalogue."""
    kind, _, rest = oracle.partition(":")
    return kind.strip().lower(), rest


def nothing_billed() -> int:
    """Tokens billed by an oracle on this machine: 0."""
    return 0


def row_of(kind: str) -> OracleRow | None:
    """Row of an oracle, also of one that the grid knows by its scorer alone; None if nothing knows it."""
    row = ORACLES.get(kind)
    labels = preferences.ORACLES.get(kind)
    if row is not None or labels is None or not labels.scorer:
        return row

    def opens(name: str, asking: Asking) -> Oracle:
        from stagealign.oracle.learned import LearnedOracle

        return LearnedOracle(kind, partial(code_at(labels.scorer), Path(name)))

    return OracleRow(kind, opens, scores_all=True, facts=())


def open_oracle(oracle: str, asking: Asking = Asking()) -> Oracle:
    """The oracle of that name: loaded or, if it is served, asked one question.

    Raises StagealignError for an unknown key, or a served oracle without a URL.
    """
    kind, name = kind_of(oracle)
    row = row_of(kind)
    if row is None:
        known = dict.fromkeys([*ORACLES, *preferences.ORACLES])
        raise StagealignError(f"oracle {oracle!r}: unknown; choose one of {', '.join(known)}")
    if row.served and not asking.url:
        raise StagealignError(
            f"oracle {oracle!r}: no server is named; give the URL of one that serves the model, for example "
            "http://127.0.0.1:8000/v1"
        )
    return row.opens(name, asking)


@contextmanager
def opened(oracle: str, asking: Asking = Asking()) -> Iterator[Oracle]:
    """The oracle of that name while the context lasts; connections to a server are closed after it."""
    found = open_oracle(oracle, asking)
    try:
        yield found
    finally:
        close: Callable[[], None] | None = getattr(found, "close", None)
        if close is not None:
            close()


def billed_by(oracle: Oracle) -> Callable[[], int]:
    """Function that returns the tokens an oracle has billed so far."""
    billed: Callable[[], int] = getattr(oracle, "billed", nothing_billed)
    return billed
