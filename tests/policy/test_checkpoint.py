"""A published checkpoint is linked at its commit, or refused with what to do; nothing is put in its place."""

import httpx
import pytest
import torch
from factory_results import of_cell
from huggingface_hub import errors

from stagealign.base.errors import CannotRun, StagealignError
from stagealign.cli.run import run
from stagealign.data.records import write_rows
from stagealign.execute.preflight import check_checkpoints
from stagealign.grid import registry, select
from stagealign.plan.plan import make_plan
from stagealign.policy import lm
from stagealign.policy import start as sft
from stagealign.policy.templates import turn_end
from stagealign.store.artifact import Work
from stagealign.store.folder import Store
from stagealign.store.results import result_path, write_result

COMMIT = "a" * 40


@pytest.fixture
def snapshot(tmp_path, tiny, monkeypatch):
    """A tiny model where the hub's cache would have it; the name that is asked for is kept."""
    folder = tmp_path / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    lm.save(tiny(), folder)
    asked = []

    def download(name, revision=None, allow_patterns=None):
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return folder, asked


def build(tmp_path, revision=None):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    return out, sft.build_checkpoint(Work({"checkpoint": "a/b", "revision": revision}, {}, out, tmp_path))


def test_the_record_keeps_the_commit(snapshot, tmp_path):
    folder, asked = snapshot
    out, facts = build(tmp_path)
    assert facts == {"weights": "published", "revision": COMMIT}
    assert asked == [("a/b", None)]
    weights = [lm.load(place).model.state_dict() for place in (folder, out)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError, "accept its licence"),
        (errors.RevisionNotFoundError, "moved or removed"),
        (errors.RepositoryNotFoundError, "check the name"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached"),
    ],
)
def test_what_cannot_be_had_is_named_with_its_fix(error, words, tmp_path, monkeypatch):
    answer = httpx.Response(404, request=httpx.Request("GET", "https://x"))

    def download(*_, **__):
        raise error("no") if error is errors.LocalEntryNotFoundError else error("no", response=answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CannotRun, match=words) as caught:
        build(tmp_path, "b" * 40)
    assert "checkpoint 'a/b' at bbbb" in str(caught.value)


def planned(scale, k, tmp_path):
    cells = select.select(scale, k)
    return make_plan(cells, (0,), Store(tmp_path / "home"))


@pytest.mark.parametrize(("cell", "as_is"), [("zephyr-dpo-1off", True), ("phi2-dpo-1off", False)])
def test_what_a_run_would_fetch_is_looked_at_before_anything_is_built(cell, as_is, snapshot, tmp_path):
    """A policy as it is needs a template and its end token; one that SFT makes gets both there."""
    folder, asked = snapshot
    plan = planned("paper", cell, tmp_path)
    if as_is:
        with pytest.raises(StagealignError, match="no chat template; add"):
            check_checkpoints(plan, Store(tmp_path / "home"), tmp_path / "results")
    else:
        check_checkpoints(plan, Store(tmp_path / "home"), tmp_path / "results")
    tokenizer = with_template(lm.load(folder), "other end").tokenizer
    tokenizer.save_pretrained(folder)
    if as_is:
        with pytest.raises(StagealignError, match="ends a turn with 'a1'"):
            check_checkpoints(plan, Store(tmp_path / "home"), tmp_path / "results")
    else:
        check_checkpoints(plan, Store(tmp_path / "home"), tmp_path / "results")
    with_template(lm.load(folder), "own end").tokenizer.save_pretrained(folder)
    check_checkpoints(plan, Store(tmp_path / "home"), tmp_path / "results")
    checkpoint = registry.cell(cell, "paper").checkpoint
    assert set(asked) == {(checkpoint.source, checkpoint.revision)}
    assert not (tmp_path / "home").exists()
    asked.clear()
    check_checkpoints(planned("lab", "zephyr-dpo-1off", tmp_path), Store(tmp_path / "home"), tmp_path / "results")
    assert not asked


def test_a_disk_without_room_for_the_plan_is_named_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    with pytest.raises(
        CannotRun, match=r"disk: \d+ artifacts need \d\.\d GiB below .*home, 0\.0 GiB are free; free some"
    ):
        run("zephyr-dpo-1off", seeds=1, results=tmp_path / "results")
    assert not (tmp_path / "home").exists()


def test_pickled_weights_are_refused(snapshot, tmp_path):
    folder, _ = snapshot
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(CannotRun, match=r"no \*\.safetensors"):
        build(tmp_path)


USER = "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
TEMPLATES = {
    "none": USER + "{% endfor %}",
    "prompt": USER + "\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "answer follows": "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "other end": USER + "a1\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "own end": USER + "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "fails": "{{ raise_exception('only with a system turn') }}",
}


def with_template(lm_, name):
    """The model with a template in which `other end` closes turns with a special token that is not the EOS."""
    lm_.tokenizer.add_special_tokens({"additional_special_tokens": ["a1"]})
    lm_.tokenizer.chat_template = TEMPLATES[name]
    return lm_


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "no generation prompt.*add one under"),
        ("prompt", None),
        ("answer follows", None),
        ("own end", None),
        ("fails", "its chat template fails .only with a system turn.; correct"),
    ],
)
def test_a_template_without_a_generation_prompt_is_named(name, words, tiny):
    tokenizer = with_template(tiny(), name).tokenizer
    if words is None:
        lm.check_tokenizer(tokenizer, "a/b")
        return
    with pytest.raises(StagealignError, match=words):
        lm.check_tokenizer(tokenizer, "a/b")


