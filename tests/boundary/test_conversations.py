"""Conversations, refused rows and reasoning in the meter: one conversation for policy and oracle, nothing lost."""

import json
from dataclasses import asdict

import pytest
from factory_models import CHAT
from typer.testing import CliRunner

from stagealign.base.errors import BadData, StagealignError
from stagealign.boundary.measure import measure_boundary
from stagealign.boundary.open_policy import open_policy
from stagealign.boundary.prompts import MeterPrompts
from stagealign.boundary.rendering import renderer
from stagealign.boundary.request import BoundaryRequest
from stagealign.boundary.sampling import MeterPrompt, SampledPrompt
from stagealign.boundary.to_judge import write_pairs
from stagealign.cli.app import app
from stagealign.data.preferences import PreferenceRow
from stagealign.grid.spec import Decoding
from stagealign.report.pages.meter import careful, fact_rows
from stagealign.scoring.contest import Judged

SHORT = Decoding(max_new_tokens=6)
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
HH = "\n\nHuman: Hi {}\n\nAssistant: Yes?\n\nHuman: Go on\n\nAssistant:"


class Longest:
    """An oracle by length, which remembers its contests."""

    def __init__(self):
        self.identity, self.seen = {"kind": "longest"}, []

    def judge(self, contests):
        for contest in contests:
            self.seen.append(contest)
            yield Judged(tuple(float(len(text)) for text in contest.on), tuple(float(len(t)) for t in contest.off))


@pytest.fixture
def oracle(monkeypatch, tmp_path):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    longest = Longest()
    monkeypatch.setattr("stagealign.boundary.measure.open_oracle", lambda *_: longest)
    return longest


@pytest.fixture
def policy(tmp_path, tiny):
    """Function that saves a tiny policy with a chat template, and returns its folder."""

    def saved(template=CHAT):
        model = tiny()
        model.tokenizer.chat_template = template
        folder = tmp_path / ("policy" if template else "plain")
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return str(folder)

    return saved


@pytest.fixture
def written(monkeypatch):
    """Function that has every policy write these texts, and returns the prompts that it was given."""

    def writes(*texts, cut=False):
        from stagealign.policy import sample

        given = []

        def generate(model, prompts, *_, **__):
            given.extend(model.tokenizer.decode(ids) for ids in prompts)
            ids = [tuple(model.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
            return [[sample.SampledIds(one, not cut, 0.0) for one in ids] for _ in prompts]

        monkeypatch.setattr(sample, "generate", generate)
        return given

    return writes


def data(tmp_path, rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"chosen": "good", "rejected": "bad"} | row) + "\n" for row in rows))
    return str(path)


def turns(*said):
    return [{"role": role, "content": text} for role, text in said]


def test_rows_that_the_template_refuses_are_failures_by_name_and_the_others_count(tmp_path, policy, oracle):
    said = [("system", "Be brief."), ("user", "Hi")]
    rows = [{"prompt": turns(*said[i % 2 :], ("assistant", "Yes?"), ("user", f"number {i}"))} for i in range(8)]
    rows = [row | {name: turns(("assistant", name)) for name in ("chosen", "rejected")} for row in rows]
    found = measure_boundary(policy(ALTERNATE), data(tmp_path, rows), oracle="reward:r", decoding=SHORT)
    assert (found.prompts_used, found.failures, found.reliable) == (4, 4, False)
    assert "the chat template refuses the conversation (roles must alternate)" in found.failure
    assert {prompt["reason"] for prompt in found.failed_prompts} == {found.failure}
    hashes = {prompt["prompt_hash"] for prompt in found.failed_prompts}
    assert len(hashes) == 4
    assert any(name in dict(fact_rows(found))["failed"] for name in hashes)
    assert all(contest.messages[-1]["content"].startswith("number") for contest in oracle.seen)
    with pytest.raises(BadData, match=r"failed on all 4 prompts.*roles must alternate"):
        measure_boundary(policy(ALTERNATE), data(tmp_path, rows[::2]), oracle="reward:r", decoding=SHORT)


def test_hh_text_reaches_policy_and_oracle_as_turns_or_with_its_marks(tmp_path, policy, oracle, written):
    given = written("one", "two")
    rows = data(tmp_path, [{"prompt": HH.format(i)} for i in range(3)])
    measure_boundary(policy(), rows, oracle="reward:r", decoding=SHORT)
    assert set(given) == {f"<user>Hi {i}\n<assistant>Yes?\n<user>Go on\n<assistant>" for i in range(3)}
    assert [turn["role"] for turn in oracle.seen[0].messages] == ["user", "assistant", "user"]
    given.clear()
    measure_boundary(policy(), rows, oracle="reward:r", decoding=SHORT, template="none")
    assert set(given) == {HH.format(i) for i in range(3)}
    given.clear()
    measure_boundary(policy(None), rows, oracle="reward:r", decoding=SHORT)
    assert set(given) == {HH.format(i) for i in range(3)}


def test_a_prefill_is_continued(tmp_path, policy, oracle, written):
    given = written("one", "two")
    prompt = turns(("user", "Hi"), ("assistant", "Sure, "))
    rows = data(tmp_path, [{"prompt": prompt} | {name: turns(("assistant", name)) for name in ("chosen", "rejected")}])
    measure_boundary(policy(), rows, oracle="reward:r", decoding=SHORT)
    assert given == ["<user>Hi\n<assistant>Sure, "]


