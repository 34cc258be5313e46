"""`stagealign boundary`: which stage a policy is in, and so which data to collect next."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from stagealign.base.terminal import Text
from stagealign.cli.options import JudgeUrl
from stagealign.cli.output import check_json, console, write_json
from stagealign.report.sections.words import count
from stagealign.store.files import write_text

if TYPE_CHECKING:
    from stagealign.boundary.measure import Heard
    from stagealign.boundary.measurement import Measurement
    from stagealign.boundary.request import BoundaryRequest


PolicyName = Annotated[
    str | None, typer.Option(help="Hub id or local folder of the policy; with --policy-url, the served model's name.")
]
DataName = Annotated[str | None, typer.Option(help="File, folder or hub data set of preferences (docs/data.md).")]
OracleName = Annotated[str, typer.Option(help="pairrm, reward:ID, completion-reward:ID, judge:MODEL or recorded:FILE.")]
PromptCount = Annotated[int, typer.Option(help="Largest number of prompts to measure.", min=1)]
Decide = Annotated[float | None, typer.Option(help="Stop once a stage is decided at this confidence level, e.g. 0.95.")]
Indifference = Annotated[
    float | None,
    typer.Option(help="Stop also once the score is within this distance of 0.5, e.g. 0.05: no practical difference."),
]
Seed = Annotated[int, typer.Option(help="Seed of the choice of prompts and of sampling.")]
Split = Annotated[str | None, typer.Option(help="Split of a hub data set.")]
Columns = Annotated[
    str | None,
    typer.Option(help="Other column names: prompt=question,chosen=a,rejected=b; also system, history."),
]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; the paper uses 0.7.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling; the paper uses 0.9.")]
TopK = Annotated[int, typer.Option(help="Tokens to sample from; the paper uses 50.")]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of a completion; longer ones are cut and counted.")]
Template = Annotated[str, typer.Option(help="Prompt format. auto: the tokenizer's chat template; none: plain text.")]
TemplateArgs = Annotated[
    str | None, typer.Option(help="Arguments of the policy's chat template, in JSON: '{\"enable_thinking\": false}'.")
]
SamplerKey = Annotated[str, typer.Option(help="Sampling engine: transformers (our own sampler) or vllm.")]
PolicyServer = Annotated[str | None, typer.Option(help="OpenAI-compatible server of the policy.")]
MaxJudgeTokens = Annotated[
    int | None, typer.Option(help="Stop asking a served judge once it has billed this many tokens.", min=1)
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
    columns: Columns = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    top_k: TopK = 50,
    max_new_tokens: MaxNewTokens = 512,
    template: Template = "auto",
    template_args: TemplateArgs = None,
    sampler: SamplerKey = "transformers",
    policy_url: PolicyServer = None,
    judge_url: JudgeUrl = None,
    max_judge_tokens: MaxJudgeTokens = None,
    json_file: JsonFile = None,
    html: Html = None,
    pairs: PairsFile = None,
) -> None:
    """Measures which stage a policy is in, and so which preference data to collect next."""
    from stagealign.boundary.measure import measure_boundary
    from stagealign.boundary.request import BoundaryRequest, template_args_in
    from stagealign.grid.spec import Decoding

    check_json(json_file, html)
    request = BoundaryRequest(
        policy, data, oracle=oracle, prompts=prompts, decide=decide, indifference=indifference, seed=seed,
        split=split, columns=columns, template=template, sampler=sampler,
        decoding=Decoding(temperature, top_p, top_k, max_new_tokens),
        policy_url=policy_url, judge_url=judge_url, max_judge_tokens=max_judge_tokens,
        template_args=template_args_in(template_args),
    )  # fmt: skip
    with measuring(json_file == "-") as heard:
        if pairs:
            to_judge(request, pairs, heard, {"--json": json_file, "--html": html})
            raise typer.Exit(0)
        measured = measure_boundary(**vars(request), heard=heard)
    if json_file != "-":
        measurement(measured)
    write_json(json_file, measured.plain())
    if html:
        from stagealign.report.pages.meter import page

        write_text(html, page(measured))
    raise typer.Exit(0 if measured.reliable else 3)


@contextmanager
def measuring(quiet: bool) -> Iterator[Callable[[int, int, float], None]]:
    """Progress bar over the prompts of a measurement, with the score so far and the time left; hidden if `quiet`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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


def measurement(measured: "Measurement") -> None:
    """Prints the meter's answer: one sentence, then what could mislead, then the cost."""
    from stagealign.report.pages.meter import careful, caveat_rows, fact_rows

    console.print(Text(measured.sentence, style="bold"))
    for line in careful(measured):
        console.print(Text(line, style="yellow"))
    table = Table("what could mislead")
    table.add_column("", overflow="fold")
    for name, value in caveat_rows(measured):
        table.add_row(Text(name), Text(value))
    table.add_section()
    for name, value in fact_rows(measured):
        table.add_row(Text(name), Text(value))
    console.print(table)
    if not measured.reliable:
        warning = f"unreliable: prompts that failed: {measured.failures}, the first with {measured.failure}"
        if not measured.failures:
            warning = "unreliable: every completion of the policy is empty"
        console.print(Text(warning, style="red"), soft_wrap=True)
    if measured.stopped:
        console.print(Text(f"stopped early: {measured.stopped}", style="yellow"), soft_wrap=True)


def to_judge(request: "BoundaryRequest", path: Path, heard: "Heard", outputs: Mapping[str, object]) -> None:
    """Writes the pairs to judge, and prints their number and the command that measures with them."""
    from stagealign.boundary.to_judge import write_pairs

    written = write_pairs(request, path, heard, outputs)
    for line in written.notes:
        console.print(Text(line, style="yellow"), soft_wrap=True)
    for reason, times in written.reasons.items():
        console.print(Text(f"failed: {count(times, 'prompt')}: {reason}", style="yellow"), soft_wrap=True)
    instructions = (
        f"wrote {count(written.pairs, 'pair')} of {count(written.prompts, 'prompt')} to {written.path}: write a, b or "
        "tie under `preference`, whichever is better. Rows left empty count as failures; to judge only the "
        "first N prompts, add --prompts N. Then:"
    )
    console.print(Text(instructions), soft_wrap=True)
    console.print(Text(written.then), soft_wrap=True)
