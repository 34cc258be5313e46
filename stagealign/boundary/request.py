"""What a user asks of the meter, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches

from stagealign.base.errors import StagealignError
from stagealign.grid.spec import Decoding
from stagealign.oracle.open import KINDS, ORACLES, kind_of


@dataclass(frozen=True)
class Request:
    """What a user asks of the meter."""

    policy: str | None = None
    """Hub id or local folder; the model's name where `policy_url` is given."""
    data: str | None = None
    oracle: str = "pairrm"
    prompts: int | None = 2000
    seed: int = 0
    decide: float | None = None
    split: str | None = None
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=512))
    template: str = "auto"
    policy_url: str | None = None
    judge_url: str | None = None
    max_judge_tokens: int | None = None
    """Tokens that a served judge may bill in this call; it is asked no more once they are spent."""
    keep: bool = True
    """Whether candidates and verdicts are kept for the next call."""


DEFAULTS = asdict(Request()) | {"decoding": Request().decoding}
SAMPLING = ("policy", "data", "split", "template", "policy_url", "decoding")
"""Fields of a request that only matter where a policy is sampled."""
DECODING = "--temperature, --top-p, --top-k or --max-new-tokens"


def check(request: Request) -> None:
    """Raises StagealignError for options that no measurement can have."""
    kind, rest = kind_of(request.oracle)
    if kind not in ORACLES or (kind != "pairrm" and not rest):
        raise StagealignError(f"--oracle {request.oracle!r}: {_unknown(request.oracle)}; one of {KINDS}")
    if kind == "judge" and not request.judge_url:
        raise StagealignError(f"--oracle {request.oracle!r}: needs --judge-url, for example http://127.0.0.1:8000/v1")
    if kind != "judge":
        unused(request, ("judge_url", "max_judge_tokens"), f"--oracle {request.oracle}", "only judge:MODEL asks one")
    if request.decide is not None and not 0.5 < request.decide < 1:
        raise StagealignError(f"--decide {request.decide}: not a level; 0.95 stops when a stage is named at 95%")
    if request.template not in ("auto", "none"):
        raise StagealignError(f"--template {request.template!r}: unknown; auto or none")
    if request.template == "none" and request.policy_url:
        raise StagealignError(
            "--template none: a served policy puts its own chat template around a prompt; leave it out"
        )
    decoding = request.decoding
    if decoding.temperature < 0 or not 0 < decoding.top_p <= 1 or decoding.top_k < 1 or decoding.max_new_tokens < 1:
        raise StagealignError(f"decoding {asdict(decoding)}: temperature >= 0, 0 < top_p <= 1, the others at least 1")


def _unknown(oracle: str) -> str:
    """What is wrong with an oracle that is none, and the nearest that there is."""
    kind = oracle.partition(":")[0].lower()
    if kind in ORACLES:
        return f"nothing stands after {kind!r} and its colon"
    near = get_close_matches(kind.rpartition("/")[2], ORACLES, 1)
    return f"unknown; did you mean {near[0]}?" if near else "unknown"


def unused(request: Request, names: Sequence[str], beside: str, why: str) -> None:
    """Raises StagealignError for an option that was given and that nothing would use."""
    given = [name for name in names if getattr(request, name) != DEFAULTS[name]]
    if given:
        named = DECODING if given[0] == "decoding" else f"--{given[0].replace('_', '-')}"
        raise StagealignError(f"{named} with {beside}: not used, {why}; leave {named} out")


def nothing_to_sample(request: Request) -> None:
    why = "candidates and scores are all in the file"
    unused(request, SAMPLING, f"--oracle {request.oracle} (scored candidates)", why)


def needs_policy_and_data(request: Request) -> None:
    """Raises StagealignError where there is nothing to sample."""
    if not request.policy or not request.data:
        raise StagealignError(
            f"--oracle {request.oracle}: needs --policy and --data; only `recorded:FILE` of scored candidates does not"
        )
