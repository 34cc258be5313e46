"""Supervised fine-tuning has no dropout, and what cannot be cut into trunk and top is refused by name."""

import pytest
import torch
from transformers import AutoConfig

from stagealign.base.errors import CannotRun, StagealignError
from stagealign.data.records import write_rows
from stagealign.grid.spec import Lora
from stagealign.policy import lm, start
from stagealign.policy.layers import freeze_below, trunk_of
from stagealign.policy.miniature import miniature
from stagealign.store.artifact import Work
from stagealign.train.adapters import add_adapters


def tuned(folder, model):
    """Weights after SFT."""
    for name in ("weights", "reviews", "start"):
        (folder / name).mkdir(parents=True)
    lm.save(model, folder / "weights")
    rows = [{"prompt": f"Review film {i}.", "completion": f" It is film {i}."} for i in range(4)]
    write_rows(folder / "reviews" / "sft.jsonl", rows)
    params = {"epochs": 1, "learning_rate": 1e-3, "batch": 2, "max_length": 64, "trained_layers": None,
              "dtype": "float32", "seed": 0, "template": "zephyr"}  # fmt: skip
    inputs = {"weights": folder / "weights", "reviews": folder / "reviews"}
    facts = start.build_start(Work(params, inputs, folder / "start", folder))
    return facts["curve"], lm.load(folder / "start").model.state_dict()


def test_dropout_is_off_in_sft(tiny, tmp_path):
    """As with Phi-2's `resid_pdrop`: a config with rates trains to the weights of one without."""
    runs = []
    for rate in (0.0, 0.5):
        model = tiny("neox")
        model.model.config.hidden_dropout = model.model.config.attention_dropout = rate
        runs.append(tuned(tmp_path / str(rate), model))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(weight, runs[1][1][name]) for name, weight in runs[0][1].items())


def built(name):
    return miniature(AutoConfig.for_model(name))


@pytest.mark.parametrize(
    ("name", "why"), [("gemma3_text", "of several kinds .full_attention, sliding_attention"), ("gpt2", "no list")]
)
def test_layers_that_cannot_be_cut_are_refused(name, why):
    """A sliding window would come to stand at another layer."""
    for cut in (trunk_of, freeze_below):
        with pytest.raises(StagealignError, match=f"{why}.*set trained_layers to None"):
            cut(built(name), 1)


def test_adapters_without_a_linear_layer_are_refused():
    pytest.importorskip("peft")
    with pytest.raises(CannotRun, match="GPT2LMHeadModel has no linear layer"):
        add_adapters(built("gpt2"), Lora(4, 8))
