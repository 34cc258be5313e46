"""What samples a policy, for the grid and for the meter: one row each."""

from dataclasses import dataclass

from stagealign.base.kind import Kind


@dataclass(frozen=True)
class Sampler:
    """One sampler; the first of the table is our own, and cells of the others have ids of their own."""

    key: str
    name: str
    kind: Kind
    """Builds the candidates of a cell's round."""
    probe: str = ""
    """`module:function` called with (url, decoding, home); gives the `Engine`, or says why it cannot sample here.

    Empty for our own sampler, which needs none.
    """
    meter: str = ""
    """`module:function` that opens a policy for the boundary meter."""
    by_url: bool = False
    """Whether it is asked for by `--policy-url` in place of `--sampler`."""


SAMPLERS = {
    row.key: row
    for row in (
        Sampler(
            "transformers",
            "our own sampler",
            Kind("stagealign.sample:build", "stagealign.policy.sample:build", price="sample"),
            meter="stagealign.boundary.open_policy:loaded",
        ),
        Sampler(
            "vllm",
            "vLLM on this machine's GPUs (extra vllm)",
            Kind("stagealign.vllm_sample:build", "stagealign.policy.vllm_sample:build", price="sample"),
            probe="stagealign.policy.vllm_sample:engine",
            meter="stagealign.boundary.open_policy:sampled_by_vllm",
        ),
        Sampler(
            "served",
            "an OpenAI-compatible server",
            Kind("stagealign.served:build", "stagealign.policy.served_samples:build", price="sample"),
            probe="stagealign.policy.served_samples:engine",
            meter="stagealign.boundary.open_policy:served",
            by_url=True,
        ),
    )
}
"""By key. To add one: `docs/extending.md`."""
OWN = "transformers"
"""Key of our own sampler."""
