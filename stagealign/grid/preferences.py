"""What is asked for: an oracle that labels training pairs, and a gold reward that evaluates. One table each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagealign.base.errors import BadSpec
from stagealign.base.kind import Kind


@dataclass(frozen=True)
class OracleKinds:
    """How one kind of oracle labels a cell's rounds."""

    ready: Kind
    """Fits or fetches it; its folder is the input `oracle` of the other two."""
    rank: Kind
    """Candidates to training pairs."""
    votes: Kind
    """Completions and static candidates to the votes of a boundary score."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Of `ready`, where the oracle is fitted here."""
    named: bool = False
    """Whether something is named after the key and a colon, as in `reward:ID_OR_PATH`; it is a parameter of `ready`."""
    learns_from_ratings: bool = False
    """Whether the task's human ratings are an input of `ready`."""
    reads_file: bool = False
    """Whether its name is a file, whose content is a parameter of `ready`."""


@dataclass(frozen=True)
class GoldKinds:
    """How one kind of gold reward evaluates policies."""

    ready: Kind
    """Fits or fetches it; its folder is the input `gold` of what evaluates."""
    scores: Kind
    """Completions to the numbers of a result."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Of `ready`, where it is fitted here."""
    named: bool = False
    """Whether something is named after the key and a colon, as in `reward:ID_OR_PATH`."""
    learns_from_ratings: bool = False
    judged: bool = False
    """Whether a judge compares answers with a baseline's; `Evaluation.judging` then says which prompts."""
    annotate: Kind | None = None
    """Answers to a judge's annotations, where `judged`."""
    rewards: Kind | None = None
    """Completions to rewards of a model, where scoring them is an artifact of its own."""


_LEARNED_RANK = Kind("stagealign.oracle:rank", "stagealign.oracle.label:rank", price="free")
_LEARNED_VOTES = Kind("stagealign.oracle:votes", "stagealign.oracle.label:votes", price="free", light=0.3)
_REWARD = OracleKinds(
    ready=Kind("stagealign.oracle.ready:fetch_reward", price="reward_model", fetches="weights"),
    rank=Kind("stagealign.oracle.label:rank_scored", "stagealign.oracle.label:rank", price="scored_pairs"),
    votes=Kind("stagealign.oracle.label:votes_scored", "stagealign.oracle.label:votes", price="scored_votes"),
    named=True,
)
ORACLES = {
    "tfidf": OracleKinds(
        ready=Kind("stagealign.oracle:fit", "stagealign.oracle.learned:fit", price="free", light=2.0),
        rank=_LEARNED_RANK,
        votes=_LEARNED_VOTES,
        params={"alpha": 1.0},
        learns_from_ratings=True,
    ),
    "letters": OracleKinds(
        ready=Kind("stagealign.oracle:fit_letters", "stagealign.oracle.learned:fit_letters", price="free"),
        rank=_LEARNED_RANK,
        votes=_LEARNED_VOTES,
        params={"alpha": 1.0},
    ),
    "pairrm": OracleKinds(
        ready=Kind("stagealign.pairrm:fetch", "stagealign.oracle.pairrm:fetch", price="pairrm", fetches="weights"),
        rank=Kind("stagealign.pairrm:rank", "stagealign.oracle.label:rank", price="rank"),
        votes=Kind("stagealign.pairrm:votes", "stagealign.oracle.label:votes", price="votes"),
    ),
    "reward": _REWARD,
    "completion-reward": _REWARD,
    "judge": OracleKinds(
        ready=Kind("stagealign.oracle.ready:ask_judge", price="free"),
        rank=Kind("stagealign.oracle.label:rank_asked", "stagealign.oracle.label:rank", price="asked_pairs"),
        votes=Kind("stagealign.oracle.label:votes_asked", "stagealign.oracle.label:votes", price="asked_votes"),
        named=True,
    ),
    "recorded": OracleKinds(
        ready=Kind("stagealign.oracle.ready:copy_recorded", price="free"),
        rank=Kind("stagealign.oracle.label:rank", price="free"),
        votes=Kind("stagealign.oracle.label:votes", price="free"),
        named=True,
        reads_file=True,
    ),
}
"""By the key that a preference names; `oracle.open` has a row for how each is opened. See `docs/extending.md`."""

