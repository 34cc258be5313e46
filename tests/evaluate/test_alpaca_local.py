"""AlpacaEval by a local judge of random weights."""

import importlib.util
import math

import pytest

from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval.rows import BattleItem

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def local(tiny):
    """A judge of random weights that reads prompts of some thousand bytes."""
    if importlib.util.find_spec("alpaca_eval") is None:
        pytest.skip("the extra `eval` is not installed")
    from stagealign.evaluate.alpaca_eval import official
    from stagealign.evaluate.alpaca_eval.local import LocalJudge

    def build(longest=4096, batch_tokens=None, **shape):
        model = tiny(**shape)
        model.model.config.max_position_embeddings = longest
        return LocalJudge(model, "random", official.load(), batch_tokens)

    return build


def questions(judge, count=4):
    return judge.official.questions(
        [BattleItem(i, f"Task {i}", "fair " * (i + 1), "good " * (5 * i + 2)) for i in range(count)]
    )


@pytest.mark.parametrize("shape", ["llama", "neox"])
@pytest.mark.parametrize("chat", [True, False])
def test_a_batch_judges_as_one_by_one(local, shape, chat):
    judge = local(shape=shape, chat=chat, batch_tokens=2**20)
    assert judge.letters == {"m": [judge.letters["m"][0]], "M": [judge.letters["M"][0]]}
    ids = [judge.prompt_ids(one) for one in questions(judge)]
    assert len({len(one) for one in ids}) == 4
    together = judge.logprobs(ids)
    alone = [judge.logprobs([one])[0].tolist() for one in ids]
    assert together.flatten().tolist() == pytest.approx([one for pair in alone for one in pair], abs=1e-5)
    kept = {}
    judge.ask(questions(judge), lambda question, answer: kept.update({question.item.index: answer}))
    for question, (m, other), row in zip(questions(judge), alone, ids, strict=True):
        top = [{"token": "m", "logprob": m}, {"token": "M", "logprob": other}]
        choice = {"logprobs": {"content": [{"top_logprobs": top}]}}
        first = judge.official.first_preferred(choice)  # the official parser reads the same numbers
        answer = kept[question.item.index]
        assert answer.first == pytest.approx(first, abs=1e-5)
        assert answer.preference == pytest.approx(1 + first if question.switched else 2 - first, abs=1e-5)
        assert answer.letters == pytest.approx(math.exp(m) + math.exp(other), rel=1e-4)
        assert answer.prompt_tokens == len(row)


def test_the_letter_is_read_where_the_prompt_ends(local):
    """Raise the logit of "m" by ln 9 in the head: the odds of "m" against "M" grow ninefold."""
    import torch

    judge = local(tied=False)
    ids = judge.prompt_ids(questions(judge)[0])
    before = judge.logprobs([ids])[0]
    head = judge.lm.head
    with torch.inference_mode():
        state = judge.lm.body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        head.weight[judge.letters["m"][0]] += math.log(9) * state / state.dot(state)
    after = judge.logprobs([ids])[0]
    assert float((after[0] - after[1]) - (before[0] - before[1])) == pytest.approx(math.log(9), abs=1e-4)


def test_a_prompt_longer_than_the_judge_reads_fails_and_is_not_cut(local):
    judge = local()
    lengths = sorted(len(judge.prompt_ids(one)) for one in questions(judge))
    kept = {}
    short = local(longest=lengths[1])
    short.ask(questions(short), lambda question, answer: kept.update({question.item.index: answer}))
    failed = [one.failed for one in kept.values() if one.preference is None]
    assert len(failed) == 2
    assert f"tokens; the judge reads {lengths[1]}" in failed[0]


def test_a_template_without_a_system_role(local):
    judge = local(chat=True)
    judge.lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    text = judge.lm.tokenizer.decode(judge.prompt_ids(questions(judge)[0]))
    assert text.startswith("<user>You are a highly efficient assistant")
    assert "## Model Outputs" in text


def test_a_local_judge_from_a_folder_is_kept(local, files, tmp_path, monkeypatch):
    judge = local(chat=True)
    folder = tmp_path / "judge"
    judge.lm.model.save_pretrained(folder)
    judge.lm.tokenizer.save_pretrained(folder)
    request = alpaca.EvaluationRequest(*files(), judge=f"local:{folder}")
    found = alpaca.evaluate(request)
    assert len(found.little_mass) == found.plain()["little_mass"] == 12, "random weights spread over the vocabulary"
    assert not found.reliable
    assert "12 by letters that are mostly not the judge's answer: unreliable" in found.sentence
    assert found.cost_now is None
    assert found.judge["served"].startswith("sha256:")
    from stagealign.evaluate.alpaca_eval.local import LocalJudge

    monkeypatch.setattr(LocalJudge, "logprobs", None)  # nothing is judged again
    again = alpaca.evaluate(request)
    assert again.preferences == found.preferences
    assert again.plain()["judge"] == found.plain()["judge"]
