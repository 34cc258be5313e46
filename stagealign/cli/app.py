"""The command line: parses, calls, prints; no logic."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stagealign.base.errors import StagealignError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which data does a policy need next, off-policy or on-policy? Reproduces arXiv 2508.10530.",
)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
TERMINATED = 143
"""Exit code after SIGTERM."""
Expression = Annotated[
    str, typer.Option("-k", help="Which cells, as in pytest: 'zephyr and not slichf'.", metavar="EXPR")
]
ScaleKey = Annotated[str, typer.Option("--scale", help="smoke, lab or paper.")]
Results = Annotated[Path, typer.Option(help="Folder of result files.")]
Reports = Annotated[Path, typer.Option(help="Folder that reports are written to.")]
Workers = Annotated[int | None, typer.Option(help="Artifacts built side by side; as many as cores by default.", min=1)]
Peft = Annotated[str | None, typer.Option(help="lora: train adapters; gives cells of their own.")]
Sampler = Annotated[
    str, typer.Option(help="What samples: transformers (our own sampler) or vllm; gives cells of their own.")
]
PolicyUrl = Annotated[str | None, typer.Option(help="Server that samples instead, loading each policy by its folder.")]
Gold = Annotated[
    str | None,
    typer.Option(help="reward:ID_OR_PATH: a one-logit classifier evaluates instead; gives cells of their own."),
]


@app.command("list")
def list_cells(k: Expression = "", scale: ScaleKey = "lab") -> None:
    """Shows the cells of a scale and what each model starts from."""
    from stagealign.cli import tables as show
    from stagealign.grid import registry, select

    show.cells(registry.scale(scale), select.select(scale, k))


@app.command()
def run(
    k: Expression = "",
    scale: ScaleKey = "lab",
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds, from 0; the scale's own number by default.", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be built and how long it takes.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also run what the results folder holds already.")] = False,
    capability: Annotated[
        bool,
        typer.Option("--capability", help="Also measure what policies can do besides (lm-eval; needs the extra eval)."),
    ] = False,
    workers: Workers = None,
    devices: Annotated[int, typer.Option(help="Processes that train a round together: GPUs, or CPU ones.", min=1)] = 1,
    sharding: Annotated[
        str | None, typer.Option(help="How they share the model: replicate, fsdp2 or zero3.", show_default="by scale")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Pairs in one forward of one process.", min=1)] = None,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory for a third more arithmetic.")
    ] = False,
    launcher: Annotated[
        str, typer.Option(help="Your own command that starts the processes, e.g. 'torchrun --nproc-per-node 8'.")
    ] = "",
    peft: Peft = None,
    spend: Annotated[
        float | None, typer.Option(help="USD that a paid judge may cost in all; asked for where it is needed.", min=0)
    ] = None,
    sampler: Sampler = "transformers",
    policy_url: PolicyUrl = None,
    gold: Gold = None,
    executor: Annotated[str, typer.Option(help="local: processes here; ray: a cluster (extra cluster).")] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's host:port, auto for one that runs here; else RAY_ADDRESS, else a Ray of our own."
        ),
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Runs cells: builds what is missing, writes one result file a cell and seed."""
    import shlex

    from stagealign.cli import run as runs
    from stagealign.cli.variants import Variant
    from stagealign.grid import registry, select
    from stagealign.store.artifact import Devices

    chosen = registry.scale(scale)
    cells, folder = Variant(peft, sampler, policy_url, gold).cells(select.select(scale, k))
    own = chosen.seeds if seeds is None else tuple(range(seeds))
    launch = tuple(shlex.split(launcher))
    spread = Devices(devices, sharding, micro_batch, activation_checkpointing, launch, policy_url, folder)
    how = runs.Execution(workers, spread, executor, address, spend)
    outcome = runs.run(chosen, cells, own, results, how, again, capability, dry_run)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def plan(
    k: Expression = "",
    scale: ScaleKey = "lab",
    seeds: Annotated[
        int | None, typer.Option(help="How many seeds, from 0; the scale's own number by default.", min=1)
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Whose hours: h200, h100, a100, l40s, rtx4090 or cpu; as the scale by default.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also plan what the results folder holds already.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write every artifact and the totals here; - is standard output.")
    ] = None,
    peft: Peft = None,
    sampler: Sampler = "transformers",
    policy_url: PolicyUrl = None,
    gold: Gold = None,
    docs: Annotated[Path | None, typer.Option(help="Refresh the paper's cost tables in this file instead.")] = None,
    results: Results = Path("results"),
) -> None:
    """Shows what would be built, why, at what cost, and whether this machine can do it."""
    from stagealign.cli import run as runs
    from stagealign.cli.variants import Variant
    from stagealign.grid import registry, select

    if docs:
        runs.scale_docs(docs)
        return
    chosen = registry.scale(scale)
    own = chosen.seeds if seeds is None else tuple(range(seeds))
    cells, _ = Variant(peft, sampler, policy_url, gold).cells(select.select(scale, k))
    runs.plan(chosen, cells, own, results, gpu, again, json_file)


