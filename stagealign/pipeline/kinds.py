"""The kinds of artifacts: one row each."""

from collections.abc import Mapping

from stagealign.store.artifact import Builder

BUILDERS = {
    "weights": Builder("stagealign.sft:build_weights"),
    "shape": Builder("stagealign.sft:build_shape"),
    "start": Builder("stagealign.sft:build_start"),
    "link": Builder("stagealign.sft:build_link"),
    "reviews": Builder("stagealign.sources:build_sft"),
    "ratings": Builder("stagealign.sources:build_ratings"),
    "candidates": Builder("stagealign.sample:build"),
    "joined candidates": Builder("stagealign.parts:join_candidates"),
    "joined pairs": Builder("stagealign.parts:join_pairs"),
    "pairs": Builder("stagealign.oracle:rank"),
    "votes": Builder("stagealign.oracle:votes"),
    "trunk": Builder("stagealign.train:build_trunk"),
    "reference": Builder("stagealign.train:build_reference"),
    "policy": Builder("stagealign.train:build_policy"),
    "scores": Builder("stagealign.evaluate:score"),
    "data": Builder("stagealign.describe:measure"),
    "capability": Builder("stagealign.capability:measure"),
    "annotations": Builder("stagealign.alpaca.gold:annotate"),
    "reward_model": Builder("stagealign.rewards:fetch"),
    "rewards": Builder("stagealign.rewards:score"),
}
ENGINES = {"vllm": Builder("stagealign.vllm_sample:build"), "served": Builder("stagealign.served:build")}
"""Builders of `candidates` by engines other than our own sampler, by `Engine.key`."""
TASKS: Mapping[str, Mapping[str, Builder]] = {
    "films": {
        "prompts": Builder("stagealign.sources:build_films"),
        "static": Builder("stagealign.sources:build_static"),
        "oracle": Builder("stagealign.oracle:fit"),
        "gold": Builder("stagealign.evaluate:fit_gold"),
        "embeddings": Builder("stagealign.describe:embed"),
    },
    "smoke": {
        "prompts": Builder("stagealign.sources:build_smoke"),
        "static": Builder("stagealign.sources:build_smoke_static"),
        "oracle": Builder("stagealign.oracle:fit_letters"),
        "gold": Builder("stagealign.evaluate:fit_vowels"),
    },
    "ultrafeedback": {
        "prompts": Builder("stagealign.ultrafeedback:build_prompts"),
        "static": Builder("stagealign.ultrafeedback:build_static"),
        "reviews": Builder("stagealign.ultrafeedback:build_sft"),
        "weights": Builder("stagealign.sft:build_checkpoint"),
        "oracle": Builder("stagealign.pairrm:fetch"),
        "pairs": Builder("stagealign.pairrm:rank"),
        "votes": Builder("stagealign.pairrm:votes"),
        "embeddings": Builder("stagealign.describe:embed"),
        "gold": Builder("stagealign.alpaca.gold:prepare"),
        "scores": Builder("stagealign.evaluate:score_annotated"),
    },
}
"""A task may have a builder of its own for any kind; `plan.check_machine` names those that are not there."""
SECONDS = {
    "weights": 31, "shape": 6, "start": 118, "link": 1, "reviews": 1, "prompts": 1, "ratings": 1, "oracle": 3,
    "gold": 240, "static": 2, "candidates": 40, "completions": 32, "pairs": 1, "votes": 1, "trunk": 21, "reference": 8,
    "policy": 32, "scores": 16, "embeddings": 3, "data": 1,
    "joined": 1, "capability": 15, "answers": 32, "annotations": 60, "rewards": 30,
}  # fmt: skip
"""Expected seconds of each kind at lab scale on one core, measured; only the time left is computed from them."""
