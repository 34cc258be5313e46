"""Entry point of the boundary meter: checks the request, opens data, oracle and policy, and measures.

Checks run in the order of their cost. Errors in a request are raised before any token is sampled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from stagealign.base.secrets import without_secrets
from stagealign.boundary.measurement import Measurement
from stagealign.boundary.meter import Meter, batches, kept_at, measure
from stagealign.boundary.open_policy import check_policy, open_policy
from stagealign.boundary.prompts import MeterPrompts
from stagealign.boundary.request import (
    SAMPLING,
    BoundaryRequest,
    check,
    needs_policy_and_data,
    nothing_to_sample,
)
from stagealign.boundary.sampling import Measured, MeterPrompt, Phases, SampledPrompt
from stagealign.boundary.tally import Until
from stagealign.data.records import prompt_hash
from stagealign.grid.samplers import OWN
from stagealign.oracle.open import OracleAccess, billed_by, kind_of, open_oracle
from stagealign.scoring.contest import Oracle
from stagealign.store.home import default_home
from stagealign.store.kept import Kept

if TYPE_CHECKING:
    from stagealign.data.preferences import PreferenceData
    from stagealign.oracle.recorded_rows import Recorded, RecordedPrompt

Heard = Callable[[int, int, float], None]


def measure_boundary(
    policy: str | None = None,
    data: str | None = None,
    *,
    heard: Heard = lambda done, total, score: None,
    **options: Any,
) -> Measurement:
    """Measures the stage of a policy with respect to preference data, and what to collect next.

    `policy`: hub id or local folder of a causal language model. `data`: file, folder or hub data set in any of the
    layouts of `docs/data.md`. `options`: the other fields of `BoundaryRequest` (`oracle`, `prompts`, `decide`,
    `indifference`, ...).
    `oracle="recorded:FILE"` of scored candidates needs neither policy nor data. `heard` is called with (prompts done,
    prompts in all, score so far) after each batch.

    Raises StagealignError for a request that cannot be measured, before anything is sampled.
    """
    request = BoundaryRequest(policy, data, **options)
    check(request)
    kind, rest = kind_of(request.oracle)
    if kind == "recorded":
        from stagealign.oracle.recorded import RecordedOracle
        from stagealign.oracle.recorded_file import read_recorded

        recorded = read_recorded(rest, request.prompts, request.seed)
        if recorded.form == "scores":
            nothing_to_sample(request)
            return replace(measure_recorded(recorded, _until(request), heard), request=_said(request, SAMPLING))
        return replace(_measure(request, RecordedOracle(recorded), heard), request=_said(request))
    needs_policy_and_data(request)
    return replace(_measure(request, None, heard), request=_said(request))


def _until(request: BoundaryRequest) -> Until | None:
    return Until.asked(request.decide, request.indifference)


def _said(request: BoundaryRequest, unused: Sequence[str] = ()) -> dict[str, Any]:
    """The request as recorded in a measurement: fields that were given, without secrets, and our version."""
    from stagealign.base.version import __version__

    left_out = {"keep", *unused} | ({"sampler"} if request.sampler == OWN else set())
    given = {name: value for name, value in asdict(request).items() if value is not None and name not in left_out}
    shown = {name: without_secrets(value) if isinstance(value, str) else value for name, value in given.items()}
    return shown | {"version": __version__}


class Remembered:
    """Source of verdicts for candidates with recorded scores."""

    def __init__(self, recorded: "Recorded"):
        self.most_votes = recorded.most_votes
        self.phases = Phases()

    def measured(self, items: "Sequence[RecordedPrompt]") -> Iterator[Measured]:
        """Yields each recorded prompt in the form of a sampled and judged one."""
        for row in items:
            contest = row.contest
            item = MeterPrompt(prompt_hash(row.prompt), row.prompt, contest.off)
            yield item, SampledPrompt(contest.on, 0, 0, seconds=0.0), replace(row.judged, seconds=0.0)

    def oracle_tokens(self) -> int:
        """Always 0: nothing is billed."""
        return 0

    def damage(self) -> dict[str, str]:
        """Always empty: nothing is kept."""
        return {}


def measure_recorded(recorded: "Recorded", decide: Until | float | None, heard: Heard) -> Measurement:
    """Measures candidates with recorded scores; samples nothing."""
    data = {
        "data": recorded.path,
        "rows given": recorded.given,
        "rows used": recorded.used,
        "rows not chosen": recorded.not_chosen,
        "rows dropped": dict(recorded.drops),
        "dropped": str(recorded.tally),
        "prompts without a score": recorded.failures,
    }
    measurement = measure(recorded.prompts, Remembered(recorded), data, decide, heard)
    unknown = dict.fromkeys(("truncated_by_policy", "capped_by_context", "cut_for_oracle"))
    return replace(measurement, caveats={**measurement.caveats, **unknown})


def _measure(request: BoundaryRequest, oracle: Oracle | None, heard: Heard) -> Measurement:
    from stagealign.data.preferences import read_preferences
    from stagealign.oracle.recorded import RecordedOracle

    needs_policy_and_data(request)
    phases = Phases()
    with phases.timed("loading"):
        rows = read_preferences(str(request.data), request.prompts, request.seed, request.split, request.columns)
        check_policy(request)
        if oracle is None:
            oracle = open_oracle(request.oracle, OracleAccess(request.judge_url, request.max_judge_tokens))
        policy = open_policy(request)
    items = MeterPrompts(rows.rows)
    kept = kept_at(default_home(), policy.identity, oracle.identity) if request.keep else (Kept(None), Kept(None))
    meter = Meter(policy.sampler, oracle, *kept, billed_by(oracle), phases)
    if isinstance(oracle, RecordedOracle):
        sampled = (pair for batch in batches(items, growing=False) for pair in meter.samples.of_prompts(batch))
        oracle.check(item.contest(written.completions) for item, written in sampled if written.unusable is None)
    facts = {**_facts(rows), **policy.facts}
    measurement = measure(items, meter, facts, _until(request), heard, _epoch_tokens(rows, policy.count))
    return replace(measurement, notes=(*policy.notes, *rows.taken(), *measurement.notes))


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
    """Tokens that one DPO epoch over all rows would train on, estimated from the first 50; None if they are unknown."""
    if count is None:
        return None
    some = rows.rows[:50]
    each = sum(2 * count(row.prompt_text) + count(row.chosen) + count(row.rejected) for row in some) / len(some)
    return each * (rows.given - rows.drops.total())
