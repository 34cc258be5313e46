"""Sampling by vLLM (extra `vllm`): one request per prompt for all its candidates, one process per GPU, `LLM` API.

Token ids, end tokens, truncation and text follow the rules of `sample.py`: vLLM gets prompts as token ids and the end
tokens, but no tokenizer. Only the random draws differ. With or without a seed, samples depend on the rest of the batch,
the GPU and the version of vLLM, so a second run may sample other texts. Version and settings are part of identity.

vLLM refuses `LLM(data_parallel_size=N)` since 0.11.1, so each GPU has an independent process with its own prompts
(`vllm_worker`). Answers are kept chunk by chunk; a killed build continues from there.

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
"""Environment variable: path of the Python of another environment with vLLM, if it cannot be installed in this one."""
AnswersByKey = Mapping[str, list[SampledText]]
"""Completions by prompt hash."""
WORKER = Path(__file__).with_name("vllm_worker.py")
OLDEST, NEWEST = (0, 22), (0, 33)
"""Accepted versions. 0.31 was run; of the others, only the documented signatures were checked."""
CHUNK = 1024
"""Prompts of one process between two writes; execution, not identity."""
SETTINGS: Mapping[str, object] = {
    "enable_prefix_caching": True,
    "enforce_eager": False,
    "generation_config": "vllm",  # the checkpoint's own decoding is ignored, as the spec sets it
    "logprobs_mode": "raw_logprobs",  # at temperature 1, over the whole vocabulary
    "skip_tokenizer_init": True,
    "trust_remote_code": False,
}
"""Arguments of `LLM` besides model, dtype, length and seed; part of identity."""


def engine(url: str | None = None, decoding: Decoding | None = None, home: Path | None = None) -> Engine:
    """The vLLM of this machine: version, and settings that can change a sample.

    The arguments are unused; every engine of `grid.samplers.SAMPLERS` has this signature.

    Raises CannotRun if vLLM is not installed, has an unknown version, or has no GPU to run on.
    """
    installed = _installed()
    name, version = installed["name"], installed["version"]
    known = f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}"
    if not OLDEST <= _numbers(version) <= NEWEST:
        raise CannotRun(f"--sampler vllm: vLLM {version} is installed; versions {known} are known; install one of them")
    if not gpu_count() and "cpu" not in f"{name} {version}":
        raise CannotRun("--sampler vllm: no GPU was found (`nvidia-smi`); leave the option out to sample on the CPU")
    invariant = {"batch_invariant": True} if os.environ.get("VLLM_BATCH_INVARIANT") == "1" else {}
    return Engine("vllm", version if name == "vllm" else f"{version} ({name})", {**SETTINGS, **invariant})


def _installed() -> dict[str, str]:
    """Name and version of the distribution that has vLLM. Raises CannotRun if there is none."""
    words = [python(), "-I", str(WORKER), "--installed"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        raise CannotRun(f"{PYTHON}={words[0]!r}: cannot be run ({''.join(said)}); name a Python with vLLM") from error
    distribution: dict[str, str] | None = json.loads(done.stdout)
    if distribution is None:
        raise CannotRun(
            f"--sampler vllm: vLLM is not installed; `pip install 'stagealign[vllm]'`, or name the Python of another "
            f"environment that has it: {PYTHON}=/path/to/bin/python"
        )
    return distribution


def python() -> str:
    """Path of the Python that has vLLM: the value of `PYTHON`, else the Python of this process."""
    return os.environ.get(PYTHON) or sys.executable


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def build(work: Work) -> Facts:
    """Builder of `candidates` by vLLM: a policy's samples for the prompts of a file; caps and facts as in `sample`."""
    from stagealign.policy import lm
    from stagealign.policy.context import fitting

    _check_planned(work)
    shape = lm.load_shape(work.inputs["policy"])
    lm.check_ends(shape, str(work.inputs["policy"]))
    prompts = asked_prompts(work.inputs["prompts"], work.params["splits"], work.params.get("part"))
    ids = {prompt.hash: shape.prompt_ids(prompt.text) for prompt in prompts}
    decoding, count, ends = Decoding(**work.params["decoding"]), work.params["count"], lm.end_ids(shape)
    rooms = fitting(shape, ids, decoding, str(work.inputs["prompts"]), "part" in work.params)
    folder = work.out / SCRATCH / "vllm"
    folder.mkdir(parents=True, exist_ok=True)
    kept = dict(answers(folder))
    rows: list[AskedRow] = [
        {"key": key, "ids": ids[key], "seed": stream(work.params["seed"], "sample", key) >> 1, "most": most}
        for key, most in rooms.most.items()
        if key not in kept
    ]
    if rows:
        length, sampling = max(map(longest, rows)), wishes(decoding, count, ends)
        description = described(work.inputs["policy"], work.params["dtype"], length, sampling)
        _run(description, rows, folder, work.context.devices.count)
    outputs, decode = dict(answers(folder)), shape.tokenizer.decode
    fitted = [prompt for prompt in prompts if prompt.hash in rooms.most]
    candidates = [
        candidate for prompt in fitted for candidate in read(prompt, outputs[prompt.hash], count, ends, decode)
    ]
    write_rows(work.out / "candidates.jsonl", candidates)
    return {**sampled_facts(candidates), **rooms.facts, "kept": len(kept)}


