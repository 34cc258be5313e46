"""Prompts of the meter as token ids of a policy; those that it cannot read are failures, not the end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stagealign.base.errors import BadData
from stagealign.boundary.request import BoundaryRequest
from stagealign.boundary.sampling import MeterPrompt, SampledPrompt

if TYPE_CHECKING:
    from stagealign.policy.lm import LanguageModel


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as token ids."""

    item: MeterPrompt
    ids: list[int]
    capped: bool = False
    """True if the policy's context leaves fewer new tokens than are asked for."""


def renderer(request: BoundaryRequest, model: "LanguageModel") -> Callable[[MeterPrompt], RenderedPrompt]:
    """Function from a prompt to its token ids, which raises BadData for one that fills the policy's context."""
    from stagealign.policy.context import check_fits, room

    def rendered(item: MeterPrompt) -> RenderedPrompt:
        ids = model.prompt_ids(item.messages or item.prompt, template=request.template == "auto")
        check_fits(model, item.prompt, len(ids), request.decoding)
        return RenderedPrompt(item, ids, room(model, len(ids), request.decoding) < request.decoding.max_new_tokens)

    return rendered


def accepted(
    items: Sequence[MeterPrompt],
    render: Callable[[MeterPrompt], RenderedPrompt],
    sample: Callable[[Sequence[RenderedPrompt]], Iterable[SampledPrompt]],
) -> Iterator[SampledPrompt]:
    """Yields the samples of each prompt, in order; a prompt that `render` refuses is a failure with the reason."""
    prompts: list[RenderedPrompt] = []
    refused: dict[str, SampledPrompt] = {}
    for item in items:
        try:
            prompts.append(render(item))
        except BadData as error:
            refused[item.key] = SampledPrompt((), 0, 0, f"the policy cannot read the prompt: {error}")
    written = iter(sample(prompts) if prompts else ())
    for item in items:
        yield refused.get(item.key) or next(written)
