"""Preferences and the tables that they choose from: oracles, which label pairs, and gold rewards, which evaluate."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagealign.base.errors import BadSpec
from stagealign.base.kind import Kind
from stagealign.grid.prices import PAID, PaidJudge
from stagealign.grid.spec import Decoding, Judging


@dataclass(frozen=True)
class OracleKinds:
    """Kinds of artifacts with which one oracle labels rounds.

    An oracle that scores each text alone names its `scorer`; `oracle.open.ORACLES` has the code of the others.
    """

    ready: Kind
    """Fits, fetches or asks the oracle; its folder is the input `oracle` of the other two."""
    rank: Kind
    """Candidates to training pairs."""
    votes: Kind
    """Completions and static candidates to the votes of a boundary score."""
    scorer: str = ""
    """`module:function` that gives the scores of texts, from the folder of `ready`; higher is better."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Parameters of `ready`, if the oracle is fitted here."""
    named: bool = False
    """Whether a name stands after the key and a colon, as in `reward:ID`; it is a parameter of `ready`."""
    learns_from_ratings: bool = False
    """Whether the task's human ratings are an input of `ready`."""
    reads_file: bool = False
    """Whether its name is a file, whose content is a parameter of `ready`."""
    served: bool = False
    """Whether it answers from a server, whose URL `run --judge-url` and `boundary --judge-url` name."""


@dataclass(frozen=True)
class GoldKinds:
    """Kinds of artifacts with which one gold reward evaluates. With `annotate` it has prompts of its own."""

    ready: Kind
    """Fits or fetches the gold reward; its folder is the input `gold` of what evaluates."""
    scores: Kind
    """Completions to the numbers of a result."""
    unit: str
    """Unit of the gold reward in results and reports."""
    params: Mapping[str, object] = field(default_factory=dict)
    """Parameters of `ready`, if the gold reward is fitted here."""
    named: bool = False
    """Whether a name stands after the key and a colon, as in `reward:ID`."""
    learns_from_ratings: bool = False
    scorer: str = ""
    """`module:function` that gives the rewards of texts, from the folder of `ready`."""
    rewards: Kind | None = None
    """Completions to rewards of a model, as an artifact of their own; None if the `scorer` gives the rewards."""
    annotate: Kind | None = None
    """Answers of a policy to annotations by a judge; None if no judge evaluates."""
    judging: Judging | None = None
    """Prompts, baseline, judge and decoding; None without `annotate`."""
    judge: PaidJudge | None = None
    """Judge that `annotate` pays; None if it is free."""


SCORED_RANK = Kind("stagealign.oracle:rank", "stagealign.oracle.label:rank", version=2, price="free")
SCORED_VOTES = Kind("stagealign.oracle:votes", "stagealign.oracle.label:votes", price="free", light=0.3)
_REWARD = OracleKinds(
    ready=Kind("stagealign.oracle.ready:fetch_reward", price="reward_model", fetches="weights"),
    rank=Kind("stagealign.oracle.label:rank_scored", "stagealign.oracle.label:rank", version=2, price="scored_pairs"),
    votes=Kind(
        "stagealign.oracle.label:votes_scored", "stagealign.oracle.label:votes", version=2, price="scored_votes"
    ),
    named=True,
)
ORACLES = {
    "tfidf": OracleKinds(
        ready=Kind("stagealign.oracle:fit", "stagealign.oracle.learned:fit", price="free", light=2.0),
        rank=SCORED_RANK,
        votes=SCORED_VOTES,
        scorer="stagealign.oracle.learned:tfidf",
        params={"alpha": 1.0},
        learns_from_ratings=True,
    ),
    "letters": OracleKinds(
        ready=Kind("stagealign.oracle:fit_letters", "stagealign.oracle.learned:fit_letters", price="free"),
        rank=SCORED_RANK,
        votes=SCORED_VOTES,
        scorer="stagealign.oracle.learned:letters",
        params={"alpha": 1.0},
    ),
    "pairrm": OracleKinds(
        ready=Kind("stagealign.pairrm:fetch", "stagealign.oracle.pairrm:fetch", price="pairrm", fetches="weights"),
        rank=Kind("stagealign.pairrm:rank", "stagealign.oracle.label:rank", version=2, price="rank"),
        votes=Kind("stagealign.pairrm:votes", "stagealign.oracle.label:votes", version=2, price="votes"),
    ),
    "reward": _REWARD,
    "completion-reward": _REWARD,
    "judge": OracleKinds(
        ready=Kind("stagealign.oracle.ready:ask_judge", price="free"),
        rank=Kind("stagealign.oracle.label:rank_asked", "stagealign.oracle.label:rank", version=2, price="asked_pairs"),
        votes=Kind("stagealign.oracle.label:votes_asked", "stagealign.oracle.label:votes", price="asked_votes"),
        named=True,
        served=True,
    ),
    "recorded": OracleKinds(
        ready=Kind("stagealign.oracle.ready:copy_recorded", price="free"),
        rank=Kind("stagealign.oracle.label:rank", version=2, price="free"),
        votes=Kind("stagealign.oracle.label:votes", price="free"),
        named=True,
        reads_file=True,
    ),
}
"""By the key that a preference names; `oracle.open` has a row for how each is opened. See `docs/extending.md`."""

