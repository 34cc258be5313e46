"""`stagealign boundary`: which stage a policy is in, and so what data to collect next."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.cli.options import JudgeUrl
from stagealign.cli.output import check_json, console, write_json
from stagealign.report.sections.words import count
from stagealign.store.files import write_text

if TYPE_CHECKING:
    from stagealign.boundary.measurement import Measurement
    from stagealign.boundary.to_judge import WrittenPairs


PolicyName = Annotated[
    str | None, typer.Option(help="Hub id or local folder; with --policy-url the served model's name.")
]
DataName = Annotated[str | None, typer.Option(help="File or hub data set of preferences, in any of TRL's shapes.")]
OracleName = Annotated[str, typer.Option(help="pairrm, reward:ID, completion-reward:ID, judge:MODEL or recorded:FILE.")]
PromptCount = Annotated[int, typer.Option(help="Most prompts to measure.", min=1)]
Decide = Annotated[float | None, typer.Option(help="Stop once a stage is named at this level, e.g. 0.95.")]
Indifference = Annotated[
    float | None,
    typer.Option(help="Stop also once the score is within so much of 0.5, e.g. 0.05: no practical difference."),
]
Seed = Annotated[int, typer.Option(help="Chooses prompts and samples.")]
Split = Annotated[str | None, typer.Option(help="Split of a hub data set.")]
Temperature = Annotated[float, typer.Option(help="The paper's 0.7.")]
TopP = Annotated[float, typer.Option(help="The paper's 0.9.")]
TopK = Annotated[int, typer.Option(help="The paper's 50.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longer completions are cut and counted.")]
Template = Annotated[str, typer.Option(help="auto: the tokenizer's chat template; none: plain text.")]
SamplerKey = Annotated[str, typer.Option(help="What samples: transformers (our own sampler) or vllm.")]
PolicyServer = Annotated[str | None, typer.Option(help="OpenAI-compatible server of the policy.")]
MaxJudgeTokens = Annotated[
    int | None, typer.Option(help="Ask a served judge no more once it has billed so many tokens.", min=1)
]
JsonFile = Annotated[str | None, typer.Option("--json", help="Write the measurement here; - is standard output.")]
Html = Annotated[Path | None, typer.Option(help="Write one page with the running score and a sample of prompts.")]
PairsFile = Annotated[
    Path | None,
    typer.Option(help="Measure nothing; write the pairs to judge to this .csv or .jsonl, for recorded:FILE."),
]


def boundary(
    policy: PolicyName = None,
    data: DataName = None,
    oracle: OracleName = "pairrm",
    prompts: PromptCount = 2000,
    decide: Decide = None,
    indifference: Indifference = None,
    seed: Seed = 0,
    split: Split = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    top_k: TopK = 50,
    max_new_tokens: MaxNewTokens = 512,
    template: Template = "auto",
    sampler: SamplerKey = "transformers",
    policy_url: PolicyServer = None,
    judge_url: JudgeUrl = None,
    max_judge_tokens: MaxJudgeTokens = None,
    json_file: JsonFile = None,
    html: Html = None,
    pairs: PairsFile = None,
) -> None:
    """Tells which stage a policy is in, and so what preference data to collect next."""
    from stagealign.boundary.measure import measure_boundary
    from stagealign.boundary.request import BoundaryRequest
    from stagealign.grid.spec import Decoding

    check_json(json_file, html)
    request = BoundaryRequest(
        policy, data, oracle=oracle, prompts=prompts, decide=decide, indifference=indifference, seed=seed,
        split=split, decoding=Decoding(temperature, top_p, top_k, max_new_tokens), template=template, sampler=sampler,
        policy_url=policy_url, judge_url=judge_url, max_judge_tokens=max_judge_tokens,
    )  # fmt: skip
    with measuring(json_file == "-") as heard:
        if pairs:
            from stagealign.boundary.to_judge import write_pairs

            to_judge(write_pairs(request, pairs, heard, {"--json": json_file, "--html": html}))
            raise typer.Exit(0)
        found = measure_boundary(**vars(request), heard=heard)
    if json_file != "-":
        measurement(found)
    write_json(json_file, found.plain())
    if html:
        from stagealign.report.pages.meter import page

        write_text(html, page(found))
    raise typer.Exit(0 if found.reliable else 3)


@contextmanager
def measuring(quiet: bool) -> Iterator[Callable[[int, int, float], None]]:
    """Progress bar over the prompts of a measurement, with the score so far and the time left; hidden if `quiet`."""
    columns = (
        BarColumn(24),
        TextColumn("{task.completed} of at most {task.total} prompts, score {task.fields[score]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("", total=1, score="-", visible=False)

        def heard(done: int, total: int, score: float) -> None:
            bar.update(task, completed=done, total=total, score="-" if isnan(score) else f"{score:.2f}", visible=True)

        yield heard


def measurement(found: "Measurement") -> None:
    """Prints the meter's answer: one sentence, then what could mislead, then the cost."""
    from stagealign.report.pages.meter import careful, caveat_rows, fact_rows

    console.print(Text(found.sentence, style="bold"))
    for line in careful(found):
        console.print(Text(line, style="yellow"))
    table = Table("what could mislead")
    table.add_column("", overflow="fold")
    for name, value in caveat_rows(found):
        table.add_row(Text(name), Text(value))
    table.add_section()
    for name, value in fact_rows(found):
        table.add_row(Text(name), Text(value))
    console.print(table)
    if not found.reliable:
        said = f"unreliable: prompts that failed: {found.failures}, the first with {found.failure}"
        console.print(Text(said, style="red"), soft_wrap=True)
    if found.stopped:
        console.print(Text(f"stopped early: {found.stopped}", style="yellow"), soft_wrap=True)


def to_judge(found: "WrittenPairs") -> None:
    """Prints how many pairs were written, and the command that measures with them."""
    for line in found.notes:
        console.print(Text(line, style="yellow"), soft_wrap=True)
    for reason, times in found.reasons.items():
        console.print(Text(f"failed: {count(times, 'prompt')}: {reason}", style="yellow"), soft_wrap=True)
    said = (
        f"wrote {count(found.pairs, 'pair')} of {count(found.prompts, 'prompt')} to {found.path}: write a, b or tie "
        "under `preference`, whichever is better. Rows left empty count as failures; to judge only the "
        "first N prompts, add --prompts N. Then:"
    )
    console.print(Text(said), soft_wrap=True)
    console.print(Text(found.then), soft_wrap=True)
