"""The paper's data from local files in its shape: merged and counted; content is identity, its place is not."""

import json

import pytest

from stagealign.base.errors import BadData
from stagealign.data import mirrors, ultrafeedback
from stagealign.data.mirrors import content_of, local_copy
from stagealign.data.records import Candidate, Prompt, by_prompt, read_dicts, read_rows
from stagealign.grid import registry
from stagealign.pipeline.rounds import plan_run
from stagealign.store.artifact import Work

DATA = "HuggingFaceH4/ultrafeedback_binarized@" + "0" * 40
CHAT = "HuggingFaceH4/ultrachat_200k@" + "0" * 40


def row(prompt, chosen, rejected, turns=()):
    """A row with the columns of the published files."""
    start = [*turns, {"role": "user", "content": prompt}]
    return {
        "prompt": prompt,
        "prompt_id": f"id of {prompt}",
        "chosen": [*start, {"role": "assistant", "content": chosen}],
        "rejected": [*start, {"role": "assistant", "content": rejected}],
        "messages": [*start, {"role": "assistant", "content": chosen}],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    }


TRAIN = [
    row("Name a sea.", "The North Sea.", "No."),
    row("Name a river.", "The Rhine.", "A road."),
    row("Name a sea.", "The Red Sea.", "Never."),  # a repeated prompt: merged into the first
    row("Name a hill.", "Box Hill.", ""),  # an empty completion: cannot be used
    row("Name a lake.", "Loch Ness.", "A pond."),  # also a test prompt
    row("And one more?", "Two.", "One.", ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})),
    row("Name a town.", "Bonn.", "Town."),
]
TEST = [row(f"Name a {what}.", f"{what} A", f"{what} B") for what in ("lake", "fish", "bird", "tree")]


@pytest.fixture(params=["jsonl", "parquet"])
def mirror(request, tmp_path, monkeypatch):
    folder = tmp_path / "mirror" / "ultrafeedback_binarized"
    folder.mkdir(parents=True)
    for split, rows in (("train_prefs", TRAIN), ("test_prefs", TEST)):
        if request.param == "jsonl":
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        else:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
    monkeypatch.setenv(mirrors.MIRROR, str(tmp_path / "mirror"))
    return folder


@pytest.fixture
def build(tmp_path):
    """Calls a builder; returns (facts, folder)."""

    def run(builder, name, params, **inputs):
        out = tmp_path / name
        out.mkdir()
        return builder(Work(params, inputs, out, tmp_path)), out

    return run


def prompts_of(build, name="prompts", test=10):
    params = {"data": DATA, "content": content_of(DATA), "test_prompts": test, "validation_prompts": 0}
    return build(ultrafeedback.build_prompts, name, params)


def test_rows_become_prompts_and_nothing_is_lost_in_silence(mirror, build):
    """By hand: 7 training rows are 3 prompts, 1 repeat, 1 empty, 1 that is also tested, 1 of several turns."""
    facts, out = prompts_of(build)
    prompts = read_rows(out / "prompts.jsonl", Prompt)
    assert {p.text for p in prompts if p.split == "train"} == {"Name a sea.", "Name a river.", "Name a town."}
    assert {p.text for p in prompts if p.split == "test"} == {f"Name a {w}." for w in ("lake", "fish", "bird", "tree")}
    assert facts["test"] == {"rows": 4, "prompts": 4, "repeated": 0, "not_chosen": 0, "drops": {}}
    train = facts["train"]
    assert (train["rows"], train["prompts"], train["repeated"], train["not_chosen"]) == (7, 3, 1, 0)
    assert train["drops"] == {
        "empty `rejected`": 1,
        "prompt is in the test split": 1,
        "more than one turn before the completions": 1,
    }
    texts = {one["prompt"]: (one["first"], one["second"]) for one in read_dicts(out / "static.jsonl")}
    assert texts["Name a sea."] == ("The North Sea.", "No."), "the candidates of the first row"
    few, _ = prompts_of(build, "few", test=2)
    assert (few["test"]["prompts"], few["test"]["not_chosen"]) == (2, 2)


def test_static_candidates_do_not_tell_who_was_chosen(mirror, build):
    _, prompts = prompts_of(build)
    params = {"splits": ["train"], "prompts": None, "round": 1, "seed": 0, "sign": 1}
    facts, out = build(ultrafeedback.build_static, "static", params, films=prompts)
    assert facts == {"prompts": 3, "candidates": 6}
    groups = by_prompt(read_rows(out / "candidates.jsonl", Candidate))
    given = {one["prompt"]: [one["chosen"][-1]["content"], one["rejected"][-1]["content"]] for one in TRAIN[::-1]}
    for prompt, group in groups.items():
        assert sorted(one.completion for one in group) == sorted(given[prompt])
        assert {one.source for one in group} == {"off"}
    orders = set()
    for seed in range(8):
        _, again = build(ultrafeedback.build_static, f"static{seed}", params | {"seed": seed}, films=prompts)
        orders |= {
            tuple(one.completion for one in group)
            for group in by_prompt(read_rows(again / "candidates.jsonl", Candidate)).values()
        }
    assert len(orders) == 6, "each pair comes in both orders"
    half = params | {"prompts": 1}
    rounds = [build(ultrafeedback.build_static, f"r{n}", half | {"round": n}, films=prompts)[1] for n in (1, 2, 3)]
    assert len({read_rows(one / "prompts.jsonl", Prompt)[0].text for one in rounds}) == 3
    with pytest.raises(BadData, match="4 rounds of 1 prompts: only 3 found"):
        build(ultrafeedback.build_static, "r4", half | {"round": 4}, films=prompts)


