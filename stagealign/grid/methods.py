"""Preference losses and their constants."""

from collections.abc import Iterable
from dataclasses import replace

from stagealign.grid.recipes import HANDBOOK, ROUND_START, SIMPO_RANGE, TRL_DEFAULT
from stagealign.grid.spec import Method

DPO = Method("dpo", "DPO", form="sigmoid", beta=0.01, assumed={"beta": HANDBOOK, "reference": ROUND_START})
SLIC_HF = Method(
    "slichf",
    "SLiC-HF",
    form="hinge",
    beta=0.01,
    assumed={"form": "TRL and RSO call it SLiC", "beta": HANDBOOK, "reference": ROUND_START},
)


def _with_variants(dpo: Method, slic: Method, betas: Iterable[float]) -> dict[str, Method]:
    """Both methods, and for each value that was not published (beta, round-2 reference, SLiC form) a variant or two."""
    found = [dpo, slic]
    for base in (dpo, slic):
        mine = replace(base, variant_of=base.key)
        found += [
            replace(mine, key=f"{base.key}_beta{beta:g}", name=f"{base.name}, beta {beta:g}", beta=beta)
            for beta in betas
        ]
        found.append(
            replace(
                mine,
                key=f"{base.key}_ref_first",
                name=f"{base.name}, reference the first start",
                reference="first",
            )
        )
    other = replace(slic, variant_of=slic.key)  # slic-hf has no beta
    assumed = {"form": "one of the three forms in use", "delta": SIMPO_RANGE, "sft_weight": SIMPO_RANGE}
    found.append(
        replace(other, key="slic_hf", name="SLiC-HF, form slic-hf", form="slic-hf", sft_weight=0.1, assumed=assumed)
    )
    assumed = {"form": "one of the three forms in use", "beta": "default of SimPO's trainer"}
    found.append(
        replace(other, key="slic_norm", name="SLiC-HF, form slic-norm", form="slic-norm", beta=2.0, assumed=assumed)
    )
    return {one.key: one for one in found}


def _at_beta(method: Method, beta: float) -> Method:
    return replace(method, beta=beta, assumed={**method.assumed, "beta": TRL_DEFAULT})


METHODS = {
    "paper": _with_variants(DPO, SLIC_HF, (0.05, 0.1)),
    "lab": _with_variants(_at_beta(DPO, 0.1), _at_beta(SLIC_HF, 0.1), (0.01, 0.5)),
    "smoke": {"dpo": _at_beta(DPO, 0.1), "slichf": _at_beta(SLIC_HF, 0.1)},
}
