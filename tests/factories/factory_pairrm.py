"""PairRM with random weights."""

import torch
from transformers import DebertaV2Config, DebertaV2Tokenizer

from stagealign.oracle.pairrm import MARKS, PairRM, PairRMOracle

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer():
    """A DeBERTa tokenizer over letters, with PairRM's marks."""
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    made = DebertaV2Tokenizer(
        vocab=[*((one, 0.0) for one in specials), ("▁", -2.0), *((one, -3.0) for one in LETTERS), ("[MASK]", 0.0)],
        unk_id=3,
    )
    made.add_tokens([*MARKS.values(), "<|candidate|>"])
    return made


def build(seed=0, **changes):
    made = tokenizer()
    torch.manual_seed(seed)
    config = DebertaV2Config(
        vocab_size=len(made),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        max_position_embeddings=64,
        initializer_range=0.3,
        n_tasks=1,
        drop_out=0.05,
        cand_prefix_id=made.convert_tokens_to_ids("<|candidate|>"),
        **{name: made.convert_tokens_to_ids(token) for name, token in MARKS.items()},
    )
    model = PairRM(config).eval()
    with torch.no_grad():  # biases start as zeros, which would hide a wrong one
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.1 * torch.randn_like(weight)
    return PairRMOracle(model, made, "random", **changes)
