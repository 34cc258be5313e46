"""Prompts of the meter as token ids of a policy; those that it cannot read are failures, not the end."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stagealign.base.errors import BadData, StagealignError
from stagealign.base.reasoning import Answer, answer_of, knows_marks, opens_reasoning
from stagealign.boundary.request import BoundaryRequest
from stagealign.boundary.sampling import MeterPrompt, SampledPrompt

if TYPE_CHECKING:
    from stagealign.policy.lm import LanguageModel


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as token ids."""

    item: MeterPrompt
    ids: list[int]
    opened: bool
    """True if the prompt ends inside reasoning, so that its completions start there."""
    thinks: bool
    """True if the chat template knows marks of reasoning."""
    capped: bool
    """True if the policy's context leaves fewer new tokens than are asked for."""

    def answer(self, text: str, cut: bool) -> Answer:
        """The answer in one completion of this prompt; `cut` if it ended at the token limit."""
        return answer_of(text, self.opened, self.thinks).cut_short(cut)


def renderer(request: BoundaryRequest, model: "LanguageModel") -> Callable[[MeterPrompt], RenderedPrompt]:
    """Function from a prompt to its token ids, which raises BadData for one that the policy cannot read.

    That is a conversation that the chat template refuses, or a prompt that fills the context. A policy without a
    template reads text as it is. Raises StagealignError for template arguments that the template does not use.
    """
    from stagealign.policy.context import check_fits, room
    from stagealign.policy.conversation import plain_form

    template = request.template == "auto" and bool(model.tokenizer.chat_template)
    thinks = knows_marks(str(model.tokenizer.chat_template or ""))
    if request.template_args:
        _check_used(str(request.policy), model, request.template_args)

    def rendered(item: MeterPrompt) -> RenderedPrompt:
        prompt = (item.messages or item.prompt) if template else plain_form(item.prompt, item.messages)
        ids = model.prompt_ids(prompt, template=template, arguments=request.template_args)
        opened = opens_reasoning(model.tokenizer.decode(ids[-16:])) or in_reasoning(item)
        check_fits(model, item.prompt, len(ids), request.decoding)
        capped = room(model, len(ids), request.decoding) < request.decoding.max_new_tokens
        return RenderedPrompt(item, ids, opened, thinks, capped)

    return rendered


def in_reasoning(item: MeterPrompt) -> bool:
    """True if the prompt ends in a turn of the assistant that has begun to reason."""
    last = item.messages[-1] if item.messages else {}
    return last.get("role") == "assistant" and not answer_of(last["content"]).finished


def _check_used(name: str, model: "LanguageModel", arguments: Mapping[str, object]) -> None:
    template = model.tokenizer.chat_template
    if not template:
        raise StagealignError(
            f"--template-args: the tokenizer of {name!r} has no chat template; leave --template-args out"
        )
    for argument in arguments:
        if not re.search(rf"\b{re.escape(argument)}\b", str(template)):
            raise StagealignError(
                f"--template-args: {argument!r} is not used by the chat template of {name!r}; correct the name or "
                "leave it out"
            )


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
