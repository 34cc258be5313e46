"""Reading of checkpoints (complete safetensors only, no remote code, no adapters), and batches by length.

What can be seen without the weights is checked before they are read: `places`, `configs`, `weight_files`, `roles`,
`vocabularies` and `templates` each know one kind of fault.
"""

import hashlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from stagealign.base.errors import CannotRun, StagealignError
from stagealign.policy.configs import check_raw, drop_outside_pad, own_code
from stagealign.policy.places import check_place
from stagealign.policy.quantised import check_packed
from stagealign.policy.vocabularies import check_files, check_ids, check_reads
from stagealign.policy.weight_files import check_weights, header

IDENTITY_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "*tokens*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
    "tekken.json",
    "*.tiktoken",
    "*.spm",
)
"""Files of a local folder that can change a score: weights, config, tokenizer and chat template."""
READING = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    AssertionError,
    NotImplementedError,
    StrictDataclassError,
    SafetensorError,
)
"""What transformers, tokenizers and safetensors raise for files that they cannot read."""


def read_config(name: str, revision: str | None = None, native: bool = False) -> Any:
    """Config of a checkpoint, from a local folder or the hub; weights are not read.

    Raises StagealignError if there is none, if transformers does not know it, or if it asks for remote code. With
    `native`, a checkpoint whose `auto_map` names classes that transformers has by now is read by those.
    """
    try:
        check_place(name, revision)
        raw, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        check_raw(name, raw, native)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        drop_outside_pad(config)
    except READING as error:
        raise unreadable(name, error) from error
    return config


def native_note(name: str) -> str | None:
    """Sentence for a checkpoint that names code of its own and is read by transformers' class of the same name."""
    raw, _ = PreTrainedConfig.get_config_dict(name)
    if not own_code(raw):
        return None
    return (
        f"Careful: checkpoint {name!r} has code of its own (`auto_map`), which is never run; the class of that name in "
        "transformers was used."
    )


def read_headers(name: str, config: Any, revision: str | None = None) -> Any:
    """Tensors of a checkpoint by name, from its safetensors headers; empty if the weights are not on this machine.

    Raises StagealignError unless the weights are complete safetensors that the config says how to read.
    """
    check_weights(name, revision)
    tensors = header(name, revision)
    check_packed(name, config.to_dict(), tensors)
    return tensors


def read_tokenizer(name: str, revision: str | None = None, config: Any = None) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint; with its `config`, each of its ids has a row in the embedding.

    Raises StagealignError if there is none that transformers can build.
    """
    check_files(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
    except READING as error:
        raise unreadable(name, error) from error
    except Exception as error:  # what the tokenizers library raises for a damaged file has no class of its own
        if type(error) is not Exception:
            raise
        raise unreadable(name, error) from error
    check_reads(tokenizer, name)
    if config is not None:
        check_ids(tokenizer, config, name)
    return tokenizer


def read_weights(
    architecture: Any, name: str, config: Any, revision: str | None = None, dtype: str = "float32"
) -> PreTrainedModel:
    """Model in evaluation mode, on the GPU if there is one; `architecture` is a class with `from_pretrained`.

    Raises StagealignError as `weights_of` does.
    """
    check_weights(name, revision)
    model = weights_of(architecture, name, config, revision, dtype)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def weights_of(
    architecture: Any, name: str, config: Any, revision: str | None = None, dtype: str = "float32"
) -> PreTrainedModel:
    """Model with the weights of a checkpoint, whose files were checked before.

    Raises StagealignError if there are no safetensors or if they lack a weight. transformers would draw that weight at
    random, and a random head gives scores without an error.
    """
    kind = floating(dtype)
    try:
        model, loaded = architecture.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=kind,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except READING as error:
        raise unreadable(name, error) from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise unreadable(name, error) from error
        raise StagealignError(
            f"checkpoint {name!r}: its weights do not have the shapes that its config.json asks for; download it again"
        ) from error
    check_missing(name, model, loaded, f"use a checkpoint that was saved as {type(model).__name__}")
    return model


def check_missing(name: str, model: PreTrainedModel, loaded: Any, advice: str) -> None:
    """Raises StagealignError if the files lacked a weight, which transformers then drew at random."""
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise StagealignError(
            f"checkpoint {name!r}: {len(missing)} weights of {type(model).__name__} are missing, such as "
            f"{', '.join(missing[:3])}; {advice}"
        )


def floating(dtype: str) -> torch.dtype:
    """The torch dtype of that name. Raises StagealignError for an unsupported one."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise StagealignError(f"dtype {dtype!r}: unknown; one of {', '.join(known)}")
    return known[dtype]


def weights_identity(name: str, config: Any) -> str:
    """Identity of a loaded checkpoint: `ID@COMMIT` of the hub, or a hash of a local folder's files."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(config, '_commit_hash', None) or 'unknown'}"
    digest = hashlib.sha256()
    for path in sorted({path for pattern in IDENTITY_FILES for path in folder.glob(pattern)}):
        with open(path, "rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def length_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yields indices of rows, longest first, in batches of at most `tokens` tokens, padding included.

    A longer row is a batch of its own. Attention grows with the square of the length: beyond 512 tokens a row counts as
    length * length / 512 tokens.
    """
    batch: list[int] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if len(batch) >= room:
            if batch:
                yield batch
            longest = max(1, lengths[place])
            batch, room = [], max(1, int(tokens / (longest * max(1.0, longest / 512))))
        batch.append(place)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right to the longest row, shape (B, T), and their attention mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def unreadable(name: str, error: Exception) -> StagealignError:
    """The error for a checkpoint that a library could not read, with the first line of its message."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    hint = "name a local folder or a hub id with config.json, tokenizer and *.safetensors"
    if "use_safetensors" in first:
        return StagealignError(
            f"checkpoint {name!r}: it has no safetensors, and no other format is read, as it may run code; look for "
            "another revision on the hub, or download it and name its folder to see how to convert it"
        )
    if "trust_remote_code" in str(error):
        return StagealignError(
            f"checkpoint {name!r}: asks to run code of its own, which is never run; use a checkpoint whose "
            "architecture and tokenizer are part of transformers"
        )
    if "couldn't connect" in first or "offline mode" in str(error).lower():
        near = get_close_matches(name, _cached(), n=3)
        return StagealignError(
            f"checkpoint {name!r}: neither a folder here nor in the hub's cache, and the hub cannot be reached; "
            + (f"nearest in the cache: {', '.join(near)}" if near else "check the name, or name a local folder")
        )
    if "is not a valid model identifier" in str(error):
        return StagealignError(
            f"checkpoint {name!r}: neither a folder here nor on the hub; check the name, and HF_TOKEN for a private one"
        )
    if isinstance(error, ImportError):
        return CannotRun(f"checkpoint {name!r}: {first[:300]}")
    return StagealignError(f"checkpoint {name!r}: {first[:300]}; {hint}")


def _cached() -> list[str]:
    """Hub ids of the models in the hub's cache."""
    folders = Path(HF_HUB_CACHE).glob("models--*--*")
    return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)
