"""A served policy and conversations: prefills, template arguments, refused prompts, reasoning and empty content."""

import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from factory_judge import running
from factory_policy import DECODING, Fake

from stagealign.base.errors import StagealignError
from stagealign.base.server import POLICY_KEYS, Server
from stagealign.boundary.open_policy import served_answers
from stagealign.policy.served import Manner, ServedPolicy

pytestmark = pytest.mark.usefixtures("no_proxy")
PREFILLED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, "}]
CONTINUED = {"add_generation_prompt", "continue_final_message"}


class Says(Fake):
    """A server whose message, finish reason and owner are given."""

    def __init__(self, message=None, finish="stop", owner="library", knows=(*CONTINUED, "chat_template_kwargs")):
        super().__init__(("top_k", *knows))
        self.message, self.finish, self.owner = message, finish, owner

    def answer(self, request):
        status, body = super().answer(request)
        if status == 200 and self.message is not None:
            body["choices"][0] |= {"message": self.message, "finish_reason": self.finish}
        return status, body


def written(server, messages=({"role": "user", "content": "Hi"},), count=1, **manner):
    policy = ServedPolicy("p", Server(server.url, POLICY_KEYS, attempts=2, backoff=0.01), DECODING, 3, Manner(**manner))
    (one,) = policy.write([("key", messages)], count)
    return one


def answers(message, finish="stop", opened=False, count=1):
    with running(Says({"role": "assistant", **message}, finish)) as server:
        one = written(server, count=count)
    return one, [(answer.text, answer.reasoned, answer.finished) for answer in served_answers(one, opened)]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("content", [None, "", " \n"])
@pytest.mark.parametrize("finish", ["length", "stop"])
def test_reasoning_without_an_answer_is_no_answer(field, content, finish):
    one, found = answers({"content": content, field: "Let me think."}, finish)
    assert found == [("", True, False)]
    assert (one.failed, one.truncated) == (None, int(finish == "length"))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_an_answer_beside_its_reasoning_is_the_answer(field):
    assert answers({"content": "\n\nLima.", field: "Let me think."})[1] == [("Lima.", True, True)]
    assert answers({"content": "Lima.", field: None})[1] == [("Lima.", False, True)]


def test_reasoning_in_the_text_is_taken_off():
    assert answers({"content": "<think>\nso\n</think>\n\nLima."})[1] == [("Lima.", True, True)]
    assert answers({"content": "so\n</think>\n\nLima."})[1] == [("Lima.", True, True)]
    assert answers({"content": "<think>\nso"}, "length")[1] == [("", True, False)]
    assert answers({"content": "so"}, "length", opened=True)[1] == [("", True, False)]


@pytest.mark.parametrize("message", [{"content": None}, {}, {"content": None, "tool_calls": [{}]}, {"content": [1]}])
def test_an_answer_without_text_is_a_failure(message):
    assert answers(message)[0].failed == "the policy's server answered no text in the answer"


def test_prompts_that_a_server_refuses_never_end_the_run(monkeypatch):
    monkeypatch.setattr("stagealign.policy.served.GIVE_UP", 3)
    with running(Says()) as server:
        policy = ServedPolicy("p", Server(server.url, POLICY_KEYS, attempts=2, backoff=0.01), DECODING, 3)
        found = list(policy.write([(f"{i}", [{"role": "user", "content": "too long"}]) for i in range(12)], 1))
    assert len(found) == 12
    assert all("HTTP 400" in one.failed for one in found)


def test_a_prefill_is_continued_by_vllm_and_refused_elsewhere():
    with running(Says(owner="vllm")) as server:
        assert written(server, PREFILLED).failed is None
        request = server.seen[-1][1]
    assert (request["add_generation_prompt"], request["continue_final_message"]) == (False, True)
    with running(Says()) as server:
        one = written(server, PREFILLED)
        assert "which this server would not continue; use `vllm serve`" in one.failed
        assert all(len(request["messages"]) == 1 for _, request in server.seen)
        assert written(server).failed is None
        assert not CONTINUED & server.seen[-1][1].keys()


def test_template_arguments_are_sent_with_every_request_and_refused_by_a_server_that_lacks_them():
    given = {"enable_thinking": False}
    with running(Says()) as server:
        assert written(server, template_args=given).failed is None
        assert all(request["chat_template_kwargs"] == given for _, request in server.seen)
    with (
        running(Says(knows=())) as server,
        pytest.raises(StagealignError, match=r"Unexpected fields.*leave --template-args out"),
    ):
        written(server, template_args=given)
