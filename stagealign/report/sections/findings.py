"""What was found, in words made from the numbers, and how sure it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from stagealign.report.read.book import Book
from stagealign.report.read.contrasts import BOUNDARY, NOT_RUN, UNDECIDED, Contrast, View, boundary, counted
from stagealign.report.read.rungs import SPLIT, value
from stagealign.report.read.sides import COMPARED, data_name, ordered
from stagealign.report.sections.rows import policy_name
from stagealign.report.sections.words import count, listing, percent, plain, rate, score
from stagealign.stats import statistics


@dataclass(frozen=True)
class ReportFinding:
    """One statement of the report's opening."""

    kind: str
    """`scope`, `found`, `against` (the paper), `unsure` or `missing`."""
    text: str


def findings(book: Book, contrasts: Sequence[Contrast]) -> list[ReportFinding]:
    """Statements of the report's opening, most general first, from the contrasts that claims count."""
    contrasts = counted(contrasts)
    parts: list[Iterator[ReportFinding]] = [_scope(book)]
    if not book.plumbing:
        parts += [
            _rule(book, contrasts),
            _sources(contrasts),
            _movement(book, contrasts),
            _cost(contrasts),
        ]
        parts += [_views(book, contrasts), _power(book, contrasts)]
    return [finding for part in [*parts, _collapsed(book), _missing(book)] for finding in part]


def _scope(book: Book) -> Iterator[ReportFinding]:
    if book.plumbing:
        text = "A check of the pipeline with models too small to learn. Its numbers say nothing about the paper."
    elif book.stand_ins:
        text = (
            "Stand-ins, not the paper's models: small policies on another task with another reward. They test whether "
            "the paper's rule holds for them; their numbers do not replace the paper's."
        )
    else:
        text = "The paper's kind of checkpoints. Unpublished settings are assumed and marked in the registry."
    asked = [result["preference"] for result in book.results if result.get("preference")]
    wishes = listing(sorted({f"“{preference['key']}” ({preference.get('wish', '')})" for preference in asked}))
    states = [result["state"] for result in book.results]
    others = [f", {states.count(state)} {state}" for state in ("failed", "skipped") if state in states]
    others += [f", {len(book.missing)} of the grid not run"] if book.missing else []
    others += [f", {len(book.damaged)} damaged"] if book.damaged else []
    done = f"{count(states.count('done'), 'run')} done{''.join(others)}"
    seeds = len({result["seed"] for result in book.results})
    yield ReportFinding("scope", f"Scale {book.scale}, preference {wishes}; {done}; {count(seeds, 'seed')}. {text}")


def _sources(contrasts: Sequence[Contrast]) -> Iterator[ReportFinding]:
    """One statement for each kind of start: the better source in each view."""
    for name in dict.fromkeys(contrast.start.name for contrast in contrasts):
        group = [contrast for contrast in contrasts if contrast.start.name == name]
        best = [view for contrast in group if (view := contrast.view("best"))]
        if not best:
            continue
        values = [view.ratio["value"] for view in best if view.ratio["value"] is not None]
        between = " to ".join(dict.fromkeys([plain(min(values)), plain(max(values))])) if values else "none has a value"
        start = group[0].start
        text = (
            f"Round {start.round}, {_where(start.before)}, {count(len(best), 'starting policy')}; how often each "
            f"source was better. Each at its best learning rate: {_tally(best)} (ratio on over off: {between})."
        )
        for learning_rate in sorted({v.learning_rate for contrast in group for v in contrast.views if v.learning_rate}):
            views = [v for contrast in group for v in contrast.views if v.learning_rate == learning_rate]
            text += f" Both at {rate(learning_rate)}: {_tally(views)}."
        matched = [view for contrast in group if (view := contrast.view("matched KL"))]
        text += f" At matched KL: {_tally(matched)}." if matched else ""
        yield ReportFinding("found", text)


def central(book: Book, contrasts: Sequence[Contrast]) -> str:
    """Finding on the paper's central claim; empty if no case exists."""
    return next((finding.text for finding in _rule(book, counted(contrasts))), "")


