"""Kinds of a cell's artifacts, one row each; those of preferences and samplers stand in their rows in `grid`.

`name` is identity and never changes, even if the code moves; `place` is where the code lies. No other code matches on
a name. See `stagealign.base.kind`.
"""

from dataclasses import dataclass

from stagealign.base.kind import Kind

WEIGHTS = Kind("stagealign.sft:build_weights", "stagealign.policy.start:build_weights", price="weights", light=17.0)
SHAPE = Kind("stagealign.sft:build_shape", "stagealign.policy.start:build_shape", price="weights")
CHECKPOINT = Kind(
    "stagealign.sft:build_checkpoint", "stagealign.policy.start:build_checkpoint", price="weights", fetches="checkpoint"
)
START = Kind("stagealign.sft:build_start", "stagealign.policy.start:build_start", version=2, price="start")
LINK = Kind("stagealign.sft:build_link", "stagealign.policy.start:build_link", price="free")
JOINED_CANDIDATES = Kind("stagealign.parts:join_candidates", "stagealign.policy.parts:join_candidates", price="free")
JOINED_PAIRS = Kind("stagealign.parts:join_pairs", "stagealign.policy.parts:join_pairs", price="free")
TRUNK = Kind("stagealign.train:build_trunk", "stagealign.train.reference:build_trunk", version=2, price="trunk")
REFERENCE = Kind(
    "stagealign.train:build_reference", "stagealign.train.reference:build_reference", version=2, price="reference"
)
POLICY = Kind(
    "stagealign.train:build_policy", "stagealign.train.round:build_policy", version=2, price="policy", trains=True
)
DATA = Kind("stagealign.describe:measure", "stagealign.evaluate.describe:measure", price="free", light=0.7)
EMBEDDINGS = Kind("stagealign.describe:embed", "stagealign.evaluate.describe:embed", price="embed")
CAPABILITY = Kind(
    "stagealign.capability:measure", "stagealign.evaluate.capability:measure", price="capability", light=15.0
)


@dataclass(frozen=True)
class Task:
    """Kinds that build a scale's prompts, static candidates and conversations."""

    prompts: Kind
    static: Kind
    words: str = ""
    """Description of the data for a model card."""
    conversations: Kind | None = None
    """Rows of supervised fine-tuning; None if no start of the scale is fine-tuned."""
    ratings: Kind | None = None
    """Human ratings that oracle and gold reward learn from; None if they learn from none."""
    weights: Kind = SHAPE
    """Kind that builds starting weights that are no asset of a registry package."""
    embeds: bool = True
    """Whether the texts of a round are embedded, to measure how diverse they are."""


TASKS = {
    "films": Task(
        words="prompts ask for a one-sentence review of a film; off-policy candidates are human film reviews "
        "(Rotten Tomatoes), on-policy ones are samples of the policy; an oracle learned from human ratings ranks both",
        prompts=Kind("stagealign.sources:build_films", "stagealign.data.films:build_films", price="free"),
        static=Kind("stagealign.sources:build_static", "stagealign.data.films:build_static", price="free", light=1.0),
        conversations=Kind("stagealign.sources:build_sft", "stagealign.data.films:build_sft", price="free"),
        ratings=Kind("stagealign.sources:build_ratings", "stagealign.data.films:build_ratings", price="free"),
    ),
    "smoke": Task(
        words="made-up prompts and texts: plumbing only, the numbers mean nothing",
        prompts=Kind("stagealign.sources:build_smoke", "stagealign.data.toy:build_smoke", price="free"),
        static=Kind("stagealign.sources:build_smoke_static", "stagealign.data.toy:build_smoke_static", price="free"),
        embeds=False,
    ),
    "ultrafeedback": Task(
        words="UltraFeedback prompts; off-policy candidates are its own, on-policy ones are samples of the policy; "
        "PairRM ranks both",
        prompts=Kind(
            "stagealign.ultrafeedback:build_prompts",
            "stagealign.data.ultrafeedback:build_prompts",
            version=2,
            price="free",
        ),
        static=Kind(
            "stagealign.ultrafeedback:build_static",
            "stagealign.data.ultrafeedback:build_static",
            version=2,
            price="free",
        ),
        conversations=Kind(
            "stagealign.ultrafeedback:build_sft", "stagealign.data.ultrafeedback:build_sft", price="free"
        ),
        weights=CHECKPOINT,
    ),
}
"""By the key that a scale names."""
