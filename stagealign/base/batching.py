"""Limits on how much one forward of a model holds, and what sampling holds; execution, never identity."""

from dataclasses import dataclass

LARGE_MODEL = 1e9
"""Number of weights above which activations are recomputed and SFT batches are split."""
MICRO_BATCH = 4
"""Maximum pairs in one forward of one process, unless the user sets another number."""
SAMPLED_ROWS = 256
"""Candidates that are sampled side by side at most."""
FREE_SHARE = {"cuda": 0.85, "cpu": 0.5}
"""Share of free memory that a batch of sampling is planned for: a CPU's is shared with other programs."""
GROWTH = 64
"""Tokens by which the sampler's cache grows."""
SCORE_COPIES, LOGIT_COPIES, PENALTY_COPIES = 3.4, 2.2, 3.5
"""Tensors that live at a time: of a layer's attention scores, of the logits in float32, and more of these with
penalties. Measured (`python -m benchmarks.sampling_memory`)."""


@dataclass(frozen=True)
class SampledBatch:
    """Rows that are sampled side by side, in the longest of their lengths."""

    rows: float
    prompts: float
    """Fewer than rows if a prompt has several candidates."""
    prefix: float
    """Tokens that all prompts share; they are stored once."""
    tail: float
    """Other tokens of a prompt."""
    new: float
    """Tokens of a completion at most."""
    penalties: bool = False


@dataclass(frozen=True)
class SamplerShape:
    """Sizes of a decoder that its sampling memory follows from."""

    layers: int
    width: int
    key_width: int
    """Width of the keys that one layer keeps of a token; values have the same."""
    heads: int
    mlp: float
    """Values that the MLP of one layer holds of a token at a time."""
    vocabulary: int
    size: int
    """Bytes of one value."""

    def peak(self, batch: SampledBatch) -> float:
        """Most bytes that a batch takes beside weights and shared prefix: while it reads prompts, or at its end.

        While it reads, each prompt counts once: keys and values of all layers, and the scores or the MLP of one layer.
        At the end, each row counts: keys and values, a copy of one layer's as rows leave or the cache grows, and a
        layer's scores, or the logits and their copies.
        """
        return max(self._reading(batch), self._writing(batch))

    def _reading(self, batch: SampledBatch) -> float:
        tokens = batch.prompts * batch.tail
        scores = SCORE_COPIES * batch.tail * (batch.prefix + batch.tail) * self.heads * batch.prompts
        inner = tokens * (self.mlp + 2 * self.width)
        return self.size * (tokens * 2 * self.layers * self.key_width + max(scores, inner))

    def _writing(self, batch: SampledBatch) -> float:
        tokens = batch.tail + batch.new
        kept = batch.rows * tokens * self.key_width
        scores = SCORE_COPIES * batch.rows * self.heads * (batch.prefix + tokens)
        copies = LOGIT_COPIES + PENALTY_COPIES * batch.penalties
        logits = 4 * batch.rows * self.vocabulary * copies
        return self.size * kept * (2 * self.layers + 1) + max(self.size * scores, logits)
