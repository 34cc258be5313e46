"""The paper's scale cut down: data from local files, tiny random weights, and the official judge on the loopback."""

import json
import re
from dataclasses import replace

import pytest
from factory_paper import KEY, PROMPTS, WORDS, chat, preferences

from stagealign.data import mirrors
from stagealign.grid import models, scales
from stagealign.grid.spec import Evaluation


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Local copies of UltraFeedback, UltraChat and AlpacaEval, small, with the columns of the published files."""
    folder = tmp_path / "mirror"
    files = {
        "ultrafeedback_binarized/train_prefs": preferences(8, "today"),
        "ultrafeedback_binarized/test_prefs": preferences(4, "tomorrow"),
        "ultrachat_200k/train_sft": [{"messages": chat(f"Say {word}.", word)} for word in WORDS],
    }
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "alpaca_eval").mkdir()
    baseline = [
        {
            "instruction": f"Task {i}: what is a {WORDS[i]}?",
            "output": f"A {WORDS[i]}. " * (1 + i % 3),
            "generator": "gpt4",
            "prompt_index": i,
        }
        for i in range(PROMPTS)
    ]
    (folder / "alpaca_eval/alpaca_eval_gpt4_baseline.json").write_text(json.dumps(baseline), encoding="utf-8")
    hard = "".join(f"{i},{(-1) ** i * i / 10}\n" for i in range(PROMPTS))
    (folder / "alpaca_eval/instruction_difficulty.csv").write_text(f",instruction_difficulty\n{hard}", encoding="utf-8")
    monkeypatch.setenv(mirrors.MIRROR, str(folder))
    return folder


@pytest.fixture
def judge(monkeypatch):
    """The official judge's API on the loopback: it prefers the longer text a little."""
    import threading

    from factory_judge import Judge

    class Grader(Judge):
        refuses = ""

        def answer(self, request):
            text = request["messages"][-1]["content"]
            first, second = (len(one) for one in re.findall(r'"output": """(.*?)"""', text, re.DOTALL)[:2])
            gap = 0.2 * (first > second) - 0.2 * (first < second)
            top = [{"token": t, "logprob": -0.9 + s * gap, "bytes": None} for t, s in (("m", 1), ("M", -1))]
            content = [{"token": "m", "logprob": -0.7, "bytes": None, "top_logprobs": top}]
            message = {"role": "assistant", "content": "nonsense" if self.refuses and self.refuses in text else "m"}
            logprobs = {"content": [] if message["content"] == "nonsense" else content}
            choice = {"index": 0, "finish_reason": "length", "message": message, "logprobs": logprobs}
            usage = {"prompt_tokens": 400, "completion_tokens": 1, "total_tokens": 401}
            return {"model": "gpt-4-1106-preview", "choices": [choice], "usage": usage}

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Grader() as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", one.url)
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def paper(tmp_path, monkeypatch, mirror, tiny):
    """The registry's paper scale with its sizes cut down, and the hub's answer to `snapshot_download`."""
    from factory_pairrm import build as tiny_pairrm

    real = scales.SCALES["paper"]
    oracle = tiny_pairrm()
    for part in (oracle.model, oracle.tokenizer):
        part.save_pretrained(tmp_path / "pairrm")
    policy = tiny(chat=True)
    commit = tmp_path / "hub" / ("a" * 40)
    policy.model.save_pretrained(commit)
    policy.tokenizer.save_pretrained(commit)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(commit))
    short = replace(real.decoding, max_new_tokens=5)
    judging = real.evaluation.judging
    small = replace(
        real,
        decoding=short,
        training=replace(real.training, pairs=8, batch=4, max_length=96),
        evaluation=Evaluation(
            0, 4, judging=replace(judging, prompts=PROMPTS, decoding=replace(judging.decoding, max_new_tokens=6))
        ),
        oracle_weights=str(tmp_path / "pairrm"),
        parts=2,
    )
    monkeypatch.setitem(scales.SCALES, "paper", small)
    sft = replace(models.CHECKPOINTS["paper"]["phi2"].sft, rows=8, batch=4, max_length=96)
    own = models.CHECKPOINTS["paper"] | {"phi2": replace(models.CHECKPOINTS["paper"]["phi2"], sft=sft)}
    monkeypatch.setitem(models.CHECKPOINTS, "paper", own)
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    return small
