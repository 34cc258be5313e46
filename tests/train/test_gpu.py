"""What runs on a GPU mixes no devices: held without one, by tensors without values on a second device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from stagealign.evaluate import kl
from stagealign.policy.forward import layout_of
from stagealign.policy.logps import PairTokens, pack
from stagealign.train import reference

TOKENS = [PairTokens((1, 2, 3), (4, 5, 6), (7, 8)), PairTokens((1, 2, 9), (4, 5, 6), (7, 8, 9))]


@pytest.fixture
def elsewhere(tiny, monkeypatch):
    """A tiny model on a device that is not the CPU; rows are laid out on the CPU, as they are for a real one."""

    def on_cpu(*given, **named):
        with unset_fake_temporarily():
            return pack(*given, **named)

    monkeypatch.setattr(reference, "pack", on_cpu)
    lm = tiny()
    assert layout_of(lm.model) == "branches"  # proved on the CPU, before tensors lose their values
    with FakeTensorMode(allow_non_fake_inputs=True):
        lm.model.to("meta")
        yield lm


def test_reference_and_trunk_come_back_to_the_cpu(elsewhere):
    found = reference.reference_logps(elsewhere, TOKENS, None, None)
    assert (found.shape, found.device.type) == ((2, 2), "cpu")
    trunk = reference.trunk_states(elsewhere, TOKENS, 2)
    assert (trunk.shape, trunk.device.type) == ((17, 64), "cpu")
    found = reference.reference_logps(elsewhere, TOKENS, trunk, 2)
    assert (found.shape, found.device.type) == ((2, 2), "cpu")


def test_divergences_are_on_the_models_device(elsewhere):
    packed = reference.pack(TOKENS)
    found = kl.divergences(elsewhere, elsewhere, packed)
    assert (found.shape, found.device.type) == ((2,), "meta")


def test_rows_that_stay_on_the_cpu_are_noticed(elsewhere, monkeypatch):
    """So that the two above can fail."""
    monkeypatch.setattr(reference, "to_device", lambda packed, device: packed)
    with pytest.raises(RuntimeError, match="device"):
        reference.reference_logps(elsewhere, TOKENS, None, None)


def test_a_model_is_put_where_the_gpu_is(tiny, monkeypatch):
    from stagealign.policy.lm import on_gpu

    lm, asked = tiny(), []
    monkeypatch.setattr(lm.model, "to", lambda *where: asked.append(where))
    assert on_gpu(lm) is lm
    assert asked == ([("cuda",)] if torch.cuda.is_available() else [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu(lm)
    assert asked[-1] == ("cuda",)
