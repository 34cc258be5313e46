"""Opens what the boundary meter needs, cheapest check first: the data, the oracle, the policy; then measures.

Everything a user can have wrong is an error before a token is sampled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from stagealign.atomic import check_target, write_text
from stagealign.errors import StagealignError
from stagealign.hidden import without_secrets
from stagealign.judged import Contest, Oracle
from stagealign.meter import (
    COMPLETIONS,
    Item,
    Kept,
    Measured,
    Measurement,
    Meter,
    Phases,
    Sampled,
    Sampler,
    batches,
    kept_at,
    measure,
)
from stagealign.records import prompt_hash
from stagealign.spec import Decoding
from stagealign.store import default_home

if TYPE_CHECKING:
    from stagealign.preferences import Preference, PreferenceData
    from stagealign.recorded import Recorded, RecordedPrompt

ORACLES = ("pairrm", "reward", "completion-reward", "judge", "recorded")
KINDS = "pairrm[:ID_OR_PATH], reward:ID_OR_PATH, completion-reward:ID_OR_PATH, judge:MODEL or recorded:FILE"
Heard = Callable[[int, int, float], None]


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


def measure_boundary(
    policy: str | None = None,
    data: str | None = None,
    *,
    heard: Heard = lambda done, total, score: None,
    **options: Any,
) -> Measurement:
    """Which stage a policy is in with respect to preference data, and so what to collect next.

    `policy`: hub id or local folder of a causal language model; `data`: a file or hub data set of preferences in any of
    TRL's shapes; `options` are the other fields of `Request` (`oracle`, `prompts`, `decide`, ...). With
    `oracle="recorded:FILE"` of scored candidates neither policy nor data is needed. Raises StagealignError for what
    cannot be measured, before anything is sampled.
    """
    request = Request(policy, data, **options)
    check(request)
    kind, rest = kind_of(request)
    if kind == "recorded":
        from stagealign.recorded import RecordedOracle, read_recorded

        recorded = read_recorded(rest, request.prompts, request.seed)
        if recorded.form == "scores":
            _nothing_to_sample(request)
            return replace(measure_recorded(recorded, request.decide, heard), request=_said(request, SAMPLING))
        return replace(_measure(request, RecordedOracle(recorded), heard), request=_said(request))
    needs_policy_and_data(request)
    return replace(_measure(request, None, heard), request=_said(request))


def _said(request: Request, unused: Sequence[str] = ()) -> dict[str, Any]:
    """The request as a measurement tells it: only what was given, without secrets, and the version that measured."""
    from stagealign import __version__

    left_out = {"keep", *unused}
    given = {name: value for name, value in asdict(request).items() if value is not None and name not in left_out}
    shown = {name: without_secrets(value) if isinstance(value, str) else value for name, value in given.items()}
    return shown | {"version": __version__}


def check(request: Request) -> None:
    """Raises StagealignError for options that no measurement can have."""
    kind, rest = kind_of(request)
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


def kind_of(request: Request) -> tuple[str, str]:
    """(kind of oracle, what stands after its colon); kinds are known in any letter case."""
    kind, _, rest = request.oracle.partition(":")
    return kind.strip().lower(), rest


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


def _nothing_to_sample(request: Request) -> None:
    why = "candidates and scores are all in the file"
    unused(request, SAMPLING, f"--oracle {request.oracle} (scored candidates)", why)


def needs_policy_and_data(request: Request) -> None:
    """Raises StagealignError where there is nothing to sample."""
    if not request.policy or not request.data:
        raise StagealignError(
            f"--oracle {request.oracle}: needs --policy and --data; only `recorded:FILE` of scored candidates does not"
        )


class Remembered:
    """Source of a measurement whose candidates were scored beforehand."""

    def __init__(self, recorded: "Recorded"):
        self.most_votes = recorded.most_votes
        self.phases = Phases()

    def measured(self, items: "Sequence[RecordedPrompt]") -> Iterator[Measured]:
        """Each recorded prompt as if it had been sampled and judged."""
        for row in items:
            contest = row.contest
            item = Item(prompt_hash(row.prompt), row.prompt, contest.off)
            yield item, Sampled(contest.on, 0, 0, seconds=0.0), replace(row.judged, seconds=0.0)

    def oracle_tokens(self) -> int:
        """None are billed."""
        return 0

    def damage(self) -> dict[str, str]:
        """No call kept anything."""
        return {}


def measure_recorded(recorded: "Recorded", decide: float | None, heard: Heard) -> Measurement:
    """The measurement of candidates that were scored beforehand."""
    data = {
        "data": recorded.path,
        "rows given": recorded.given,
        "rows used": recorded.used,
        "rows not chosen": recorded.not_chosen,
        "rows dropped": dict(recorded.drops),
        "dropped": str(recorded.tally),
        "prompts without a score": recorded.failures,
    }
    found = measure(recorded.prompts, Remembered(recorded), data, decide, heard)
    return replace(found, caveats={**found.caveats, "truncated_by_policy": None, "cut_for_oracle": None})


class Items(Sequence[Item]):
    """The prompts of preference data, each made when it is asked for."""

    def __init__(self, rows: "Sequence[Preference]"):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        return [_item(row) for row in self._rows[at]] if isinstance(at, slice) else _item(self._rows[at])


def _item(row: "Preference") -> Item:
    return Item(row.hash, row.prompt_text, (row.chosen, row.rejected), row.messages)


def _measure(request: Request, oracle: Oracle | None, heard: Heard) -> Measurement:
    from stagealign.preferences import read_preferences
    from stagealign.recorded import RecordedOracle

    needs_policy_and_data(request)
    phases = Phases()
    with phases.timed("loading"):
        rows = read_preferences(str(request.data), request.prompts, request.seed, request.split)
        billed = nothing_billed
        if oracle is None:
            oracle, billed = open_oracle(request)
        policy = open_policy(request)
    items = Items(rows.rows)
    kept = kept_at(default_home(), policy.identity, oracle.identity) if request.keep else (Kept(None), Kept(None))
    meter = Meter(policy.sampler, oracle, *kept, billed, phases)
    if isinstance(oracle, RecordedOracle):
        contests = (one for batch in batches(items, growing=False) for one in meter.samples.contests(batch))
        oracle.check(Contest(item.prompt, one.completions, item.off) for item, one in contests if one.failed is None)
    facts = {**_facts(rows), **policy.facts}
    found = measure(items, meter, facts, request.decide, heard, _epoch_tokens(rows, policy.count))
    return replace(found, notes=(*policy.notes, *found.notes))


def _facts(rows: "PreferenceData") -> dict[str, Any]:
    return {
        "data": rows.source,
        "rows given": rows.given,
        "prompts": len(rows.rows),
        "rows merged": rows.repeated,
        "rows not chosen": rows.not_chosen,
        "rows dropped": dict(rows.drops),
        "dropped": str(rows.tally),
        "chosen equal to rejected": rows.ties,
    }


def _epoch_tokens(rows: "PreferenceData", count: Callable[[str], int] | None) -> float | None:
    """Tokens that one DPO epoch over all rows would train on, estimated from the first prompts measured."""
    if count is None:
        return None
    some = rows.rows[:50]
    each = sum(2 * count(row.prompt_text) + count(row.chosen) + count(row.rejected) for row in some) / len(some)
    return each * (rows.given - rows.drops.total())


def nothing_billed() -> int:
    """Tokens that an oracle on this machine bills."""
    return 0


def open_oracle(request: Request) -> tuple[Oracle, Callable[[], int]]:
    """The oracle that `request.oracle` names, loaded or, for a judge, asked one question; and what it has billed."""
    kind, rest = kind_of(request)
    if kind == "pairrm":
        from stagealign import pairrm

        try:
            return (pairrm.load(rest) if rest else pairrm.load()), nothing_billed
        except StagealignError as error:
            if rest:
                raise
            raise StagealignError(f"{error}; a local copy of PairRM is named by --oracle pairrm:PATH") from error
    if kind in ("reward", "completion-reward"):
        from stagealign import rewards

        return rewards.load(rest, text="completion" if kind == "completion-reward" else "auto"), nothing_billed
    from stagealign import judge

    asked = judge.connect(rest, str(request.judge_url), most_tokens=request.max_judge_tokens)
    return asked, lambda: asked.server.tokens


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
    from stagealign import lm, sample
    from stagealign.checkpoints import read_config, weights_identity

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
            [sample.draws(request.seed, item.key, j, request.decoding.max_new_tokens) for j in range(COMPLETIONS)]
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
    from stagealign import served

    policy = served.connect(str(request.policy), str(request.policy_url), request.decoding, request.seed)

    def sampler(items: Sequence[Item]) -> Iterator[Sampled]:
        prompts = [(item.key, item.messages or [{"role": "user", "content": item.prompt}]) for item in items]
        for one in policy.write(prompts, COMPLETIONS):
            yield Sampled(one.completions, one.tokens, one.truncated, one.failed)

    decoding = "its own top_k: the server cannot be told one" if policy.style == "plain" else "as asked"
    return Policy(sampler, {**policy.identity, **settings}, facts={"policy decodes with": decoding})


def writable(json_file: str | None, html: Path | None) -> None:
    """Raises CannotRun where the files that are asked for could not be written, before anything is measured."""
    for option, path in (("--json", json_file), ("--html", html)):
        if path not in (None, "-"):
            check_target(option, Path(str(path)))


def write(found: Measurement, json_file: str | None, html: Path | None) -> None:
    """Writes the measurement where it was asked for; `-` is standard output."""
    import json

    if json_file:
        text = json.dumps(found.plain(), indent=1, sort_keys=True) + "\n"
        if json_file == "-":
            print(text, end="")
        else:
            write_text(Path(json_file), text)
    if html:
        from stagealign.report.meter import page

        write_text(html, page(found))
