"""Measures of diversity, worked by hand and against sacrebleu and scipy."""

import math
import random
from itertools import combinations

import numpy as np
import pytest

from stagealign.stats.diversity import (
    MORE,
    bleu,
    concordance,
    distinct,
    larger,
    mean_distance,
    rank_agreement,
    self_bleu,
    words,
)


def metric(value, error):
    return {"value": value, "standard_error": error}


def test_words_are_lower_case_and_marks_stand_alone():
    assert words("Don't, it's BAD!") == ["don", "'", "t", ",", "it", "'", "s", "bad", "!"]
    assert words(" \n") == []
    assert words("Café 7") == ["café", "7"]


def test_distinct_by_hand():
    """Tokens a b a and a b: 2 different of 5; bigrams ab ba and ab: 2 different of 3, none across the two texts."""
    assert distinct(["a b a", "A b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "A b"], 2) == pytest.approx(2 / 3)
    assert distinct(["a b", "c d"], 2) == 1.0
    assert distinct(["a b", "a b"], 1) == 0.5
    assert distinct(["a", "b"], 2) is None
    assert distinct([], 1) is None


def test_bleu_by_hand():
    """Of `a b c` against `a b d`: 2/3, 1/2, and 0 of 1 smoothed to 1/2, no order 4; a shorter one pays a penalty."""
    assert bleu(list("abc"), [list("abd")]) == pytest.approx((2 / 3 / 2 / 2) ** (1 / 3))
    assert bleu(list("ab"), [list("abc")]) == pytest.approx(math.exp(-0.5))
    assert bleu(list("abcde"), [list("abcde"), ["x"]]) == pytest.approx(1.0)
    assert bleu(["a"], [["b"]]) == 0.0
    assert bleu([], [["b"]]) == 0.0
    # a a a against a a: two of three are allowed; bigrams one of two; trigram 0 of 1, smoothed to 1/2.
    assert bleu(["a"] * 3, [["a"] * 2]) == pytest.approx((2 / 3 / 2 / 2) ** (1 / 3))


def test_bleu_is_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu comes with the extra `eval`")
    rng = random.Random(0)
    for _ in range(300):
        texts = [[rng.choice("abcdefg") for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(2, 4))]
        ours = bleu(texts[0], texts[1:])
        theirs = sacrebleu.sentence_bleu(
            " ".join(texts[0]), [" ".join(one) for one in texts[1:]], tokenize="none", smooth_method="exp"
        )
        assert 100 * ours == pytest.approx(theirs.score, abs=1e-6), texts


def test_self_bleu_is_symmetric_in_the_texts():
    assert self_bleu(["a b c d", "a b c d"]) == pytest.approx(1.0)
    assert self_bleu(["a b", "c d"]) == 0.0
    assert self_bleu(["a b", "a b c"]) == self_bleu(["a b c", "a b"])
    # a b | a b c: exp(-1/2); a b c | a b: 2/3, 1/2, 1/2.
    assert self_bleu(["a b", "a b c"]) == pytest.approx((math.exp(-0.5) + (1 / 6) ** (1 / 3)) / 2)
    assert self_bleu(["alone"]) is None


def test_distance_by_hand():
    """Right angle 1, half of one 1 - 0.7071 twice; length does not matter."""
    vectors = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]], dtype=np.float32)
    assert mean_distance(vectors) == pytest.approx((1 + 2 * (1 - math.sqrt(0.5))) / 3)
    assert mean_distance(vectors[:1]) is None
    assert mean_distance(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2.0)
    assert mean_distance(np.array([[0.3, 0.7]] * 2)) == pytest.approx(0.0, abs=1e-12)
    for wrong in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="no direction"):
            mean_distance(np.array([[1.0, 0.0], [wrong, 0.0]]))


def test_agreement_over_prompts_counts_diversity_upward():
    """distinct-2 and self-BLEU that rise together disagree: one means more diversity, the other less."""
    measures = {
        "distinct_2": {"p": 0.1, "q": 0.2, "r": 0.3},
        "self_bleu": {"p": 0.1, "q": 0.2, "r": 0.3, "s": 0.9},
        "embedding": {"p": 1.0, "q": 1.0, "r": 1.0},
        "surprise": {},
        "length": {"p": 1.0, "q": 2.0, "r": 3.0},
    }
    found = rank_agreement(measures)
    assert found == {
        "distinct_2, self_bleu": {"value": -1.0, "n": 3},
        "distinct_2, embedding": {"value": None, "n": 3},
        "self_bleu, embedding": {"value": None, "n": 3},
    }
    assert set(MORE.values()) == {1, -1}


def test_larger_needs_more_than_the_error_of_both():
    """Errors 3 and 4 make 5; 1.96 times that is 9.8."""
    assert larger(metric(10.0, 3.0), metric(0.0, 4.0)) == 1
    assert larger(metric(0.0, 3.0), metric(10.0, 4.0)) == -1
    assert larger(metric(9.7, 3.0), metric(0.0, 4.0)) == 0
    assert larger(metric(50.0, 0.0), metric(50.0, 0.0)) == 0
    assert larger(metric(1.0, None), metric(0.0, 0.1)) is None
    assert larger({"value": None, "reason": "no encoder"}, metric(0.0, 0.1)) is None


def test_concordance_is_kendalls_where_all_is_decided():
    from scipy.stats import kendalltau

    assert concordance([(1, 1), (-1, -1), (1, -1), (0, 1), (0, 0)]) == {
        "same": 2,
        "opposite": 1,
        "undecided": 2,
        "tau": pytest.approx(1 / 3),
    }
    assert concordance([])["tau"] is None
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9))
    orders = [(int(np.sign(a[i] - a[j])), int(np.sign(b[i] - b[j]))) for i, j in combinations(range(9), 2)]
    assert concordance(orders)["tau"] == pytest.approx(kendalltau(a, b).statistic)
