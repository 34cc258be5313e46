"""Samples by vLLM: what it is asked and how its answers are read, by a stand-in with its signatures and, where named,
by a real one: `STAGEALIGN_VLLM_PYTHON=/path/to/python pytest tests/policy/test_vllm.py`.
"""

import inspect
import json
import os
import stat
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from stagealign.base.errors import BadData, BadNumbers, CannotRun, StagealignError
from stagealign.base.identity import plain, stream
from stagealign.data.records import Candidate, Prompt, read_rows, write_rows
from stagealign.grid import registry, variants
from stagealign.grid.spec import Decoding, Engine
from stagealign.pipeline.rounds import plan_run
from stagealign.policy import lm, vllm_sample, vllm_worker
from stagealign.policy.sample import sample
from stagealign.store.artifact import Context, Devices, Work

ENDS = list(range(0, 264, 12))
DECODING = Decoding(temperature=0.7, top_p=0.9, top_k=50, max_new_tokens=12)
PROMPTS = [Prompt(f"Review the film {title}.", "train") for title in ("Jaws", "Heat", "The Piano", "Up", "Brazil")]
FAKE = '''
"""A stand-in with the signatures of vLLM 0.22 to 0.33, as far as they are used."""
import dataclasses, os, sys
__version__ = "0.30.0"

@dataclasses.dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self):
        assert self.n == 1 or self.temperature > 0, "n must be 1 when using greedy sampling"
        assert -(2**63) <= self.seed and self.seed + self.n < 2**63

@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: object
    finish_reason: str | None = None
    stop_reason: int | str | None = None

@dataclasses.dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]

class LLM:
    def __init__(self, model, *, tokenizer=None, skip_tokenizer_init=False, trust_remote_code=False, dtype="auto",
                 seed=0, enforce_eager=False, **kwargs):
        known = {"max_model_len", "enable_prefix_caching", "generation_config", "logprobs_mode"}
        assert set(kwargs) <= known, kwargs
        assert skip_tokenizer_init and os.path.isdir(model)
        self.limit, self.calls = kwargs["max_model_len"], 0

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        assert len(prompts) == len(sampling_params)
        self.calls += 1
        if os.environ.get("FAKE_DIES") == str(self.calls):
            sys.exit("out of memory, says the stand-in")
        outputs = []
        for prompt, params in zip(prompts, sampling_params):
            ids = prompt["prompt_token_ids"]
            assert len(ids) + params.max_tokens <= self.limit and params.logprobs == 0 and not params.detokenize
            texts = []
            for j in range(params.n):
                chance = params.seed + j
                end = params.stop_token_ids[chance % len(params.stop_token_ids)]
                length = chance % (params.max_tokens + 1)  # so long that there is no room for the end: cut
                tokens = [1 + (chance + k) % 10 for k in range(length)]
                cut = length == params.max_tokens
                texts.append(CompletionOutput(j, "", tokens if cut else [*tokens, end], -0.5 * (length + 1), None,
                                              "length" if cut else "stop", None if cut else end))
            outputs.append(RequestOutput(list(ids), texts[::-1]))
        return outputs
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An interpreter that has the stand-in: a folder with it, and a Python that looks there."""
    site = tmp_path / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text(FAKE)
    facts = site / "vllm-0.30.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n")
    (facts / "top_level.txt").write_text("vllm\n")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nshift\nPYTHONPATH={site} exec {sys.executable} -P "$@"\n'  # without -I, which hides the folder
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(vllm_sample.PYTHON, str(python))
    monkeypatch.setattr(vllm_sample, "gpu_count", lambda: 16)
    monkeypatch.setattr(vllm_sample, "CHUNK", 2)
    return site


@pytest.fixture
def work(tmp_path, tiny):
    """Factory of the work of sampling a tiny policy on PROMPTS; its heads are as wide as vLLM's attention needs."""
    model = tiny(chat=True)
    config = model.model.config
    config.head_dim = 64
    torch.manual_seed(0)
    model = replace(model, model=AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    model.model.generation_config.eos_token_id = ENDS
    lm.save(model, tmp_path / "policy")
    (tmp_path / "prompts").mkdir()
    write_rows(tmp_path / "prompts" / "prompts.jsonl", [*PROMPTS, PROMPTS[0], Prompt("Not asked", "test")])

    def build(name="out", count=3, processes=1, decoding=DECODING):
        (tmp_path / name).mkdir(exist_ok=True)
        params = {
            "engine": plain(vllm_sample.engine()),
            "decoding": plain(decoding),
            "count": count,
            "splits": ["train"],
            "seed": 5,
            "dtype": "float32",
        }
        inputs = {"policy": tmp_path / "policy", "prompts": tmp_path / "prompts"}
        return Work(params, inputs, tmp_path / name, tmp_path, Context(Devices(processes)))

    return build


def rows_of(work):
    return read_rows(work.out / "candidates.jsonl", Candidate)


def test_candidates_are_as_our_own_sampler_gives_them(fake, work):
    """By hand: a completion's seed is its prompt's plus its index, and the stand-in's text follows from the seed."""
    one = work()
    facts = vllm_sample.build(one)
    shape = lm.load_shape(one.inputs["policy"])
    assert lm.end_ids(shape) == ENDS
    found = rows_of(one)
    assert [(c.prompt, c.index, c.source) for c in found] == [(p.text, j, "on") for p in PROMPTS for j in range(3)]
    for candidate, prompt in zip(found, [p for p in PROMPTS for _ in range(3)], strict=True):
        chance = (stream(5, "sample", prompt.hash) >> 1) + candidate.index
        length = chance % 13
        assert candidate.token_ids == tuple(1 + (chance + k) % 10 for k in range(length))
        assert candidate.truncated == (length == 12)
        assert candidate.tokens == length + (not candidate.truncated)
        assert candidate.logp == -0.5 * (length + 1)
        text = shape.tokenizer.decode(list(candidate.token_ids), skip_special_tokens=True)
        assert candidate.completion == text.strip()
    assert {c.truncated for c in found} == {True, False}, "the stand-in shows both ends"
    assert facts == {
        "candidates": 15,
        "tokens": sum(c.tokens for c in found),
        "truncated": sum(c.truncated for c in found),
        "empty": sum(not c.completion for c in found),
        "kept": 0,
    }


def test_processes_share_the_prompts_and_give_the_same(fake, work):
    one, two, many = work("one"), work("two", processes=2), work("many", processes=9)
    for each in (one, two, many):
        vllm_sample.build(each)
    assert rows_of(one) == rows_of(two) == rows_of(many)
    jobs = [json.loads((two.out / f"scratch/vllm/work-{rank}.json").read_text()) for rank in (0, 1)]
    assert sorted(len(job["rows"]) for job in jobs) == [2, 3]
    assert {row["key"] for job in jobs for row in job["rows"]} == {prompt.hash for prompt in PROMPTS}


def test_a_gpu_a_process(monkeypatch):
    monkeypatch.setattr(vllm_sample, "gpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert vllm_sample._gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert vllm_sample._gpus() == ["3", "5"]


def test_work_is_dealt_out_by_length():
    rows = [{"key": str(i), "ids": [0] * i} for i in (5, 1, 4, 2, 3)]
    dealt = [[len(row["ids"]) for row in part] for part in vllm_sample.shares(rows, 2)]
    assert dealt == [[5, 3, 1], [4, 2]]
    assert len(vllm_sample.shares(rows, 9)) == 5


def test_what_a_dead_process_answered_is_not_asked_again(fake, work, monkeypatch):
    one, whole = work(), work("whole")
    monkeypatch.setenv("FAKE_DIES", "2")
    with pytest.raises(
        StagealignError, match=r"vLLM: ended with 1; what it answered is kept(.|\n)*out of memory, says"
    ):
        vllm_sample.build(one)
    answers = one.out / "scratch" / "vllm" / "answers-0.jsonl"
    assert len(answers.read_text().splitlines()) == 2
    answers.write_text(answers.read_text() + '{"key": "ab", "outp')  # half a line, as a kill leaves it
    monkeypatch.delenv("FAKE_DIES")
    assert vllm_sample.build(one)["kept"] == 2
    asked = json.loads((one.out / "scratch/vllm/work-0.json").read_text())["rows"]
    assert len(asked) == 3
    vllm_sample.build(whole)
    assert rows_of(one) == rows_of(whole)


def test_vllm_is_told_the_whole_decoding():
    """A field that is added to the decoding must reach vLLM too."""
    decoding = Decoding(0.7, 0.9, 40, 64, presence_penalty=0.1, frequency_penalty=0.2)
    told = vllm_sample.wishes(decoding, 2, [7])
    names = {"max_new_tokens": "max_tokens"}
    assert {name: told[names.get(name, name)] for name in asdict(decoding)} == asdict(decoding)


def test_greedy_completions_are_one_and_the_same(fake, work):
    one = work(decoding=replace(DECODING, temperature=0.0))
    vllm_sample.build(one)
    found = rows_of(one)
    assert [c.index for c in found[:3]] == [0, 1, 2]
    assert len({c.token_ids for c in found[:3]}) == 1


def test_a_prompt_beyond_the_context_is_refused_before_vllm_starts(fake, work):
    one = work(decoding=replace(DECODING, max_new_tokens=500))
    with pytest.raises(BadData, match=r"a prompt of \d+ tokens and 500 new ones: the context is 512"):
        vllm_sample.build(one)
    assert not (one.out / "scratch").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"finish": "abort"}, StagealignError, "ended a completion with 'abort'"),
        ({"logp": float("nan")}, BadNumbers, "not finite for prompt"),
        ({"logp": None}, BadNumbers, "not finite for prompt"),
    ],
)
def test_what_is_no_completion_is_refused(change, error, words):
    good = {"ids": [1, 0], "finish": "stop", "logp": -1.0}
    with pytest.raises(error, match=words):
        list(vllm_sample.read(PROMPTS[0], [good, good | change], 2, ENDS, lambda ids, **_: ""))
    with pytest.raises(StagealignError, match="2 completions of 3"):
        list(vllm_sample.read(PROMPTS[0], [good, good], 3, ENDS, lambda ids, **_: ""))


def test_an_answer_to_other_token_ids_is_no_answer():
    output = type("RequestOutput", (), {"prompt_token_ids": [1, 2], "outputs": []})
    with pytest.raises(ValueError, match="read other token ids"):
        vllm_worker.answer({"key": "k", "ids": [1, 3]}, output)


def test_version_and_settings_are_identity(fake, monkeypatch):
    engine = vllm_sample.engine()
    assert (engine.key, engine.version) == ("vllm", "0.30.0")
    assert engine.settings == vllm_sample.SETTINGS
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert vllm_sample.engine().settings == {**vllm_sample.SETTINGS, "batch_invariant": True}
    ours = plan_run(registry.cell("zephyr-dpo-2off_on"), 0).artifacts
    (cell,) = variants.sampled_by([registry.cell("zephyr-dpo-2off_on")], engine)
    assert cell.id == "zephyr-dpo_vllm-2off_on"
    theirs = plan_run(cell, 0).artifacts
    sampled = [a for a in theirs.values() if "engine" in a.params]
    assert {a.path.rpartition("/")[2] for a in sampled} == {"candidates", "completions"}
    assert all(a.kind.name == "stagealign.vllm_sample:build" for a in sampled)
    assert not {a.path for a in sampled} & set(ours), "what two engines sampled never stands at one path"
    shared = set(ours) & set(theirs)
    assert all(ours[path].fingerprint == theirs[path].fingerprint for path in shared)
    assert any("/1off/" in path and path.endswith("/policy") for path in shared), "off-policy rounds are the same ones"
    (other,) = variants.sampled_by([registry.cell("zephyr-dpo-2off_on")], replace(engine, version="0.31.0"))
    again = plan_run(other, 0).artifacts
    assert all(again[a.path].fingerprint != a.fingerprint for a in sampled)


def test_another_version_than_planned_is_refused(fake, work):
    one = work()
    one.params["engine"]["version"] = "0.29.0"
    with pytest.raises(CannotRun, match=r"vLLM 0\.30\.0 is here, planned was 0\.29\.0"):
        vllm_sample.build(one)


def test_what_is_absent_is_named_before_work(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_sample, "gpu_count", lambda: 0)
    with pytest.raises(CannotRun, match="no GPU was found"):
        vllm_sample.engine()
    monkeypatch.setattr(vllm_sample, "_installed", lambda: {"name": "vllm", "version": "0.40.1"})
    with pytest.raises(CannotRun, match=r"vLLM 0\.40\.1 is installed; versions 0\.22 to 0\.33 are known"):
        vllm_sample.engine()
    monkeypatch.undo()
    monkeypatch.setenv(vllm_sample.PYTHON, str(tmp_path / "none"))
    with pytest.raises(CannotRun, match=r"STAGEALIGN_VLLM_PYTHON.*cannot be run"):
        vllm_sample.engine()
    monkeypatch.setenv(vllm_sample.PYTHON, sys.executable)
    if vllm_worker.installed() is None:  # as in CI
        with pytest.raises(CannotRun, match=r"vLLM is not installed; `pip install 'stagealign\[vllm\]'`"):
            vllm_sample.engine()


def test_the_worker_needs_nothing_of_this_package():
    source = inspect.getsource(vllm_worker)
    assert "stagealign" not in source
    code = f"import runpy; runpy.run_path({vllm_worker.__file__!r})"
    subprocess.run([sys.executable, "-S", "-I", "-c", code], check=True)  # no package of this environment either


REAL = textwrap.dedent("""
    import inspect, json, vllm
    print(json.dumps([list(inspect.signature(vllm.LLM.__init__).parameters),
                      list(inspect.signature(vllm.SamplingParams).parameters)]))
""")


@pytest.mark.slow
def test_a_real_vllm(work, tiny, tmp_path, monkeypatch):
    """Greedy it writes what our sampler writes, with its log-probs; sampled, its log-probs are those of its tokens."""
    python = os.environ.get(vllm_sample.PYTHON)
    if not python:
        pytest.skip(f"{vllm_sample.PYTHON} names no Python with vLLM")
    monkeypatch.setattr(vllm_sample, "SETTINGS", {**vllm_sample.SETTINGS, "enforce_eager": True})
    done = subprocess.run([python, "-c", REAL], capture_output=True, text=True, check=True)
    engine, wishes = json.loads(done.stdout.splitlines()[-1])
    assert set(vllm_sample.wishes(DECODING, 2, [0])) | {"seed"} <= set(wishes)
    assert {"model", "dtype", "seed", "skip_tokenizer_init", "kwargs"} <= set(engine)
    greedy, sampled = work("greedy", decoding=replace(DECODING, temperature=0.0)), work("sampled", processes=2)
    vllm_sample.build(greedy)
    model = lm.load(greedy.inputs["policy"])
    ours = sample(model, PROMPTS, replace(DECODING, temperature=0.0), 3, seed=5)
    for found, expected in zip(rows_of(greedy), ours, strict=True):
        assert found == replace(expected, logp=found.logp)
        assert found.logp == pytest.approx(expected.logp, abs=5e-3)
    vllm_sample.build(sampled)
    rows = rows_of(sampled)
    assert {c.truncated for c in rows} == {True, False}
    assert len({c.token_ids for c in rows}) > len(PROMPTS), "candidates of a prompt are draws of their own"
    check_logps(model, rows)


def check_logps(model, rows):
    for one in rows:
        prompt = model.prompt_ids(one.prompt)
        assert not set(one.token_ids) & set(ENDS)
        with torch.no_grad():
            logps = model.model(torch.tensor([[*prompt, *one.token_ids]])).logits[0].log_softmax(-1)
        scored = sum(float(logps[len(prompt) - 1 + k, token]) for k, token in enumerate(one.token_ids))
        ends = [scored] if one.truncated else [scored + float(logps[-1, end]) for end in ENDS]
        assert any(one.logp == pytest.approx(end, abs=5e-3) for end in ends), "the end token's log-prob is counted"


def test_the_engine_is_plain_values():
    assert plain(Engine("vllm", "1", {"a": True})) == {"key": "vllm", "version": "1", "settings": {"a": True}}