def _rule(book: Book, contrasts: Sequence[Contrast]) -> Iterator[ReportFinding]:
    """How often the boundary score named the better source, against always-on, always-off and a coin."""
    cases = [contrast for contrast in contrasts if NOT_RUN not in (contrast.better, contrast.named)]
    decided = [contrast for contrast in cases if contrast.better != UNDECIDED]
    undecided = len(cases) - len(decided)
    rest = f"; in {count(undecided, 'more case')} the better source is undecided" if undecided else ""
    if not decided:
        if cases:
            yield ReportFinding("unsure", f"No case decides whether the boundary score names the better source{rest}.")
        return
    n, right = len(decided), sum(contrast.named_it == "yes" for contrast in decided)
    always = {source: sum(contrast.better == source for contrast in decided) for source in COMPARED}
    share = statistics.proportion(right, n)
    constant = max(always, key=lambda source: always[source])
    more = f" A constant choice, always {constant}-policy, did better." if right < always[constant] else ""
    more = " A constant choice did as well." if right == always[constant] else more
    text = (
        f"The boundary score named the better source in {right} of {count(n, 'decided case')} (share "
        f"{score(share)}{rest}). Always off-policy would have been right in {always['off']}, always on-policy in "
        f"{always['on']}, a coin in {n / 2:g} on average.{more} Cases share policies and data, so they are not "
        "independent."
    )
    low, high = share["interval"]
    if low <= BOUNDARY <= high:
        needed = next((k for k in range(n + 1) if statistics.proportion(k, n)["interval"][0] > BOUNDARY), None)
        limit = f"{needed} of {n} would be needed" if needed is not None else f"{n} cases are too few to show it"
        yield ReportFinding("unsure", f"{text} This is not distinguishable from a coin (under-powered: {limit}).")
    elif low > BOUNDARY:
        yield ReportFinding("found", f"{text} That is better than a coin.")
    else:
        yield ReportFinding("against", f"{text} That is worse than a coin, against the paper's rule.")
    wrong = [policy_name(book, contrast.start) for contrast in decided if contrast.named_it == "no"]
    if wrong:
        text = f"Against the paper's rule, the source that the score does not name was better for: {listing(wrong)}."
        yield ReportFinding("against", text)


def _movement(book: Book, contrasts: Sequence[Contrast]) -> Iterator[ReportFinding]:
    """Change of the boundary score in one round, by source."""
    scores, rows = _scores(book), {(contrast.start.model, contrast.start.method) for contrast in contrasts}
    for source in ordered([*COMPARED, *(sources[0] for _, _, sources in scores if len(sources) == 1)]):
        moves = [
            (scores[model, book.shared(row), ()], after)
            for (model, row, sources), after in scores.items()
            if sources == (source,) and (model, row) in rows and (model, book.shared(row), ()) in scores
        ]
        if moves:
            rose = sum(now > before for before, now in moves)
            crossed = sum(before < BOUNDARY <= now for before, now in moves)
            means = [plain(sum(pair[side] for pair in moves) / len(moves)) for side in (0, 1)]
            yield ReportFinding(
                "found",
                f"One round of {data_name(source)} data raised the boundary score for {rose} of "
                f"{count(len(moves), 'policy')} (mean {means[0]} to {means[1]}) and carried {crossed} of "
                "them over 0.5.",
            )


def _views(book: Book, contrasts: Sequence[Contrast]) -> Iterator[ReportFinding]:
    """Starting policies whose better source depends on the comparison."""
    split = [
        policy_name(book, contrast.start)
        for contrast in contrasts
        if set(COMPARED) <= {view.better for view in contrast.views}
    ]
    if split:
        head = "Which source is better depends on the comparison (learning rate, best, KL)"
        yield ReportFinding("unsure", f"{head} for {len(split)} of {len(contrasts)}: {listing(split, 4)}.")
    changed = []
    for contrast in contrasts:
        best = contrast.view("best")
        if best and best.clean_better != best.better:
            changed.append(f"{policy_name(book, contrast.start)} ({best.better}, counted clean {best.clean_better})")
    if changed:
        head = "Counting degenerate completions as the worst reward changes the answer"
        yield ReportFinding("unsure", f"{head} for {len(changed)} of {len(contrasts)}: {listing(changed, 4)}.")


