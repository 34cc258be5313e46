"""Quantised checkpoints: which library reads one, and a refusal by name where it is not installed."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from stagealign.base.errors import CannotRun, StagealignError
from stagealign.policy.weight_files import HeaderEntry, packed_weights

LIBRARIES: Mapping[str, Mapping[str, str]] = {
    "aqlm": {"aqlm": "aqlm"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitnet": {},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "bitsandbytes_4bit": {"bitsandbytes": "bitsandbytes"},
    "bitsandbytes_8bit": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels"},
    "fbgemm_fp8": {"fbgemm_gpu": "fbgemm-gpu"},
    "fp8": {},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "higgs": {"flute": "flute-kernel"},
    "hqq": {"hqq": "hqq"},
    "mxfp4": {},
    "mxfp8": {},
    "nvfp4": {},
    "quanto": {"optimum": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "spqr": {"spqr_quant": "spqr_quant"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}
"""Method of quantisation -> what it imports, and the package to install. Source: `quantizers/` of transformers 5.23."""


ON_GPU = ("fp8", "mxfp8", "nvfp4")
"""Methods whose weights transformers would round to bfloat16 on a machine without a GPU."""


def check_quantised(name: str, raw: Mapping[str, Any]) -> None:
    """Raises StagealignError if a config asks for a quantisation that this machine cannot read; `raw`: config.json."""
    method = method_of(raw)
    if method is None:
        return
    base = raw.get("base_model") or raw.get("_name_or_path")
    unquantised = f"the unquantised model ({base})" if base and base != name else "the unquantised model"
    if method not in LIBRARIES:
        raise StagealignError(
            f"checkpoint {name!r}: quantised by {method!r}, which is not read; name {unquantised} that it was made from"
        )
    lacking = [package for module, package in LIBRARIES[method].items() if find_spec(module) is None]
    if lacking:
        raise CannotRun(
            f"checkpoint {name!r}: quantised by {method}, whose library is not installed; "
            f"`pip install {' '.join(lacking)}`, or name {unquantised} that it was made from"
        )
    if method in ON_GPU and not torch.cuda.is_available():
        raise CannotRun(
            f"checkpoint {name!r}: quantised by {method}, which is read on a GPU only; name {unquantised} that it was "
            "made from"
        )


def check_packed(name: str, raw: Mapping[str, Any], tensors: Mapping[str, HeaderEntry]) -> None:
    """Raises StagealignError for quantised weights whose config does not say how: they would be read without scales."""
    packed = packed_weights(tensors) if method_of(raw) is None else []
    if packed:
        raise StagealignError(
            f"checkpoint {name!r}: {len(packed)} weights are stored as {tensors[packed[0]].dtype}, such as "
            f"{packed[0]}, and config.json has no quantization_config that says how to read them; name the unquantised "
            "model"
        )


def method_of(raw: Mapping[str, Any]) -> str | None:
    """Method of quantisation that a config.json names, also in its text part; None if it names none."""
    text = raw.get("text_config")
    for config in (raw, text if isinstance(text, Mapping) else {}):
        for field in ("quantization_config", "compression_config"):
            found = config.get(field)
            if isinstance(found, Mapping) and found:
                return str(found.get("quant_method") or _old_method(found)).lower()
    return None


def _old_method(found: Mapping[str, Any]) -> str:
    """Method of a `quantization_config` without `quant_method`, as bitsandbytes wrote it at first."""
    return "bitsandbytes" if found.get("load_in_4bit") or found.get("load_in_8bit") else "an unnamed method"
