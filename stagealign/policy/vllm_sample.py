"""Samples by vLLM (extra `vllm`): all candidates of a prompt in one request, one process a GPU, by its own `LLM` API.

Token ids, end tokens, truncation and text are those of `sample.py`: prompts are given as token ids, vLLM gets no
tokenizer, and the end tokens are told to it. What differs is chance: vLLM draws in its own way, and what it samples
depends on what else is in the batch, on the GPU and on its version, seed or not. So the same command may give other
samples; version and settings are identity, and what was sampled is what the artifact holds.

`LLM(data_parallel_size=N)` is refused by vLLM since 0.11.1, so each GPU has a process that knows of no other and takes
its own prompts (`vllm_worker`). What it answers is kept chunk by chunk; a killed build goes on from there.

Checked against vLLM 0.31 on a CPU (real engine, random weights); not run on a GPU yet.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from stagealign.base.errors import BadNumbers, CannotRun, StagealignError
from stagealign.base.identity import stream
from stagealign.base.processes import Job, gpu_count, run_all
from stagealign.data.records import Candidate, Prompt, asked_prompts, sampled_facts, write_rows
from stagealign.grid.spec import Decoding, Engine
from stagealign.policy.vllm_worker import AskedRow, SampledText
from stagealign.store.artifact import Facts, Work
from stagealign.store.folder import SCRATCH

PYTHON = "STAGEALIGN_VLLM_PYTHON"
"""Variable that names the Python of another environment, where vLLM cannot be installed beside this package."""
Answers = Mapping[str, list[SampledText]]
"""Completions by prompt hash."""
WORKER = Path(__file__).with_name("vllm_worker.py")
OLDEST, NEWEST = (0, 22), (0, 33)
"""Versions that are taken; 0.31 was run, of the others the documented signatures were read."""
CHUNK = 1024
"""Prompts of one process between two writes; execution, not identity."""
SETTINGS: Mapping[str, object] = {
    "enable_prefix_caching": True,
    "enforce_eager": False,
    "generation_config": "vllm",  # not the checkpoint's: the decoding is the spec's
    "logprobs_mode": "raw_logprobs",  # at temperature 1, over the whole vocabulary
    "skip_tokenizer_init": True,
    "trust_remote_code": False,
}
"""What `LLM` is told besides model, dtype, length and seed; part of identity."""


def engine(url: str | None = None, decoding: Decoding | None = None, home: Path | None = None) -> Engine:
    """The vLLM that this machine has: version, and settings that may move a sample.

    It depends on no argument: a row of `grid.samplers.SAMPLERS` calls every engine alike.

    Raises CannotRun if vLLM is not installed, not of a known version, or has no GPU to run on.
    """
    found = _installed()
    name, version = found["name"], found["version"]
    known = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
    if not OLDEST <= _numbers(version) <= NEWEST:
        raise CannotRun(f"--sampler vllm: vLLM {version} is installed; versions {known} are known, install one of them")
    if not gpu_count() and "cpu" not in f"{name} {version}":
        raise CannotRun("--sampler vllm: no GPU was found (`nvidia-smi`); leave the option out to sample on the CPU")
    invariant = {"batch_invariant": True} if os.environ.get("VLLM_BATCH_INVARIANT") == "1" else {}
    return Engine("vllm", version if name == "vllm" else f"{version} ({name})", {**SETTINGS, **invariant})


def _installed() -> dict[str, str]:
    """Name and version of the distribution that has vLLM. Raises CannotRun where there is none."""
    words = [python(), "-I", str(WORKER), "--installed"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        raise CannotRun(f"{PYTHON}={words[0]!r}: cannot be run ({''.join(said)}); name a Python with vLLM") from error
    found: dict[str, str] | None = json.loads(done.stdout)
    if found is None:
        raise CannotRun(
            f"--sampler vllm: vLLM is not installed; `pip install 'stagealign[vllm]'`, or name the Python of another "
            f"environment that has it: {PYTHON}=/path/to/bin/python"
        )
    return found


def python() -> str:
    """The Python that has vLLM: `PYTHON` names it, else the one that runs this."""
    return os.environ.get(PYTHON) or sys.executable


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(one) for one in version.split(".")[:2] if one.isdigit())


def build(work: Work) -> Facts:
    """Builder of `candidates` by vLLM: samples of a policy on the prompts of a file; facts as of `sample.build`."""
    from stagealign.policy import lm

    _check_planned(work)
    shape = lm.load_shape(work.inputs["policy"])
    lm.check_ends(shape, str(work.inputs["policy"]))
    prompts = asked_prompts(work.inputs["prompts"], work.params["splits"], work.params.get("part"))
    ids = {prompt.hash: shape.prompt_ids(prompt.text) for prompt in prompts}
    decoding, count, ends = Decoding(**work.params["decoding"]), work.params["count"], lm.end_ids(shape)
    longest = max(map(len, ids.values()))
    lm.check_context(shape, longest, decoding.max_new_tokens)
    folder = work.out / SCRATCH / "vllm"
    folder.mkdir(parents=True, exist_ok=True)
    kept = dict(answers(folder))
    rows: list[AskedRow] = [
        {"key": key, "ids": one, "seed": stream(work.params["seed"], "sample", key) >> 1}
        for key, one in ids.items()
        if key not in kept
    ]
    if rows:
        length, told = longest + decoding.max_new_tokens, wishes(decoding, count, ends)
        described_work = described(work.inputs["policy"], work.params["dtype"], length, told)
        _run(described_work, rows, folder, work.context.devices.count)
    found, decode = dict(answers(folder)), shape.tokenizer.decode
    candidates = [one for prompt in prompts for one in read(prompt, found[prompt.hash], count, ends, decode)]
    write_rows(work.out / "candidates.jsonl", candidates)
    return {**sampled_facts(candidates), "kept": len(kept)}


def _check_planned(work: Work) -> None:
    """Raises CannotRun if another vLLM, or other settings, are here than were planned."""
    now, planned = engine(), work.params["engine"]
    if (now.version, now.settings) != (planned["version"], planned["settings"]):
        raise CannotRun(f"vLLM {now.version} is here, planned was {planned['version']} or other settings; run again")


def described(model: Path, dtype: str, length: int, sampling: Mapping[str, object]) -> Mapping[str, object]:
    """What a worker is told beside its prompts; `length`: most tokens of a prompt with its completion."""
    llm = {"model": str(model), "dtype": dtype, "max_model_len": length, "seed": 0, **SETTINGS}
    return {"llm": llm, "sampling": sampling, "chunk": CHUNK}


def wishes(decoding: Decoding, count: int, ends: Sequence[int]) -> Mapping[str, object]:
    """Arguments of `SamplingParams`, but for the seed; one completion if greedy, as vLLM refuses several equal ones."""
    return {
        "n": count if decoding.temperature > 0 else 1,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "presence_penalty": decoding.presence_penalty,
        "frequency_penalty": decoding.frequency_penalty,
        "max_tokens": decoding.max_new_tokens,
        "stop_token_ids": list(ends),
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }


def shares(rows: Sequence[AskedRow], processes: int) -> list[list[AskedRow]]:
    """Prompts of each process, dealt out by length so that all have about the same work."""
    order = sorted(rows, key=lambda row: (-len(row["ids"]), row["key"]))
    return [part for part in (order[rank::processes] for rank in range(processes)) if part]


def _run(told: Mapping[str, object], rows: Sequence[AskedRow], folder: Path, processes: int) -> None:
    """Has the prompts answered by so many processes, one a GPU. Raises StagealignError with the log of a failed one."""
    jobs = []
    for rank, part in enumerate(shares(rows, processes)):
        file, out = folder / f"work-{rank}.json", folder / f"answers-{rank}.jsonl"
        file.write_text(json.dumps({**told, "rows": part, "out": str(out)}), encoding="utf-8")
        jobs.append(Job([python(), "-I", str(WORKER), str(file)], environment(rank), folder / f"log-{rank}"))
    for job, code in zip(jobs, run_all(jobs), strict=True):
        if code > 0:
            raise StagealignError(
                f"vLLM: ended with {code}; what it answered is kept. The end of {job.log}:\n{tail(job.log)}"
            )
    lacking = {row["key"] for row in rows} - dict(answers(folder)).keys()
    if lacking:
        raise StagealignError(f"vLLM: {len(lacking)} of {len(rows)} prompts have no answer; run the same command again")


ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # scheduling is then the same each time
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def environment(rank: int) -> dict[str, str]:
    """Environment of the process of this number: it sees one GPU, if the machine has any."""
    gpus = _gpus()
    return os.environ | ENVIRONMENT | ({"CUDA_VISIBLE_DEVICES": gpus[rank]} if gpus else {})


def tail(log: Path) -> str:
    """Last 20 lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use; empty on a machine without one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = gpu_count()
    return [one.strip() for one in visible.split(",")][:count] if visible else [str(one) for one in range(count)]


