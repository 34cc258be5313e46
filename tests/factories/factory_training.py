"""Pairs, training data and settings of small rounds, and how far two sets of weights are apart."""

from stagealign.data.records import Pair
from stagealign.grid.methods import METHODS
from stagealign.train.reference import TrainingSet, reference_logps, tokenize, trunk_states
from stagealign.train.trainer import RoundSettings

DPO, HINGE = METHODS["lab"]["dpo"], METHODS["lab"]["slichf"]
SETTINGS = RoundSettings(
    learning_rate=1e-3,
    batch=4,
    epochs=1,
    warmup=0.1,
    schedule="cosine",
    max_grad_norm=1.0,
    dtype="float32",
    order_seed=11,
    checkpoint_steps=1000,
)
WORDS = ("warm", "dull", "bright", "slow", "kind", "loud", "long", "grim", "sweet", "odd")


def pairs_of(count):
    """Pairs of unequal lengths, no two alike, all prompts with a shared beginning."""
    return [
        Pair(
            f"Review {WORDS[i % 10]} film {i}." + " Please." * (i % 3),
            " " + " and ".join(WORDS[(i + j) % 10] for j in range(1 + i % 4)),
            " not " + ", ".join(WORDS[(3 * i + j) % 10] for j in range(1 + i % 5)),
            "off",
            1.0,
        )
        for i in range(count)
    ]


def data_of(lm, pairs, trained_layers=None, reference=None):
    tokens = tokenize(lm, pairs, 512)
    trunk = None if trained_layers is None else trunk_states(lm, tokens, trained_layers)
    if reference is None:
        reference = reference_logps(lm, tokens, trunk, trained_layers)
    return TrainingSet(tokens, reference, trunk)


def weights_of(lm):
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


def distance(one, other):
    """Largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