_SCORES = Kind("stagealign.evaluate:score", "stagealign.evaluate.scores:score", price="scores")
_FITTED: Mapping[str, object] = {"batch": 32, "learning_rate": 1e-4, "seed": 0}
GOLDS = {
    "minilm": GoldKinds(
        ready=Kind("stagealign.evaluate:fit_gold", "stagealign.evaluate.gold:fit_gold", price="fit_gold"),
        scores=_SCORES,
        params=_FITTED,
        learns_from_ratings=True,
    ),
    "vowels": GoldKinds(
        ready=Kind("stagealign.evaluate:fit_vowels", "stagealign.evaluate.gold:fit_vowels", price="free"),
        scores=_SCORES,
        params=_FITTED,
    ),
    "alpaca_eval": GoldKinds(
        ready=Kind("stagealign.alpaca.gold:prepare", "stagealign.evaluate.alpaca_eval.gold:prepare", price="free"),
        scores=Kind(
            "stagealign.evaluate:score_annotated", "stagealign.evaluate.scores:score_annotated", price="scores"
        ),
        judged=True,
        annotate=Kind(
            "stagealign.alpaca.gold:annotate", "stagealign.evaluate.alpaca_eval.gold:annotate", price="annotations"
        ),
    ),
    "reward": GoldKinds(
        ready=Kind(
            "stagealign.rewards:fetch", "stagealign.evaluate.rewards:fetch", price="reward_model", fetches="weights"
        ),
        scores=_SCORES,
        named=True,
        rewards=Kind("stagealign.rewards:score", "stagealign.evaluate.rewards:score", price="rewards"),
    ),
}
"""By the key that a preference names, alone or before a colon. To add one: `docs/extending.md`."""


@dataclass(frozen=True)
class Preference:
    """An oracle that labels training pairs and another scorer that evaluates.

    Raises BadSpec at once for an oracle or a gold reward that no table has, and where both are one.
    """

    key: str
    wish: str
    """In words, what a better completion has more of."""
    oracle: str
    """A key of `ORACLES`, with a name after a colon where the row takes one."""
    gold: str
    """A key of `GOLDS`, with a name after a colon where the row takes one: `reward:ID` is any one-logit classifier."""
    judge: str
    """Picks the chosen one among human texts; neither the oracle nor the gold reward."""
    sign: int
    """+1 asks for a high rating, -1 for a low one."""
    gold_parameters: float = field(default=0.0, compare=False, metadata={"identity": False})
    """Number of weights of a classifier that evaluates, for cost estimates; 0: not known."""

    def __post_init__(self) -> None:
        if self.oracle == self.gold:
            raise BadSpec(
                f"preference {self.key!r}: oracle and gold reward are both {self.oracle!r}; what labels the training "
                "pairs must not evaluate; name two scorers"
            )
        _check(self.key, "oracle", self.oracle, {key: row.named for key, row in ORACLES.items()})
        _check(self.key, "gold", self.gold, {key: row.named for key, row in GOLDS.items()})

    @property
    def oracle_kinds(self) -> OracleKinds:
        return ORACLES[self.oracle.partition(":")[0]]

    @property
    def gold_kinds(self) -> GoldKinds:
        return GOLDS[self.gold.partition(":")[0]]

    @property
    def oracle_named(self) -> str | None:
        """What stands after the oracle's colon; None where nothing does."""
        return self.oracle.partition(":")[2] or None

    @property
    def rewarded(self) -> str | None:
        """Hub id of the classifier that evaluates, or `name@hash` of a local one; None where none does."""
        kind, _, name = self.gold.partition(":")
        return name if kind == "reward" else None

    @property
    def rewarded_key(self) -> str:
        """Part of paths and cell ids that names that classifier; empty where there is none."""
        name = (self.rewarded or "").rpartition("/")[2].partition("@")[0]
        return "".join(letter for letter in name.lower() if letter.isalnum())


def _check(preference: str, what: str, given: str, known: Mapping[str, bool]) -> None:
    """Raises BadSpec where `given` is no row of the table, or names something where the row takes no name."""
    key, colon, name = given.partition(":")
    if key not in known or bool(name) != known[key] or (colon and not name):
        rows = ", ".join(f"{one}:NAME" if named else one for one, named in known.items())
        raise BadSpec(f"preference {preference!r}: {what} {given!r} is unknown; choose one of {rows}")


PREFERENCES = {
    "pan": Preference(
        "pan", "a harsher verdict on the film", oracle="tfidf", gold="minilm", judge="textcat_imdb", sign=-1
    ),
    "praise": Preference(
        "praise", "a warmer verdict on the film", oracle="tfidf", gold="minilm", judge="textcat_imdb", sign=1
    ),
    "helpful": Preference(
        "helpful", "a better answer, as PairRM sees it", oracle="pairrm", gold="alpaca_eval", judge="dataset", sign=1
    ),
    "letters": Preference(
        "letters", "plumbing only: more letters", oracle="letters", gold="vowels", judge="dataset", sign=1
    ),
}
