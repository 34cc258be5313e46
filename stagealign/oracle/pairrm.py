"""PairRM, a model that compares two candidates: our own class for the checkpoint `llm-blender/PairRM-hf`.

The authors' library does not work with transformers 5. A DeBERTa-v3 encoder reads a prompt and two candidates in one
row; a two-layer head scores each candidate from the states at its mark and at the prompt's mark.
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
    read_headers,
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
"""Marks before the prompt, the first and the second candidate: field of config.json -> token."""
ALONE = 600
"""Tokens above which a row is its own batch on a CPU: batches of two took 15% longer at 700 tokens, 30% at 1,085."""
WINDOW = 64
"""Number of contests that are tokenized and sorted together; not part of identity."""


class PairRM(DebertaV2PreTrainedModel):
    """Encoder and pair head, with the parameter names of the published checkpoint."""

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
        """Logits of the first candidate being better, shape (B,); above 0 it wins. Each row contains each mark once."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        prompt, first, second = (states[input_ids == getattr(self.config, name)] for name in MARKS)
        scores = [self.head_layer(torch.cat([prompt, mark], dim=-1)) for mark in (first, second)]
        difference: Tensor = (scores[0] - scores[1]).mean(dim=-1)
        return difference


@dataclass(frozen=True)
class PromptRows:
    """Token ids of one prompt and its candidates, to be joined to rows of two candidates."""

    prompt: list[int]
    candidates: list[list[int]]
    """Each without its mark."""
    cut: list[bool]
    """True for a candidate whose own text or whose prompt was cut."""
    marks: tuple[int, int, int]
    start: list[int]

    def row(self, first: int, second: int) -> list[int]:
        """Token ids of one comparison, at most `ALL_TOKENS`."""
        _, first_mark, second_mark = self.marks
        start, candidates = self.start, self.candidates
        return [*self.prompt, *start, first_mark, *candidates[first], *start, second_mark, *candidates[second]]


class PairRMOracle:
    """Oracle that ranks a prompt's candidates by PairRM.

    Each pair is compared in both orders: a beats b by (logit(a, b) - logit(b, a)) / 2, which is antisymmetric. A pair
    across the two sources is a vote. A candidate's score is the mean of its margins over all other candidates, also of
    its own source, as in the paper's listwise ranking of four; it decides the top candidate. Equal texts tie without a
    comparison.

    A prompt is cut to 1,224 tokens. The two candidates share the rest of 2,048 equally, so each has at least 412, as in
    the checkpoint's README. The library's limit instead depends on the longest prompt of a batch. Marks and separators
    inside a text are removed, as the model could not tell them from real ones.

    Source: Jiang et al. 2023, LLM-Blender (arXiv 2306.02561); the checkpoint's README.
    """

    def __init__(
        self,
        model: PairRM,
        tokenizer: PreTrainedTokenizerBase,
        weights: str,
        batch_tokens: int | None = None,
    ):
        """`weights`: identity of the loaded weights. `batch_tokens`: most tokens of a batch, padding included."""
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
        """Yields one verdict per contest, in order; compares `WINDOW` contests at a time."""
        for start in range(0, len(contests), WINDOW):
            yield from self._judge(contests[start : start + WINDOW])

    def logits(self, rows: Sequence[tuple[str, str, str]]) -> list[float]:
        """Logit of the first candidate being better, for each (prompt, first, second); only this order is compared."""
        return self._run([self._tokens(prompt, [first, second]).row(0, 1) for prompt, first, second in rows])

    def _judge(self, contests: Sequence[Contest]) -> Iterator[Judged]:
        texts = [list(dict.fromkeys((*contest.on, *contest.off))) for contest in contests]
        rows = [self._tokens(contest.prompt, unique) for contest, unique in zip(contests, texts, strict=True)]
        asked = [(i, a, b) for i, unique in enumerate(texts) for a, b in combinations(range(len(unique)), 2)]
        both = self._run([rows[i].row(*order) for i, a, b in asked for order in ((a, b), (b, a))], together=2)
        logits: list[dict[tuple[int, int], tuple[float, float]]] = [{} for _ in contests]
        for (i, a, b), there, back in zip(asked, both[::2], both[1::2], strict=True):
            logits[i][a, b] = (there, back)
        for contest, unique, tokens, pair_logits in zip(contests, texts, rows, logits, strict=True):
            yield verdict(contest, unique, tokens.cut, pair_logits)

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
        """Token ids of marked texts without the mark, which is tokenized too because it can change the first token."""
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return [[token for token in ids if token not in self._reserved] for ids in rows]

    @torch.inference_mode()
    def _run(self, rows: Sequence[list[int]], together: int = 1) -> list[float]:
        """Logits of rows. Each group of `together` rows (both orders of a pair) has equal lengths and shares a batch.

        On a CPU a long row is its own batch, as its attention fills the cache.
        """
        out = [0.0] * len(rows)
        pad = self.tokenizer.pad_token_id or 0
        for groups in length_batches([len(row) for row in rows[::together]], self.batch_tokens // together):
            mates = [group * together + i for group in groups for i in range(together)]
            alone = self.model.device.type == "cpu" and len(rows[mates[0]]) > ALONE
            for places in [[place] for place in mates] if alone else [mates]:
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
    """Verdict of one contest; `logits`: (a, b) -> (logit with a first, logit with b first), by index in `unique`."""
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

    Raises StagealignError for a checkpoint that is not a PairRM, before its weights are read if config.json shows it.
    """
    hint = f"use {PUBLISHED!r} or a local copy of it"
    config = read_config(name, revision)
    if config.model_type != "deberta-v2":
        raise StagealignError(f"checkpoint {name!r}: of type {config.model_type!r}, PairRM is 'deberta-v2'; {hint}")
    lacking = [field for field in MARKS if getattr(config, field, None) is None]
    if lacking:
        raise StagealignError(f"checkpoint {name!r}: config.json has no {', '.join(lacking)}: not a PairRM; {hint}")
    read_headers(name, config, revision)
    tokenizer = read_tokenizer(name, revision, config)
    for field, token in MARKS.items():
        known, given = tokenizer.convert_tokens_to_ids(token), getattr(config, field)
        if known != given:
            raise StagealignError(
                f"checkpoint {name!r}: its tokenizer has {token} as {known}, config.json as {given}; tokenizer and "
                f"weights do not belong together; {hint}"
            )
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise StagealignError(f"checkpoint {name!r}: its tokenizer has no [CLS] or [SEP] token; {hint}")
    model = read_weights(PairRM, name, config, revision, dtype)
    return PairRMOracle(model, tokenizer, weights_identity(name, config), batch_tokens)


def fetch(work: Work) -> Facts:
    """Builder of `oracle` for PairRM: checks and copies the published weights; the record has their commit."""
    oracle = load(work.params["weights"], work.params["revision"])
    oracle.model.save_pretrained(work.out)
    oracle.tokenizer.save_pretrained(work.out)
    return {"weights": oracle.weights, "revision": oracle.weights.partition("@")[2], "spearman": None}
