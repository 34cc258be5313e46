"""DeBERTa's attention for inference, with fewer passes over length x length tables.

A score is the sum of content to content, content to position and position to content, divided by one scale. The code of
transformers divides, adds and masks each length x length table in turn and projects every position. Here the smaller
factors are scaled, the content product adds to the table in place, and only positions that occur are projected.
Source of the formula: He et al. 2020, DeBERTa (arXiv 2006.03654), equation 4.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention


class ReadingAttention(DisentangledSelfAttention):
    """Drop-in replacement for inference without dropout or attention maps; other settings fall back to transformers."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None] | Any:
        """States of shape (B, T, width); the mask is (B, 1, T, T), `relative_pos` (1, T, T)."""
        known = self.share_att_key and {"c2p", "p2c"} == set(self.pos_att_type)
        if self.training or output_attentions or query_states is not None or relative_pos is None or not known:
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        assert rel_embeddings is not None
        heads = self.num_attention_heads
        split = self.transpose_for_scores
        query, key = split(self.query_proj(hidden_states), heads), split(self.key_proj(hidden_states), heads)
        scale = (3 * query.shape[-1]) ** -0.5
        scores = self._positions(query, key, relative_pos.view(relative_pos.shape[-2:]), rel_embeddings, scale)
        scores.baddbmm_(query, key.transpose(-1, -2), alpha=scale)
        size = scores.shape[-1]
        table = scores.view(-1, heads, size, size)
        if not bool(attention_mask.all()):
            table.masked_fill_(~attention_mask.bool(), torch.finfo(table.dtype).min)
        value = split(self.value_proj(hidden_states), heads)
        mixed = torch.bmm(nn.functional.softmax(scores, dim=-1), value)
        shaped = mixed.view(-1, heads, size, mixed.shape[-1]).permute(0, 2, 1, 3)
        return shaped.reshape(hidden_states.shape), None

    def _positions(self, query: Tensor, key: Tensor, relative: Tensor, embeddings: Tensor, scale: float) -> Tensor:
        """Content to position and position to content, shape (B x heads, T, T); `relative` is (T, T)."""
        span, heads = self.pos_ebd_size, self.num_attention_heads
        index = (relative.long() + span).clamp_(0, 2 * span - 1)
        low, high = int(index[0, -1]), int(index[-1, 0])
        near = embeddings[None, low : high + 1]
        batch = query.shape[0] // heads
        places = self.transpose_for_scores(self.key_proj(near) * scale, heads).repeat(batch, 1, 1)
        askers = self.transpose_for_scores(self.query_proj(near) * scale, heads).repeat(batch, 1, 1)
        index = (index - low).expand(query.shape[0], -1, -1)
        scores = torch.gather(query @ places.transpose(-1, -2), -1, index)
        return scores.add_(torch.gather(key @ askers.transpose(-1, -2), -1, index.transpose(-1, -2)).transpose(-1, -2))


def read_only(model: nn.Module) -> nn.Module:
    """Replaces the attention of a model in place and returns the model; weights and their names do not change."""
    for module in model.modules():
        if type(module) is DisentangledSelfAttention:
            module.__class__ = ReadingAttention
    return model
