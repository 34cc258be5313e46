"""Tiny random language models."""

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tiny(shape="llama", seed=0, chat=False, tied=False):
    """A random LanguageModel of 4 layers and width 64 on bytes: `llama` has 4 heads on 2 key heads, `neox` 4 heads.

    Weights are wide enough (0.2) for next-token distributions that are neither flat nor certain.
    """
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

    from stagealign.policy.lm import LanguageModel
    from stagealign.policy.start import byte_tokenizer

    common = {
        "vocab_size": 264,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    config = (
        LlamaConfig(num_key_value_heads=2, **common) if shape == "llama" else GPTNeoXConfig(rotary_pct=0.25, **common)
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # biases and norms start as zeros and ones, which would hide a wrong one
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.1 * torch.randn_like(weight)
    tokenizer = byte_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT
    return LanguageModel(model, tokenizer)
