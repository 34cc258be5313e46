"""Preference losses and their constants. To add one: a row of `BASES`, and its loss in `train.losses.LOSSES`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from stagealign.grid.recipes import HANDBOOK, ROUND_START, SIMPO_RANGE, TRL_DEFAULT
from stagealign.grid.spec import Method

DPO = Method(
    "dpo",
    "DPO",
    form="sigmoid",
    beta=0.01,
    run_by_authors_on=("llama3", "zephyr", "phi2", "qwen", "pythia"),
    assumed={"beta": HANDBOOK, "reference": ROUND_START},
)
SLIC_HF = Method(
    "slichf",
    "SLiC-HF",
    form="hinge",
    beta=0.01,
    run_by_authors_on=("llama3", "zephyr", "phi2"),
    assumed={"form": "TRL and RSO call it SLiC", "beta": HANDBOOK, "reference": ROUND_START},
)
BASES = (DPO, SLIC_HF)
"""Methods of the grid, as the paper scale has them; each scale derives its own, and their variants."""

ONE_OF_THREE = "one of the three forms in use"
FORMS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "slichf": (
        {
            "key": "slic_hf",
            "name": "SLiC-HF, form slic-hf",
            "form": "slic-hf",  # has no beta
            "sft_weight": 0.1,
            "assumed": {"form": ONE_OF_THREE, "delta": SIMPO_RANGE, "sft_weight": SIMPO_RANGE},
        },
        {
            "key": "slic_norm",
            "name": "SLiC-HF, form slic-norm",
            "form": "slic-norm",
            "beta": 2.0,
            "assumed": {"form": ONE_OF_THREE, "beta": "default of SimPO's trainer"},
        },
    ),
}
"""By base method, the fields of its other published forms; the paper does not say which form it means."""


def _variants(base: Method, betas: Iterable[float]) -> Iterator[Method]:
    """Variants of the base: with each other beta, and with the first start as reference of every round."""
    mine = replace(base, variant_of=base.key)
    for beta in betas:
        yield replace(mine, key=f"{base.key}_beta{beta:g}", name=f"{base.name}, beta {beta:g}", beta=beta)
    name = f"{base.name}, reference the first start"
    yield replace(mine, key=f"{base.key}_ref_first", name=name, reference="first")


def _table(bases: Iterable[Method], betas: Iterable[float]) -> dict[str, Method]:
    """The methods of a scale by key: the bases, then their variants in each unpublished value."""
    bases, betas = list(bases), list(betas)
    variants = [variant for base in bases for variant in _variants(base, betas)]
    forms = [replace(base, variant_of=base.key, **form) for base in bases for form in FORMS.get(base.key, ())]
    return {method.key: method for method in (*bases, *variants, *forms)}


def _at_beta(method: Method, beta: float) -> Method:
    return replace(method, beta=beta, assumed={**method.assumed, "beta": TRL_DEFAULT})


def tables(bases: Iterable[Method]) -> dict[str, dict[str, Method]]:
    """By scale, then by key: these methods as the scale has them, and their variants."""
    bases = list(bases)
    small = [_at_beta(base, 0.1) for base in bases]
    return {
        "paper": _table(bases, betas=(0.05, 0.1)),
        "lab": _table(small, betas=(0.01, 0.5)),
        "smoke": {base.key: base for base in small},
    }


METHODS = tables(BASES)