def _cost(contrasts: Sequence[Contrast]) -> Iterator[ReportFinding]:
    """KL and degenerate share of on-policy against off-policy rounds at equal learning rate."""
    moved, degenerate = [], []
    for contrast in contrasts:
        sides = {(side.source, side.learning_rate): side for side in contrast.sides}
        for (source, learning_rate), on in sides.items():
            off = sides.get(("off", learning_rate))
            if source == "on" and off and off.kl and on.kl is not None:
                moved.append(on.kl / off.kl)
                degenerate.append((off.degenerate or 0.0, on.degenerate or 0.0))
    if moved:
        shares = [percent(sum(pair[side] for pair in degenerate) / len(degenerate)) for side in (0, 1)]
        yield ReportFinding(
            "found",
            f"At equal learning rate on-policy rounds moved {median(moved):.1f} times as far in KL as off-policy "
            f"ones (median of {len(moved)}); degenerate completions {shares[1]} on-policy, {shares[0]} "
            "off-policy (means).",
        )


def _collapsed(book: Book) -> Iterator[ReportFinding]:
    """Policies that collapsed and therefore have no win rate."""
    collapsed = {
        f"{policy_name(book, replace(rung.start, before=(*rung.start.before, rung.source)))}, lr "
        f"{rate(rung.learning_rate)} ({rung.data['metrics'][SPLIT]['collapsed']})": None
        for rung in book.rungs
        if rung.state == "done" and rung.data["metrics"][SPLIT].get("collapsed")
    }
    if collapsed:
        yield ReportFinding("unsure", f"Collapsed, so without a win rate: {listing(list(collapsed), 4)}.")


def _power(book: Book, contrasts: Sequence[Contrast]) -> Iterator[ReportFinding]:
    """Smallest difference that these prompts and seeds can detect."""
    best = [view for contrast in contrasts if (view := contrast.view("best"))]
    if not best:
        return
    unit = best[0].ratio["difference"]["unit"]
    visible = [statistics.smallest_visible(view.ratio["difference"]["standard_error"]) for view in best]
    undecided = sum(view.better == UNDECIDED for view in best)
    text = (
        "Smallest difference between the sources that such a comparison detects with 80% power: "
        f"{plain(median(visible))} {unit} (median); {undecided} of {count(len(best), 'comparison')} undecided. "
        "Undecided means under-powered, not equal."
    )
    yield ReportFinding("unsure", text)
    few = {view.ratio["seeds"] for view in best}
    if min(few) == 1:
        yield ReportFinding(
            "unsure",
            "With one seed an interval covers the choice of prompts only; it leaves out the randomness of training and "
            "sampling.",
        )
    elif max(few) < 5:
        yield ReportFinding(
            "unsure",
            f"With {max(few)} seeds the spread between seeds is poorly estimated, so the intervals are too narrow.",
        )


def _missing(book: Book) -> Iterator[ReportFinding]:
    for text in book.damaged:
        yield ReportFinding("missing", f"Left out of this report: {text}.")
    for result in book.results:
        if result["state"] != "done":
            yield ReportFinding(
                "missing", f"{result['cell']}, seed {result['seed']}: {result['state']}: {result.get('reason')}."
            )


def _tally(views: Sequence[View]) -> str:
    """`off 3, on 1, undecided 1`."""
    return ", ".join(f"{name} {sum(view.better == name for view in views)}" for name in (*COMPARED, UNDECIDED))


def _where(before: Sequence[str]) -> str:
    return f"after {' then '.join(map(data_name, before))} data" if before else "from the start"


def _scores(book: Book) -> dict[tuple[str, str, tuple[str, ...]], float]:
    """Boundary score of each policy, mean over seeds."""
    scores = {}
    for key in dict.fromkeys(policy.key for policy in book.policies):
        number = value(boundary(policy.metrics for policy in book.policies if policy.key == key))
        if number is not None:
            scores[key] = number
    return scores
