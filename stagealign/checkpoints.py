"""Checkpoints with a scoring head: safetensors only, no remote code, no weight missing; and batches by length."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from stagealign.errors import CannotRun, StagealignError

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
)
"""What of a local folder may change a score: weights, config, tokenizer and chat template; not records beside them."""


def read_config(name: str, revision: str | None = None) -> Any:
    """Config of a checkpoint, from a local folder or the hub; nothing large is read.

    Raises StagealignError where there is none, where transformers does not know it, or where it asks for remote code.
    """
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        if "auto_map" in raw:
            raise StagealignError(
                f"checkpoint {name!r}: asks to run code of its own (`auto_map` in config.json), which is never done; "
                "use a checkpoint of an architecture that transformers has"
            )
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(name, error) from error


def read_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint. Raises StagealignError where there is none that transformers can build."""
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreadable(name, error) from error


def read_weights(
    architecture: Any, name: str, config: Any, revision: str | None = None, dtype: str = "float32"
) -> PreTrainedModel:
    """Model in evaluation mode, on the GPU where there is one; `architecture` is what has `from_pretrained`.

    Raises StagealignError where there are no safetensors, or where they lack a weight: transformers would draw it at
    random, and a random head scores without a complaint.
    """
    try:
        model, loaded = architecture.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=floating(dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(name, error) from error
    except RuntimeError as error:  # shapes that do not match: transformers prints the table of them
        raise StagealignError(
            f"checkpoint {name!r}: its weights do not have the shapes that its config.json asks for; download it again"
        ) from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise StagealignError(
            f"checkpoint {name!r}: {len(missing)} weights of {type(model).__name__} are missing, such as "
            f"{', '.join(missing[:3])}; use a checkpoint that was trained with this head"
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def floating(dtype: str) -> torch.dtype:
    """The torch type of that name. Raises StagealignError for one that no model is run in."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise StagealignError(f"dtype {dtype!r}: unknown; one of {', '.join(known)}")
    return known[dtype]


def weights_identity(name: str, config: Any) -> str:
    """What was loaded, whatever its place: `ID@COMMIT` of the hub, or a hash of a local folder's files."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(config, '_commit_hash', None) or 'unknown'}"
    digest = hashlib.sha256()
    for path in sorted({path for pattern in IDENTITY_FILES for path in folder.glob(pattern)}):
        with open(path, "rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def length_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Places of rows, longest first, in batches of at most `tokens` with their padding; a longer row goes alone.

    Attention grows with the square of the length: beyond 512 tokens a row counts as length * length / 512.
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


def _unreadable(name: str, error: Exception) -> StagealignError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = "name a local folder or a hub id with config.json, tokenizer and *.safetensors"
    if isinstance(error, ImportError):
        return CannotRun(f"checkpoint {name!r}: {first}")
    return StagealignError(f"checkpoint {name!r}: {first[:300]}; {hint}")
