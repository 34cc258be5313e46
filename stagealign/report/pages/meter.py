"""Self-contained HTML page of a boundary measurement; model output is escaped."""

from collections.abc import Mapping
from typing import Any

from stagealign.boundary.measurement import Measurement


def page(measured: Measurement) -> str:
    """HTML text with the answer, the running score and its interval, warnings, cost and a sample of prompts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("stagealign.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("meter.html.j2")
    return template.render(
        measured=measured,
        figure=Markup(figure(measured)),
        careful=careful(measured),
        request=request_rows(measured),
        caveats=caveat_rows(measured),
        facts=fact_rows(measured),
    )


CAREFUL = {
    "capped_by_context": (
        1e-9,
        "of the policy's completions had fewer new tokens than asked for: its context leaves no more after the prompt",
    ),
    "truncated_by_policy": (0.1, "of the policy's completions were cut at the token limit; raise --max-new-tokens"),
    "changed_with_order": (
        0.3,
        "of the oracle's verdicts change when the order is swapped; it may hardly tell them apart",
    ),
    "empty_completions": (
        0.1,
        "of the policy's completions are empty; an empty text is judged like any other, so look at the policy",
    ),
    "reasoning_marks_left": (
        1e-6,
        "of the candidates hold marks of reasoning amid their text and are judged with them",
    ),
    "ties": (0.5, "of the comparisons are ties, so few votes decide"),
    "repeated_candidates": (0.1, "of the candidates repeat another of the same prompt and source"),
}
"""Caveat -> (smallest share that is reported, its words)."""


def careful(measured: Measurement) -> list[str]:
    """Warnings about a measurement, one sentence each."""
    return [*measured.notes, *_shares(measured)]


def _shares(measured: Measurement) -> list[str]:
    return [
        f"Careful: {100 * share:.0f}% {words}."
        for name, (limit, words) in CAREFUL.items()
        if (share := measured.caveats.get(name)) is not None and share >= limit
    ]


def request_rows(measured: Measurement) -> list[tuple[str, str]]:
    """(name, value) of each field of the request."""
    rows = dict(measured.request)
    decoding = rows.pop("decoding", {})
    return [(name.replace("_", " "), str(value)) for name, value in (rows | decoding).items()]


def caveat_rows(measured: Measurement) -> list[tuple[str, str]]:
    """(name, value) of each caveat."""
    rows = []
    for name, value in measured.caveats.items():
        if value is None:
            text = "not known"
        else:
            text = f"{value:.0f} on average" if name.endswith("characters") else f"{100 * value:.1f}%"
        rows.append((name.replace("_", " "), text))
    return rows


def fact_rows(measured: Measurement) -> list[tuple[str, str]]:
    """(name, value) of data, votes and cost."""
    known = set(COUNTED)
    votes = [number(measured.votes[name]) for name in ("on", "off", "ties")]
    return [
        ("data", str(measured.data.get("data", "unknown"))),
        *(("rows", rows) for rows in [rows_in_words(measured.data)] if rows),
        ("prompts", prompts_in_words(measured)),
        *(("failed", row) for row in [failed_in_words(measured)] if row),
        *((name, str(value)) for name, value in measured.data.items() if name not in known),
        ("score", f"{measured.estimate_kind}; share of votes won {measured.boundary_score:.3f}"),
        ("interval", measured.interval_kind),
        ("votes", f"{votes[0]} on, {votes[1]} off, {votes[2]} ties (half to each)"),
        ("by top candidate", top_in_words(measured.top_candidate)),
        *cost_rows(measured.cost),
    ]


def top_in_words(top: Mapping[str, Any]) -> str:
    """Score by top candidates with its interval; the estimate, or the share of votes if that is not known."""
    low, high = top["interval"]
    share, estimate = top["score"], top["estimate"]
    shown = f"{share if estimate is None else estimate:.2f} [{low:.2f}, {high:.2f}]"
    return shown if estimate == share else f"{shown}, share of votes won {share:.2f}"


COUNTED = ("data", "prompts", "rows given", "rows used", "rows merged", "rows not chosen", "rows dropped", "dropped")
"""Fields of a measurement's data that `rows_in_words` and `prompts_in_words` cover."""


def rows_in_words(data: Mapping[str, Any]) -> str:
    """Use of the data's rows in words; empty if rows were not counted."""
    if "rows given" not in data:
        return ""
    dropped = sum(data["rows dropped"].values())
    used = data.get("rows used", data["rows given"] - dropped - data["rows not chosen"] - data.get("rows merged", 0))
    parts = [f"{number(data['rows given'])} in the data", f"{number(used)} used"]
    for name, words in (("rows merged", "repeat a prompt, merged"), ("rows not chosen", "of prompts not chosen")):
        if data.get(name):
            parts.append(f"{number(data[name])} {words}")
    if dropped:
        parts.append(f"{number(dropped)} cannot be used ({data['dropped']})")
    return ", ".join(parts)


