"""Opening of a policy for our own sampler: what its kept samples are kept under, and what is said of its path."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from stagealign.base.errors import StagealignError
from stagealign.boundary.open_policy import loaded
from stagealign.boundary.request import BoundaryRequest
from stagealign.policy.lm import LanguageModel, save


@pytest.fixture
def folder(tiny, tmp_path):
    save(tiny(chat=True), tmp_path)
    return tmp_path


def opened(folder):
    return loaded(BoundaryRequest(data="data.jsonl", policy=str(folder)), {"seed": 0})


def configure(folder, **values):
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_end_tokens_and_path_are_identity(folder, monkeypatch):
    """The advice of `check_ends` is to add an end token to generation_config.json: other samples then."""
    first = opened(folder)
    assert opened(folder).identity == first.identity
    configure(folder, eos_token_id=[0, 5])
    second = opened(folder)
    assert second.identity != first.identity
    assert second.identity["ends"] == [0, 5]
    monkeypatch.setattr("stagealign.policy.paths.guard", lambda lm: "it differs")
    assert opened(folder).identity != second.identity


def test_the_general_path_is_said_once(folder, monkeypatch):
    assert opened(folder).notes == ()
    assert opened(folder).facts == {"policy sampled by": "our own sampler"}
    monkeypatch.setattr("stagealign.policy.paths.guard", lambda lm: "it differs")
    policy = opened(folder)
    assert policy.notes == ("The policy is sampled by transformers' own generate: it differs.",)
    assert policy.facts == {"policy sampled by": "transformers' own generate"}


def test_penalties_of_generation_config_are_named_as_not_applied(folder):
    before = opened(folder).identity
    configure(folder, repetition_penalty=1.1, temperature=0.6, no_repeat_ngram_size=0)
    policy = opened(folder)
    assert policy.identity == before, "they change nothing"
    (note,) = policy.notes
    assert note == "Careful: generation_config.json sets repetition_penalty; samples are the policy's own, without it."


def test_what_is_no_causal_language_model_is_refused_before_its_weights_are_read(tiny, tmp_path):
    tiny(chat=True).tokenizer.save_pretrained(tmp_path)
    AutoConfig.for_model("bart").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(StagealignError, match=r"of type 'bart', an encoder with a decoder; .*--policy-url"):
        opened(tmp_path)


def test_a_multimodal_wrapper_is_sampled_by_text_alone(tiny, tmp_path):
    """Gemma 3's wrapper has its sizes in `text_config`."""
    base = tiny(chat=True)
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(base.tokenizer) + 5, "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "gemma3", text_config={"model_type": "gemma3_text", **text}, vision_config={**vision, "image_size": 28}
    )
    save(LanguageModel(AutoModelForCausalLM.from_config(config), base.tokenizer), tmp_path)
    assert opened(tmp_path).identity["sampler"] == [2, "fast"]