@app.command()
def export(
    cell: Annotated[str, typer.Argument(help="A cell that was run, e.g. zephyr-dpo-2off_on.")],
    to: Annotated[Path, typer.Option(help="Folder to make; empty or not there yet.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    scale: ScaleKey = "lab",
    push: Annotated[str | None, typer.Option(help="Also upload it to this hub repository, private.")] = None,
    results: Results = Path("results"),
) -> None:
    """Writes a cell's policy for others: safetensors, tokenizer and a model card with its numbers."""
    from stagealign.cli import run as runs

    runs.export(cell, scale, seed, to, results, push)


@app.command()
def demo(workers: Workers = None, results: Results = Path("results"), reports: Reports = Path("reports")) -> None:
    """Runs the lab's demo row: one stand-in, both sources in two rounds, one learning rate each."""
    from stagealign.cli import run as runs

    outcome = runs.demo(results, reports, workers)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def report(
    scale: ScaleKey = "lab",
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where reports do not match results.")
    ] = False,
    readme: Annotated[Path | None, typer.Option(help="Also refresh the demo's table in this file.")] = None,
    results: Results = Path("results"),
    reports: Reports = Path("reports"),
) -> None:
    """Writes tables and figures from the result files, and from nothing else."""
    from stagealign.cli import run as runs
    from stagealign.grid import registry

    registry.scale(scale)
    raise typer.Exit(runs.report(results, reports, scale, check, readme))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A results folder, or a cell.")],
    b: Annotated[str, typer.Argument(help="Another one of the same kind.")],
    scale: ScaleKey = "lab",
    results: Results = Path("results"),
) -> None:
    """Shows what moved between two results folders, or all of two cells; exit code 1 where it is more than noise."""
    from stagealign.cli import run as runs

    raise typer.Exit(runs.compare(a, b, scale, results))


