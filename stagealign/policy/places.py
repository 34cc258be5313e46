"""What is named as a checkpoint and is none: a file, an adapter, a parent of checkpoints, a folder of another kind."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from stagealign.base.errors import StagealignError

DEEPEST = ("*", "*/*", "*/*/*")
"""Places of checkpoints below a parent: `checkpoint-N`, `snapshots/COMMIT`, `global_step_N/actor/huggingface`."""
MOST_FOLDERS = 2000
"""Most folders that are searched for checkpoints."""
TUNED_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT")
"""Kinds of PEFT adapters that have nothing to merge into the weights."""


def check_place(name: str, revision: str | None = None) -> None:
    """Raises StagealignError if `name` is no checkpoint that could be opened; reads file names and adapters only.

    Raises OSError for a hub that cannot be reached, at the first of its files.
    """
    path = Path(name)
    if not name.strip():
        raise StagealignError(f"checkpoint {name!r}: no name; name a local folder or a hub id such as owner/name")
    if path.is_file():
        raise StagealignError(f"checkpoint {name!r}: {_a_file(path)}")
    if path.is_dir():
        _check_folder(name, path)
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or _has_parent(path):
        near = get_close_matches(path.name, _folders(path.parent), n=3)
        advice = f"nearest: {', '.join(near)}" if near else "name a local folder or a hub id such as owner/name"
        raise StagealignError(f"checkpoint {name!r}: no such folder; {advice}")
    file_of(name, "config.json", revision, out_of_reach=True)
    adapter = file_of(name, "adapter_config.json", revision)
    if adapter:
        raise StagealignError(f"checkpoint {name!r}: {_an_adapter(name, Path(adapter), whole=False)}")


def file_of(name: str, file: str, revision: str | None, out_of_reach: bool = False) -> str | None:
    """Local path of one file of a checkpoint, from its folder or the hub; None if the checkpoint lacks the file.

    With `out_of_reach`, raises OSError if it is not in the hub's cache and the hub cannot be reached.
    """
    from transformers.utils import cached_file

    path: str | None = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=out_of_reach,
        _raise_exceptions_for_connection_errors=out_of_reach,
    )
    return path


def checkpoint_below(folder: Path) -> Path | None:
    """The newest checkpoint below a folder: the largest number in its path, else the latest change; None if none."""
    found = list(_checkpoints(folder))
    return max(found, key=lambda place: (_number(place.relative_to(folder)), place.stat().st_mtime), default=None)


def _check_folder(name: str, folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        whole = (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
        raise StagealignError(
            f"checkpoint {name!r}: {_an_adapter(name, folder / 'adapter_config.json', whole, _own_tokenizer(folder))}"
        )
    converted = [*folder.glob("*.gguf")]
    if converted and not any(folder.glob("*.safetensors")):
        raise StagealignError(f"checkpoint {name!r}: {_a_gguf(converted[0])}")
    if (folder / "config.json").is_file():
        return
    below = checkpoint_below(folder)
    if below is not None:
        raise StagealignError(
            f"checkpoint {name!r}: a folder of checkpoints, without a config.json of its own; name the newest: {below}"
        )
    if any(folder.glob("global_step*")):
        raise StagealignError(f"checkpoint {name!r}: {zero_checkpoint(folder)}")
    if (folder / "params.json").is_file():
        raise StagealignError(
            f"checkpoint {name!r}: in its maker's own format (params.json), without config.json; name the version of "
            "it that is made for transformers"
        )
    raise StagealignError(
        f"checkpoint {name!r}: a folder without config.json; name the folder that `save_pretrained` wrote, or copy "
        "config.json and the tokenizer's files of the base model into it"
    )


def zero_checkpoint(folder: Path) -> str:
    """Why a folder of DeepSpeed's shards is no checkpoint, and the command that makes one."""
    script = folder / "zero_to_fp32.py"
    program = shlex.quote(str(script)) if script.is_file() else "-m deepspeed.utils.zero_to_fp32"
    return (
        "it holds DeepSpeed's shards (global_step*), not the model; join them: "
        f"python {program} {shlex.quote(str(folder))} {shlex.quote(str(folder))} --safe_serialization"
    )


def _a_file(path: Path) -> str:
    if path.suffix.lower() == ".gguf":
        return _a_gguf(path)
    return f"a file, not a folder; name its folder: {path.parent}"


def _a_gguf(file: Path) -> str:
    """Why GGUF is not read, and the command that converts it. Source: transformers 5.23, `GgufConfig`."""
    code = (
        "from transformers import AutoModelForCausalLM as Model, AutoTokenizer as Tokens, GgufConfig; "
        f"d, f, out = {', '.join(map(json.dumps, (str(file.parent), file.name, str(file.with_suffix('')))))}; "
        "Model.from_pretrained(d, gguf_file=f, quantization_config=GgufConfig(gguf_file=f, dequantize=True))"
        ".save_pretrained(out); Tokens.from_pretrained(d, gguf_file=f).save_pretrained(out)"
    )
    return (
        f"GGUF ({file.name}), which is not read; name the model that it was made from, or convert it (needs gguf): "
        f"python -c {shlex.quote(code)}"
    )


def _an_adapter(name: str, file: Path, whole: bool, own_tokenizer: bool = True) -> str:
    """Why an adapter is no checkpoint, its base model, and the command that merges the two with PEFT."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, Mapping) else {}
    base, kind = known.get("base_model_name_or_path"), str(known.get("peft_type") or "").upper()
    said = "an adapter (adapter_config.json), whose weights are not in the model; "
    if whole:
        said += "move that file away to use the whole model beside it, or "
    if kind in TUNED_PROMPTS:
        return f"{said[:-2]}, of kind {kind}, which cannot be merged into weights; train a LoRA instead"
    if not isinstance(base, str) or not base:
        return f"{said}its base model is not named; merge it into its base model with PEFT and name that folder"
    classifier = known.get("task_type") == "SEQ_CLS"
    model, options = ("SequenceClassification", "num_labels=1, ") if classifier else ("CausalLM", "")
    merged = f"{Path(name).name}-merged"
    code = (
        f"from peft import PeftModel as Peft; from transformers import AutoModelFor{model} as Model, "
        f"AutoTokenizer as Tokens; base, adapter, out = {', '.join(map(json.dumps, (base, name, merged)))}; "
        f'Peft.from_pretrained(Model.from_pretrained(base, {options}dtype="auto"), adapter)'
        ".merge_and_unload().save_pretrained(out); "
        f"Tokens.from_pretrained({'adapter' if own_tokenizer else 'base'}).save_pretrained(out)"
    )
    return f"{said}merge it into its base model {base!r} and name {merged!r}: python -c {shlex.quote(code)}"


def _own_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))


def _has_parent(path: Path) -> bool:
    """Whether a name with a slash starts with a folder that stands here, so that a local folder was meant."""
    return path.parent != Path() and path.parent.is_dir()


def _folders(parent: Path) -> list[str]:
    return [place.name for place in islice(parent.iterdir(), MOST_FOLDERS) if place.is_dir()] if parent.is_dir() else []


def _checkpoints(folder: Path) -> Iterator[Path]:
    """Folders below this one that hold the config of a model or of an adapter, nearest first."""
    for depth in DEEPEST:
        places = [place for place in islice(folder.glob(depth), MOST_FOLDERS) if place.is_dir()]
        found = [p for p in places if any((p / f"{kind}config.json").is_file() for kind in ("", "adapter_"))]
        if found:
            yield from found
            return


def _number(place: Path) -> int:
    """Largest number of steps or epochs in a path such as `checkpoint-200`; -1 without one."""
    return max((int(digits) for digits in re.findall(r"(?<![0-9a-f])\d{1,9}(?![0-9a-z])", str(place))), default=-1)
