"""A request to the meter, and its checks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches

from stagealign.base.errors import StagealignError
from stagealign.grid.samplers import OWN, chosen
from stagealign.grid.spec import Decoding
from stagealign.oracle.open import METER, ORACLES, kind_of, usages


@dataclass(frozen=True)
class BoundaryRequest:
    """A request to the meter; the options of `stagealign boundary`."""

    policy: str | None = None
    """Hub id or local folder; with `policy_url`, the name of the model on that server."""
    data: str | None = None
    oracle: str = "pairrm"
    prompts: int | None = 2000
    seed: int = 0
    decide: float | None = None
    indifference: float | None = None
    """Half-width of the zone around 0.5 without a practical difference; without `decide`, decided at 0.95."""
    split: str | None = None
    columns: str | None = None
    """Columns of `data` by what they hold, such as `prompt=question,chosen=a,rejected=b`; None to find the layout."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=512))
    template: str = "auto"
    template_args: Mapping[str, object] | None = None
    """Arguments of the policy's chat template, such as `{"enable_thinking": False}`; identity of the samples."""
    sampler: str = OWN
    """Key of `SAMPLERS`; part of the identity of kept samples."""
    policy_url: str | None = None
    judge_url: str | None = None
    max_judge_tokens: int | None = None
    """Tokens that a served judge may bill in this call; the measurement ends once they are spent."""
    keep: bool = True
    """True if candidates and verdicts are kept for later calls."""


DEFAULTS = asdict(BoundaryRequest()) | {"decoding": BoundaryRequest().decoding}
SAMPLING = ("policy", "data", "split", "columns", "template", "template_args", "sampler", "policy_url", "decoding")
"""Fields that are used only if a policy is sampled."""
DECODING = "--temperature, --top-p, --top-k or --max-new-tokens"


def check(request: BoundaryRequest) -> None:
    """Raises StagealignError for options that are unknown, out of range or in conflict."""
    kind, rest = kind_of(request.oracle)
    if kind not in METER or (ORACLES[kind].needs_name and not rest):
        raise StagealignError(f"--oracle {request.oracle!r}: {_unknown(kind)}; one of {usages()}")
    served = ORACLES[kind].served
    if served and not request.judge_url:
        raise StagealignError(f"--oracle {request.oracle!r}: needs --judge-url, for example http://127.0.0.1:8000/v1")
    if not served:
        unused(request, ("judge_url", "max_judge_tokens"), f"--oracle {request.oracle}", "only judge:MODEL asks one")
    chosen(request.sampler, request.policy_url)
    if request.decide is not None and not 0.5 < request.decide < 1:
        raise StagealignError(f"--decide {request.decide}: not a level; 0.95 stops when a stage is named at 95%")
    zone = request.indifference
    if zone is not None and not 0 < zone < 0.5:
        raise StagealignError(
            f"--indifference {zone}: not between 0 and 0.5; 0.05 stops when the score is known to be in 0.45 to 0.55"
        )
    if request.template not in ("auto", "none"):
        raise StagealignError(f"--template {request.template!r}: unknown; auto or none")
    if request.template == "none" and request.policy_url:
        raise StagealignError(
            "--template none: a served policy puts its own chat template around a prompt; leave it out"
        )
    _check_template_args(request)
    decoding = request.decoding
    if decoding.temperature < 0 or not 0 < decoding.top_p <= 1 or decoding.top_k < 1 or decoding.max_new_tokens < 1:
        raise StagealignError(f"decoding {asdict(decoding)}: temperature >= 0, 0 < top_p <= 1, the others at least 1")


OURS = ("messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message")
"""Arguments of a chat template that stagealign sets."""


def _check_template_args(request: BoundaryRequest) -> None:
    given = request.template_args
    if given is None:
        return
    ours = [name for name in given if name in OURS]
    if ours:
        raise StagealignError(f"--template-args: names {ours[0]!r}, which stagealign sets; leave it out")
    try:
        json.dumps(given)
    except TypeError as error:
        raise StagealignError(
            f"--template-args {given!r}: no JSON values ({error}); give text, numbers, lists"
        ) from error
    if request.template == "none":
        raise StagealignError("--template-args with --template none: no template is used; leave one out")


def template_args_in(text: str | None) -> Mapping[str, object] | None:
    """The value of `--template-args`, a JSON object. Raises StagealignError for other text."""
    try:
        given = None if text is None else json.loads(text)
    except ValueError:
        given = text
    if given is not None and not isinstance(given, dict):
        example = '{"enable_thinking": false}'
        raise StagealignError(f"--template-args {text!r}: no JSON object; write one such as '{example}'")
    return given


def _unknown(kind: str) -> str:
    """Error text for an unknown key, with the nearest key, or for a missing name."""
    if kind in METER:
        return f"nothing stands after {kind!r} and its colon"
    near = get_close_matches(kind.rpartition("/")[2], METER, 1)
    return f"unknown; did you mean {near[0]}?" if near else "unknown"


def unused(request: BoundaryRequest, names: Sequence[str], beside: str, why: str) -> None:
    """Raises StagealignError if one of the fields `names`, which are not used with option `beside`, was set."""
    given = [name for name in names if getattr(request, name) != DEFAULTS[name]]
    if given:
        named = DECODING if given[0] == "decoding" else f"--{given[0].replace('_', '-')}"
        raise StagealignError(f"{named} with {beside}: not used, {why}; leave {named} out")


def nothing_to_sample(request: BoundaryRequest) -> None:
    """Raises StagealignError if an option was set that is used only if a policy is sampled."""
    why = "candidates and scores are all in the file"
    unused(request, SAMPLING, f"--oracle {request.oracle} (scored candidates)", why)


def needs_policy_and_data(request: BoundaryRequest) -> None:
    """Raises StagealignError if policy or data is missing."""
    if not request.policy or not request.data:
        raise StagealignError(
            f"--oracle {request.oracle}: needs --policy and --data; only `recorded:FILE` of scored candidates does not"
        )
