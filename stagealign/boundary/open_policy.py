"""Opens the policy that is measured: loaded here, or served."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stagealign.boundary.request import Request
from stagealign.boundary.sampling import COMPLETIONS, Item, Sampled, Sampler


@dataclass(frozen=True)
class Policy:
    """A policy that can be sampled."""

    sampler: Sampler
    identity: Mapping[str, Any]
    """What identifies its samples."""
    count: Callable[[str], int] | None = None
    """Tokens of a text; None for a served policy."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a user should see of it."""
    notes: tuple[str, ...] = ()
    """What could mislead, a sentence each."""


NO_TEMPLATE = (
    "Careful: the policy's tokenizer has no chat template, so prompts went in as plain text; a policy that was trained "
    "on conversations writes something else in use. Where plain text is meant, say --template none."
)


def open_policy(request: Request) -> Policy:
    """The policy, loaded or, where it is served, asked its first questions."""
    settings = {
        "decoding": asdict(request.decoding),
        "template": request.template,
        "seed": request.seed,
        "count": COMPLETIONS,
    }
    return _served(request, settings) if request.policy_url else _loaded(request, settings)


def _loaded(request: Request, settings: Mapping[str, Any]) -> Policy:
    from stagealign.policy import draw, lm, sample
    from stagealign.policy.checkpoints import read_config, weights_identity

    name = str(request.policy)
    weights = weights_identity(name, read_config(name))
    model = lm.on_gpu(lm.load(name))
    if request.template == "auto":
        lm.check_ends(model, name)

    def sampler(items: Sequence[Item]) -> list[Sampled]:
        prompts = [
            model.prompt_ids(item.messages or item.prompt, template=request.template == "auto") for item in items
        ]
        draws = [
            [draw.draws(request.seed, item.key, j, request.decoding.max_new_tokens) for j in range(COMPLETIONS)]
            for item in items
        ]
        done = sample.generate(model, prompts, draws, request.decoding, names=[item.key for item in items])
        return [
            Sampled(
                tuple(model.tokenizer.decode(list(one.ids), skip_special_tokens=True).strip() for one in group),
                sum(len(one.ids) + one.ended for one in group),
                sum(not one.ended for one in group),
            )
            for group in done
        ]

    def count(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False).input_ids)

    bare = request.template == "auto" and not model.tokenizer.chat_template
    return Policy(sampler, {"weights": weights, **settings}, count, notes=(NO_TEMPLATE,) * bare)


def _served(request: Request, settings: Mapping[str, Any]) -> Policy:
    from stagealign.policy import served

    policy = served.connect(str(request.policy), str(request.policy_url), request.decoding, request.seed)

    def sampler(items: Sequence[Item]) -> Iterator[Sampled]:
        prompts = [(item.key, item.messages or [{"role": "user", "content": item.prompt}]) for item in items]
        for one in policy.write(prompts, COMPLETIONS):
            yield Sampled(one.completions, one.tokens, one.truncated, one.failed)

    decoding = "its own top_k: the server cannot be told one" if policy.style == "plain" else "as asked"
    return Policy(sampler, {**policy.identity, **settings}, facts={"policy decodes with": decoding})
