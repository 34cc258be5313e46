"""Layouts of preference files, one row each: name, columns, and how a row becomes a prompt with two answers.

`docs/data.md` describes each one with its source. A new layout is a new row of `LAYOUTS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from stagealign.data import sides
from stagealign.data.formats import DataRow
from stagealign.data.sides import Sides, contest, pairs, words

CHOSEN = ("chosen", "rejected")
ARENA = words(
    "winner",
    ("model_a", "a", "response_a"),
    ("model_b", "b", "response_b"),
    ("tie", "tie (bothbad)", "bothbad", "both_bad"),
)
PROMPTS = (
    "prompt", "messages", "conversations", "conversation", "instruction", "question", "query", "input", "context",
)  # fmt: skip
"""Columns of the prompt beside `chosen` and `rejected`; the order decides between equal ones."""


@dataclass(frozen=True)
class FileLayout:
    """One layout of a file."""

    name: str
    needs: tuple[str, ...]
    """Columns that every file of this layout has."""
    read: Callable[[DataRow], Sides]
    """Raises Unusable for a row without a pair."""
    optional: tuple[str, ...] = ()
    """Columns that are read if a file has them."""
    without: tuple[str, ...] = field(default=(), repr=False)
    """Columns that make a file one of another layout."""

    @property
    def columns(self) -> frozenset[str]:
        return frozenset((*self.needs, *self.optional))

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.needs)}"


def _chosen(name: str, prompt: str) -> FileLayout:
    """A layout of a prompt beside `chosen` and `rejected`."""
    without = ("num_correct",) if prompt == "prompt" else ()
    return FileLayout(name, (prompt, *CHOSEN), pairs(prompt), without=without)


def _rated(name: str, prompt: str, rating: str) -> FileLayout:
    """A layout of generations with their ratings; files that say what was chosen are read by that."""
    read = sides.ranked(prompt, sides.generations(rating))
    return FileLayout(name, (prompt, "generations", rating), read, without=CHOSEN)


LAYOUTS = (
    _chosen("TRL", "prompt"),
    FileLayout("RewardBench 2", ("prompt", *CHOSEN, "num_correct"), sides.first_of_each),
    _chosen("axolotl", "messages"),
    _chosen("ShareGPT ranking", "conversations"),
    _chosen("conversation", "conversation"),
    FileLayout("alpaca preference", ("instruction", *CHOSEN), sides.alpaca_pairs, optional=("input",)),
    _chosen("Orca", "question"),
    _chosen("query", "query"),
    FileLayout("distilabel pairs", ("input", *CHOSEN), pairs("input"), without=("instruction",)),
    _chosen("context", "context"),
    FileLayout("TRL, implicit prompt", CHOSEN, pairs(None), without=PROMPTS),
    FileLayout("alpaca, two outputs", ("instruction", "output"), sides.alpaca_outputs, ("input",), without=CHOSEN),
    *(
        FileLayout(
            "Argilla",
            (prompt, "chosen_response", "rejected_response"),
            pairs(prompt, "chosen_response", "rejected_response"),
        )
        for prompt in ("instruction", "prompt")
    ),
    FileLayout(
        "Argilla ranking",
        ("prompt", "response_1", "response_2", "preference"),
        contest("prompt", "response_1", "response_2", sides.argilla_ranking),
    ),
    FileLayout("OpenAI, Together, Fireworks", ("input", "preferred_output", "non_preferred_output"), sides.openai),
    FileLayout("ms-swift", ("messages", "rejected_response"), sides.swift("rejected_response")),
    FileLayout("ms-swift", ("messages", "rejected_messages"), sides.swift("rejected_messages")),
    FileLayout(
        "ms-swift 2", ("query", "response", "rejected_response"), pairs("query", "response", "rejected_response")
    ),
    FileLayout(
        "Stack Exchange", ("question", "response_j", "response_k"), pairs("question", "response_j", "response_k")
    ),
    _rated("distilabel", "instruction", "ratings"),
    _rated("distilabel", "prompt", "ratings"),
    _rated("distilabel", "input", "ratings"),
    _rated("distilabel", "instruction", "rating"),
    _rated("distilabel", "prompt", "rating"),
    _rated("distilabel", "input", "rating"),
    FileLayout(
        "UltraFeedback",
        ("instruction", "completions"),
        sides.ranked("instruction", sides.objects("completions", "response", "overall_score")),
        without=CHOSEN,
    ),
    FileLayout(
        "Nectar", ("prompt", "answers"), sides.ranked("prompt", sides.objects("answers", "answer", "rank", -1)),
        without=CHOSEN,
    ),
    FileLayout(
        "SHP",
        ("history", "human_ref_a", "human_ref_b", "labels"),
        contest("history", "human_ref_a", "human_ref_b", words("labels", ("1",), ("0",))),
    ),
    FileLayout(
        "HelpSteer 3",
        ("context", "response1", "response2", "overall_preference"),
        contest("context", "response1", "response2", sides.sign("overall_preference")),
    ),
    FileLayout(
        "HelpSteer 2 preference",
        ("prompt", "response_1", "response_2", "preference_strength"),
        contest("prompt", "response_1", "response_2", sides.sign("preference_strength")),
    ),
    FileLayout(
        "PKU-SafeRLHF",
        ("prompt", "response_0", "response_1", "better_response_id"),
        contest("prompt", "response_0", "response_1", words("better_response_id", ("0",), ("1",))),
    ),
    FileLayout(
        "Arena, conversations", ("conversation_a", "conversation_b", "winner"),
        contest(None, "conversation_a", "conversation_b", ARENA),
    ),
    FileLayout(
        "Arena, responses",
        ("prompt", "response_a", "response_b", "winner"),
        contest("prompt", "response_a", "response_b", ARENA),
    ),
    FileLayout(
        "Arena, 55k",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        sides.arena_lists,
    ),
    FileLayout("Label Studio pairwise", ("data", "annotations"), sides.label_studio),
)  # fmt: skip
"""Every layout that is read. Exactly one fits a file by its columns, or the file is refused."""
