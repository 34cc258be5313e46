"""`stagealign lc-win-rate` and `stagealign alpaca-eval`: win rates as AlpacaEval 2 computes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.cli.output import check_folder, check_json, console, write_json

if TYPE_CHECKING:
    from stagealign.evaluate.alpaca_eval.evaluate import WinRateResult
    from stagealign.evaluate.alpaca_eval.lc_win_rate import LcWinRate


def lc_win_rate(
    preferences: Annotated[
        Path,
        typer.Argument(
            help="File with columns prompt_index, generator, preference (1 baseline ... 2 model), baseline_chars, "
            "model_chars."
        ),
    ],
    difficulty: Annotated[
        Path, typer.Option(help="The published file, or one with columns prompt_index, instruction_difficulty.")
    ],
    weights: Annotated[
        Path | None,
        typer.Option(help="Published weights; by default glm_weights.csv beside the difficulty file, if it exists."),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit every generator, even one with published weights.")] = False,
    official: Annotated[
        bool, typer.Option("--official", help="Call alpaca_eval's own function; needs the extra eval and the hub.")
    ] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the numbers here; - is standard output.")
    ] = None,
) -> None:
    """Computes win rates and length-controlled win rates (AlpacaEval 2) of judged comparisons, offline."""
    from dataclasses import asdict

    from stagealign.evaluate.alpaca_eval import lc_win_rate as rates

    check_folder(json_file)
    rows = rates.lc_win_rates(preferences, difficulty, weights, fit, official)
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
    request = alpaca.EvaluationRequest(outputs, baseline, judge, judge_url, generator, spend, price, served, workers)
    with evaluating(json_file == "-") as heard:
        result = alpaca.evaluate(request, heard)
    write_json(json_file, result.plain())
    alpaca.write(result, annotations)
    if json_file != "-":
        evaluation(result)
    raise typer.Exit(0 if result.reliable or spend == 0 else 3)


def lc_win_rates(rows: Sequence["LcWinRate"]) -> None:
    """Prints one row for each generator, highest LC win rate first, then notes on methods and on what was left out."""
    from stagealign.evaluate.alpaca_eval.lc_win_rate import FITTED, NOT_THEIRS, NOTHING, OFFICIAL, PUBLISHED

    short = {PUBLISHED: "publ.", FITTED: "fit", OFFICIAL: "call", NOT_THEIRS: "fit*", NOTHING: "-"}
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
        method = Text(short[row.method])
        table.add_row(Text(row.generator), str(row.n), *rates, _rate(None, row.lc_sampling_error), method)
    console.print(table)
    notes = [
        "n: judged prompts, the denominator of both rates. LC's error is the official one, which takes the weights as "
        "exact; `over prompts` is the error of LC with weights refitted to other prompts."
    ]
    notes.append("by: " + "; ".join(f"{mark}, {method}" for method, mark in short.items() if method in methods) + ".")
    for row in rows:
        if row.failed or row.missing:
            notes.append(f"{row.generator}: {row.failed} failed judgments and {row.missing} missing prompts left out.")
        if row.official_lookup is None:
            continue
        by_row = f"{row.generator}: prompts are missing; the official function looks up difficulties by row, not prompt"
        official_value = row.official_lookup == row.lc_win_rate
        notes.append(
            f"{by_row}. This value uses difficulties of other prompts; `--fit` looks them up by prompt."
            if official_value
            else f"{by_row}. It would give about {row.official_lookup:.2f}; here they are looked up by prompt."
        )
    for line in notes:
        console.print(Text(line), soft_wrap=True)


def _rate(value: float | None, error: float | None) -> str:
    spread = "" if error is None else f"+-{error:.2f}"
    return " ".join(part for part in ("" if value is None else f"{value:.2f}", spread) if part) or "-"


class Evaluating:
    """Progress of an evaluation: its cost before it starts, then a bar over its prompts."""

    def __init__(self, bar: Progress):
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
    columns = (BarColumn(24), TextColumn("{task.completed} of {task.total} prompts"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), disable=quiet) as bar:
        yield Evaluating(bar)


def evaluation(result: "WinRateResult") -> None:
    """Prints the win rate in one sentence, then the judge, the cost and what is missing."""
    console.print(Text(result.sentence, style="bold" if result.reliable else "bold red"), soft_wrap=True)
    for line in result.details:
        console.print(Text(line), soft_wrap=True)
