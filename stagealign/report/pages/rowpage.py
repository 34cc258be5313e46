"""Page of one row of the grid: its policies, rounds, completions and artifacts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stagealign.report.read.book import Book
from stagealign.report.read.rungs import SPLIT, MeasuredPolicy, Start, after
from stagealign.report.read.sides import source_place
from stagealign.report.sections import capability
from stagealign.report.sections.rows import Table, TableRow, method_name, policy_name
from stagealign.report.sections.words import DASH, duration, gain, percent, plain, rate, score
from stagealign.store.result_types import Result


@dataclass(frozen=True)
class ColumnSample:
    """Completions of one prompt by one policy, and their gold reward."""

    column: str
    """`before`, or the source of the round."""
    texts: tuple[str, ...]
    gold: float | None
    """Mean over the prompt's completions."""
    won: bool
    """Whether its gold reward is the highest of the columns."""


@dataclass(frozen=True)
class PromptSample:
    """One test prompt with completions of the starting policy and of the policies after each source."""

    prompt: str
    answers: tuple[ColumnSample, ...]


@dataclass(frozen=True)
class StartSamples:
    """Shown prompts of one starting policy and seed."""

    start: str
    seed: int
    won: str
    """Number of prompts for which each column was best."""
    prompts: tuple[PromptSample, ...]


def keys(book: Book) -> list[tuple[str, str]]:
    """(model, method) of every row with a finished run."""
    done = [r for r in book.results if r["state"] == "done"]
    return list(dict.fromkeys((r["model"]["key"], r["method"]["key"]) for r in done))


def file_name(model: str, method: str) -> str:
    """`zephyr-dpo.html`."""
    return f"{model}-{method}.html"


def results(book: Book, model: str, method: str) -> list[Result]:
    """The row's finished runs."""
    row = (model, method)
    return [r for r in book.results if (r["model"]["key"], r["method"]["key"]) == row and r["state"] == "done"]


def title(book: Book, model: str, method: str) -> str:
    """`Zephyr stand-in, DPO`."""
    return f"{book.label(model)}, {method_name(book, method)}"


def tables(book: Book, model: str, method: str) -> list[Table]:
    """Policies, their capability, rungs and artifacts of one row."""
    return [
        _policies(book, model, method),
        capability.table(book, model, method),
        _rungs(book, model, method),
        _artifacts(results(book, model, method)),
    ]


def _policies(book: Book, model: str, method: str) -> Table:
    mine = [p for p in book.policies if p.model == model and p.method in (book.shared(method), method)]
    return Table(
        "policies",
        "Policies",
        "On test prompts, with 95% intervals over prompts. Win rate: gold reward against the static candidates. KL, in "
        "nats a completion, is to the start of the policy's last round.",
        ("Policy", "Seed", "Boundary score", "Gold reward", "Win rate, %", "Length, tokens", "KL", "Degenerate",
         "Truncated"),
        tuple(TableRow((after(p.sources), str(p.seed), *_measures(p))) for p in mine),
    )  # fmt: skip


def _measures(policy: MeasuredPolicy) -> Iterator[str]:
    metrics = policy.metrics[SPLIT]
    yield score(_boundary(metrics))
    yield gain(metrics.get("gold"))
    yield score(metrics.get("win_rate"))
    for name in ("length", "kl"):
        yield plain(metrics[name]["value"], 1) if metrics.get(name) else DASH
    for name in ("degenerate", "truncated"):
        yield percent(metrics[name]["value"]) if metrics.get(name) else DASH


def _boundary(metrics: Any) -> dict[str, Any] | None:
    boundary = metrics.get("boundary")
    return {"value": boundary["score"], "interval": boundary["interval"]} if boundary else None


def _rungs(book: Book, model: str, method: str) -> Table:
    rows = []
    for rung in book.rungs:
        if (rung.start.model, rung.start.method) == (model, method) and rung.state == "done":
            rows.append(
                TableRow(
                    (
                        rung.start.name,
                        rung.source,
                        rate(rung.learning_rate),
                        str(rung.seed),
                        gain(rung.data["gain"].get(SPLIT)),
                        plain(rung.metric("kl"), 1),
                        plain(rung.data["training"].get("pairs_per_second"), 1),
                        "\n".join(rung.cells),
                    )
                )
            )
    return Table(
        "rungs",
        "Rounds",
        "Every learning rate of every round.",
        ("From", "Source", "Learning rate", "Seed", "Gain", "KL", "Pairs/s", "Cells"),
        tuple(rows),
        folded=True,
    )


