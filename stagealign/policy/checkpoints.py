"""Reading of checkpoints (complete safetensors only, no remote code, no adapters), and batches by length."""

import hashlib
import json
import pickletools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from stagealign.base.errors import CannotRun, StagealignError

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
"""Files of a local folder that can change a score: weights, config, tokenizer and chat template."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib")
"""Files that may hold a pickle, which runs code when it is read."""
LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library's own limit."""


def check_weights(name: str, revision: str | None = None) -> None:
    """Raises StagealignError unless a checkpoint's weights are safetensors of its own.

    In a local folder the first bytes of each file are checked, so that a pickle is recognized under any name.
    """
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise StagealignError(
            f"checkpoint {name!r}: no such folder; name a local folder or a hub id such as owner/name"
        )
    if _file_of(name, "adapter_config.json", revision):
        raise StagealignError(
            f"checkpoint {name!r}: an adapter (adapter_config.json), whose weights are not in the model; merge it into "
            "its base model, save that as safetensors and name that folder"
        )
    index = _file_of(name, "model.safetensors.index.json", revision)
    if index:
        _check_index(name, Path(index))
    folder = Path(name)
    if not folder.is_dir():
        return
    weights = sorted(folder.glob("*.safetensors"))
    for path in weights:
        wrong = _not_safetensors(path)
        if wrong:
            raise StagealignError(f"checkpoint {name!r}: {path.name} {wrong}; download it again")
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled and not weights:
        raise StagealignError(
            f"checkpoint {name!r}: its weights are a pickle ({', '.join(pickled[:3])}), which may run code when it is "
            f"read; it was not opened; {_conversion(name, pickled)}"
        )
    if not weights and not index:
        raise StagealignError(
            f"checkpoint {name!r}: a folder without weights (*.safetensors); copy them there, or name another folder"
        )


def _conversion(name: str, pickled: Sequence[str]) -> str:
    """Advice: how to convert a pickle to safetensors without running its code; torch then reads tensors only."""
    if not any(file.startswith("pytorch_model") for file in pickled):
        return "ask whoever made it for safetensors"
    folder = Path(name)
    code = (
        "import glob, torch; from safetensors.torch import save_file; save_file({name: tensor.contiguous().clone() "
        f"for file in glob.glob({json.dumps(str(folder / 'pytorch_model*.bin'))}) "
        'for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items()}, '
        f'{json.dumps(str(folder / "model.safetensors"))}, {{"format": "pt"}})'
    )
    return f"convert its tensors to safetensors, which runs none of it: python -c {shlex.quote(code)}"


def _file_of(name: str, file: str, revision: str | None) -> str | None:
    """Local path of one file of a checkpoint, from its folder or the hub; None if the checkpoint lacks the file."""
    from transformers.utils import cached_file

    path: str | None = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def _check_index(name: str, path: Path) -> None:
    """Raises StagealignError if the index names shards other than safetensors files in the same folder."""
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StagealignError(
            f"checkpoint {name!r}: {path.name} cannot be read ({type(error).__name__}); download it again"
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard or "\\" in shard:
            raise StagealignError(
                f"checkpoint {name!r}: {path.name} names {str(shard)[:80]!r} as weights; only safetensors beside it "
                "are read: convert the checkpoint, or download it again"
            )


def _not_safetensors(path: Path) -> str | None:
    """Reason why a file is not a complete safetensors file, by its header and size; None if it is."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if len(start) == 9 and start[8:] == b"{" and length <= min(LARGEST_HEADER, size - 8):
            file.seek(8)
            header = file.read(length)
        else:
            file.seek(0)
            return _kind(file.read(4096))
    try:
        entries = json.loads(header)
        needed = max(
            (int(entry["data_offsets"][1]) for key, entry in entries.items() if key != "__metadata__"), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "has a damaged header"
    return None if size == 8 + length + needed else f"has {size:,} bytes, its header says {8 + length + needed:,}"


def _kind(start: bytes) -> str:
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive, as torch.save writes it: a pickle, which may run code, so it was not opened"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the file itself"
    try:
        next(pickletools.genops(start))
        pickled = start[:1] == b"\x80" or start[:1] in b"(cG"
    except (ValueError, StopIteration, UnicodeDecodeError):
        pickled = False
    return "is a pickle, which may run code, so it was not opened" if pickled else "is not safetensors"


def read_config(name: str, revision: str | None = None) -> Any:
    """Config of a checkpoint, from a local folder or the hub; weights are not read.

    Raises StagealignError if there is none, if transformers does not know it, or if it asks for remote code.
    """
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        if "auto_map" in raw:
            raise StagealignError(
                f"checkpoint {name!r}: asks to run code of its own (`auto_map` in config.json), which is never run; "
                "use a checkpoint whose architecture is part of transformers"
            )
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(name, error) from error


def read_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint. Raises StagealignError if there is none that transformers can build."""
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise unreadable(name, error) from error
    except Exception as error:  # what the tokenizers library raises for a damaged file has no class of its own
        if type(error) is not Exception:
            raise
        raise unreadable(name, error) from error


def read_weights(
    architecture: Any, name: str, config: Any, revision: str | None = None, dtype: str = "float32"
) -> PreTrainedModel:
    """Model in evaluation mode, on the GPU if there is one; `architecture` is a class with `from_pretrained`.

    Raises StagealignError if there are no safetensors or if they lack a weight. transformers would draw that weight at
    random, and a random head gives scores without an error.
    """
    check_weights(name, revision)
    try:
        model, loaded = architecture.from_pretrained(
            name,
            config=config,
            revision=revision,
            dtype=floating(dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(name, error) from error
    except RuntimeError as error:  # shapes that do not match; transformers prints a table of them
        raise StagealignError(
            f"checkpoint {name!r}: its weights do not have the shapes that its config.json asks for; download it again"
        ) from error
    check_missing(name, model, loaded, "use a checkpoint that was trained with this head")
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


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
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    first = first.rstrip(".")
    hint = "name a local folder or a hub id with config.json, tokenizer and *.safetensors"
    if "use_safetensors" in first:
        return StagealignError(
            f"checkpoint {name!r}: it has no safetensors, and no other format is read, as it may run code; look for "
            "another revision on the hub, or download it and name its folder to see how to convert it"
        )
    if isinstance(error, ImportError):
        return CannotRun(f"checkpoint {name!r}: {first}")
    return StagealignError(f"checkpoint {name!r}: {first[:300]}; {hint}")
