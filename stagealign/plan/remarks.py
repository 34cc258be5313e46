"""Remarks on a plan: what its numbers do not say and a user must know before work starts."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from stagealign.grid.spec import Decoding
from stagealign.plan.flops import LENGTHS
from stagealign.plan.formulas import checkpoint_of

if TYPE_CHECKING:
    from stagealign.plan.plan import PricedArtifact


def remarks(items: Iterable["PricedArtifact"]) -> Iterator[str]:
    """Yields one line for each checkpoint whose context caps new tokens, and for each judge of unknown price."""
    items = list(items)
    yield from _capped(items)
    unpriced: dict[str, float] = {}
    for item in items:
        if item.cost.unpriced:
            unpriced[item.cost.unpriced] = unpriced.get(item.cost.unpriced, 0.0) + item.cost.tokens
    for judge, tokens in unpriced.items():
        yield (
            f"judge {judge}: its price is unknown, so dollars leave it out; it reads about {tokens / 1e6:,.0f} million "
            "tokens"
        )


def _capped(items: Iterable["PricedArtifact"]) -> Iterator[str]:
    """Yields one line for each checkpoint whose context does not hold a prompt with all new tokens."""
    asked: dict[tuple[str, int], dict[int, dict[str, None]]] = {}
    for item in items:
        decoding, checkpoint = item.artifact.params.get("decoding"), checkpoint_of(item.artifact, item.scale)
        if not isinstance(decoding, Decoding) or checkpoint is None or checkpoint.context is None:
            continue
        if LENGTHS[item.scale.key].prompt + decoding.max_new_tokens > checkpoint.context:
            roles = asked.setdefault((checkpoint.source, checkpoint.context), {})
            roles.setdefault(decoding.max_new_tokens, {})[item.artifact.role] = None
    for (source, context), roles in asked.items():
        wishes = ", ".join(f"{tokens:,} for {' and '.join(names)}" for tokens, names in sorted(roles.items()))
        yield (
            f"{source}: its context of {context:,} tokens caps new tokens at what each prompt leaves (asked: "
            f"{wishes}); prompts that fill it are dropped and counted"
        )
