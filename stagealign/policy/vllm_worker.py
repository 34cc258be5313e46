"""One vLLM process: token ids from a file, samples appended to another. Runs in vLLM's own environment.

It imports only the standard library and vLLM: vLLM pins its own transformers and torch, so most versions cannot be
installed beside this package. `vllm_sample` and `vllm_process` start it.
"""

import json
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any, BinaryIO, TypedDict


class AskedRow(TypedDict):
    """One prompt to answer."""

    key: str
    """Prompt hash."""
    ids: list[int]
    """Token ids of the prompt."""
    seed: int


class SampledText(TypedDict):
    """One completion."""

    ids: list[int]
    """Token ids, the end token included."""
    finish: str | None
    logp: float | None
    """Log-probability at temperature 1, in nats, end token included."""


class AnswerRow(TypedDict):
    """Completions of one prompt."""

    key: str
    outputs: list[SampledText]


class SamplingWork(TypedDict):
    """Prompts to answer, and how."""

    llm: dict[str, Any]
    """Arguments of `vllm.LLM`."""
    sampling: dict[str, Any]
    """Arguments of `vllm.SamplingParams`, but for the seed."""
    chunk: int
    """Prompts between two writes."""
    rows: list[AskedRow]
    out: str
    """File that the answers are appended to."""


def installed() -> dict[str, str] | None:
    """Name and version of the distribution that has vLLM here, without importing it; None if there is none."""
    try:
        return {"name": "vllm", "version": metadata.version("vllm")}
    except metadata.PackageNotFoundError:  # or a build of it by another name
        names = metadata.packages_distributions().get("vllm", [])
    return {"name": names[0], "version": metadata.version(names[0])} if names else None


def sample(work: SamplingWork, llm: Any = None) -> int:
    """Number of prompts answered; each is one line of `work["out"]`, written a chunk at a time.

    All candidates of a prompt are one request with a seed of its own: vLLM gives candidate j the seed plus j. `llm` is
    the engine, started here if it is None.
    """
    from vllm import SamplingParams

    llm = llm or engine(work)
    rows, done = work["rows"], 0
    with open(work["out"], "a+b") as file:
        close_line(file)
        for start in range(0, len(rows), work["chunk"]):
            some = rows[start : start + work["chunk"]]
            prompts = [{"prompt_token_ids": row["ids"]} for row in some]
            wishes = [SamplingParams(**work["sampling"], seed=row["seed"]) for row in some]
            outputs = llm.generate(prompts, wishes, use_tqdm=False)
            for row, output in zip(some, outputs, strict=True):
                file.write(json.dumps(answer(row, output)).encode() + b"\n")
                done += 1
            file.flush()
    return done


def engine(work: SamplingWork) -> Any:
    """VLLM with the weights that the work names."""
    from vllm import LLM

    return LLM(**work["llm"])


def work_through(lines: Iterable[str]) -> None:
    """Answers the work files that `lines` name, one a line, with the engine of the first; a line on stdout ends each.

    Whatever else writes to stdout, as vLLM's log does, goes to stderr.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as said:
        os.dup2(2, 1)
        llm = None
        for line in lines:
            work = read(line.rstrip("\n"))
            llm = llm or engine(work)
            print(sample(work, llm), file=said, flush=True)


def read(path: str) -> SamplingWork:
    """The work that a file describes."""
    with open(path, encoding="utf-8") as file:
        work: SamplingWork = json.load(file)
    return work


def close_line(file: BinaryIO) -> None:
    """Ends a line that a kill left half written, so that the next line is whole."""
    if file.seek(0, 2):
        file.seek(-1, 2)
        if file.read() != b"\n":
            file.write(b"\n")


def answer(row: AskedRow, output: Any) -> AnswerRow:
    """One prompt's line, from vLLM's RequestOutput; the end token is among a completion's ids, as vLLM has it."""
    if list(output.prompt_token_ids) != row["ids"]:
        raise ValueError(f"prompt {row['key']}: vLLM read other token ids than it was given")
    texts: list[SampledText] = [
        {
            "ids": [int(one) for one in text.token_ids],
            "finish": text.finish_reason,
            "logp": None if text.cumulative_logprob is None else float(text.cumulative_logprob),
        }
        for text in sorted(output.outputs, key=lambda text: text.index)
    ]
    return {"key": row["key"], "outputs": texts}


def main(words: list[str]) -> None:
    """`--installed` prints which vLLM there is, `--listen` reads names of work files from stdin; else a work file."""
    if words == ["--installed"]:
        print(json.dumps(installed()))
    elif words == ["--listen"]:
        work_through(sys.stdin)
    else:
        print(f"{sample(read(words[0]))} prompts answered", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
