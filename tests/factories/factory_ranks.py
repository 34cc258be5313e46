"""Rounds that several processes train: `torchrun tests/factories/factory_ranks.py FOLDER`, all in one start.

FOLDER/jobs.json is a list of jobs, see `Job`. The first process writes NAME.json (the curve) and NAME.safetensors.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One round of the tests' tiny model, or what is left of it after an interrupt."""

    name: str
    settings: dict[str, Any]
    sharding: str = "replicate"
    stop: int | None = None
    """Interrupted in the step after this one."""
    scratch: str = ""
    """Folder of checkpoints; the job's own name where none is given."""
    pairs: int = 22
    shape: str = "llama"


class Interrupted(Exception):
    pass


def do(job: Job, folder: Path) -> None:
    """Trains one job in this process, with its fellows where it has some."""
    import torch
    from factory_models import build_tiny
    from factory_training import SETTINGS, data_of, pairs_of
    from safetensors.torch import save_file

    from stagealign.grid.methods import METHODS
    from stagealign.grid.spec import Lora
    from stagealign.train import trainer as train

    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_FSDP"] = str(job.sharding == "fsdp2").lower()
    os.environ |= {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    os.environ |= {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    os.environ |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    given = dict(job.settings)
    if "peft" in given:
        given["peft"] = Lora(**given["peft"])
    settings = train.RoundSettings(**asdict(SETTINGS) | given)
    lm = smollm2() if job.shape == "smollm2" else build_tiny(job.shape, tied=job.shape == "tied")
    data = data_of(lm, pairs_of(job.pairs), settings.trained_layers)
    note = train.PreferenceTrainer._note

    def interrupt(self: Any, logps: Any, losses: Any) -> None:
        if job.stop is not None and self.state.global_step >= job.stop:
            raise Interrupted
        note(self, logps, losses)

    train.PreferenceTrainer._note = interrupt
    try:
        scratch = folder / (job.scratch or job.name)
        curve, weights = train.train(lm, data, METHODS["lab"]["dpo"], settings, scratch)
    except Interrupted:
        return
    finally:
        train.PreferenceTrainer._note = note
    if os.environ.get("RANK", "0") == "0":
        (folder / f"{job.name}.json").write_text(json.dumps(curve))
        weights = weights or dict(lm.model.named_parameters())
        save_file({name: weight.detach().contiguous().clone() for name, weight in weights.items()},
                  folder / f"{job.name}.safetensors")  # fmt: skip


def smollm2() -> Any:
    """Seeded random weights in the shape of SmolLM2-135M, with a tokenizer of bytes."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from stagealign.policy.lm import LanguageModel
    from stagealign.policy.start import byte_tokenizer

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=1e5,
    )  # fmt: skip
    torch.manual_seed(0)
    return LanguageModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), byte_tokenizer())


def main() -> None:
    folder = Path(sys.argv[1])
    for given in json.loads((folder / "jobs.json").read_text()):
        do(Job(**given), folder)
    from stagealign.train.worker import leave

    leave()


if __name__ == "__main__":
    main()
