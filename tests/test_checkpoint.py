"""A published checkpoint is linked at its commit, or refused with what to do; nothing is put in its place."""

import httpx
import pytest
import torch
from huggingface_hub import errors

from stagealign import lm, sft
from stagealign.errors import CannotRun
from stagealign.records import write_rows
from stagealign.store import Work

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
        (errors.LocalEntryNotFoundError, "the hub is out of reach"),
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


def test_pickled_weights_are_refused(snapshot, tmp_path):
    folder, _ = snapshot
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(CannotRun, match=r"no \*\.safetensors"):
        build(tmp_path)


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
