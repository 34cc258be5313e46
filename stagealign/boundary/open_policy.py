"""Opening of the measured policy with the sampler of the request: loaded here, vLLM, or a server."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from stagealign.base.errors import StagealignError
from stagealign.base.identity import plain
from stagealign.base.kind import code_at
from stagealign.base.reasoning import Answer, answer_of, ends_reasoning
from stagealign.boundary.rendering import RenderedPrompt, accepted, in_reasoning, renderer
from stagealign.boundary.request import BoundaryRequest
from stagealign.boundary.sampling import COMPLETIONS, MeterPrompt, PromptSampler, SampledPrompt, answered
from stagealign.grid.samplers import OWN_VERSION, RENDERING_VERSION, chosen
from stagealign.store.artifact import Facts, Identity

if TYPE_CHECKING:
    from stagealign.policy.lm import LanguageModel
    from stagealign.policy.paths import SamplingPath
    from stagealign.policy.served_texts import ServedCompletions


@dataclass(frozen=True)
class OpenPolicy:
    """A policy that can be sampled."""

    sampler: PromptSampler
    identity: Identity
    """Identity of its samples; kept samples of another identity are not used."""
    count: Callable[[str], int] | None = None
    """Returns the number of tokens of a text; None for a served policy."""
    facts: Facts = field(default_factory=dict)
    """Facts that are added to the data of a measurement."""
    notes: tuple[str, ...] = ()
    """Warnings for the user, one sentence each."""


IGNORED = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "min_length",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "exponential_decay_length_penalty",
)
"""Settings of generation_config.json that change texts at any temperature."""
NO_TEMPLATE = (
    "Careful: the policy's tokenizer has no chat template, so prompts are plain text (turns as `role: content`); a "
    "policy that was trained on conversations answers them differently than in use. If plain text is intended, use "
    "--template none."
)


def open_policy(request: BoundaryRequest) -> OpenPolicy:
    """Loads the policy or, if it is served, asks it a first question.

    Raises StagealignError for a policy that cannot be sampled, CannotRun for a sampler that this machine lacks.
    """
    settings: dict[str, object] = {
        "decoding": asdict(request.decoding),
        "template": request.template,
        "seed": request.seed,
        "count": COMPLETIONS,
        "rendering": RENDERING_VERSION,
    }
    if request.template_args:
        settings["template_args"] = dict(request.template_args)
    sampler = chosen(request.sampler, request.policy_url)
    if not sampler.meter:
        raise StagealignError(f"--sampler {sampler.key}: cannot serve the meter; leave it out")
    policy: OpenPolicy = code_at(sampler.meter)(request, settings)
    return policy


def check_policy(request: BoundaryRequest) -> None:
    """Raises StagealignError for a checkpoint that cannot be sampled; reads no weights. No-op for a served policy."""
    if request.policy_url is None:
        from stagealign.policy import lm

        lm.check(str(request.policy))


def loaded(request: BoundaryRequest, settings: Identity) -> OpenPolicy:
    """Opens a policy for our own sampler; its path is part of the samples' identity, and so are the end tokens.

    Decoding that the checkpoint's generation_config.json asks for is not used: the request says it all.
    """
    from stagealign.policy import conversation, draw, lm, paths, sample
    from stagealign.policy.checkpoints import read_config, weights_identity

    name = str(request.policy)
    weights = weights_identity(name, read_config(name, native=True))
    model = lm.on_gpu(lm.load(name))
    if request.template == "auto":
        lm.check_ends(model, name)
    path = paths.path_of(model)
    render, decode = renderer(request, model), conversation.decoder(model.tokenizer)

    def sample_rendered(prompts: Sequence[RenderedPrompt]) -> list[SampledPrompt]:
        names = [prompt.item.key for prompt in prompts]
        draws = [
            [draw.draws(request.seed, name, j, request.decoding.max_new_tokens) for j in range(COMPLETIONS)]
            for name in names
        ]
        groups = sample.generate(model, [prompt.ids for prompt in prompts], draws, request.decoding, names=names)
        return [
            answered(
                [prompt.answer(decode(text.ids).strip(), not text.ended) for text in group],
                sum(len(text.ids) + text.ended for text in group),
                sum(not text.ended for text in group),
                prompt.capped * len(group),
            )
            for prompt, group in zip(prompts, groups, strict=True)
        ]

    def sampler(items: Sequence[MeterPrompt]) -> Iterator[SampledPrompt]:
        return accepted(items, render, sample_rendered)

    identity = {"weights": weights, "ends": lm.end_ids(model), "sampler": [OWN_VERSION, path.name], **settings}
    notes = (*_template_notes(request, model), *_path_notes(path), *_decoding_notes(model))
    return OpenPolicy(sampler, identity, _counter(model), {"policy sampled by": path.sampler}, notes)


def sampled_by_vllm(request: BoundaryRequest, settings: Identity) -> OpenPolicy:
    """Opens a policy for vLLM in one long-lived process; version and settings of vLLM are part of the identity."""
    from stagealign.policy import lm, vllm_process, vllm_sample
    from stagealign.policy.checkpoints import read_config, weights_identity
    from stagealign.policy.start import checkpoint_folder

    engine, name = vllm_sample.engine(), str(request.policy)
    weights = weights_identity(name, read_config(name, native=True))
    folder = checkpoint_folder(name)
    shape = lm.load_shape(folder)
    if request.template == "auto":
        lm.check_ends(shape, name)
    writer = vllm_process.Writer(shape, folder, request.decoding, COMPLETIONS)

    render = renderer(request, shape)

    def sample_rendered(prompts: Sequence[RenderedPrompt]) -> Iterator[SampledPrompt]:
        asked = [vllm_process.TokenPrompt(prompt.item.key, prompt.item.prompt, prompt.ids) for prompt in prompts]
        for prompt, group in zip(prompts, writer.write(asked, request.seed), strict=True):
            yield answered(
                [prompt.answer(candidate.completion, candidate.truncated) for candidate in group],
                sum(candidate.tokens or 0 for candidate in group),
                sum(candidate.truncated for candidate in group),
                prompt.capped * len(group),
            )

    def sampler(items: Sequence[MeterPrompt]) -> Iterator[SampledPrompt]:
        return accepted(items, render, sample_rendered)

    return OpenPolicy(
        sampler,
        {"weights": weights, "ends": lm.end_ids(shape), "engine": plain(engine), **settings},
        _counter(shape),
        {"policy sampled by": f"{engine.key} {engine.version}"},
        _template_notes(request, shape),
    )


def _counter(model: "LanguageModel") -> Callable[[str], int]:
    """Function that returns the number of tokens of a text."""
    return lambda text: len(model.tokenizer(text, add_special_tokens=False).input_ids)


def _template_notes(request: BoundaryRequest, model: "LanguageModel") -> tuple[str, ...]:
    from stagealign.policy.checkpoints import native_note

    code = native_note(str(request.policy))
    plain = (NO_TEMPLATE,) if request.template == "auto" and not model.tokenizer.chat_template else ()
    return (*plain, *([code] if code else []))


def _path_notes(path: "SamplingPath") -> tuple[str, ...]:
    return () if path.fast else (f"The policy is sampled by transformers' own generate: {path.why}.",)


def _decoding_notes(model: "LanguageModel") -> tuple[str, ...]:
    """A warning for each penalty of generation_config.json that a sampler of ours does not apply."""
    config = model.model.generation_config
    asked = [name for name in IGNORED if getattr(config, name, None) not in (None, 0, 1.0, [])]
    if not asked:
        return ()
    return (f"Careful: generation_config.json sets {', '.join(asked)}; samples are the policy's own, without it.",)


def served(request: BoundaryRequest, settings: Identity) -> OpenPolicy:
    """Opens a policy behind a server."""
    from stagealign.policy.served import connect

    name, arguments = str(request.policy), request.template_args or {}
    policy = connect(name, str(request.policy_url), request.decoding, request.seed, arguments)

    def sampler(items: Sequence[MeterPrompt]) -> Iterator[SampledPrompt]:
        prompts = [(item.key, item.messages or [{"role": "user", "content": item.prompt}]) for item in items]
        for item, written in zip(items, policy.write(prompts, COMPLETIONS), strict=True):
            if written.failed:
                yield SampledPrompt((), 0, 0, written.failed)
            else:
                found = served_answers(written, in_reasoning(item))
                yield answered(found, written.tokens, written.truncated, written.capped)

    facts = {
        "policy decodes with": "its own top_k: the server cannot be told one" if policy.style == "plain" else "as asked"
    }
    if arguments:
        facts["template arguments"] = "sent to the server, which may ignore names that it does not know"
    return OpenPolicy(sampler, {**policy.identity, **settings}, facts=facts)


def served_answers(written: "ServedCompletions", opened: bool) -> list[Answer]:
    """The answers in a server's texts; `opened` if the prompt ended inside reasoning.

    A server does not tell whether its template opened reasoning; one completion that closes it tells for all.
    """
    opened = opened or any(ends_reasoning(text.text) for text in written.texts)
    return [
        Answer(text.text.strip(), True, bool(text.text.strip())) if text.apart else answer_of(text.text.strip(), opened)
        for text in written.texts
    ]