def test_a_template_that_ends_otherwise_than_the_tokenizer_is_named(tiny, tmp_path):
    """Where the generation config knows the template's end token completions do end; SFT takes it as EOS."""
    for name in ("prompt", "answer follows", "own end"):
        lm.check_ends(with_template(tiny(), name), "a/b")
    other = with_template(tiny(), "other end")
    end = other.tokenizer.convert_tokens_to_ids("a1")
    assert turn_end(other.tokenizer, "a/b") == end != other.tokenizer.eos_token_id
    words = rf"ends a turn with 'a1', its EOS token is '<\|endoftext\|>'.*`eos_token`.*or add {end} to `eos_token_id`"
    with pytest.raises(StagealignError, match=words):
        lm.check_ends(other, "a/b")
    for folder in ("weights", "out"):
        (tmp_path / folder).mkdir()
    lm.save(other, tmp_path / "weights")
    with pytest.raises(StagealignError, match="ends a turn with 'a1'"):
        sft.build_link(Work({}, {"weights": tmp_path / "weights"}, tmp_path / "out", tmp_path))
    other.model.generation_config.eos_token_id = [0, end]
    lm.check_ends(other, "a/b")
    other.model.generation_config.eos_token_id = 0
    assert sft.close_turns(other) == "a1"
    lm.check_ends(other, "a/b")
    assert sft.close_turns(other) is None
    lm.save(other, tmp_path / "made")
    made = lm.load_shape(tmp_path / "made")
    assert (lm.end_ids(made), made.completion_ids("", ended=True)) == ([end], [end])


def test_a_large_models_batch_in_parts_gives_the_same_weights(tmp_path, tiny, monkeypatch):
    """Parts of a batch hold unequal numbers of tokens, and the mean is over the whole batch all the same."""
    lm.save(tiny(), tmp_path / "weights")
    reviews = tmp_path / "reviews"
    reviews.mkdir()
    rows = [{"prompt": f"Say {i}", "completion": "word " * (1 + i % 5)} for i in range(16)]
    write_rows(reviews / "sft.jsonl", rows)
    params = {"epochs": 1, "learning_rate": 1e-3, "batch": 8, "max_length": 64, "trained_layers": None,
              "dtype": "float32", "seed": 0, "template": "zephyr"}  # fmt: skip
    made = {}
    for name, large in (("whole", 1e9), ("parts", 0)):
        monkeypatch.setattr(sft, "LARGE_MODEL", large)
        (tmp_path / name).mkdir()
        sft.build_start(Work(params, {"weights": tmp_path / "weights", "reviews": reviews}, tmp_path / name, tmp_path))
        made[name] = lm.load(tmp_path / name).model.state_dict()
    moved = lm.load(tmp_path / "weights").model.state_dict()
    for name, weight in made["whole"].items():
        torch.testing.assert_close(made["parts"][name], weight, atol=2e-5, rtol=0)
    assert max((made["whole"][name] - moved[name]).abs().max() for name in moved) > 1e-4, "it learned something"


def test_a_base_model_gets_its_template_and_learns_conversations(tmp_path, tiny):
    lm.save(tiny(), tmp_path / "weights")
    (tmp_path / "weights").mkdir(exist_ok=True)
    reviews, out = tmp_path / "reviews", tmp_path / "start"
    reviews.mkdir()
    out.mkdir()
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    write_rows(reviews / "sft.jsonl", [{"messages": talk}, {"messages": talk * 2}])
    params = {"epochs": 1, "learning_rate": 1e-3, "batch": 2, "max_length": 64, "trained_layers": None,
              "dtype": "float32", "seed": 0, "template": "zephyr"}  # fmt: skip
    facts = sft.build_start(Work(params, {"weights": tmp_path / "weights", "reviews": reviews}, out, tmp_path))
    assert facts["rows"] == 2
    made = lm.load(out)
    prompt = made.tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == f"<|user|>\nHello{made.tokenizer.eos_token}\n<|assistant|>\n"


def test_weights_without_a_pin_that_moved_since_the_results_are_refused(snapshot, tmp_path):
    """Before anything is built; with results of the same commit, of others' weights or damaged ones nothing is said."""
    folder, _ = snapshot
    with_template(lm.load(folder), "own end").tokenizer.save_pretrained(folder)
    plan, results = planned("paper", "zephyr-dpo-1off", tmp_path), tmp_path / "results"
    weights = next(one for one in plan.missing if one.kind.fetches == "checkpoint")
    made = of_cell(registry.cell("zephyr-dpo-1on", "paper"))
    made["artifacts"] = {weights.path: {"fingerprint": weights.fingerprint, "revision": COMMIT}}
    write_result(results, made)
    damaged = result_path(results, "paper", "zephyr-dpo-1off", 0)
    damaged.write_text("{")
    check_checkpoints(plan, Store(tmp_path / "home"), results)
    made["artifacts"][weights.path] |= {"revision": "c" * 40}
    made["seed"] = 1
    write_result(results, made)
    words = f"its newest revision is {COMMIT} now, .* results made with {'c' * 40} .zephyr-dpo-1on, 1 in all"
    with pytest.raises(CannotRun, match=words):
        check_checkpoints(plan, Store(tmp_path / "home"), results)
    made["artifacts"][weights.path]["fingerprint"] = "0" * 16
    result_path(results, "paper", "zephyr-dpo-1on", 1).unlink()
    write_result(results, made)
    check_checkpoints(plan, Store(tmp_path / "home"), results)
    made["artifacts"][weights.path] = {"fingerprint": weights.fingerprint, "revision": "c" * 40}
    write_result(results, made)
    store = Store(tmp_path / "home")
    store.build(weights)
    with pytest.raises(CannotRun, match=f"the store has {COMMIT} now, and .*made with {'c' * 40}"):
        check_checkpoints(planned("paper", "zephyr-dpo-1off", tmp_path), store, results)
