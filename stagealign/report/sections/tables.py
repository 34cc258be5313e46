"""Tables of effectiveness, effectiveness ratios and boundary scores."""

from collections.abc import Sequence

from stagealign.grid import models, paper
from stagealign.report.read.book import Book
from stagealign.report.read.contrasts import NOT_RUN, Contrast, Side, boundary
from stagealign.report.read.rungs import MeasuredPolicy, after
from stagealign.report.read.sides import COMPARED, data_name, others
from stagealign.report.sections.rows import Table, TableRow, method_name, policy_name
from stagealign.report.sections.words import DASH, count, gain, percent, plain, rate, score

STAGE = {"off": "injection", "on": "fine-tuning"}
"""Source that the boundary score names -> preference stage."""


def effectiveness(book: Book, contrasts: Sequence[Contrast]) -> Table:
    """Table of each starting policy: gains by source, the better one, and whether the boundary score named it."""
    sources = [*COMPARED, *others(source for contrast in contrasts for source in contrast.best)]
    columns = (
        "Starting policy",
        "Boundary score before",
        "Stage: source named",
        *(f"Gain, {data_name(source)}" for source in sources),
        "Better source",
        "Named it?",
    )
    rows = []
    for contrast in contrasts:
        named = (
            DASH
            if contrast.named == NOT_RUN
            else f"{STAGE[contrast.named]}: {contrast.named}" + ("" if contrast.sure else " (not sure)")
        )
        cells = (
            policy_name(book, contrast.start),
            score(contrast.boundary),
            named,
            *(side(contrast.best.get(source)) for source in sources),
            contrast.better,
            contrast.named_it,
        )
        rows.append(TableRow(cells, contrast.better if contrast.better == NOT_RUN else "done"))
    return Table(
        "effectiveness",
        "Effectiveness of off-policy and on-policy data",
        "Gain in gold reward on held-out test prompts over the policy that the round starts from, each source at the "
        "learning rate with its best clean gain on validation prompts. Better: the 95% interval of the difference of "
        "paired gains excludes 0, else undecided. Clean: a degenerate completion counts as the worst reward. KL in "
        "nats a completion, to the round's start.",
        columns,
        tuple(rows),
    )


def side(best: Side | None) -> str:
    """Gain of one source with its learning rate, clean gain, KL and degenerate share."""
    if best is None:
        return NOT_RUN
    kl, clean = plain(best.kl, 1), gain(best.clean_gain)
    cost = f"lr {rate(best.learning_rate)}, KL {kl}\ndegenerate {percent(best.degenerate)}"
    return f"{gain(best.gain)}\nclean {clean}\n{cost}"


def spreads(best: Side) -> str:
    """`off 0.02 / 0.04 (2 seeds)`: spread between seeds, and error over the prompts of one seed."""
    metric = best.gain
    between, over = plain(metric["between_seeds"]), plain(metric["over_prompts"])
    return f"{best.source} {between} / {over} ({count(metric['seeds'], 'seed')})"


def ratios(book: Book, contrasts: Sequence[Contrast]) -> Table:
    """Table of effectiveness ratios, on over off, in three views, with both spreads."""
    real = not book.plumbing
    columns = (
        "Starting policy",
        "Equal learning rate",
        "Each source's best",
        "Matched KL",
        "Spread between seeds / error over prompts",
        *(("The paper's real model (LC win rate)",) if real else ()),
    )
    rows = []
    for contrast in contrasts:
        best, matched = contrast.view("best"), contrast.view("matched KL")
        equal = [
            f"{rate(view.learning_rate or 0)}: {score(view.ratio)}, {view.better}"
            for view in contrast.views
            if view.name == "equal"
        ]
        cells = (
            policy_name(book, contrast.start),
            "\n".join(equal) or "no rung in common",
            f"{score(best.ratio)}, {best.better}" if best else NOT_RUN,
            f"at {plain(matched.kl, 1)} nats: {score(matched.ratio)}, {matched.better}" if matched else NOT_RUN,
            "\n".join(spreads(best_side) for best_side in contrast.best.values()),
            *(
                (_paper(contrast.start.model, contrast.start.name, "effectiveness_ratio", contrast.start.method),)
                if real
                else ()
            ),
        )
        rows.append(TableRow(cells, "done" if best else NOT_RUN))
    return Table(
        "ratios",
        "Effectiveness ratio: on-policy over off-policy gain",
        "Above 1 on-policy data gained more. No value if the off-policy gain is not distinguishable from 0. Matched "
        "KL: both gains interpolated over the ladder at the largest KL that both sources reach. Intervals: bootstrap "
        "over seeds, then prompts. Spread between seeds: standard deviation of the seeds' mean gains (none for one "
        "seed), beside the standard error of one seed's gain over its prompts."
        + (" The last column is the paper's own model and metric, another experiment: D arithmetic, N a reading note, "
           "A the abstract." if real else ""),
        columns,
        tuple(rows),
    )  # fmt: skip


def boundaries(book: Book) -> Table:
    """Table of the boundary score of every measured policy, before and after each round."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[MeasuredPolicy]] = {}
    for policy in book.policies:
        groups.setdefault(policy.key, []).append(policy)
    real = not book.plumbing
    rows = []
    for (model, method, sources), seeds in groups.items():
        pooled = boundary(policy.metrics for policy in seeds)
        named = DASH if pooled is None else STAGE["off" if pooled["value"] < 0.5 else "on"]
        each = [f"{p.seed}: {score(of_seed)}" for p in seeds if (of_seed := boundary([p.metrics]))]
        place = f"after round {len(sources)}" if sources else "start"
        cells = (
            book.label(model),
            f"{method_name(book, method)}, {after(sources)}"
            if sources
            else ", ".join(["start", *method.split("_")[1:]]),
            score(pooled),
            "\n".join(each) or DASH,
            named,
            *((_paper(model, place, "boundary_score", method or "dpo"),) if real else ()),
        )
        rows.append(TableRow(cells))
    return Table(
        "boundaries",
        "Boundary score by model and round",
        "Share of votes that the policy's own completions win against the static candidates, on test prompts. Below "
        "0.5 the score takes the policy to be in preference injection and names off-policy data, from 0.5 on "
        "preference fine-tuning and on-policy data. A policy after a round is the one at the recorded learning rate."
        + (" The paper's column is of its real models; it does not say which data came before." if real else ""),
        (
            "Model",
            "Policy",
            "Boundary score",
            "By seed",
            "Stage named",
            *(("The paper's real model (DPO)",) if real else ()),
        ),
        tuple(rows),
    )


def _paper(model: str, policy: str, quantity: str, method: str) -> str:
    return (
        f"{models.MODELS[model].name}: {paper.text(model, policy, quantity, method)}"
        if model in models.MODELS
        else DASH
    )
