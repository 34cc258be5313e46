"""A grid's candidates from a served policy: by its folder, each once, and refused before work where they cannot be."""

import json
import threading
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from factory_policy import DECODING, Loads, cell_work

from stagealign.base.errors import StagealignError
from stagealign.base.identity import plain, stream
from stagealign.base.kind import Kind
from stagealign.base.server import Server
from stagealign.cli.variants import Variant
from stagealign.data.records import Candidate, prompt_hash, read_rows
from stagealign.grid import registry, variants
from stagealign.grid.spec import Engine
from stagealign.plan import machine
from stagealign.plan import plan as planning
from stagealign.policy import served as serving
from stagealign.policy import served_samples
from stagealign.policy.context import FILLED
from stagealign.store.artifact import Artifact

pytestmark = pytest.mark.usefixtures("no_proxy")


def asked_of(server, text="prompt"):
    """(prompt, seed) of every request that is for a sample."""
    found = [request for _, request in server.seen if text in request["messages"][-1]["content"]]
    return [(request["messages"][-1]["content"], request["seed"]) for request in found]


@pytest.mark.parametrize(("knows", "style"), [(("top_k",), "top_k"), (("generation_config",), "generation_config")])
def test_candidates_of_a_served_policy(loads, servers, tmp_path, tiny, knows, style):
    """By hand: what the server says is the seed's, the server counts 3 tokens, and "long" texts are cut."""
    server = servers(*knows)
    work = cell_work(tmp_path, server.url, tiny(chat=True), 3, ("prompt", "long prompt"))
    assert work.params["engine"] == {"key": "served", "version": None, "settings": {"style": style}}
    facts = served_samples.build(work)
    found = read_rows(work.out / "candidates.jsonl", Candidate)
    prompts = [f"{text} {i}" for i in range(3) for text in ("prompt", "long prompt")]
    assert [(c.prompt, c.index, c.source) for c in found] == [(p, j, "on") for p in prompts for j in (0, 1)]
    tokenizer = tiny(chat=True).tokenizer
    for c in found:
        said = f" A says {stream(3, 'sample', prompt_hash(c.prompt), c.index) % 2**31} \n"
        assert c.completion == said.strip()
        assert tokenizer.decode(list(c.token_ids)) == said
        assert (c.truncated, c.tokens) == ("long" in c.prompt, len(c.token_ids) + ("long" not in c.prompt))
        assert c.logp is None
    assert facts["recounted"] == facts["candidates"] == 12, "bytes, not the server's three tokens"
    assert (facts["truncated"], facts["kept"]) == (6, 0)
    name = server.seen[-1][1]["model"]
    assert Path(name).parent == tmp_path / "served"
    assert Path(name).resolve() == tmp_path / "policy"
    assert facts["served"] == f"{name}@main"
    if style == "generation_config":
        assert json.loads(server.seen[-1][1]["generation_config"])["eos_token_id"] == [0]


def test_the_name_of_a_policy_holds_what_it_is(tmp_path):
    """A policy that is built anew at the same path is asked for by another name, whatever the server remembers."""
    policy = tmp_path / "a" / "policy"
    policy.mkdir(parents=True)
    names = []
    for version in (1, 2, 1):
        made = Artifact("a/policy", Kind("x:y", version=version, price="free"))
        record = {"fingerprint": made.fingerprint, "identity": made.identity, "facts": {}}
        (policy / "record.json").write_text(json.dumps(record))
        names.append(served_samples.named(policy, tmp_path))
        assert names[-1].name == made.fingerprint
        assert (names[-1] / "record.json").samefile(policy / "record.json")
    assert names[0] == names[2] != names[1]


def test_a_server_that_answers_for_any_name_is_refused_before_work(servers, tmp_path):
    with pytest.raises(StagealignError, match=r"it answered for .*no-such-policy, a folder that does not exist"):
        served_samples.engine(servers("top_k").url, DECODING, tmp_path)


def test_a_server_that_names_another_model_is_refused(loads, servers, tmp_path, tiny, monkeypatch):
    server = servers("top_k")
    work = cell_work(tmp_path, server.url, tiny(chat=True))
    monkeypatch.setattr(Server, "name_in", lambda *_: "another")
    with pytest.raises(StagealignError, match="the server named its model 'another'"):
        served_samples.build(work)


def test_a_policy_without_a_template_is_refused(loads, servers, tmp_path, tiny):
    server = servers("top_k")
    with pytest.raises(StagealignError, match="no chat template, and a server puts one around"):
        served_samples.build(cell_work(tmp_path, server.url, tiny()))
    assert asked_of(server) == []