@pytest.mark.parametrize("prefilled", [False, True])
def test_reasoning_is_taken_off_samples_and_answers_and_counted(tmp_path, policy, oracle, written, prefilled):
    template = CHAT.replace("<assistant>{% endif %}", "<assistant><think>\n{% endif %}") if prefilled else CHAT
    written("so it is\n</think>\n\none" if prefilled else "<think>\nso\n</think>\n\none", "two</think>2")
    rows = [{"prompt": f"p{i}", "chosen": "<think>x</think>\n\ngood", "rejected": "bad"} for i in range(5)]
    options = {"oracle": "reward:r", "decoding": SHORT}
    found = measure_boundary(policy(template), data(tmp_path, rows), **options)
    on = ("one", "2") if prefilled else ("one", "two</think>2")
    assert all((contest.on, contest.off) == (on, ("good", "bad")) for contest in oracle.seen)
    assert found.caveats["reasoning_removed"] == (3 if prefilled else 2) / 4
    assert found.caveats["reasoning_marks_left"] == (0 if prefilled else 1) / 4
    assert any("hold marks of reasoning" in line for line in careful(found)) is not prefilled
    again = measure_boundary(policy(template), data(tmp_path, rows), **options)
    assert again.caveats == found.caveats


def test_a_text_cut_in_its_reasoning_is_truncated_not_empty_and_never_judged(tmp_path, policy, oracle, written):
    written("<think>\nso it", "one", cut=True)
    rows = [{"prompt": f"p{i}"} for i in range(5)]
    folder, file = policy(), data(tmp_path, rows)
    with pytest.raises(BadData, match=r"failed on all 5 prompts.*ends inside its reasoning.*--max-new-tokens"):
        measure_boundary(folder, file, oracle="reward:r", decoding=SHORT)
    assert oracle.seen == []
    request = BoundaryRequest(folder, file, decoding=SHORT)
    with pytest.raises(BadData, match=r"no pair to judge.*ends inside its reasoning"):
        write_pairs(request, tmp_path / "out.jsonl")
    item = MeterPrompt("k", "p", ("a", "b"))
    (sampled,) = open_policy(request).sampler([item])  # a list, whose time is shared by its prompts
    assert (sampled.truncated, sampled.unanswered, sampled.failed) == (2, 1, None)


def test_an_answer_of_the_data_that_only_reasons_is_a_failure_and_is_not_sampled(tmp_path, policy, oracle, written):
    given = written("one", "two")
    rows = [{"prompt": f"p{i}", "rejected": "<think>\nso" if i == 2 else "bad"} for i in range(4)]
    found = measure_boundary(policy(), data(tmp_path, rows), oracle="reward:r", decoding=SHORT)
    assert (found.prompts_used, found.failures, len(given)) == (3, 1, 3)
    assert found.failure == "its `rejected` ends inside its reasoning, without an answer; correct the data"


def test_empty_completions_are_told_and_if_all_are_empty_the_measurement_is_unreliable(
    tmp_path, policy, oracle, written
):
    written("", "")
    rows = data(tmp_path, [{"prompt": f"p{i}"} for i in range(5)])
    found = measure_boundary(policy(), rows, oracle="reward:r", decoding=SHORT)
    assert (found.caveats["empty_completions"], found.failures, found.reliable) == (1.0, 0, False)
    assert any("completions are empty" in line for line in careful(found))
    written("", "one")
    assert measure_boundary(policy(), rows, oracle="reward:r", decoding=SHORT, seed=1).reliable


def test_template_arguments_reach_the_policy_and_are_identity(tmp_path, policy, oracle, written):
    given = written("one", "two")
    folder = policy(CHAT + "{% if enable_thinking is false %}<think></think>{% endif %}")
    rows = data(tmp_path, [{"prompt": "p"}])
    off = {"template_args": {"enable_thinking": False}}
    for options in ({}, off, off):
        found = measure_boundary(folder, rows, oracle="reward:r", decoding=SHORT, **options)
    assert given == ["<user>p\n<assistant>", "<user>p\n<assistant><think></think>"]
    assert found.request["template_args"] == {"enable_thinking": False}
    written_pairs = write_pairs(BoundaryRequest(folder, rows, decoding=SHORT, **off), tmp_path / "out.jsonl")
    assert """--template-args '{"enable_thinking": false}'""" in written_pairs.then


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("{enable_thinking: false}", (), "no JSON object; write one such as"),
        ("[1]", (), "no JSON object"),
        ('{"messages": []}', (), "names 'messages', which stagealign sets"),
        ('{"enable_thinking": false}', ("--template", "none"), "no template is used"),
        ('{"enable_thiking": false}', (), "'enable_thiking' is not used by the chat template"),
    ],
)
def test_template_arguments_that_cannot_be_used_are_refused_before_work(
    tmp_path, policy, oracle, given, options, message
):
    command = ["boundary", "--policy", policy(), "--data", data(tmp_path, [{"prompt": "p"}]), "--oracle", "reward:r"]
    done = CliRunner().invoke(app, [*command, "--template-args", given, *options])
    assert isinstance(done.exception, StagealignError), done.output
    assert message in str(done.exception)


def test_a_rendered_prompt_says_whether_it_opens_reasoning(policy):
    from stagealign.policy.lm import load

    model = load(policy())
    item = MeterPrompt("k", "p", ("a", "b"), tuple(turns(("user", "Hi"), ("assistant", "<think>\nWell"))))
    assert renderer(BoundaryRequest("p"), model)(item).opened
    assert not renderer(BoundaryRequest("p"), model)(MeterPrompt("k", "p", ("a", "b"))).opened
    assert asdict(SampledPrompt(("a",), 1, 0)).keys() >= {"reasoned", "unanswered", "marked"}


def test_answers_of_the_data_are_stripped_as_samples_are():
    """Else a sample that equals an answer but for the white space around it would not tie with it."""
    (item,) = MeterPrompts([PreferenceRow("Say yes.", "  Yes.\n", "\tNo. ")])
    assert item.off == ("Yes.", "No.")
    assert PreferenceRow("Say yes.", "Yes.\n", " Yes.").tie
