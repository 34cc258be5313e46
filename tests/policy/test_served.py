"""A served policy: in the ways that servers differ, refused, gone and renamed, and under the meter."""

import json
import socket
from dataclasses import replace

import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from factory_policy import DECODING

from stagealign.base.errors import StagealignError
from stagealign.base.server import KEYS, POLICY_KEYS, Server
from stagealign.boundary.measure import measure_boundary
from stagealign.policy import served as serving
from stagealign.policy.served import ServedPolicy, penalties

pytestmark = pytest.mark.usefixtures("no_proxy")


def policy(server, **changes):
    return ServedPolicy("p", Server(server.url, POLICY_KEYS, attempts=2, backoff=0.01, **changes), DECODING, seed=3)


def asks(*prompts):
    return [(f"{i:04x}", [{"role": "user", "content": text}]) for i, text in enumerate(prompts)]


@pytest.mark.parametrize(
    ("knows", "style"), [(("top_k",), "top_k"), (("generation_config",), "generation_config"), ((), "plain")]
)
def test_the_best_way_that_a_server_takes_is_used(servers, knows, style):
    server = servers(*knows)
    served = policy(server)
    assert (served.style, served.served) == (style, "policy-1")
    one, two = served.write(asks("a", "b, long"), 2)
    assert len({*one.completions, *two.completions}) == 4  # a seed each
    assert all(text == text.strip() for text in one.completions)
    assert (one.tokens, one.truncated, two.truncated) == (6, 0, 2)
    request = server.seen[-1][1]
    assert (request["max_tokens"], request["model"]) == (6, "p")
    if style == "generation_config":
        given = json.loads(request["generation_config"])
        assert given == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_new_tokens": 6}
    else:
        assert (request["temperature"], request["top_p"], request.get("top_k")) == (0.7, 0.9, 50 if knows else None)


def test_a_server_whose_context_refuses_so_many_tokens_caps_them_itself(servers):
    """As vLLM does: 400 where prompt and `max_tokens` exceed the context, and without it what the context leaves."""
    server = servers("top_k")
    free = type(server).answer

    def answer(request):
        long = "full" in request["messages"][-1]["content"]
        if long and "max_tokens" in request:
            return 400, {"error": "This model's maximum context length is 9 tokens. However, you requested 12"}
        return free(server, request)

    server.answer = answer
    short, capped = policy(server).write(asks("a", "full"), 2)
    assert (short.failed, capped.failed, short.capped, capped.capped) == (None, None, 0, 2)
    refused = asks("full")
    assert next(iter(policy(server).write(refused, 1, {refused[0][0]: 5}))).failed, "where the cap is known, it is sent"
    assert server.seen[-1][1]["max_tokens"] == 5
    server.answer = lambda request: answer(request) if "max_tokens" in request else (
        200, free(server, request)[1] | {"usage": {"completion_tokens": 7, "total_tokens": 9}}
    )  # fmt: skip
    (longer,) = policy(server).write(asks("full"), 1)
    assert "without it writes more than was asked for" in longer.failed


def test_penalties_are_asked_for_where_a_server_has_them_and_refused_elsewhere(servers):
    decoding = replace(DECODING, presence_penalty=0.1, frequency_penalty=0.2)

    def ask(*knows):
        server = servers(*knows)
        return server, ServedPolicy("p", Server(server.url, POLICY_KEYS, attempts=2, backoff=0.01), decoding, seed=3)

    server, served = ask("top_k", "presence_penalty", "frequency_penalty")
    served.write(asks("a"), 1)
    request = server.seen[-1][1]
    assert (request["presence_penalty"], request["frequency_penalty"]) == (0.1, 0.2)
    with pytest.raises(StagealignError, match="no presence or frequency penalty"):
        ask("generation_config")
    assert "presence_penalty" not in penalties(DECODING)


def test_other_weights_under_the_same_name_are_another_policy(servers):
    server = servers()
    before = policy(server).identity
    assert policy(server).identity == before
    server.weights = "B"
    assert policy(server).identity != before


def test_a_prompt_that_the_server_refuses_is_a_failure_and_the_others_count(servers):
    one, two, three = policy(servers()).write(asks("a", "too long", "b"), 2)
    assert (one.failed, three.failed) == (None, None)
    assert "HTTP 400: " in two.failed
    assert "longer than the context" in two.failed
    assert two.completions == ()


def test_a_server_that_fails_on_and_on_stops_the_run_and_leaves_what_it_gave(servers, monkeypatch):
    monkeypatch.setattr(serving, "GIVE_UP", 3)
    server = servers("top_k")
    served = policy(server)
    server.down_from = 15
    given = []
    with pytest.raises(StagealignError, match=r"3 prompts in a row failed, .*HTTP 500: .*down.*run the same command"):
        given.extend(one for one in served.write(asks(*map(str, range(40))), 2))
    assert [one.failed is None for one in given] == [True] * 15 + [False] * 2


def test_a_server_that_is_gone_stops_the_run(servers):
    server = servers("top_k")
    served = policy(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(StagealignError, match=r"cannot connect|connection broke"):
        list(served.write(asks("a"), 2))


def test_another_name_in_the_middle_is_refused(servers):
    server = servers("top_k")
    served = policy(server)
    server.name = "policy-2"
    with pytest.raises(StagealignError, match="named its model 'policy-1' and now 'policy-2'"):
        list(served.write(asks("a"), 2))


def test_a_policy_does_not_get_the_key_of_the_judge(servers, monkeypatch):
    server = servers("top_k")
    for name in KEYS:
        monkeypatch.setenv(name, "sk-of-the-judge")
    monkeypatch.delenv(POLICY_KEYS[0], raising=False)
    policy(server)
    assert all("Authorization" not in headers for headers, _ in server.seen)
    monkeypatch.setenv(POLICY_KEYS[0], "sk-own")
    policy(server)
    assert server.seen[-1][0]["Authorization"] == "Bearer sk-own"


def test_a_policy_that_is_not_there_is_an_error_before_any_work():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(StagealignError, match=r"policy 'p' at .*cannot connect.*check that the server runs"):
        ServedPolicy("p", Server(url, attempts=2, backoff=0.01), DECODING, seed=0)


def test_the_meter_measures_a_served_policy_and_goes_on_where_it_was(servers, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    server = servers("top_k")
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"prompt {i}", "chosen": f"A says good {i}", "rejected": f"bad {i}"} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = tmp_path / "pairs.jsonl"
    with open(scores, "w") as file:  # every pair that can come: the answer is the seed's, so it is known beforehand
        from stagealign.base.identity import stream
        from stagealign.data.records import prompt_hash

        for row in rows:
            key = prompt_hash(row["prompt"])
            for j in range(2):
                said = f"A says {stream(0, 'sample', key, j) % 2**31}"
                for other, share in ((row["chosen"], 0.0), (row["rejected"], 1.0)):
                    file.write(json.dumps({"prompt": row["prompt"], "a": said, "b": other, "preference": share}) + "\n")
    options = {"policy_url": server.url, "oracle": f"recorded:{scores}", "decoding": DECODING}
    found = measure_boundary("p", str(data), **options, prompts=20)
    assert (found.prompts_used, found.boundary_score, found.cost["sampled_tokens"]) == (20, 0.5, 20 * 6)
    assert found.data["policy decodes with"] == "as asked"
    asked = len(server.seen)
    more = measure_boundary("p", str(data), **options)
    assert more.prompts_used == 30
    assert len(server.seen) - asked == 2 + 2 * 10  # two first questions, then only what is new
    with pytest.raises(StagealignError, match="--template none"):
        measure_boundary("p", str(data), **options, template="none")
