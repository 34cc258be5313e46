"""vLLM as the meter's sampler, by the stand-in: one process for all batches, and an identity of its own."""

import json
from typing import ClassVar

import pytest
from factory_models import CHAT
from factory_vllm import DECODING

from stagealign.base.errors import StagealignError
from stagealign.base.identity import stream
from stagealign.boundary.measure import measure_boundary
from stagealign.data.records import Prompt
from stagealign.policy import lm, vllm_process
from stagealign.scoring.contest import Judged


def test_vllm_serves_the_meter_and_its_version_is_identity(fake, work, tmp_path, monkeypatch):
    """One process for all batches; samples are kept by engine, and another version's are not used."""
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    policy = str(work().inputs["policy"])
    rows = [{"prompt": f"Review {i}.", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = []
    start = vllm_process.Writer._started
    monkeypatch.setattr(vllm_process.Writer, "_started", lambda self, log: started.append(log) or start(self, log))
    monkeypatch.setattr("stagealign.boundary.measure.open_oracle", lambda *_: Longest())
    options = {"oracle": "reward:longest", "sampler": "vllm", "decide": 0.9999999, "decoding": DECODING}
    found = measure_boundary(policy, str(data), **options)
    assert (found.prompts_used, found.failures, len(started)) == (40, 0, 1)
    assert (found.request["sampler"], found.data["policy sampled by"]) == ("vllm", "vllm 0.30.0")
    chance = stream(0, "sample", Prompt("Review 7.", "").hash) >> 1
    row = next(one for one in kept_rows(tmp_path) if one["key"] == Prompt("Review 7.", "").hash)
    shape = lm.load_shape(policy)
    ids = [[1 + (chance + j + k) % 10 for k in range((chance + j) % 13)] for j in range(2)]
    assert row["completions"] == [shape.tokenizer.decode(one, skip_special_tokens=True).strip() for one in ids]
    assert row["tokens"] == sum(len(one) + (len(one) < 12) for one in ids)
    again = measure_boundary(policy, str(data), **options)
    assert again.boundary_score == found.boundary_score
    assert again.cost["this_call"]["sampled_tokens"] == 0
    facts = fake / "vllm-0.30.0.dist-info" / "METADATA"
    facts.write_text(facts.read_text().replace("0.30.0", "0.31.0"))
    assert measure_boundary(policy, str(data), **options).cost["this_call"]["sampled_tokens"] > 0


def test_a_prompt_that_is_refused_or_too_long_is_a_failure_of_its_own(fake, work, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    folder = work().inputs["policy"]
    refuses = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(CHAT + refuses)
    prompts = ["no", "long " * 200, *(f"Review {i}." for i in range(6))]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"prompt": p, "chosen": "good", "rejected": "bad"}) + "\n" for p in prompts))
    monkeypatch.setattr("stagealign.boundary.measure.open_oracle", lambda *_: Longest())
    found = measure_boundary(str(folder), str(data), oracle="reward:longest", sampler="vllm", decoding=DECODING)
    assert (found.prompts_used, found.failures) == (6, 2)
    reasons = {prompt["prompt"]: prompt["reason"] for prompt in found.failed_prompts}
    assert "the chat template refuses the conversation (not this)" in reasons["no"]
    assert "context of 512" in reasons[("long " * 200)[:80]]


def test_a_process_of_the_meter_that_dies_says_why(fake, work, monkeypatch):
    folder = work().inputs["policy"]
    writer = vllm_process.Writer(lm.load_shape(folder), folder, DECODING, 2)
    monkeypatch.setenv("FAKE_DIES", "1")
    prompts = [vllm_process.TokenPrompt("a", "A.", [1, 2])]
    with pytest.raises(StagealignError, match=r"vLLM: ended with 1\. The end of its log:\n(.|\n)*out of memory, says"):
        list(writer.write(prompts, 0))
    monkeypatch.delenv("FAKE_DIES")
    short = list(writer.write(prompts, 0))
    long = list(writer.write([vllm_process.TokenPrompt("b", "B.", [1] * 60)], 0))
    assert [len(group) for group in (*short, *long)] == [2, 2], "a longer prompt has a process with room for it"
    writer.close()


class Longest:
    """An oracle that likes long texts."""

    identity: ClassVar = {"kind": "longest"}

    def judge(self, contests):
        return (Judged(*(tuple(float(len(text)) for text in side) for side in (one.on, one.off))) for one in contests)


def kept_rows(folder):
    (path,) = (folder / "home" / "meter").glob("*/candidates.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]
