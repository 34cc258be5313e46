"""Losses: each form worked by hand, where it starts, which way it pulls, and equal to TRL's on the same batch."""

import math
from dataclasses import replace

import pytest
import torch

from stagealign.data.records import Pair
from stagealign.policy.forward import completion_logps
from stagealign.policy.logps import pack
from stagealign.train.losses import LOSSES, Constants, Logps, log_ratio_margin
from stagealign.train.reference import reference_logps, tokenize

CONSTANTS = Constants(beta=0.25, delta=1.0, sft_weight=0.1)


def two_pairs(grad=False):
    """Two pairs whose log-ratio margins are 2 and 0.5 nats."""
    policy = {
        "policy_chosen": torch.tensor([-10.0, -4.0], requires_grad=grad),
        "policy_rejected": torch.tensor([-12.0, -4.5], requires_grad=grad),
    }
    return Logps(
        **policy,
        reference_chosen=torch.tensor([-11.0, -4.0]),
        reference_rejected=torch.tensor([-11.0, -4.0]),
        chosen_tokens=torch.tensor([5, 2]),
        rejected_tokens=torch.tensor([4, 3]),
    )


def test_margin_by_hand():
    """Pair 1: (-10 + 11) - (-12 + 11) = 2. Pair 2: (-4 + 4) - (-4.5 + 4) = 0.5."""
    assert log_ratio_margin(two_pairs()).tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # -log sigmoid(0.25 * 2) = log(1 + exp(-0.5)) = 0.474077; log(1 + exp(-0.125)) = 0.632599
        ("sigmoid", [0.474077, 0.632599]),
        # relu(1 - 0.25 * 2) = 0.5; relu(1 - 0.25 * 0.5) = 0.875
        ("hinge", [0.5, 0.875]),
        # relu(1 + 10 - 12) + 0.1 * 10 = 0 + 1 = 1; relu(1 + 4 - 4.5) + 0.1 * 4 = 0.5 + 0.4 = 0.9
        ("slic-hf", [1.0, 0.9]),
        # Means a token -2 and -3: relu(1 - 0.25 * 1) + 0.1 * 2 = 0.95; -2 and -1.5: relu(1 + 0.125) + 0.2 = 1.325
        ("slic-norm", [0.95, 1.325]),
    ],
)
def test_form_by_hand(form, expected):
    assert LOSSES[form](two_pairs(), CONSTANTS).tolist() == pytest.approx(expected, abs=1e-6)


def test_every_form_has_a_hand_worked_case():
    assert set(LOSSES) == {"sigmoid", "hinge", "slic-hf", "slic-norm"}


@pytest.mark.parametrize(("form", "start"), [("sigmoid", math.log(2)), ("hinge", 1.0)])
def test_start_where_policy_is_reference(form, start):
    """Margin 0 whatever the log-probs: -log(1/2) = ln 2, and relu(1 - 0) = 1."""
    same = (torch.tensor([-300.0, -7.0]), torch.tensor([-12.0, -90.0]))
    logps = Logps(*same, *same, torch.tensor([9, 9]), torch.tensor([9, 9]))
    assert LOSSES[form](logps, CONSTANTS).tolist() == pytest.approx([start, start], abs=1e-7)


@pytest.mark.parametrize("form", LOSSES)
def test_gradient_raises_chosen_and_lowers_rejected(form):
    logps = two_pairs(grad=True)
    LOSSES[form](logps, CONSTANTS).sum().backward()
    assert (logps.policy_chosen.grad < 0).all()
    assert (logps.policy_rejected.grad >= 0).all()
    assert logps.policy_rejected.grad[1] > 0  # the first pair of slic-hf is beyond its hinge


def test_sigmoid_gradient_by_hand():
    """The slope in chosen is -beta * sigmoid(-beta * margin) = -0.25 * sigmoid(-0.5) = -0.25 * 0.377541 = -0.094385."""
    logps = two_pairs(grad=True)
    LOSSES["sigmoid"](logps, CONSTANTS).sum().backward()
    assert logps.policy_chosen.grad[0].item() == pytest.approx(-0.094385, abs=1e-6)
    assert logps.policy_rejected.grad[0].item() == pytest.approx(0.094385, abs=1e-6)


def test_hinge_is_flat_beyond_its_margin():
    """With beta 0.5 the first pair's scaled margin is 1, the second's 0.25: only the second still pulls."""
    logps = two_pairs(grad=True)
    losses = LOSSES["hinge"](logps, Constants(beta=0.51))
    losses.sum().backward()
    assert losses[0].item() == 0
    assert logps.policy_chosen.grad.tolist() == pytest.approx([0.0, -0.51])


def test_no_reference_in_slic_hf():
    logps = two_pairs()
    other = replace(logps, reference_chosen=torch.zeros(2), reference_rejected=torch.zeros(2))
    for form in ("slic-hf", "slic-norm"):
        assert torch.equal(LOSSES[form](logps, CONSTANTS), LOSSES[form](other, CONSTANTS))


@pytest.mark.parametrize("shape", ["llama", "neox"])
@pytest.mark.parametrize("form", ["sigmoid", "hinge"])
def test_equals_trl_on_the_same_batch(form, shape, tiny, trl_dpo):
    """Policy and reference differ, so that the margin is not 0; fp32, 1e-5."""
    pairs = [
        Pair("Is it good?", " Yes, and warm.", " No.", "off", 1.0),
        Pair("A film:", " dull", " a bright and lively thing", "off", 0.5),
        Pair("Is it long?", " no", " yes", "off", 0.1),
    ]
    policy, reference = tiny(shape, seed=1), tiny(shape, seed=2)
    tokens = tokenize(policy, pairs, 512)
    packed = pack(tokens)
    with torch.no_grad():
        ours = completion_logps(policy.model, packed).view(-1, 2)
    theirs = reference_logps(reference, tokens, None, None)
    logps = Logps(*ours.T, *theirs.T, *packed.lengths.view(-1, 2).T)
    loss = LOSSES[form](logps, Constants(beta=0.1)).mean().item()

    trainer = trl_dpo(policy, pairs, reference=reference.model, loss_type=[form], beta=0.1)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, batch).item()
    assert loss == pytest.approx(expected, abs=1e-5)
    assert abs(expected - {"sigmoid": math.log(2), "hinge": 1.0}[form]) > 0.01
