"""`stagealign lc-win-rate` and `stagealign alpaca-eval`: win rates as AlpacaEval 2 computes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.cli.output import check_folder, check_json, console, write_json

if TYPE_CHECKING:
    from rich.progress import Progress

    from stagealign.evaluate.alpaca_eval.evaluate import WinRateResult
    from stagealign.evaluate.alpaca_eval.lc_win_rate import LcWinRate


PreferenceScale = Annotated[
    str | None,
    typer.Option(
        help="Scale of recorded preferences: 1-2 (1 the baseline wins, 2 the model) or 0-1 (0 the baseline wins, "
        "1 the model); needed where no number is above 1.",
        metavar="1-2|0-1",
    ),
]


def lc_win_rate(
    preferences: Annotated[
        Path,
        typer.Argument(
            help="alpaca_eval's annotations.json, or a file with columns prompt_index, generator, preference "
            "(1 baseline ... 2 model), baseline_chars, model_chars."
        ),
    ],
    difficulty: Annotated[
        Path | None,
        typer.Option(
            help="Published, or with columns instruction (or prompt_hash, prompt_index) and instruction_difficulty; "
            "without it that term is left out."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Published weights; by default glm_weights.csv beside the difficulty file, if it exists."),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit every generator, even one with published weights.")] = False,
    official: Annotated[
        bool, typer.Option("--official", help="Call alpaca_eval's own function; needs the extra eval and the hub.")
    ] = False,
    preference_scale: PreferenceScale = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the numbers here; - is standard output.")
    ] = None,
) -> None:
    """Computes win rates and length-controlled win rates (AlpacaEval 2) of judged comparisons, offline."""
    from dataclasses import asdict

    from stagealign.evaluate.alpaca_eval import lc_win_rate as rates

    check_folder(json_file)
    rows = rates.lc_win_rates(preferences, difficulty, weights, fit, official, preference_scale)
    write_json(json_file, [asdict(row) for row in rows])
    if json_file != "-":
        lc_win_rates(rows)


def alpaca_eval(
    outputs: Annotated[
        str, typer.Argument(help="The model's completions, with columns instruction, output, generator.")
    ],
    baseline: Annotated[str, typer.Option(help="The baseline's completions; this file defines the prompts.")],
    judge: Annotated[str, typer.Option(help="official, judge:MODEL, local:PATH or recorded:FILE.")],
    judge_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the judge.")] = None,
    generator: Annotated[str | None, typer.Option(help="Generator to evaluate, if OUTPUTS holds several.")] = None,
    spend: Annotated[
        float | None, typer.Option(help="Most USD that this call may cost; 0 only shows the cost.")
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(help="USD for a million prompt tokens and for a million completion tokens.", metavar="IN,OUT"),
    ] = None,
    served: Annotated[str | None, typer.Option(help="Version of the judge, as its server names it.")] = None,
    workers: Annotated[int, typer.Option(help="Requests to the judge at the same time.", min=1)] = 8,
    preference_scale: PreferenceScale = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the record here; - is standard output.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Write one row for each prompt here, for lc-win-rate: .parquet, .jsonl or .csv.")
    ] = None,
) -> None:
    """Measures how often a judge prefers a model's completions to a baseline's, as AlpacaEval 2 does."""
    from stagealign.evaluate.alpaca_eval import evaluate as alpaca

    check_json(json_file)
    alpaca.writable(annotations)
    request = alpaca.EvaluationRequest(
        outputs, baseline, judge, judge_url, generator, spend, price, served, workers, preference_scale=preference_scale
    )
    with evaluating(json_file == "-") as heard:
        result = alpaca.evaluate(request, heard)
    write_json(json_file, result.plain())
    alpaca.write(result, annotations)
    if json_file != "-":
        evaluation(result)
    raise typer.Exit(0 if result.reliable or spend == 0 else 3)


def lc_win_rates(rows: Sequence["LcWinRate"]) -> None:
    """A row a generator, the highest LC win rate first; below it what the numbers rest on and what was left out."""
    from stagealign.evaluate.alpaca_eval.lc_win_rate import SHORT_METHODS

    methods = {row.method for row in rows}
    rows = sorted(rows, key=lambda row: -inf if row.lc_win_rate is None else row.lc_win_rate, reverse=True)
    title = "percent, standard errors after +-; sorted by LC win rate"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("generator", overflow="fold")
    for heading in ("n", "win rate", "LC win rate", "over\nprompts"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for row in rows:
        rates = [_rate(row.win_rate, row.standard_error), _rate(row.lc_win_rate, row.lc_standard_error)]
        method = Text(SHORT_METHODS[row.method] + "!" * bool(row.warnings))
        table.add_row(Text(row.generator), str(row.n), *rates, _rate(None, row.lc_sampling_error), method)
    console.print(table)
    notes = [
        "n: judged prompts, the denominator of both rates. LC's error is the official one, which takes the weights as "
        "exact; `over prompts` is the error of LC with weights refitted to other prompts."
    ]
    legend = [f"{mark}, {method}" for method, mark in SHORT_METHODS.items() if method in methods]
    legend += ["!, with a warning below"] * any(row.warnings for row in rows)
    notes.append(f"by: {'; '.join(legend)}.")
    if any(row.difficulty == "by prompt_index" for row in rows):
        notes.append(
            "difficulties: joined by prompt_index, as rows do not name their prompts; it must be AlpacaEval's own "
            "number."
        )
    notes += [line for row in rows for line in _remarks(row)]
    for line in notes:
        console.print(Text(line), soft_wrap=True)


def _remarks(row: "LcWinRate") -> list[str]:
    """What is to be known about one generator's numbers."""
    from stagealign.evaluate.alpaca_eval.lc_win_rate import BY_ROW

    say = [f"{row.generator}: {warning}." for warning in row.warnings]
    if row.difficulty == "left out":
        say.append(
            f"{row.generator}: no difficulties of its prompts; the model is fitted without that term, so its LC win "
            "rate is not comparable with published ones."
        )
    if row.failed or row.missing:
        say.append(f"{row.generator}: {row.failed} failed judgments and {row.missing} missing prompts left out.")
    say += [f"{row.generator}: failed: {failure}." for failure in row.failures]
    if row.missing_prompts:
        more = ", ..." if row.missing > len(row.missing_prompts) else ""
        say.append(f"{row.generator}: missing prompts: {', '.join(row.missing_prompts)}{more}.")
    if row.official_lookup is None:
        return say
    gives = "gives {:.2f}, as published" if row.method == BY_ROW else "would give about {:.2f}"
    say.append(
        f"{row.generator}: the official function looks difficulties up by row, not by prompt; with some missing, it "
        f"{gives.format(row.official_lookup)}. Here they are joined by prompt."
    )
    return say