def prompts_in_words(measured: Measurement) -> str:
    """Numbers of available and measured prompts, with the reasons for the rest."""
    chosen, failed = measured.data["prompts"], measured.failures
    whole = "chosen at random" if measured.data.get("rows not chosen") else "in the data"
    parts = [f"{number(chosen)} {whole}", f"{number(measured.prompts_used)} measured"]
    if failed:
        parts.append(f"{number(failed)} failed")
    if left := chosen - measured.prompts_used - failed:
        parts.append(f"{number(left)} {'not reached' if measured.stopped else 'no longer needed'}")
    return ", ".join(parts)


def failed_in_words(found: Measurement) -> str:
    """Reasons of failed prompts with the hashes of the first of them; empty if none failed."""
    reasons: dict[str, list[str]] = {}
    for prompt in found.failed_prompts:
        reasons.setdefault(prompt["reason"], []).append(prompt["prompt_hash"])
    return "; ".join(f"{reason} (prompt {', '.join(hashes[:3])})" for reason, hashes in reasons.items())


def cost_rows(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the cost: of all calls, of this call, and as a share of a DPO epoch."""
    here = cost["this_call"]
    if not (any(cost["seconds"].values()) or here["seconds"] or cost["prompts_not_timed"]):
        return [("cost", "none: the candidates were scored beforehand")]
    untimed = cost["prompts_not_timed"]
    more = f"; time unknown for {number(untimed)} prompts kept by an older version" if untimed else ""
    share = cost["share_of_dpo_epoch"]
    rows = [("cost of these prompts, over all calls", _spent(cost) + more), ("cost of this call", _spent(here))]
    if share is not None:
        paper = f"the paper: {percent(cost['paper_share'])}, without generation"
        rows.append(("sampling, of one DPO epoch on the same data", f"{percent(share)} ({paper})"))
    return rows


def _spent(cost: Mapping[str, Any]) -> str:
    parts = [f"{number(cost['sampled_tokens'])} tokens sampled"]
    if cost["oracle_tokens"]:
        parts.append(f"{number(cost['oracle_tokens'])} billed by the oracle")
    times = [f"{name} {value:,.1f} s" for name, value in cost["seconds"].items()]
    return "; ".join([", ".join(parts), ", ".join(times)] if times else parts)


def number(value: float) -> str:
    """`1,234` or `1,234.5`, without an exponent."""
    return f"{value:,.1f}".removesuffix(".0")


def percent(share: float) -> str:
    """`3.2%`, `120%` or `0.04%`: two significant digits, without an exponent."""
    value = 100 * share
    if value >= 9.95:
        return f"{value:,.0f}%"
    if 0 < value < 0.01:
        return "less than 0.01%"
    return f"{value:.1f}%" if value >= 0.1 or not value else f"{value:.2f}%"


ABOUT = "Share of votes won over the prompts measured, with its interval; above 0.5 the policy wins more votes"


def figure(measured: Measurement) -> str:
    """SVG of the score over prompts with its interval and the line at 0.5, in light and dark colours."""
    from stagealign.report.sections.drawing import render

    return render("running", ABOUT, lambda: _running(measured))


def _running(measured: Measurement) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from stagealign.report.sections.drawing import FAINT, INK, SOURCE_COLOUR

    prompts, score, low, high = (list(column) for column in zip(*measured.running, strict=True))
    drawn = Figure(figsize=(7.2, 3.0), layout="constrained")
    axis = drawn.subplots()
    axis.fill_between(prompts, low, high, color=SOURCE_COLOUR["off"], alpha=0.2, linewidth=0)
    axis.plot(prompts, score, color=SOURCE_COLOUR["off"], linewidth=1.5)
    axis.plot(prompts[-1:], score[-1:], color=SOURCE_COLOUR["off"], marker="o", markersize=5, clip_on=False)
    axis.axhline(0.5, color=FAINT, linewidth=1, linestyle="--")
    if zone := (measured.decision or {}).get("indifference"):
        axis.axhspan(0.5 - zone, 0.5 + zone, facecolor="none", edgecolor=FAINT, linewidth=0.8, linestyle=":")
    if measured.estimate is not None and measured.estimate != measured.boundary_score:
        axis.plot(prompts[-1:], [measured.estimate], color=INK, marker="D", markersize=5, clip_on=False, linestyle="")
    for height, words in ((0.97, "fine-tuning: on-policy data next"), (0.03, "injection: off-policy data next")):
        place = "top" if height > 0.5 else "bottom"
        axis.text(0.99, height, words, transform=axis.transAxes, ha="right", va=place, color=INK)
    axis.set(ylim=(0, 1), xlabel="prompts measured", ylabel="share of votes won")
    axis.set_xlim(min(prompts[0], prompts[-1] - 1), prompts[-1])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn
