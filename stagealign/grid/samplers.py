"""Samplers of policies, for the grid and for the meter: one row each."""

from dataclasses import dataclass

from stagealign.base.errors import StagealignError
from stagealign.base.kind import Kind

OWN_VERSION = 2
"""Version of what our own sampler writes; part of the identity of samples that the meter keeps."""
RENDERING_VERSION = 2
"""Version of how prompts are rendered and answers are read; part of the identity of samples that the meter keeps."""


@dataclass(frozen=True)
class Sampler:
    """One sampler. Its cells have ids of their own, unless it is our own sampler."""

    key: str
    name: str
    kind: Kind
    """Kind that builds the candidates of a cell's round."""
    meter: str = ""
    """`module:function` that takes (request, settings) and returns an `OpenPolicy` for the boundary meter.

    Empty if the meter cannot use it.
    """
    probe: str = ""
    """`module:function` that takes (url, decoding, home) and returns the `Engine`; raises if it cannot sample here.

    Empty for our own sampler, which every machine has.
    """
    by_url: bool = False
    """Whether `--policy-url URL` selects it instead of `--sampler KEY`."""


SAMPLERS = {
    row.key: row
    for row in (
        Sampler(
            "transformers",
            "our own sampler",
            Kind("stagealign.sample:build", "stagealign.policy.sample:build", version=2, price="sample"),
            meter="stagealign.boundary.open_policy:loaded",
        ),
        Sampler(
            "vllm",
            "vLLM on this machine's GPUs (extra vllm)",
            Kind("stagealign.vllm_sample:build", "stagealign.policy.vllm_sample:build", version=2, price="sample"),
            probe="stagealign.policy.vllm_sample:engine",
            meter="stagealign.boundary.open_policy:sampled_by_vllm",
        ),
        Sampler(
            "served",
            "an OpenAI-compatible server",
            Kind("stagealign.served:build", "stagealign.policy.served_samples:build", version=2, price="sample"),
            probe="stagealign.policy.served_samples:engine",
            meter="stagealign.boundary.open_policy:served",
            by_url=True,
        ),
    )
}
"""By key. To add one: `docs/extending.md`."""
OWN = "transformers"
"""Key of our own sampler."""


def chosen(sampler: str, policy_url: str | None) -> Sampler:
    """The row that `--sampler` and `--policy-url` ask for. Raises StagealignError for an unknown key, or for both."""
    row = SAMPLERS.get(sampler)
    if row is None or row.by_url:
        keys = [f"{key} (our own)" if key == OWN else key for key, row in SAMPLERS.items() if not row.by_url]
        raise StagealignError(f"--sampler {sampler!r}: unknown; {', '.join(keys)}, or --policy-url URL")
    if not policy_url:
        return row
    if sampler != OWN:
        raise StagealignError(f"--sampler {sampler} and --policy-url: two samplers; name one")
    return next(row for row in SAMPLERS.values() if row.by_url)
