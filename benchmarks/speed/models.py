"""Models of all sides of a row: seeded shapes, and the lab's own models if its store has them."""

from typing import Any

from benchmarks.speed.turns import Given
from stagealign.policy.lm import LanguageModel, load
from stagealign.store.home import default_home

SEED = 0
THIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PYTHIA = {"14m": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}}
"""Source: the config of EleutherAI/pythia-14m. The 160m shape is `stagealign.policy.start.random_pythia`."""
LLAMA = {
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
}
"""Source: the configs of meta-llama/Llama-3.2-1B and Llama-3.1-8B, with their eight key and value heads."""


def policy(shape: str, given: Given, seed: int = SEED) -> LanguageModel:
    """Model of a row with seeded weights, or SmolLM2's own for `135m`; if `given.small`, two thin layers on bytes."""
    import torch

    from stagealign.policy.start import byte_tokenizer, random_pythia

    if given.small:
        model = _neox(seed, vocabulary=264, **THIN)
        return LanguageModel(model.eval().to(given.device), byte_tokenizer())
    if shape == "135m":
        lm = load(smollm2())
        lm.tokenizer.chat_template = None
        return LanguageModel(lm.model.to(given.device), lm.tokenizer)
    if shape in LLAMA:
        from transformers import AutoModelForCausalLM, LlamaConfig

        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
        with torch.device(given.device):
            config = LlamaConfig(**sizes, **LLAMA[shape])
            return LanguageModel(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval(), tokenizer())
    model = random_pythia(seed) if shape == "160m" else _neox(seed, vocabulary=50_304, **PYTHIA[shape])
    return LanguageModel(model.eval().to(given.device), tokenizer())


def _neox(seed: int, vocabulary: int, **sizes: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    torch.manual_seed(seed)
    limits: dict[str, Any] = {"max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0}
    return AutoModelForCausalLM.from_config(GPTNeoXConfig(vocab_size=vocabulary, **limits, **sizes))


def seeded(sizes: dict[str, int], vocabulary: int, given: Given) -> LanguageModel:
    """Seeded GPT-NeoX of these sizes; its tokenizer is bytes if the vocabulary is too small for SmolLM2's."""
    from stagealign.policy.start import byte_tokenizer

    model = _neox(SEED, vocabulary=vocabulary, **sizes).eval().to(given.device)
    return LanguageModel(model, byte_tokenizer() if vocabulary < 49_152 else tokenizer())


def smollm2() -> Any:
    """Folder of SmolLM2-135M-Instruct in the lab's store. Raises RuntimeError if it is absent."""
    folder = default_home() / "lab" / "smollm2"
    if not folder.is_dir():
        raise RuntimeError(f"{folder}: missing; build it with `make demo`, or use `--small`, which needs no models")
    return folder


def tokenizer() -> Any:
    """SmolLM2's tokenizer if the lab has it, else bytes. Pythia's is on the hub only and has as many tokens a word."""
    from transformers import AutoTokenizer

    from stagealign.policy.start import byte_tokenizer

    folder = default_home() / "lab" / "smollm2"
    loaded = AutoTokenizer.from_pretrained(folder) if folder.is_dir() else byte_tokenizer()
    loaded.chat_template = None
    return loaded


def chat(given: Given) -> tuple[LanguageModel, str]:
    """Model of the sampling rows, with a chat template, and its name."""
    if not given.small:
        lm = load(smollm2())
        return LanguageModel(lm.model.to(given.device), lm.tokenizer), "SmolLM2-135M-Instruct"
    lm = policy("14m", given)
    lm.tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }}\n{% endfor %}Assistant:"
    return lm, "two thin layers, random"


def shifted(lm: LanguageModel) -> LanguageModel:
    """Reference model that differs a little from the policy, so that margins are not 0; shares the tokenizer."""
    import copy

    import torch

    twin = copy.deepcopy(lm.model)
    noise = torch.Generator(device=twin.device).manual_seed(SEED + 1)
    with torch.no_grad():
        for weight in twin.parameters():
            step = torch.randn(weight.shape, generator=noise, device=weight.device, dtype=weight.dtype)
            weight.add_(step * weight.std() * 0.1)
    return LanguageModel(twin.eval(), lm.tokenizer)


def reward(given: Given) -> tuple[Any, str]:
    """Reward model with one logit that reads only the completion, and its name: the lab's gold reward, else random."""
    from stagealign.scoring import reward_model as rewards

    folder = default_home() / "lab" / "gold"
    if folder.is_dir() and not given.small:
        oracle = rewards.load(str(folder), text="completion")
        oracle.model.to(given.device)
        return oracle, "MiniLM with a scalar head (the lab's gold reward)"
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from stagealign.policy.start import byte_tokenizer

    torch.manual_seed(SEED)
    layers = 2 if given.small else 6
    width = 32 if given.small else 384
    config = BertConfig(
        vocab_size=264, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 16,
        intermediate_size=4 * width, max_position_embeddings=2048, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval().to(given.device)
    return rewards.RewardOracle(model, byte_tokenizer(), "random", "completion", 512), "random, on bytes"
