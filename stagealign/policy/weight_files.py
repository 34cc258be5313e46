"""Files of weights: complete safetensors only, judged by their headers; a pickle is recognized under any name."""

import json
import pickletools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagealign.base.errors import StagealignError
from stagealign.policy.places import check_place, checkpoint_below, file_of, zero_checkpoint

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib")
"""Files that may hold a pickle, which runs code when it is read."""
LARGEST_HEADER = 100_000_000
"""Bytes; the safetensors library's own limit."""
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The files that transformers looks for."""
PACKED = re.compile(r"^(F8|F6|F4|E8M0)|^(I8|U8|I16|U16|I32|U32)$")
"""Types of tensors that hold quantised weights, if the tensor is a weight."""


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor by the header of its safetensors file."""

    dtype: str
    shape: tuple[int, ...]


def check_weights(name: str, revision: str | None = None) -> None:
    """Raises StagealignError unless a checkpoint's weights are safetensors of its own.

    In a local folder the header and size of each file are checked; no weight is read.
    """
    check_place(name, revision)
    index = file_of(name, INDEX, revision)
    shards = _shards(name, Path(index)) if index else set()
    folder = Path(name)
    if not folder.is_dir():
        return
    weights = sorted(folder.glob("*.safetensors"))
    for path in weights:
        wrong = _not_safetensors(path)
        if wrong:
            raise StagealignError(f"checkpoint {name!r}: {path.name} {wrong}; download it again")
    absent = sorted(shards - {path.name for path in weights})
    if absent and not (folder / WHOLE).is_file():
        raise StagealignError(
            f"checkpoint {name!r}: {INDEX} names {len(absent)} of {len(shards)} shards that are not there, such as "
            f"{absent[0]}; download them"
        )
    if not index and not (folder / WHOLE).is_file():
        raise StagealignError(f"checkpoint {name!r}: {_no_weights(name, folder, weights)}")
    _check_tensors(name, header(name, revision))


def header(name: str, revision: str | None = None) -> Mapping[str, HeaderEntry]:
    """Tensors of a checkpoint's weights by name, from the headers; empty if the weights are not on this machine.

    Nothing is downloaded. Raises StagealignError for a file that is not safetensors.
    """
    index = None if _here(name, WHOLE, revision) else _here(name, INDEX, revision)
    names = sorted(_shards(name, index)) if index else [WHOLE]
    tensors: dict[str, HeaderEntry] = {}
    for path in filter(None, (_here(name, file, revision) for file in names)):
        wrong = _not_safetensors(path)
        if wrong:
            raise StagealignError(f"checkpoint {name!r}: {path.name} {wrong}; download it again")
        tensors |= _entries(path)
    return tensors


def hub_header(name: str, revision: str | None = None) -> Mapping[str, HeaderEntry]:
    """Tensors of a checkpoint on the hub, by a few requests for its headers; empty if they cannot be had."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, OfflineModeIsEnabled

    try:
        files = get_safetensors_metadata(name, revision=revision).files_metadata.values()
    except (HfHubHTTPError, NotASafetensorsRepoError, OfflineModeIsEnabled, OSError, ValueError):
        return {}
    return {
        key: HeaderEntry(str(entry.dtype), tuple(entry.shape)) for file in files for key, entry in file.tensors.items()
    }


def _here(name: str, file: str, revision: str | None) -> Path | None:
    """One file of a checkpoint in its folder or in the hub's cache; None if it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _entries(path: Path) -> dict[str, HeaderEntry]:
    with open(path, "rb") as file:
        raw = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {
        key: HeaderEntry(entry["dtype"], tuple(entry["shape"])) for key, entry in raw.items() if key != "__metadata__"
    }


