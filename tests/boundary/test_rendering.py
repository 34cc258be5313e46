"""Prompts that the policy's context cannot hold: failures by name, and caps that the measurement says."""

import json
from typing import ClassVar

import pytest

from stagealign.base.errors import BadData
from stagealign.boundary.measure import measure_boundary
from stagealign.grid.spec import Decoding
from stagealign.policy import lm
from stagealign.report.pages.meter import careful, caveat_rows
from stagealign.scoring.contest import Judged

CONTEXT = 64
LONG = "word " * 40


class Longest:
    """An oracle that likes long texts."""

    identity: ClassVar = {"kind": "longest"}

    def judge(self, contests):
        return (Judged(*(tuple(float(len(text)) for text in side) for side in (one.on, one.off))) for one in contests)


@pytest.fixture
def measured(tmp_path, tiny, monkeypatch):
    """Factory of measurements of a tiny policy of context 64 on bytes, with this many prompts and long ones."""
    policy = tiny()
    policy.model.config.max_position_embeddings = CONTEXT
    lm.save(policy, tmp_path / "policy")
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("stagealign.boundary.measure.open_oracle", lambda *_: Longest())

    def measure(prompts, tokens=8, **options):
        rows = [{"prompt": prompt, "chosen": "a good answer", "rejected": "bad"} for prompt in prompts]
        data = tmp_path / "pairs.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        decoding = Decoding(max_new_tokens=tokens)
        return measure_boundary(
            str(tmp_path / "policy"), str(data), oracle="reward:longest", decoding=decoding, template="none", **options
        )

    return measure


@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_long_prompt_is_a_failure_by_name_and_the_others_are_measured(place, measured):
    short = [f"Review number {i}." for i in range(4)]
    found = measured([*short[:place], LONG, *short[place:]])
    assert (found.prompts_used, found.failures) == (4, 1)
    assert found.failure.startswith("the policy cannot read the prompt: prompt 'word word")
    assert f"its {len(LONG.strip()) + LONG.endswith(' ')} tokens fill the policy's context of 64" in found.failure
    assert found.boundary_score == measured(short).boundary_score, "no text depends on it"


def test_nothing_but_long_prompts_is_an_error_that_names_the_first(measured):
    with pytest.raises(BadData, match="fill the policy's context of 64"):
        measured([LONG, LONG + "!"])


@pytest.mark.parametrize("kept", [True, False])
def test_capped_completions_are_counted_and_said(kept, measured):
    """Two prompts of 17 bytes leave 47 tokens and one of 45 leaves 19, where 30 are asked for."""
    prompts = ["Review number 1.!", "Review number 2.!", "Review number 3, which is a longer one than it.."]
    found = [measured(prompts, tokens=30, keep=kept) for _ in range(2)][-1]
    assert found.caveats["capped_by_context"] == pytest.approx(1 / 3, abs=1e-3)
    assert any("33% of the policy's completions had fewer new tokens than asked for" in line for line in careful(found))
    assert ("capped by context", "33.3%") in caveat_rows(found)
    free = measured(prompts, tokens=8, keep=kept)
    assert free.caveats["capped_by_context"] == 0
    assert not any("fewer new tokens" in line for line in careful(free))
