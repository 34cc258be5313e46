"""PairRM: compares two candidates side by side; our own class for the checkpoint `llm-blender/PairRM-hf`.

The library of its authors does not import on transformers 5. A DeBERTa-v3 encoder reads prompt and two candidates in
one row; a head of two layers scores each candidate from the states at its mark and at the prompt's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model, PreTrainedTokenizerBase
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel

from stagealign.base.errors import StagealignError
from stagealign.oracle.disentangled import read_only
from stagealign.policy.checkpoints import (
    length_batches,
    padded,
    read_config,
    read_tokenizer,
    read_weights,
    weights_identity,
)
from stagealign.scoring.contest import Contest, Judged
from stagealign.store.artifact import Facts, Identity, Work

PUBLISHED = "llm-blender/PairRM-hf"
PROMPT_TOKENS, CANDIDATE_TOKENS, ALL_TOKENS = 1224, 412, 2048
"""Limits of one row, marks and separators included; see `PromptRows.row`."""
MARKS = {"source_prefix_id": "<|source|>", "cand1_prefix_id": "<|candidate1|>", "cand2_prefix_id": "<|candidate2|>"}
"""Names in config.json, and tokens, of the marks before prompt, first and second candidate."""
ALONE = 600
"""Tokens from which a row is read alone on a CPU: two of 700 took 15% longer side by side, two of 1,085 took 30%."""
WINDOW = 64
"""Contests that are tokenised and sorted together; execution, not identity."""


class PairRM(DebertaV2PreTrainedModel):
    """Encoder and pair head, with parameter names as published."""

    base_model_prefix = "pretrained_model"

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        width, dropout = config.hidden_size, getattr(config, "drop_out", 0.0)
        self.pretrained_model = read_only(DebertaV2Model(config))
        self.head_layer = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(width, getattr(config, "n_tasks", 1)),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """How much better the first candidate is, shape (B,), above 0 where it wins; each mark once a row."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        prompt, first, second = (states[input_ids == getattr(self.config, name)] for name in MARKS)
        scores = [self.head_layer(torch.cat([prompt, one], dim=-1)) for one in (first, second)]
        difference: Tensor = (scores[0] - scores[1]).mean(dim=-1)
        return difference


@dataclass(frozen=True)
class PromptRows:
    """One prompt's tokens, ready to be put together with any two of its candidates."""

    prompt: list[int]
    candidates: list[list[int]]
    """Each without its mark."""
    cut: list[bool]
    """Whether a candidate is judged on less than the whole text, its own or the prompt's."""
    marks: tuple[int, int, int]
    start: list[int]

    def row(self, first: int, second: int) -> list[int]:
        """Token ids of one comparison, at most `ALL_TOKENS`."""
        _, one, two = self.marks
        start, candidates = self.start, self.candidates
        return [*self.prompt, *start, one, *candidates[first], *start, two, *candidates[second]]