def _check_tensors(name: str, tensors: Mapping[str, HeaderEntry]) -> None:
    """Raises StagealignError for weights without content."""
    empty = [key for key, entry in tensors.items() if 0 in entry.shape]
    if not tensors or empty:
        found = f"{len(empty)} tensors without content, such as {empty[0]}" if empty else "no tensors"
        raise StagealignError(
            f"checkpoint {name!r}: its safetensors hold {found}, as a sharded model saved by one process leaves them; "
            "gather the weights (DeepSpeed: zero_to_fp32.py; FSDP: `accelerate merge-weights`) and save again"
        )


def packed_weights(tensors: Mapping[str, HeaderEntry]) -> list[str]:
    """Names of weights that are stored quantised, by the types in the header."""
    return [
        key
        for key, entry in tensors.items()
        if PACKED.match(entry.dtype) and (entry.dtype.startswith("F") or "weight" in key.rpartition(".")[2])
    ]


def _no_weights(name: str, folder: Path, weights: Sequence[Path]) -> str:
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    below = checkpoint_below(folder)
    if weights:
        return (
            f"its safetensors ({', '.join(path.name for path in weights[:3])}) are neither {WHOLE} nor named by "
            f"{INDEX}; download that file, or save the model again with `save_pretrained`"
        )
    if below is not None:
        return f"a folder without weights of its own; name the newest checkpoint in it: {below}"
    if any(folder.glob("global_step*")):
        return zero_checkpoint(folder)
    if pickled:
        return (
            f"its weights are a pickle ({', '.join(pickled[:3])}), which may run code when it is read; it was not "
            f"opened; {_conversion(name, pickled)}"
        )
    return "a folder without weights (*.safetensors); copy them there, or name another folder"


def _conversion(name: str, pickled: Sequence[str]) -> str:
    """Advice: how to convert a pickle to safetensors without running its code; torch then reads tensors only."""
    if not any(file.startswith("pytorch_model") for file in pickled):
        return "ask whoever made it for safetensors"
    folder = Path(name)
    code = (
        "import glob, torch; from safetensors.torch import save_file; save_file({name: tensor.contiguous().clone() "
        f"for file in glob.glob({json.dumps(str(folder / 'pytorch_model*.bin'))}) "
        'for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items()}, '
        f'{json.dumps(str(folder / WHOLE))}, {{"format": "pt"}})'
    )
    return f"convert its tensors to safetensors, which runs none of its code: python -c {shlex.quote(code)}"


def _shards(name: str, path: Path) -> set[str]:
    """Shards that an index names. Raises StagealignError for others than safetensors files in the same folder."""
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StagealignError(
            f"checkpoint {name!r}: {path.name} cannot be read ({type(error).__name__}); download it again"
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard or "\\" in shard:
            raise StagealignError(
                f"checkpoint {name!r}: {path.name} names {str(shard)[:80]!r} as weights; only safetensors in its "
                "folder are read: convert the checkpoint, or download it again"
            )
    return shards


def _not_safetensors(path: Path) -> str | None:
    """Reason why a file is not a complete safetensors file, by its header and size; None if it is."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if len(start) == 9 and start[8:] == b"{" and length <= min(LARGEST_HEADER, size - 8):
            file.seek(8)
            text = file.read(length)
        else:
            file.seek(0)
            return _kind(file.read(4096))
    try:
        entries = [entry for key, entry in json.loads(text).items() if key != "__metadata__"]
        needed = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        described = all(isinstance(entry["dtype"], str) and isinstance(entry["shape"], list) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        described = False
    if not described:
        return "has a damaged header"
    return None if size == 8 + length + needed else f"has {size:,} bytes, its header says {8 + length + needed:,}"


def _kind(start: bytes) -> str:
    if not start:
        return "is empty"
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive, as torch.save writes it: a pickle, which may run code; it was not opened"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself"
    try:
        next(pickletools.genops(start))
        pickled = start[:1] == b"\x80" or start[:1] in b"(cG"
    except (ValueError, StopIteration, UnicodeDecodeError):
        pickled = False
    return "is a pickle, which may run code; it was not opened" if pickled else "is not safetensors"