_SCORES = Kind("stagealign.evaluate:score", "stagealign.evaluate.scores:score", version=2, price="scores")
_FITTED: Mapping[str, object] = {"batch": 32, "learning_rate": 1e-4, "seed": 0}
_GPT4 = PaidJudge(
    "gpt-4-1106-preview",
    PAID["gpt-4-1106-preview"],
    frame_tokens=200,
    instruction_tokens=40,
    baseline_tokens=470,
    answer_tokens=400,
    source="assumed: lengths from the published outputs, 4.3 characters a token; price list read in 2026-03",
    packages=("alpaca_eval", "httpx", "tenacity"),
    extras="eval,judge",
)
GOLDS = {
    "minilm": GoldKinds(
        ready=Kind("stagealign.evaluate:fit_gold", "stagealign.evaluate.gold:fit_gold", price="fit_gold"),
        scores=_SCORES,
        unit="rating points",
        params=_FITTED,
        learns_from_ratings=True,
        scorer="stagealign.evaluate.gold:gold_reward",
    ),
    "vowels": GoldKinds(
        ready=Kind("stagealign.evaluate:fit_vowels", "stagealign.evaluate.gold:fit_vowels", price="free"),
        scores=_SCORES,
        unit="rating points",
        params=_FITTED,
        scorer="stagealign.evaluate.gold:vowels",
    ),
    "alpaca_eval": GoldKinds(
        ready=Kind(
            "stagealign.alpaca.gold:prepare", "stagealign.evaluate.alpaca_eval.gold:prepare", version=2, price="free"
        ),
        scores=Kind(
            "stagealign.evaluate:score_annotated",
            "stagealign.evaluate.alpaca_eval.scores:score",
            version=2,
            price="scores",
        ),
        unit="LC win rate points",
        annotate=Kind(
            "stagealign.alpaca.gold:annotate", "stagealign.evaluate.alpaca_eval.gold:annotate", price="annotations"
        ),
        judging=Judging(
            "tatsu-lab/alpaca_eval",
            revision=None,  # resolved and recorded at the first fetch
            prompts=805,
            judge="official",
            decoding=Decoding(top_k=40, max_new_tokens=4096, presence_penalty=0.1, frequency_penalty=0.1),
        ),
        judge=_GPT4,
    ),
    "reward": GoldKinds(
        ready=Kind(
            "stagealign.rewards:fetch", "stagealign.evaluate.rewards:fetch", price="reward_model", fetches="weights"
        ),
        scores=_SCORES,
        unit="points of the reward model",
        named=True,
        rewards=Kind("stagealign.rewards:score", "stagealign.evaluate.rewards:score", version=2, price="rewards"),
    ),
}
"""By the key that a preference names, alone or before a colon. To add one: `docs/extending.md`."""


@dataclass(frozen=True)
class Preference:
    """An oracle that labels training pairs, and another scorer that evaluates.

    Raises BadSpec for an oracle or a gold reward that is in no table, and if both are the same scorer.
    """

    key: str
    wish: str
    """Property that a better completion has more of, in words."""
    oracle: str
    """Key of `ORACLES`, with a name after a colon if the row takes one: `reward:ID`, `judge:MODEL`, `recorded:FILE`."""
    gold: str
    """Key of `GOLDS`, with a name after a colon if the row takes one: `reward:ID` is any classifier with one logit."""
    judge: str
    """Scorer that picks the chosen text among human ones; neither the oracle nor the gold reward."""
    sign: int
    """+1 asks for a high rating, -1 for a low one."""
    gold_parameters: float = field(default=0.0, compare=False, metadata={"identity": False})
    """Number of weights of a classifier that evaluates, for cost estimates; 0 if unknown."""
    oracle_parameters: float = field(default=0.0, compare=False, metadata={"identity": False})
    """Number of weights of a classifier that labels, for cost estimates; 0 if unknown."""

    def __post_init__(self) -> None:
        if self.oracle == self.gold or (self.gold_named and self.oracle_named == self.gold_named):
            raise BadSpec(
                f"preference {self.key!r}: oracle and gold reward are both {self.gold!r}; what labels the training "
                "pairs must not evaluate; name two scorers"
            )
        _check(self.key, "oracle", self.oracle, {key: row.named for key, row in ORACLES.items()})
        _check(self.key, "gold", self.gold, {key: row.named for key, row in GOLDS.items()})

    @property
    def oracle_kinds(self) -> OracleKinds:
        return ORACLES[self.oracle.partition(":")[0]]

    @property
    def gold_kinds(self) -> GoldKinds:
        return gold_row(self.gold)

    @property
    def oracle_named(self) -> str | None:
        """Name after the oracle's colon; None if there is none."""
        return self.oracle.partition(":")[2] or None

    @property
    def gold_named(self) -> str | None:
        """Name after the gold reward's colon: hub id of a classifier, or `name@hash` of a local one; else None."""
        return self.gold.partition(":")[2] or None

    @property
    def gold_key(self) -> str:
        """Part of paths and cell ids for `gold_named`; empty if nothing is named."""
        name = (self.gold_named or "").rpartition("/")[2].partition("@")[0]
        return "".join(letter for letter in name.lower() if letter.isalnum())


def gold_row(gold: str) -> GoldKinds:
    """Row of a gold reward as a preference names it, such as `reward:NAME`."""
    return GOLDS[gold.partition(":")[0]]


def _check(preference: str, what: str, given: str, known: Mapping[str, bool]) -> None:
    """Raises BadSpec if `given` has no row, lacks a name that its row needs, or has a name that its row rejects."""
    key, colon, name = given.partition(":")
    if key not in known or bool(name) != known[key] or (colon and not name):
        rows = ", ".join(f"{row}:NAME" if named else row for row, named in known.items())
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