class PairRMOracle:
    """Oracle of the boundary meter that ranks a prompt's candidates by PairRM.

    Each pair is asked in both orders: a beats b by (logit(a, b) - logit(b, a)) / 2, which changes its sign with the
    order. Each pair across the two sources votes for itself. A candidate's score, which the reading by the top
    candidate uses, is the mean of what it beats each other candidate by, those of its own source included, as in the
    paper's one listwise ranking of four. Equal texts tie without being asked.

    A prompt is cut to 1,224 tokens. What it leaves of 2,048 is halved between the two candidates, so each has at least
    412, as in the checkpoint's README; the library's limit depended on the longest prompt of a batch. Marks and
    separators that stand in a text are taken out of it: they would be read as ours.

    Source: Jiang et al. 2023, LLM-Blender (arXiv 2306.02561); the checkpoint's README.
    """

    def __init__(
        self,
        model: PairRM,
        tokenizer: PreTrainedTokenizerBase,
        weights: str,
        batch_tokens: int | None = None,
    ):
        """`weights` names what was loaded; `batch_tokens` bounds a batch with its padding, and memory with it."""
        self.model, self.tokenizer, self.weights = model, tokenizer, weights
        self.batch_tokens = batch_tokens or (65_536 if model.device.type == "cuda" else 4_096)
        marks = [int(getattr(model.config, name)) for name in MARKS]
        self._marks = (marks[0], marks[1], marks[2])
        self._ends = ([int(tokenizer.cls_token_id)], [int(tokenizer.sep_token_id)])
        self._reserved = {*marks, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        extra = getattr(model.config, "cand_prefix_id", None)
        self._reserved |= {extra} if extra is not None else set()

    @property
    def identity(self) -> Identity:
        return {
            "kind": "pairrm",
            "version": 2,
            "weights": self.weights,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "limits": [PROMPT_TOKENS, CANDIDATE_TOKENS, ALL_TOKENS],
        }

    def judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        """One verdict a contest, in order; `WINDOW` contests at a time."""
        for start in range(0, len(contests), WINDOW):
            yield from self._judge(contests[start : start + WINDOW])

    def logits(self, rows: Sequence[tuple[str, str, str]]) -> list[float]:
        """How much better the first candidate is, in this order alone, of each (prompt, first, second)."""
        return self._run([self._tokens(prompt, [first, second]).row(0, 1) for prompt, first, second in rows])

    def _judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        texts = [list(dict.fromkeys((*contest.on, *contest.off))) for contest in contests]
        rows = [self._tokens(contest.prompt, unique) for contest, unique in zip(contests, texts, strict=True)]
        asked = [(i, a, b) for i, unique in enumerate(texts) for a, b in combinations(range(len(unique)), 2)]
        both = self._run([rows[i].row(*order) for i, a, b in asked for order in ((a, b), (b, a))], together=2)
        logits: list[dict[tuple[int, int], tuple[float, float]]] = [{} for _ in contests]
        for (i, a, b), there, back in zip(asked, both[::2], both[1::2], strict=True):
            logits[i][a, b] = (there, back)
        for contest, unique, tokens, found in zip(contests, texts, rows, logits, strict=True):
            yield verdict(contest, unique, tokens.cut, found)

    def _tokens(self, prompt: str, candidates: Sequence[str]) -> PromptRows:
        source, *others = self._ids(["<|source|>" + prompt, *("<|candidate1|>" + text for text in candidates)])
        start, end = self._ends
        content = PROMPT_TOKENS - 3  # start, mark and end
        short = len(source) > content
        front = [*start, self._marks[0], *source[:content], *end]
        room = (ALL_TOKENS - len(front)) // 2 - 3
        cut = [short or len(ids) > room for ids in others]
        return PromptRows(front, [[*ids[:room], *end] for ids in others], cut, self._marks, start)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of marked texts without the mark, which is read with the text: it may change the first token."""
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return [[one for one in ids if one not in self._reserved] for ids in found]

    @torch.inference_mode()
    def _run(self, rows: Sequence[list[int]], together: int = 1) -> list[float]:
        """Logits of rows; each `together` of them are equally long and share a batch, as the two orders of a pair.

        On a CPU a long row goes alone: its attention alone fills the cache.
        """
        out = [0.0] * len(rows)
        pad = self.tokenizer.pad_token_id or 0
        for groups in length_batches([len(row) for row in rows[::together]], self.batch_tokens // together):
            mates = [group * together + i for group in groups for i in range(together)]
            alone = self.model.device.type == "cpu" and len(rows[mates[0]]) > ALONE
            for places in [[one] for one in mates] if alone else [mates]:
                logits = self.model(*padded([rows[i] for i in places], pad, self.model.device))
                for i, value in zip(places, logits.float().tolist(), strict=True):
                    out[i] = value
        return out


def verdict(
    contest: Contest,
    unique: Sequence[str],
    cut: Sequence[bool],
    logits: Mapping[tuple[int, int], tuple[float, float]],
) -> Judged:
    """Verdict of one contest from the logits of its distinct texts, (a, b) -> (a first, b first)."""
    if not all(isfinite(value) for pair in logits.values() for value in pair):
        return Judged((), (), failed="PairRM gave a number that is not finite")
    beats = dict.fromkeys(((i, i) for i in range(len(unique))), 0.0)
    for (a, b), (there, back) in logits.items():
        beats[a, b] = (there - back) / 2
        beats[b, a] = -beats[a, b]
    place = {text: i for i, text in enumerate(unique)}
    places = [place[text] for text in (*contest.on, *contest.off)]
    scores = tuple(sum(beats[i, j] for j in places) / max(1, len(places) - 1) for i in places)
    ours, theirs = places[: len(contest.on)], places[len(contest.on) :]
    return Judged(
        on=scores[: len(contest.on)],
        off=scores[len(contest.on) :],
        won=tuple((1.0 if beats[i, j] > 0 else 0.5 if beats[i, j] == 0 else 0.0) for i in ours for j in theirs),
        compared=len(logits),
        changed=sum((there > 0) != (back < 0) for there, back in logits.values()),
        truncated=sum(cut[i] for i in places),
    )


def load(
    name: str = PUBLISHED, revision: str | None = None, dtype: str = "float32", batch_tokens: int | None = None
) -> PairRMOracle:
    """PairRM from a local folder or the hub, ready to judge; safetensors only, no remote code.

    Raises StagealignError for a checkpoint that is not a PairRM, before its weights are read where config.json shows.
    """
    hint = f"use {PUBLISHED!r} or a local copy of it"
    config = read_config(name, revision)
    if config.model_type != "deberta-v2":
        raise StagealignError(f"checkpoint {name!r}: of type {config.model_type!r}, PairRM is 'deberta-v2'; {hint}")
    lacking = [one for one in MARKS if getattr(config, one, None) is None]
    if lacking:
        raise StagealignError(f"checkpoint {name!r}: config.json has no {', '.join(lacking)}: not a PairRM; {hint}")
    tokenizer = read_tokenizer(name, revision)
    for one, token in MARKS.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != getattr(config, one):
            raise StagealignError(
                f"checkpoint {name!r}: its tokenizer has {token} as {found}, config.json as {getattr(config, one)}; "
                f"tokenizer and weights do not belong together, {hint}"
            )
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise StagealignError(f"checkpoint {name!r}: its tokenizer has no [CLS] or [SEP] token; {hint}")
    model = read_weights(PairRM, name, config, revision, dtype)
    return PairRMOracle(model, tokenizer, weights_identity(name, config), batch_tokens)


def fetch(work: Work) -> Facts:
    """Builder of `oracle` where it is PairRM: the published weights, checked; the record says which commit it was."""
    oracle = load(work.params["weights"], work.params["revision"])
    oracle.model.save_pretrained(work.out)
    oracle.tokenizer.save_pretrained(work.out)
    return {"weights": oracle.weights, "revision": oracle.weights.partition("@")[2], "spearman": None}