def test_failed_prompts_are_asked_again_and_no_other(loads, servers, tmp_path, tiny):
    server = servers("top_k")
    work = cell_work(tmp_path, server.url, tiny(chat=True), 4, ("prompt", "too long prompt"))
    with pytest.raises(StagealignError, match=r"4 of 8 prompts failed, the first .*HTTP 400.*longer than the context"):
        served_samples.build(work)
    assert not (work.out / "candidates.jsonl").exists()
    first = asked_of(server)
    server.answer = lambda request: Loads.answer(server, request | {"messages": [{"content": "now it is fine"}]})
    facts = served_samples.build(work)
    again = asked_of(server)[len(first) :]
    assert facts["kept"] == 8
    assert sorted({text for text, _ in again}) == [f"too long prompt {i}" for i in range(4)]
    assert len(again) == 8


def test_new_tokens_are_capped_by_the_context_and_long_prompts_are_dropped(loads, servers, tmp_path, tiny):
    """The context is known from the policy's folder, so the server is asked for what it leaves, prompt by prompt."""
    server, policy = servers("top_k"), tiny(chat=True)
    policy.model.config.max_position_embeddings = 46
    work = cell_work(tmp_path, server.url, policy, 2, ("prompt", "a prompt of some length", "prompt " * 9))
    facts = served_samples.build(work)
    assert (facts["candidates"], facts["capped"], facts["drops"]) == (8, 2, {FILLED: 2})
    asked = {r["messages"][-1]["content"]: r["max_tokens"] for _, r in server.seen if "prompt" in str(r["messages"])}
    lengths = {text: len(policy.prompt_ids(text)) for text in asked}
    assert asked == {text: min(6, 46 - length) for text, length in lengths.items()}
    assert len(set(asked.values())) == 2
    found = read_rows(work.out / "candidates.jsonl", Candidate)
    assert set(facts["dropped"]) == {prompt_hash(f"{'prompt ' * 9} {i}") for i in range(2)}
    assert not {prompt_hash(c.prompt) for c in found} & set(facts["dropped"])


def test_a_build_that_was_killed_goes_on(loads, servers, tmp_path, tiny, monkeypatch):
    """Half a line and a damaged one are asked again; every other answer is used as it is."""
    monkeypatch.setattr(serving, "GIVE_UP", 2)
    server = servers("top_k")
    work = cell_work(tmp_path, server.url, tiny(chat=True), 30)
    server.down_after = len(server.seen) + 12
    monkeypatch.setattr(serving, "Server", lambda *given, **more: Server(*given, **more, attempts=1, backoff=0.01))
    with pytest.raises(StagealignError, match="2 prompts in a row failed"):
        served_samples.build(work)
    for thread in [one for one in threading.enumerate() if one.name.startswith("policy")]:
        thread.join()  # what was under way still comes, and is kept
    answers = work.out / "scratch" / "answers.jsonl"
    lines = answers.read_text().splitlines()
    assert len(lines) >= 8
    lines[1] = lines[1].replace("says", "said")
    answers.write_text("\n".join(lines) + "\n" + lines[0][:20])
    server.down_after = None
    before = len(asked_of(server))
    assert served_samples.build(work)["kept"] == len(lines) - 1
    assert len(asked_of(server)) - before == 60 - (len(lines) - 1)
    found = read_rows(work.out / "candidates.jsonl", Candidate)
    whole = cell_work(tmp_path, server.url, None, name="whole")
    served_samples.build(whole)
    assert found == read_rows(whole.out / "candidates.jsonl", Candidate)


def test_cells_of_a_server_are_their_own_and_its_place_is_no_identity(tmp_path):
    cell = registry.cell("zephyr-dpo-1on")
    one, two = (variants.sampled_by([cell], Engine("served", None, {"style": "top_k"}))[0] for _ in range(2))
    assert one.id == "zephyr-dpo_served-1on"
    assert plain(one) == plain(two) != plain(cell)
    artifacts = planning.plan_run(one, 0).artifacts.values()
    assert "url" not in json.dumps([artifact.identity for artifact in artifacts]).lower()
    assert machine.absent(artifacts) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("tgi", None), "--sampler 'tgi': unknown"),
        (("vllm", "http://127.0.0.1:9/v1"), "two samplers; name one"),
        (("transformers", "http://127.0.0.1:9/v1"), "cannot connect.*check that the server runs"),
        (("transformers", "127.0.0.1:9"), "no HTTP address; write one such as"),
    ],
)
def test_a_wrong_sampler_is_named_before_work(given, words):
    with pytest.raises(StagealignError, match=words):
        Variant(None, *given).cells([registry.cell("zephyr-dpo-1on")])
