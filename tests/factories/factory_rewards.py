"""Random classifiers of two layers, as checkpoints."""

import torch
from factory_models import CHAT
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, PreTrainedTokenizerFast

from stagealign.policy.start import byte_tokenizer


def pair_tokenizer():
    """A tokenizer of bytes that joins two texts as `[CLS] a [SEP] b [SEP]`, as an encoder's does."""
    from tokenizers.processors import TemplateProcessing

    inner = byte_tokenizer()._tokenizer
    inner.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
    marks = [(one, inner.token_to_id(one)) for one in ("[CLS]", "[SEP]")]
    inner.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", model_max_length=128
    )


def save(folder, shape="llama", labels=1, chat=False, weights=True, **changes):
    """A random classifier of two layers; `llama` reads the last token, `bert` the first."""
    tokenizer = byte_tokenizer() if shape == "llama" else pair_tokenizer()
    common = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    common |= {"intermediate_size": 64, "max_position_embeddings": 128, "initializer_range": 0.3, "num_labels": labels}
    pad = tokenizer.pad_token_id if shape == "bert" else None
    config = (LlamaConfig if shape == "llama" else BertConfig)(**common | {"pad_token_id": pad} | changes)
    torch.manual_seed(0)
    if chat:
        tokenizer.chat_template = CHAT
    if weights:
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