def _artifacts(runs: Sequence[Result]) -> Table:
    origins: dict[str, Any] = {}
    for run in runs:
        origins |= run["artifacts"]
    rows = [
        TableRow(
            (
                path,
                str(facts.get("fingerprint")),
                duration(facts.get("seconds")),
                f"{facts['peak_memory_mib']:.0f} MiB" if facts.get("peak_memory_mib") else DASH,
                str(facts.get("commit")) + (" with changes" if facts.get("dirty") else ""),
                str(facts.get("hardware")),
            )
        )
        for path, facts in sorted(origins.items())
    ]
    return Table(
        "artifacts",
        "Artifacts",
        "Every artifact that the row's runs are built from, once.",
        ("Artifact", "Fingerprint", "Seconds", "Peak memory", "Commit", "Hardware"),
        tuple(rows),
        folded=True,
    )


def samples(book: Book, model: str, method: str) -> list[StartSamples]:
    """Completions side by side for each starting policy of the row's first seed that has any."""
    runs = [run for run in results(book, model, method) if run.get("samples")]
    first = min((run["seed"] for run in runs), default=0)
    ends: dict[tuple[str, ...], Result] = {}
    for run in runs:
        if run["seed"] == first:
            for number in range(len(run["sources"]) + 1):
                ends.setdefault(tuple(run["sources"][:number]), run)
    starts = sorted({sources[:-1] for sources in ends if sources}, key=lambda before: (len(before), before[::-1]))
    return [_beside(book, Start(model, method, before), first, ends) for before in starts]


def _beside(book: Book, start: Start, seed: int, ends: dict[tuple[str, ...], Result]) -> StartSamples:
    columns = {"before": start.before} | {
        sources[-1]: sources
        for sources in sorted(ends, key=lambda sources: list(map(source_place, sources)))
        if sources and sources[:-1] == start.before
    }
    texts = {name: _texts(ends[sources], len(sources)) for name, sources in columns.items()}
    metrics = {p.sources: p.metrics for p in book.policies if p.model == start.model and p.seed == seed
               and p.method in (book.shared(start.method), start.method)}  # fmt: skip
    golds = {name: metrics.get(sources, {}).get(SPLIT, {}).get("prompts", {}) for name, sources in columns.items()}
    shared = [key for key in texts["before"] if all(key in by_prompt for by_prompt in texts.values())]
    shown = [_sample(key, texts, golds) for key in shared]
    won = {name: sum(a.won for sample in shown for a in sample.answers if a.column == name) for name in columns}
    wins = ", ".join(f"{name} {number}" for name, number in won.items())
    return StartSamples(policy_name(book, start), seed, wins, tuple(shown))


def _texts(run: Result, number: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Prompt hash -> its text and the completions after round `number`."""
    name = f"round {number}" if number else "start"
    return {sample["prompt"]: (sample["text"], tuple(sample["completions"].get(name, ()))) for sample in run["samples"]}


def _sample(key: str, texts: dict[str, Any], golds: dict[str, Any]) -> PromptSample:
    reward = {name: golds[name][key][0] if key in golds[name] else None for name in texts}
    known = [value for value in reward.values() if value is not None]
    answers = tuple(
        ColumnSample(name, by_prompt[key][1], reward[name], bool(known) and reward[name] == max(known))
        for name, by_prompt in texts.items()
    )
    return PromptSample(texts["before"][key][0], answers)


def spec(runs: Sequence[Result]) -> str:
    """Spec of the row's first cell as JSON, from its result."""
    return json.dumps(runs[0]["spec"], indent=1, sort_keys=True) if runs else ""


def versions(runs: Sequence[Result]) -> list[str]:
    """Distinct package versions of the row's artifacts."""
    packages = [facts.get("versions") or {} for run in runs for facts in run["artifacts"].values()]
    return sorted({f"{name} {number}" for installed in packages for name, number in installed.items()})