def answers(folder: Path) -> Iterator[tuple[str, list[SampledText]]]:
    """(prompt hash, completions) of every whole line; half a line that a kill left is skipped."""
    for path in sorted(folder.glob("answers-*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                try:
                    row = json.loads(line)
                except ValueError:  # the half line of an earlier kill, and what came after it
                    continue
                yield row["key"], row["outputs"]


def read(
    prompt: Prompt, outputs: Sequence[SampledText], count: int, ends: Sequence[int], decode: Callable[..., str]
) -> Iterator[Candidate]:
    """One prompt's candidates as `sample.sample` gives them. Raises StagealignError if one did not end as it should."""
    if len(outputs) == 1 < count:
        outputs = [outputs[0]] * count
    if len(outputs) != count:
        raise StagealignError(f"prompt {prompt.hash}: vLLM gave {len(outputs)} completions of {count}; run again")
    for index, one in enumerate(outputs):
        if one["finish"] not in ("stop", "length"):
            raise StagealignError(f"prompt {prompt.hash}: vLLM ended a completion with {one['finish']!r}; run again")
        if one["logp"] is None or not math.isfinite(one["logp"]):
            raise BadNumbers(
                f"sampling: the policy's log-probs are not finite for prompt {prompt.hash}; look at its weights"
            )
        ended, ids = one["finish"] == "stop", tuple(one["ids"])
        if ended and ids and ids[-1] in ends:
            ids = ids[:-1]
        text = decode(list(ids), skip_special_tokens=True).strip()
        yield Candidate(prompt.text, text, "on", index, not ended, len(ids) + ended, ids, round(one["logp"], 3))
