"""One vLLM process: reads token ids from a file, appends what it samples to another. Runs in vLLM's own environment.

It imports nothing but the standard library and vLLM, for vLLM pins a transformers and a torch of its own: most of its
versions cannot be installed beside this package. The process that started it is `vllm_sample`.
"""

import json
import sys
from importlib import metadata
from typing import Any, BinaryIO


def installed() -> dict[str, str] | None:
    """Name and version of the distribution that has vLLM in this environment, found without importing it."""
    try:
        return {"name": "vllm", "version": metadata.version("vllm")}
    except metadata.PackageNotFoundError:  # or a build of it by another name
        names = metadata.packages_distributions().get("vllm", [])
    return {"name": names[0], "version": metadata.version(names[0])} if names else None


def sample(work: dict[str, Any]) -> int:
    """Number of prompts answered; each is one line of `work["out"]`, written a chunk at a time.

    All candidates of a prompt are one request with a seed of its own: vLLM gives candidate j the seed plus j.
    """
    from vllm import LLM, SamplingParams

    llm = LLM(**work["llm"])
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


def close_line(file: BinaryIO) -> None:
    """Ends half a line that a kill left, so that the next one is whole."""
    if file.seek(0, 2):
        file.seek(-1, 2)
        if file.read() != b"\n":
            file.write(b"\n")


def answer(row: dict[str, Any], output: Any) -> dict[str, Any]:
    """One prompt's line, from vLLM's RequestOutput; the end token is among a completion's ids, as vLLM has it."""
    if list(output.prompt_token_ids) != row["ids"]:
        raise ValueError(f"prompt {row['key']}: vLLM read other token ids than it was given")
    texts = [
        {
            "ids": [int(one) for one in text.token_ids],
            "finish": text.finish_reason,
            "logp": None if text.cumulative_logprob is None else float(text.cumulative_logprob),
        }
        for text in sorted(output.outputs, key=lambda text: text.index)
    ]
    return {"key": row["key"], "outputs": texts}


def main(words: list[str]) -> None:
    """`--installed` prints which vLLM there is; else the one word is the file that describes the work."""
    if words == ["--installed"]:
        print(json.dumps(installed()))
        return
    with open(words[0], encoding="utf-8") as file:
        work = json.load(file)
    print(f"{sample(work)} prompts answered", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
