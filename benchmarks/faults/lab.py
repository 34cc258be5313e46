"""Scale `tiny` for fault injection: real cells of a policy with 30,000 weights, which run in seconds.

`python -m benchmarks.faults.lab WORDS` is the command line with this scale in its registry.
"""

from dataclasses import replace
from typing import Any

from stagealign.base.kind import Kind
from stagealign.grid import methods, models, scales
from stagealign.grid.spec import Checkpoint, Decoding, Evaluation
from stagealign.pipeline import kinds
from stagealign.plan import flops as cost
from stagealign.store.artifact import Work

SCALE = "tiny"
CELLS = "2off_on"
"""Expression for `-k`: both methods, two rounds, one of each source."""


def install() -> None:
    """Adds the scale to the registry of this process; its weights are built by this module."""
    smoke = scales.SCALES["smoke"]
    training = replace(smoke.training, epochs=30, trained_layers=1, max_length=128)  # 60 steps: one checkpoint
    sizes = Evaluation(validation_prompts=2, test_prompts=4)
    short = Decoding(max_new_tokens=6)
    scales.SCALES[SCALE] = replace(
        smoke, key=SCALE, name="attacks", task=SCALE, training=training, evaluation=sizes, decoding=short
    )
    cost.LENGTHS[SCALE] = cost.LENGTHS["smoke"]
    methods.METHODS[SCALE] = methods.METHODS["smoke"]
    models.CHECKPOINTS[SCALE] = {"zephyr": Checkpoint("shape/tiny", parameters=30_000)}
    weights = Kind("benchmarks.faults.lab:build_weights", price="free")
    kinds.TASKS[SCALE] = replace(kinds.TASKS["smoke"], weights=weights)


def build_weights(work: Work) -> dict[str, Any]:
    """Builds `weights`: a seeded random Llama of two layers on bytes."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from stagealign.policy.lm import LanguageModel, save
    from stagealign.policy.start import byte_tokenizer

    torch.manual_seed(work.params["seed"])
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    lm = LanguageModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32), byte_tokenizer())
    save(lm, work.out, top_layers=work.params["trained_layers"])
    return {"weights": "random", "parameters": lm.model.num_parameters()}


def main() -> None:
    from stagealign.cli.app import main as command

    install()
    command()


if __name__ == "__main__":
    main()
