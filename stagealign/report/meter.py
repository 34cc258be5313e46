"""One self-contained page of a boundary measurement; everything that a model wrote is escaped."""

import io
import re
from typing import Any

from stagealign.meter import Measurement


def page(found: Measurement) -> str:
    """HTML text: the answer, the running score with its interval, warnings, cost and a sample of prompts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("stagealign.report", "."), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("meter.html.j2")
    return template.render(
        found=found,
        figure=Markup(figure(found)),
        careful=careful(found),
        request=request_rows(found),
        caveats=caveat_rows(found),
        facts=fact_rows(found),
    )


CAREFUL = {
    "truncated_by_policy": (0.1, "of the policy's completions were cut at the token limit; raise --max-new-tokens"),
    "changed_with_order": (
        0.3,
        "of the oracle's verdicts change when the order is swapped; it may hardly tell them apart",
    ),
    "ties": (0.5, "of the comparisons are ties, so few votes decide"),
    "repeated_candidates": (0.1, "of the candidates repeat another of the same prompt and source"),
}
"""Caveat -> the share from which on it is said in words, and what it says."""


def careful(found: Measurement) -> list[str]:
    """What should be looked at before the answer is acted on, one sentence each."""
    return [
        f"Careful: {100 * found.caveats[name]:.0f}% {words}."
        for name, (limit, words) in CAREFUL.items()
        if found.caveats.get(name, 0.0) >= limit
    ]


def request_rows(found: Measurement) -> list[tuple[str, str]]:
    """(what, value) of what was measured."""
    rows = dict(found.request)
    decoding = rows.pop("decoding", {})
    return [(name.replace("_", " "), str(value)) for name, value in (rows | decoding).items()]


def caveat_rows(found: Measurement) -> list[tuple[str, str]]:
    """(what, how much) for each warning."""
    rows = []
    for name, value in found.caveats.items():
        text = f"{value:.0f}" if name.endswith("characters") else f"{100 * value:.1f}%"
        rows.append((name.replace("_", " "), text))
    return rows


def fact_rows(found: Measurement) -> list[tuple[str, str]]:
    """(what, how much) of data, votes and cost."""
    share = found.cost["share_of_dpo_epoch"]
    cost = "unknown" if share is None else f"{100 * share:.2g}% of one DPO epoch on the same data (the paper: 3.2%)"
    top = found.top_candidate
    return [
        *((name, str(value) if value != {} else "none") for name, value in found.data.items()),
        ("interval", found.interval_kind),
        ("votes", f"{found.votes['on']:g} on, {found.votes['off']:g} off, {found.votes['ties']:g} ties"),
        ("by top candidate", f"{top['score']:.2f} [{top['interval'][0]:.2f}, {top['interval'][1]:.2f}]"),
        ("failed prompts", str(found.failures)),
        ("sampled tokens", str(found.cost["sampled_tokens"])),
        ("tokens billed by the oracle", str(found.cost["oracle_tokens"])),
        *((f"seconds, {name}", f"{value:g}") for name, value in found.cost["seconds"].items()),
        ("cost", cost),
    ]


def figure(found: Measurement) -> str:
    """SVG of the score over prompts, its interval and the line at 0.5."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    prompts, score, low, high = (list(column) for column in zip(*found.running, strict=True))
    with mpl.rc_context({"svg.hashsalt": "stagealign", "svg.fonttype": "none"}):
        drawn: Any = Figure(figsize=(7, 2.8), layout="constrained")
        axis = drawn.subplots()
        axis.fill_between(prompts, low, high, color="#0072b2", alpha=0.2, linewidth=0)
        axis.plot(prompts, score, color="#0072b2", marker="o", markersize=3)
        axis.axhline(0.5, color="#555555", linewidth=1, linestyle="--")
        axis.set(ylim=(0, 1), xlabel="prompts", ylabel="boundary score")
        text = io.StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
