"""config.json before transformers reads it: what it asks for that is never done, and what it cannot mean."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch

from stagealign.base.errors import StagealignError
from stagealign.policy.quantised import check_quantised
from stagealign.policy.weight_files import INDEX, WHOLE


def check_raw(name: str, raw: Mapping[str, Any], native: bool) -> None:
    """Raises StagealignError for a config.json that cannot be read as transformers would have to.

    `native`: whether `auto_map` is passed over where transformers has a class of the same name.
    """
    check_type(name, raw)
    remote = own_code(raw)
    if remote is not None and not (native and remote):
        kept = " (transformers has that type; delete `auto_map` from config.json to use its class)" if remote else ""
        raise StagealignError(
            f"checkpoint {name!r}: asks to run code of its own (`auto_map` in config.json), which is never run; use a "
            f"checkpoint whose architecture is part of transformers{kept}"
        )
    weights = raw.get("transformers_weights")
    if weights not in (None, WHOLE, INDEX):
        raise StagealignError(
            f"checkpoint {name!r}: config.json names {str(weights)[:80]!r} as its weights (transformers_weights), and "
            f"only {WHOLE} or {INDEX} is read; rename the file and delete that field"
        )
    attention = raw.get("attn_implementation") or raw.get("_attn_implementation")
    if isinstance(attention, str) and "/" in attention:
        raise StagealignError(
            f"checkpoint {name!r}: asks for attention code from the hub ({attention[:80]!r}), which is never run; "
            "delete `attn_implementation` from config.json"
        )
    _check_dtype(name, raw)
    check_quantised(name, raw)


def check_type(name: str, raw: Mapping[str, Any]) -> None:
    """Raises StagealignError for a `model_type` that is absent or that the installed transformers does not know."""
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = raw.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise StagealignError(
            f"checkpoint {name!r}: config.json has no model_type; take config.json from the model that it was made from"
        )
    if kind not in CONFIG_MAPPING_NAMES and own_code(raw) is None:
        near = get_close_matches(kind, CONFIG_MAPPING_NAMES, n=3)
        raise StagealignError(
            f"checkpoint {name!r}: of type {kind!r}, which transformers {__version__} does not know"
            + (f" (nearest: {', '.join(near)})" if near else "")
            + "; use a checkpoint of a type that it knows, or a newer transformers"
        )


def own_code(raw: Mapping[str, Any]) -> bool | None:
    """Whether transformers has every class that `auto_map` names; None if the config names none.

    A checkpoint made before its architecture joined transformers names the same classes as transformers has now.
    """
    asked = raw.get("auto_map")
    if not asked:
        return None
    if not isinstance(asked, Mapping):
        return False
    return all(_native(raw.get("model_type"), key, place) for key, place in asked.items())


def _native(kind: Any, auto: str, place: Any) -> bool:
    """Whether the class that an entry of `auto_map` names is that of transformers for this type and purpose."""
    from transformers.models.auto import configuration_auto as configs
    from transformers.models.auto import modeling_auto as models

    tables = {
        "AutoConfig": configs.CONFIG_MAPPING_NAMES,
        "AutoModel": models.MODEL_MAPPING_NAMES,
        "AutoModelForCausalLM": models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSequenceClassification": models.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForTokenClassification": models.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }
    known = tables.get(auto, {}).get(kind)
    names = known if isinstance(known, tuple) else (known,)
    return isinstance(place, str) and place.rpartition(".")[2] in names


def _check_dtype(name: str, raw: Mapping[str, Any]) -> None:
    for field in ("dtype", "torch_dtype"):
        found = raw.get(field)
        if found is None or found == "auto" or isinstance(found, Mapping):
            continue
        if not isinstance(found, str) or not isinstance(getattr(torch, found, None), torch.dtype):
            meant = re.sub(r"^torch\.", "", str(found))
            known = [key for key in ("float32", "bfloat16", "float16", "float64") if meant in (key, _short(key))]
            raise StagealignError(
                f"checkpoint {name!r}: config.json has {field} {str(found)[:40]!r}, which torch does not know; write "
                + (known[0] if known else "float32, bfloat16 or float16")
            )


def _short(dtype: str) -> str:
    """Short name of a dtype, as bf16 for bfloat16."""
    return dtype.replace("bfloat", "bf").replace("float", "fp")


def drop_outside_pad(config: Any) -> None:
    """Sets a pad token outside of the embedding (-1 in some files) to None; padding is masked, whatever its id."""
    text = config.get_text_config()
    rows = getattr(text, "vocab_size", None)
    for part in (config, text):
        pad = getattr(part, "pad_token_id", None)
        if isinstance(pad, int) and isinstance(rows, int) and not 0 <= pad < rows:
            part.pad_token_id = None
