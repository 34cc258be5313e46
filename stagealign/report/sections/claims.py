"""Estimates of the claims' metrics from results, and the tables of verdicts and claims."""

from collections.abc import Callable, Mapping, Sequence

from stagealign.grid.claims import CLAIM_KINDS, Claim, of_scale
from stagealign.report.read.book import Book, weights
from stagealign.report.read.contrasts import BOUNDARY, NOT_RUN, UNDECIDED, Contrast, boundary, counted
from stagealign.report.read.rungs import SPLIT, after
from stagealign.report.read.sides import COMPARED
from stagealign.report.read.verdicts import NOT_RUN as NO_RESULT
from stagealign.report.read.verdicts import VERDICTS, ClaimEstimate, ClaimVerdict, judge, normal, share_of
from stagealign.report.sections.rows import Table, TableRow
from stagealign.report.sections.words import DASH, count, gain, listing, plain, score, signed
from stagealign.stats.statistics import Metric, proportion

CHANGED = "the claim was changed after results that cite it were made: give the new one a new key"


def verdicts(book: Book, contrasts: Sequence[Contrast]) -> list[ClaimVerdict]:
    """One verdict for each claim of the book's scale, in the order of `grid.claims`."""
    claims = of_scale(book.scale)
    strangers = [r["cell"] for r in book.results if weights(r["model"], book.scale) != "published"]
    if book.replicates and strangers:
        why = f"results with other weights than the published ones stand in the folder: {listing(strangers)}"
        return judge(claims, [why] * len(claims))
    return judge(claims, [_estimate(claim, book, contrasts) for claim in claims])


def _estimate(claim: Claim, book: Book, contrasts: Sequence[Contrast]) -> ClaimEstimate | str:
    """Estimate of the claim's metric, or the reason why there is none."""
    cited = {fingerprint for result in book.results if (fingerprint := result.get("claims", {}).get(claim.key))}
    if cited - {claim.fingerprint}:
        return CHANGED
    return ESTIMATES[claim.kind](claim, book, contrasts)


def _better(claim: Claim, book: Book, contrasts: Sequence[Contrast]) -> ClaimEstimate | str:
    matching = [contrast for contrast in contrasts if _is_about(claim, contrast)]
    view = matching[0].view("best") if matching else None
    if view is None:
        return f"no results of both sources for {claim.model}, {claim.method}, {claim.policy}"
    difference = view.ratio["difference"]
    sign = 1 if claim.expected == "on" else -1
    error = difference["standard_error"]
    by = _sampled(matching[0].start.method, claim)
    shown = f"ratio {score(view.ratio)}; on − off {gain(difference)} {difference['unit']}{by}"
    return normal(sign * difference["value"], error, view.ratio["value"], shown)


def _is_about(claim: Claim, contrast: Contrast) -> bool:
    return (contrast.start.model, contrast.method, contrast.start.name) == (claim.model, claim.method, claim.policy)


def _sampled(row: str, claim: Claim) -> str:
    """Remark on a row's sampler; empty for our own."""
    return "" if row == claim.method else f"; sampled by {row.removeprefix(f'{claim.method}_')}"


def _score(claim: Claim, book: Book, contrasts: Sequence[Contrast]) -> ClaimEstimate | str:
    pooled = _boundary(book, claim, claim.policy)
    if pooled is None:
        return f"no boundary score of {claim.model}, {claim.policy}"
    sign = 1 if claim.expected == "above" else -1
    return normal(sign * (pooled["value"] - BOUNDARY), pooled["standard_error"], pooled["value"], score(pooled))


def _rise(claim: Claim, book: Book, contrasts: Sequence[Contrast]) -> ClaimEstimate | str:
    """Rise of the score on the same test prompts. Errors are added as if independent, which is conservative."""
    before, now = _boundary(book, claim, "start"), _boundary(book, claim, claim.policy)
    if before is None or now is None:
        return f"no boundary score of {claim.model} before and {claim.policy}"
    change = now["value"] - before["value"]
    error = float((before["standard_error"] ** 2 + now["standard_error"] ** 2) ** 0.5)
    sign = 1 if claim.expected == "above" else -1
    shown = f"{signed(change)} ({plain(before['value'])} to {plain(now['value'])})"
    return normal(sign * change, error, change, shown)


