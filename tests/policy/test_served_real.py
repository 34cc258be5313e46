"""A served policy behind a real `transformers serve` that dies in the middle and comes back."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from factory_policy import Counts, Real, cell_work

from stagealign.base.errors import StagealignError
from stagealign.data.records import Candidate, Prompt, read_rows
from stagealign.policy import lm, served_samples
from stagealign.policy import served as serving
from stagealign.store.home import default_home

pytestmark = pytest.mark.usefixtures("no_proxy")


def always_says(lm, letter):
    """`lm` with weights that make any conversation's answer this letter and no more: a table of next tokens."""
    import torch

    model, tokenizer = lm.model, lm.tokenizer
    (say,) = tokenizer(letter, add_special_tokens=False).input_ids
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        # The state after a token is its embedding: all tokens have one, `letter` another.
        model.get_input_embeddings().weight[:, 0] = 1.0
        model.get_input_embeddings().weight[say] = torch.eye(model.config.hidden_size)[1]
        model.get_output_embeddings().weight[say, 0] = 1.0
        model.get_output_embeddings().weight[model.config.eos_token_id, 1] = 1.0
    return lm


@pytest.fixture
def real(tmp_path):
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}; `pip install 'transformers[serving]'`")
    server = Real(tmp_path / "server.log").start()
    yield server
    server.kill()


