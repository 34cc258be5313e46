"""Worker of one vLLM process: reads token ids from a file and appends samples to another.

It runs in vLLM's own environment and imports only the standard library and vLLM. vLLM pins its own transformers and
torch, so most versions cannot be installed together with this package. `vllm_sample` and `vllm_process` start it.
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
    most: int
    """Most new tokens: as asked, and as the context leaves."""


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
    """Prompts to answer, with the arguments of vLLM."""

    llm: dict[str, Any]
    """Arguments of `vllm.LLM`."""
    sampling: dict[str, Any]
    """Arguments of `vllm.SamplingParams` without the seed."""
    chunk: int
    """Prompts between two writes."""
    rows: list[AskedRow]
    out: str
    """File that the answers are appended to."""


def installed() -> dict[str, str] | None:
    """Name and version of the installed distribution of vLLM, found without importing it; None if there is none."""
    try:
        return {"name": "vllm", "version": metadata.version("vllm")}
    except metadata.PackageNotFoundError:  # a build of vLLM may have another name
        names = metadata.packages_distributions().get("vllm", [])
    return {"name": names[0], "version": metadata.version(names[0])} if names else None


def sample(work: SamplingWork, llm: Any = None) -> int:
    """Answers the prompts, one line of `work["out"]` each, chunk by chunk; returns their number.

    All candidates of a prompt are one request with its own seed; vLLM adds j to the seed for candidate j. `llm`: the
    engine; None starts one.
    """
    from vllm import SamplingParams

    llm = llm or engine(work)
    rows, done = work["rows"], 0
    with open(work["out"], "a+b") as file:
        close_line(file)
        for start in range(0, len(rows), work["chunk"]):
            some = rows[start : start + work["chunk"]]
            prompts = [{"prompt_token_ids": row["ids"]} for row in some]
            wishes = [
                SamplingParams(**{**work["sampling"], "seed": row["seed"], "max_tokens": row["most"]}) for row in some
            ]
            outputs = llm.generate(prompts, wishes, use_tqdm=False)
            for row, output in zip(some, outputs, strict=True):
                file.write(json.dumps(answer(row, output)).encode() + b"\n")
                done += 1
            file.flush()
    return done


def engine(work: SamplingWork) -> Any:
    """Starts vLLM with the weights that the work names."""
    from vllm import LLM

    return LLM(**work["llm"])


def work_through(lines: Iterable[str]) -> None:
    """Answers the work files named by `lines`, one per line, with the engine of the first.

    Prints one line to stdout after each file. All other output to stdout, such as vLLM's log, goes to stderr.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as said:
        os.dup2(2, 1)
        llm = None
        for line in lines:
            work = read(line.rstrip("\n"))
            llm = llm or engine(work)
            print(sample(work, llm), file=said, flush=True)


def read(path: str) -> SamplingWork:
    """Reads the work from a JSON file."""
    with open(path, encoding="utf-8") as file:
        work: SamplingWork = json.load(file)
    return work


def close_line(file: BinaryIO) -> None:
    """Ends a line that a kill left incomplete, so that the next line starts on its own."""
    if file.seek(0, 2):
        file.seek(-1, 2)
        if file.read() != b"\n":
            file.write(b"\n")


def answer(row: AskedRow, output: Any) -> AnswerRow:
    """One prompt's line, from vLLM's RequestOutput; token ids include the end token. Raises ValueError."""
    if list(output.prompt_token_ids) != row["ids"]:
        raise ValueError(f"prompt {row['key']}: vLLM read other token ids than it was given")
    texts: list[SampledText] = [
        {
            "ids": [int(token) for token in text.token_ids],
            "finish": text.finish_reason,
            "logp": None if text.cumulative_logprob is None else float(text.cumulative_logprob),
        }
        for text in sorted(output.outputs, key=lambda text: text.index)
    ]
    return {"key": row["key"], "outputs": texts}


def main(words: list[str]) -> None:
    """`--installed` prints the version, `--listen` reads names of work files from stdin; else one file."""
    if words == ["--installed"]:
        print(json.dumps(installed()))
    elif words == ["--listen"]:
        work_through(sys.stdin)
    else:
        print(f"{sample(read(words[0]))} prompts answered", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