def test_a_mirror_is_execution_and_its_content_identity(mirror, build, tmp_path, monkeypatch):
    def prompts_now():
        run = plan_run(registry.cell("zephyr-dpo-1off", "paper"), 0)
        return next(a for path, a in run.artifacts.items() if path == "paper/prompts")

    (mirror.parent / "alpaca_eval").mkdir()
    (mirror.parent / "alpaca_eval" / "alpaca_eval_gpt4_baseline.json").write_text("[]")
    local = prompts_now()
    (mirror.parent).rename(tmp_path / "elsewhere")
    monkeypatch.setenv(mirrors.MIRROR, str(tmp_path / "elsewhere"))
    assert prompts_now().fingerprint == local.fingerprint
    assert str(tmp_path) not in json.dumps(local.identity)
    moved = tmp_path / "elsewhere" / mirror.name
    changed = next(moved.glob("test_prefs*"))
    params = {"data": DATA, "content": content_of(DATA), "test_prompts": 1, "validation_prompts": 0}
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert prompts_now().fingerprint != local.fingerprint
    with pytest.raises(BadData, match="plan again"):
        build(ultrafeedback.build_prompts, "late", params)
    changed.unlink()
    with pytest.raises(BadData, match=r"no .*test_prefs\.parquet \(or \.jsonl"):
        local_copy(DATA, "test_prefs")
    with pytest.raises(BadData, match=r"no .*test_prefs\.parquet \(or \.jsonl"):
        prompts_now()  # a plan says it, too
    monkeypatch.delenv(mirrors.MIRROR)
    assert (content_of(DATA), local_copy(DATA, "test_prefs")) == (None, None)
    assert prompts_now().params["content"] is None


@pytest.mark.parametrize(
    ("layout", "found"),
    [
        ((), "no such folder"),
        (("ultrachat_200k/train_sft.jsonl",), "no folder ultrafeedback_binarized in it"),
        (("ultrafeedback_binarized/data/train_prefs-00000-of-00001.jsonl",), "found: data/train_prefs-00000-of-00001"),
        (("ultrafeedback_binarized/train_prefs.jsonl",), "test_prefs"),
    ],
)
def test_a_plan_refuses_a_mirror_without_the_data(tmp_path, monkeypatch, layout, found):
    """A misspelt folder, one without the data set, the hub's own layout, and one without a split."""
    for name in layout:
        (tmp_path / "mirror" / name).parent.mkdir(parents=True)
        (tmp_path / "mirror" / name).write_text("{}\n")
    monkeypatch.setenv(mirrors.MIRROR, str(tmp_path / "mirror"))
    with pytest.raises(BadData, match=found):
        plan_run(registry.cell("llama3-dpo-1off", "paper"), 0)


def test_without_a_mirror_the_pinned_revision_of_the_hub_is_read(monkeypatch, build):
    monkeypatch.delenv(mirrors.MIRROR, raising=False)
    asked = []

    def read(source, prompts=None, seed=0, split=None):
        asked.append((source, prompts, split))
        raise BadData("no hub here")

    monkeypatch.setattr(ultrafeedback, "read_preferences", read)
    with pytest.raises(BadData, match="no hub here"):
        prompts_of(build, test=5)
    assert asked == [(DATA, 5, "test_prefs")]


def test_conversations_for_sft(mirror, build):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rows = [{"messages": talk}, {"messages": talk[:1]}, {"messages": None}, {"messages": talk * 2}, {"messages": talk}]
    folder = mirror.parent / "ultrachat_200k"
    folder.mkdir()
    (folder / "train_sft.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    params = {"data": CHAT, "content": content_of(CHAT), "rows": 2}
    facts, out = build(ultrafeedback.build_sft, "sft", params)
    reasons = {"no conversation that ends with the assistant": 2, "beyond the number of rows": 1}
    assert facts == {"rows": 2, "drops": reasons}
    assert [len(one["messages"]) for one in read_dicts(out / "sft.jsonl")] == [2, 4]
    (folder / "train_sft.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    with pytest.raises(BadData, match="no conversation found in train_sft"):
        build(ultrafeedback.build_sft, "none", params | {"content": content_of(CHAT)})