def _boundary(book: Book, claim: Claim, policy: str) -> Metric | None:
    """Score of one policy over its seeds, from the first row that has one; all rows share the start."""
    policies = [each for each in book.policies if each.model == claim.model and after(each.sources) == policy]
    for row in book.rows_of(claim.method):
        known = (row, book.shared(row)) if policy == "start" else (row,)
        pooled = boundary(each.metrics for each in policies if each.method in known and each.metrics.get(SPLIT))
        if pooled is not None:
            return pooled
    return None


def _rule(claim: Claim, book: Book, contrasts: Sequence[Contrast]) -> ClaimEstimate | str:
    """Exact sign test over decided cases; it is anti-conservative, as cases share policies and data."""
    cases = decided(contrasts)
    if not cases:
        return "no case in which one source was better"
    right, n = sum(contrast.named_it == "yes" for contrast in cases), len(cases)
    always = {source: sum(contrast.better == source for contrast in cases) for source in COMPARED}
    constant = max(always, key=lambda source: always[source])
    beside = f"; always {constant}-policy: {always[constant]} of {n}"
    return share_of(right, n, f"{right} of {n}: {score(proportion(right, n))}{beside}")


def decided(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Contrasts that claims count, with a boundary score and a better source."""
    return [
        contrast
        for contrast in counted(contrasts)
        if contrast.better != UNDECIDED and NOT_RUN not in (contrast.better, contrast.named)
    ]


ESTIMATES: Mapping[str, Callable[[Claim, Book, Sequence[Contrast]], ClaimEstimate | str]] = {
    "better": _better,
    "score": _score,
    "rise": _rise,
    "rule": _rule,
}


def table(book: Book, judged: Sequence[ClaimVerdict]) -> Table:
    """Table of every claim with its verdict."""
    run = sum(verdict.state != NO_RESULT for verdict in judged)
    rows = [
        TableRow(
            (
                verdict.claim.words,
                verdict.state,
                verdict.estimate.shown if verdict.estimate else DASH,
                _probability(verdict.adjusted),
                verdict.why,
            ),
            verdict.state,
        )
        for verdict in judged
    ]
    what = "" if book.replicates else "Each claim predicts a direction for one stand-in, by the paper's rule. "
    return Table(
        "verdicts",
        "Verdicts",
        f"{what}p: two-sided, Holm-corrected over the {count(run, 'claim')} that could be judged; a direction holds "
        "if p is below 0.05. The last table of the scale's report shows each claim in full.",
        ("Claim", "Verdict", "Found", "p", "Why"),
        tuple(rows),
    )


def ledger(book: Book) -> Table:
    """Table of the claims as they were recorded, folded."""
    rows = [
        TableRow(
            (
                claim.words,
                CLAIM_KINDS[claim.kind],
                "direction only" if claim.tolerance is None else "{:g} to {:g}".format(*claim.tolerance),
                f"{claim.smallest_effect:g} {claim.unit} ({claim.planned})",
                "some" if claim.seen else "none",
                claim.source,
            )
        )
        for claim in of_scale(book.scale)
    ]
    return Table(
        "claims",
        "The claims as they were recorded",
        "Each result records the fingerprints of the claims that it helps to judge. A claim that was changed after its "
        "results is not judged. Smallest effect: what the planned prompts and seeds detect with 80% power; a claim is "
        "not reproduced if its 95% interval excludes every effect of that size.",
        ("Claim", "Metric", "Same number", "Smallest effect", "Results seen before", "The paper's source"),
        tuple(rows),
        folded=True,
    )


def tally(judged: Sequence[ClaimVerdict]) -> str:
    """`2 reproduced, 1 direction only, 3 not reproduced, 1 under-powered, 2 not run`."""
    counts = {state: sum(verdict.state == state for verdict in judged) for state in VERDICTS}
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number)


def _probability(p: float | None) -> str:
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