def longest(row: AskedRow) -> int:
    """Most tokens of a prompt with its completion."""
    return len(row["ids"]) + row["most"]


def _check_planned(work: Work) -> None:
    """Raises CannotRun if version or settings of vLLM differ from those of the plan."""
    now, planned = engine(), work.params["engine"]
    if (now.version, now.settings) != (planned["version"], planned["settings"]):
        raise CannotRun(
            f"vLLM {now.version} is here, planned was {planned['version']} or other settings; run again to plan with it"
        )


def described(model: Path, dtype: str, length: int, sampling: Mapping[str, object]) -> Mapping[str, object]:
    """Work description without prompts; `length`: most tokens of a prompt with its completion."""
    llm = {"model": str(model), "dtype": dtype, "max_model_len": length, "seed": 0, **SETTINGS}
    return {"llm": llm, "sampling": sampling, "chunk": CHUNK}


def wishes(decoding: Decoding, count: int, ends: Sequence[int]) -> Mapping[str, object]:
    """Arguments of `SamplingParams` but a prompt's seed and cap; greedy decoding has one completion, vLLM's limit."""
    return {
        "n": count if decoding.temperature > 0 else 1,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "presence_penalty": decoding.presence_penalty,
        "frequency_penalty": decoding.frequency_penalty,
        "max_tokens": decoding.max_new_tokens,
        "stop_token_ids": list(ends),
        "logprobs": 0,  # log-prob of the sampled token only
        "detokenize": False,
    }


def shares(rows: Sequence[AskedRow], processes: int) -> list[list[AskedRow]]:
    """Prompts of each process, dealt by length so that all processes have similar work."""
    order = sorted(rows, key=lambda row: (-len(row["ids"]), row["key"]))
    return [part for part in (order[rank::processes] for rank in range(processes)) if part]


def _run(description: Mapping[str, object], rows: Sequence[AskedRow], folder: Path, processes: int) -> None:
    """Answers the prompts in `processes` processes, one per GPU. Raises StagealignError with the log of a failure."""
    jobs = []
    for rank, part in enumerate(shares(rows, processes)):
        file, out = folder / f"work-{rank}.json", folder / f"answers-{rank}.jsonl"
        file.write_text(json.dumps({**description, "rows": part, "out": str(out)}), encoding="utf-8")
        jobs.append(Job([python(), "-I", str(WORKER), str(file)], environment(rank), folder / f"log-{rank}"))
    for job, code in zip(jobs, run_all(jobs), strict=True):
        if code > 0:
            raise StagealignError(
                f"vLLM: ended with {code}; its answers so far are kept. The end of {job.log}:\n{tail(job.log)}"
            )
    lacking = {row["key"] for row in rows} - dict(answers(folder)).keys()
    if lacking:
        raise StagealignError(f"vLLM: {len(lacking)} of {len(rows)} prompts have no answer; run the same command again")


ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # makes scheduling deterministic
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def environment(rank: int) -> dict[str, str]:
    """Environment variables of process `rank`, which sees one GPU if the machine has any."""
    gpus = _gpus()
    return os.environ | ENVIRONMENT | ({"CUDA_VISIBLE_DEVICES": gpus[rank]} if gpus else {})


def tail(log: Path) -> str:
    """Last 20 lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use; empty if there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = gpu_count()
    return [gpu.strip() for gpu in visible.split(",")][:count] if visible else [str(gpu) for gpu in range(count)]


def answers(folder: Path) -> Iterator[tuple[str, list[SampledText]]]:
    """Yields (prompt hash, completions) of every complete line; skips a line that a kill left incomplete."""
    for path in sorted(folder.glob("answers-*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                try:
                    row = json.loads(line)
                except ValueError:  # an incomplete line of an earlier kill, joined with later text
                    continue
                yield row["key"], row["outputs"]


def read(
    prompt: Prompt, outputs: Sequence[SampledText], count: int, ends: Sequence[int], decode: Callable[..., str]
) -> Iterator[Candidate]:
    """Yields one prompt's candidates as in `sample.sample`. Raises StagealignError for an unknown finish reason."""
    if len(outputs) == 1 < count:
        outputs = [outputs[0]] * count
    if len(outputs) != count:
        raise StagealignError(f"prompt {prompt.hash}: vLLM gave {len(outputs)} completions of {count}; run again")
    for index, output in enumerate(outputs):
        if output["finish"] not in ("stop", "length"):
            raise StagealignError(f"prompt {prompt.hash}: vLLM ended a completion with {output['finish']!r}; run again")
        if output["logp"] is None or not math.isfinite(output["logp"]):
            raise BadNumbers(
                f"sampling: the policy's log-probs are not finite for prompt {prompt.hash}; look at its weights"
            )
        ended, ids = output["finish"] == "stop", tuple(output["ids"])
        end = ids[-1] if ended and ids and ids[-1] in ends else None
        ids = ids if end is None else ids[:-1]
        text = decode(list(ids), skip_special_tokens=True).strip()
        logp = round(output["logp"], 3)
        yield Candidate(prompt.text, text, "on", index, not ended, len(ids) + ended, ids, logp, end)