@app.command()
def fetch() -> None:
    """Downloads the lab's assets by exact version and hash into the cache, so that later runs need no network."""
    from stagealign.cli import run as runs

    runs.fetch()


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Read every file of the store, not its size alone.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the findings here; - is standard output.")
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Checks store, assets, kept answers, results and environment, and says what to do; exit code 1 where not well."""
    from stagealign.cli import doctor as room
    from stagealign.cli import tables as show

    found = room.look(results, deep)
    if json_file:
        room.write(found, json_file)
    if json_file != "-":
        show.findings(found)
    raise typer.Exit(1 if any(one.state == "wrong" for one in found) else 0)


@app.command()
def boundary(
    policy: Annotated[
        str | None, typer.Option(help="Hub id or local folder; with --policy-url the served model's name.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="File or hub data set of preferences, in any of TRL's shapes.")
    ] = None,
    oracle: Annotated[
        str, typer.Option(help="pairrm, reward:ID, completion-reward:ID, judge:MODEL or recorded:FILE.")
    ] = "pairrm",
    prompts: Annotated[int, typer.Option(help="Most prompts to measure.", min=1)] = 2000,
    decide: Annotated[float | None, typer.Option(help="Stop once a stage is named at this level, e.g. 0.95.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses prompts and samples.")] = 0,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.")] = None,
    temperature: Annotated[float, typer.Option(help="The paper's 0.7.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="The paper's 0.9.")] = 0.9,
    top_k: Annotated[int, typer.Option(help="The paper's 50.")] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="Longer completions are cut and counted.")] = 512,
    template: Annotated[str, typer.Option(help="auto: the tokenizer's chat template; none: plain text.")] = "auto",
    policy_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the policy.")] = None,
    judge_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the judge.")] = None,
    max_judge_tokens: Annotated[
        int | None, typer.Option(help="Ask a served judge no more once it has billed so many tokens.", min=1)
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the measurement here; - is standard output.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one page with the running score and a sample of prompts.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Measure nothing; write the pairs to judge to this .csv or .jsonl, for recorded:FILE."),
    ] = None,
) -> None:
    """Tells which stage a policy is in, and so what preference data to collect next."""
    from stagealign.boundary import measure as measuring
    from stagealign.boundary import request as request_room
    from stagealign.cli import boundary
    from stagealign.cli import tables as show
    from stagealign.grid.spec import Decoding

    boundary.writable(json_file, html)
    request = request_room.Request(
        policy, data, oracle=oracle, prompts=prompts, decide=decide, seed=seed, split=split,
        decoding=Decoding(temperature, top_p, top_k, max_new_tokens), template=template, policy_url=policy_url,
        judge_url=judge_url, max_judge_tokens=max_judge_tokens,
    )  # fmt: skip
    with show.measuring(json_file == "-") as heard:
        if pairs:
            from stagealign.boundary.to_judge import write_pairs

            show.to_judge(write_pairs(request, pairs, heard, {"--json": json_file, "--html": html}))
            raise typer.Exit(0)
        found = measuring.measure_boundary(**vars(request), heard=heard)
    if json_file != "-":
        show.measurement(found)
    boundary.write(found, json_file, html)
    raise typer.Exit(0 if found.reliable else 3)


@app.command("lc-win-rate")
def lc_win_rate(
    preferences: Annotated[
        Path,
        typer.Argument(
            help="File with columns prompt_index, generator, preference (1 baseline ... 2 model), baseline_chars, "
            "model_chars."
        ),
    ],
    difficulty: Annotated[Path, typer.Option(help="Published, or with columns prompt_index, instruction_difficulty.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="Published weights; glm_weights.csv beside the difficulty file where there is one."),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit every generator, published weights or not.")] = False,
    official: Annotated[
        bool, typer.Option("--official", help="Call alpaca_eval's own function; needs the extra eval and the hub.")
    ] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the numbers here; - is standard output.")
    ] = None,
) -> None:
    """Win rate and length-controlled win rate (AlpacaEval 2) of judged comparisons, offline; sorted by the latter."""
    from stagealign.cli import tables as show
    from stagealign.evaluate.alpaca_eval import lc_win_rate as rates

    rates.writable(json_file)
    found = rates.lc_win_rates(preferences, difficulty, weights, fit, official)
    if json_file:
        rates.write(found, json_file)
    if json_file != "-":
        show.lc_win_rates(found)


@app.command("alpaca-eval")
def alpaca_eval(
    outputs: Annotated[str, typer.Argument(help="The model's completions: instruction, output, generator.")],
    baseline: Annotated[str, typer.Option(help="The baseline's completions; this file defines the prompts.")],
    judge: Annotated[str, typer.Option(help="official, judge:MODEL, local:PATH or recorded:FILE.")],
    judge_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the judge.")] = None,
    generator: Annotated[str | None, typer.Option(help="Which one, where OUTPUTS holds several.")] = None,
    spend: Annotated[float | None, typer.Option(help="Most USD that this call may cost; 0 shows the cost.")] = None,
    price: Annotated[
        str | None, typer.Option(help="USD for a million tokens of prompt and completion.", metavar="IN,OUT")
    ] = None,
    served: Annotated[str | None, typer.Option(help="Version of the judge, as its server names it.")] = None,
    workers: Annotated[int, typer.Option(help="Requests under way at a time.", min=1)] = 8,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the record here; - is standard output.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Write one row a prompt here, for lc-win-rate: .parquet, .jsonl or .csv.")
    ] = None,
) -> None:
    """Tells how often a judge prefers a model's completions to a baseline's, as AlpacaEval 2 does."""
    from stagealign.cli import tables as show
    from stagealign.evaluate.alpaca_eval import evaluate as alpaca

    alpaca.writable(annotations)
    request = alpaca.Request(outputs, baseline, judge, judge_url, generator, spend, price, served, workers)
    with show.evaluating(json_file == "-") as heard:
        found = alpaca.evaluate(request, heard)
    alpaca.write(found, json_file, annotations)
    if json_file != "-":
        show.evaluation(found)
    raise typer.Exit(0 if found.reliable or spend == 0 else 3)


def main() -> None:
    """Entry point: a user's mistake is one clear message, an interrupt or a termination keeps what is built."""
    code: int | None = INTERRUPTED
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: _interrupt(number, ended))
    try:
        code = app(standalone_mode=False)  # a command's exit code comes back as a value, an interrupt's too
    except StagealignError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            error.show() if hasattr(error, "show") else _fail(str(error), 2)
            sys.exit(getattr(error, "exit_code", 2))
        sys.excepthook = _traceback
        raise
    if code == INTERRUPTED:
        what, code = ("terminated", TERMINATED) if ended else ("interrupted", INTERRUPTED)
        _fail(f"{what}; all that is built stays, the same command continues", code)
    sys.exit(code)


def _interrupt(number: int, ended: list[int]) -> None:
    """Ends the command as Ctrl-C does; a second signal finds it ending."""
    ended.append(number)
    if len(ended) == 1:
        raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    from rich.console import Console

    from stagealign.base.terminal import Text

    Console(stderr=True).print(Text("stagealign: ", style="bold red") + Text(message), soft_wrap=True)
    sys.exit(code)


def _traceback(*error: Any) -> None:
    """Prints a fault of ours as Python does, but for secrets and control codes."""
    import traceback

    from stagealign.base.secrets import without_secrets
    from stagealign.base.terminal import plain

    print(plain(without_secrets("".join(traceback.format_exception(*error)))), end="", file=sys.stderr)