@pytest.mark.slow
def test_a_real_server_that_dies_in_the_middle_and_comes_back(real, tmp_path, tiny):
    """Policy and judge behind `transformers serve`: killed and started again, every prompt is answered exactly once."""
    folders = {"policy": tiny(chat=True), "judge": always_says(tiny(chat=True, seed=1), "B")}
    for name, model in folders.items():
        lm.save(model, tmp_path / name)
    count, home = 24, tmp_path / "home"
    rows = [{"prompt": f"prompt {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(count)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    real.wait()
    command = [
        *(sys.executable, "-c", "from stagealign.cli.app import main; main()", "boundary", "--json", "-"),
        *("--policy", str(tmp_path / "policy"), "--policy-url", real.url, "--data", str(data)),
        *("--oracle", f"judge:{tmp_path / 'judge'}", "--judge-url", real.url, "--max-new-tokens", "24"),
    ]
    settings = os.environ | {"STAGEALIGN_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    try:
        wait_for_lines(home, "candidates.jsonl", 4, running)
        real.kill()
        before = len(keys(home, "candidates.jsonl"))
        assert 4 <= before < count, "the server was killed too late to be in the middle"
        real.start()
        out, err = running.communicate(timeout=100)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, err[-3000:]
    found = json.loads(out)
    assert (found["prompts_used"], found["failures"]) == (count, 0)
    for name in ("candidates.jsonl", "verdicts-*.jsonl"):
        kept = keys(home, name)
        assert len(kept) == len(set(kept)) == count
    # A judge that always says B prefers what comes second: with both orders every pair ties.
    assert found["caveats"]["changed_with_order"] == 1.0
    assert (found["boundary_score"], found["votes"]["ties"]) == (0.5, 4 * count)
    assert found["caveats"]["repeated_candidates"] < 0.05, (
        "the two completions of a prompt are samples, not one greedy text"
    )
    assert found["cost"]["sampled_tokens"] > 0
    assert found["cost"]["oracle_tokens"] > 0
    assert found["data"]["policy decodes with"] == "as asked"


def keys(home, name):
    """Prompt hashes that a kept file holds, a line that is being written left out."""
    lines = [line for path in home.glob(f"meter/*/{name}") for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line)["key"] for line in lines if line.endswith(b"\n")]


def wait_for_lines(home, name, count, running):
    deadline = time.monotonic() + 60
    while len(keys(home, name)) < count:
        assert running.poll() is None, running.stderr.read()[-3000:]
        assert time.monotonic() < deadline, "nothing was sampled"
        time.sleep(0.02)


def sampled_through_a_death(real, works, monkeypatch, seconds=60):
    """What building each work by a real server gives, which is killed in the middle of the first and started again.

    Facts by name, after every completion of every policy was answered exactly once.
    """
    monkeypatch.setattr(serving, "WORKERS", 2)
    done, died = {}, False

    def run(name, work):
        """Builds, and again where a busy machine's server comes back too late, as its user would."""
        for _ in range(5):
            try:
                done[name] = served_samples.build(work)
                return
            except StagealignError as error:
                print(error)

    for name, work in works.items():
        building = threading.Thread(target=run, args=(name, work))
        building.start()
        answers = work.out / "scratch" / "answers.jsonl"
        deadline = time.monotonic() + seconds
        while not (answers.exists() and len(answers.read_bytes().splitlines()) >= 4):
            assert building.is_alive(), "it ended before anything was kept"
            assert time.monotonic() < deadline, "nothing was sampled"
            time.sleep(0.02)
        if not died:
            real.kill()
            died = True
            asked = len(list(read_rows(work.inputs["prompts"] / "prompts.jsonl", Prompt)))
            assert len(answers.read_bytes().splitlines()) < asked, "the server was killed too late to be in the middle"
            real.start().wait(240)
        building.join(4 * seconds)
        assert not building.is_alive()
    return done


@pytest.fixture
def proxy(real):
    counting = Counts(real.url)
    threading.Thread(target=counting.serve_forever, args=(0.01,), daemon=True).start()
    yield counting
    counting.shutdown()
    counting.server_close()


@pytest.mark.slow
def test_a_cells_policies_from_a_real_server_that_dies_in_the_middle(real, proxy, tmp_path, tiny, monkeypatch):
    """Two policies by their folders, as one grid has them; every completion is answered exactly once."""
    real.wait(240)
    works = {}
    for seed in (0, 1):
        policy = tiny(chat=True, seed=seed)
        policy.model.generation_config.eos_token_id = list(range(0, 264, 12))
        works[seed] = cell_work(tmp_path / str(seed), proxy.url, policy, count=16)
    done = sampled_through_a_death(real, works, monkeypatch)
    samples = {key: count for key, count in proxy.answered.items() if key[1].startswith("prompt")}
    assert len(samples) == 2 * 16 * 2
    assert set(samples.values()) == {1}
    rows = {seed: read_rows(work.out / "candidates.jsonl", Candidate) for seed, work in works.items()}
    for seed in works:
        assert (done[seed]["candidates"], done[seed]["recounted"]) == (32, done[seed]["recounted"])
        assert {c.truncated for c in rows[seed]} == {True, False}, "the policy's own end tokens are heeded"
        assert len({c.completion for c in rows[seed]}) > 16, "two samples a prompt, not one greedy text"
    assert [c.completion for c in rows[0]] != [c.completion for c in rows[1]]


@pytest.mark.slow
def test_smollm2_from_a_real_server_that_dies_in_the_middle(real, proxy, tmp_path, monkeypatch):
    """The lab's own model, where its store has it: text that the sampler here could have written, each once."""
    folder = default_home() / "lab" / "smollm2"
    if not (folder / "record.json").exists():
        pytest.skip(f"{folder}: not there; `make demo` builds it")
    real.wait(240)
    work = cell_work(tmp_path, proxy.url, lm.load(folder), count=8, texts=("Describe film number",))
    done = sampled_through_a_death(real, {"smollm2": work}, monkeypatch, 240)
    samples = {key: count for key, count in proxy.answered.items() if key[1].startswith("Describe")}
    assert (len(samples), set(samples.values())) == (16, {1})
    assert done["smollm2"]["candidates"] == 16
    rows = list(read_rows(work.out / "candidates.jsonl", Candidate))
    assert sum(one.completion.isascii() and " " in one.completion for one in rows) > 12, "words, not noise"