def _rate(value: float | None, error: float | None) -> str:
    spread = "" if error is None else f"+-{error:.2f}"
    return " ".join(part for part in ("" if value is None else f"{value:.2f}", spread) if part) or "-"


class Evaluating:
    """Progress of an evaluation: its cost before it starts, then a bar over its prompts."""

    def __init__(self, bar: "Progress"):
        self.bar = bar
        self.task = bar.add_task("", total=1, visible=False)

    def planned(self, prompts: int, kept: int, tokens: int, cost: float | None, price: str | None) -> None:
        """Prints how many prompts the judge will be asked about, and the cost."""
        text = f"asking the judge about {prompts - kept} of {prompts} prompts, {kept} need no request"
        if cost is not None:
            text += f"; about {tokens:,} tokens, ${cost:.2f} (price: {price})"
        self.bar.console.print(Text(text), soft_wrap=True)

    def answered(self, done: int, total: int) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=done, total=total, visible=True)


@contextmanager
def evaluating(quiet: bool) -> Iterator[Evaluating]:
    """Progress bar over the prompts of an AlpacaEval run, on standard error; hidden if `quiet`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(24), TextColumn("{task.completed} of {task.total} prompts"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), disable=quiet) as bar:
        yield Evaluating(bar)


def evaluation(result: "WinRateResult") -> None:
    """Prints the win rate in one sentence, then the judge, the cost and what is missing."""
    console.print(Text(result.sentence, style="bold" if result.reliable else "bold red"), soft_wrap=True)
    for line in result.details:
        console.print(Text(line), soft_wrap=True)
