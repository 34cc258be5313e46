"""Opens what the boundary meter needs, cheapest check first: the data, the oracle, the policy; then measures.

Everything a user can have wrong is an error before a token is sampled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from stagealign.base.secrets import without_secrets
from stagealign.boundary.measurement import Measurement
from stagealign.boundary.meter import Meter, batches, kept_at, measure
from stagealign.boundary.open_policy import open_policy
from stagealign.boundary.prompts import MeterPrompts
from stagealign.boundary.request import (
    SAMPLING,
    BoundaryRequest,
    check,
    needs_policy_and_data,
    nothing_to_sample,
)
from stagealign.boundary.sampling import Measured, MeterPrompt, Phases, SampledPrompt
from stagealign.data.records import prompt_hash
from stagealign.grid.samplers import OWN
from stagealign.oracle.open import Asking, billed_by, kind_of, open_oracle
from stagealign.scoring.contest import Contest, Oracle
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
    """Which stage a policy is in with respect to preference data, and so what to collect next.

    `policy`: hub id or local folder of a causal language model; `data`: a file or hub data set of preferences in any of
    TRL's shapes; `options` are the other fields of `BoundaryRequest` (`oracle`, `prompts`, `decide`, ...). With
    `oracle="recorded:FILE"` of scored candidates neither policy nor data is needed. Raises StagealignError for what
    cannot be measured, before anything is sampled.
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
            return replace(measure_recorded(recorded, request.decide, heard), request=_said(request, SAMPLING))
        return replace(_measure(request, RecordedOracle(recorded), heard), request=_said(request))
    needs_policy_and_data(request)
    return replace(_measure(request, None, heard), request=_said(request))


def _said(request: BoundaryRequest, unused: Sequence[str] = ()) -> dict[str, Any]:
    """The request as a measurement tells it: only what was given, without secrets, and the version that measured."""
    from stagealign.base.version import __version__

    left_out = {"keep", *unused} | ({"sampler"} if request.sampler == OWN else set())
    given = {name: value for name, value in asdict(request).items() if value is not None and name not in left_out}
    shown = {name: without_secrets(value) if isinstance(value, str) else value for name, value in given.items()}
    return shown | {"version": __version__}


class Remembered:
    """Source of a measurement whose candidates were scored beforehand."""

    def __init__(self, recorded: "Recorded"):
        self.most_votes = recorded.most_votes
        self.phases = Phases()

    def measured(self, items: "Sequence[RecordedPrompt]") -> Iterator[Measured]:
        """Each recorded prompt as if it had been sampled and judged."""
        for row in items:
            contest = row.contest
            item = MeterPrompt(prompt_hash(row.prompt), row.prompt, contest.off)
            yield item, SampledPrompt(contest.on, 0, 0, seconds=0.0), replace(row.judged, seconds=0.0)

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


def _measure(request: BoundaryRequest, oracle: Oracle | None, heard: Heard) -> Measurement:
    from stagealign.data.preferences import read_preferences
    from stagealign.oracle.recorded import RecordedOracle

    needs_policy_and_data(request)
    phases = Phases()
    with phases.timed("loading"):
        rows = read_preferences(str(request.data), request.prompts, request.seed, request.split)
        if oracle is None:
            oracle = open_oracle(request.oracle, Asking(request.judge_url, request.max_judge_tokens))
        policy = open_policy(request)
    items = MeterPrompts(rows.rows)
    kept = kept_at(default_home(), policy.identity, oracle.identity) if request.keep else (Kept(None), Kept(None))
    meter = Meter(policy.sampler, oracle, *kept, billed_by(oracle), phases)
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
