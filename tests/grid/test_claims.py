"""Claims are written down before results, verdicts follow from numbers, and neither can be moved afterwards."""

from dataclasses import replace
from pathlib import Path

import pytest

from stagealign.grid import registry
from stagealign.grid.claims import CLAIM_KINDS, CLAIMS, LAB, PAPER, cited, of_scale
from stagealign.report.read.verdicts import (
    DIRECTION_ONLY,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    UNDER_POWERED,
    ClaimEstimate,
    holm,
    judge,
    normal,
    share_of,
)
from stagealign.store.results import BadData, archives, read_results

RESULTS = Path(__file__).resolve().parents[2] / "results"
ZEPHYR = next(claim for claim in PAPER if claim.key == "zephyr-start-off")
AFTER = next(claim for claim in PAPER if claim.key == "zephyr-after-off-on")


def test_every_claim_says_what_it_needs():
    assert len({(claim.scale, claim.key) for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.kind in CLAIM_KINDS
        assert claim.expected in (("on", "off") if claim.kind == "better" else ("above", "below"))
        assert claim.smallest_effect > 0
        assert all((claim.words, claim.unit, claim.planned, claim.source))
        if claim.tolerance:
            low, high = claim.tolerance
            assert low < high
            bound = {"better": 1.0, "score": 0.5}[claim.kind]
            assert (high <= bound) if claim.expected in ("off", "below") else (low >= bound)


def test_no_number_is_claimed_of_a_stand_in():
    assert all(claim.tolerance is None for claim in LAB)
    assert {claim.scale for claim in LAB} == {"lab"}
    assert of_scale("smoke") == ()


def test_a_fingerprint_follows_what_may_change_a_verdict_and_not_the_words():
    assert replace(ZEPHYR, words="other words", source="elsewhere", seen=True).fingerprint == ZEPHYR.fingerprint
    for change in ({"tolerance": (0.2, 0.7)}, {"smallest_effect": 1.0}, {"expected": "on"}, {"policy": "after off"}):
        assert replace(ZEPHYR, **change).fingerprint != ZEPHYR.fingerprint


def test_a_cell_cites_what_it_helps_to_judge():
    assert set(cited(registry.cell("zephyr-dpo-1on"))) == {
        "zephyr-start-off", "zephyr-after-off-on", "zephyr-start-below", "zephyr-after-off-above", "zephyr-off-rises",
        "rule",
    }  # fmt: skip
    assert set(cited(registry.cell("zephyr-slichf-1on"))) == {"rule"}
    assert cited(registry.cell("pythia-dpo-1on", "smoke")) == {}


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_no_claim_was_changed_after_a_result_that_cites_it(scale):
    now = {claim.key: claim.fingerprint for claim in of_scale(scale)}
    folders = [RESULTS, *(folder for _, folder in archives(RESULTS, scale))]
    for path, result in (row for folder in folders for row in read_results(folder, scale)):
        assert not isinstance(result, BadData), result
        for key, fingerprint in result.get("claims", {}).items():
            assert now.get(key) == fingerprint, f"{path.name} cites {key!r} as it was; give the changed claim a new key"


def test_holm_by_hand():
    """Smallest first: 4 x 0.01, 3 x 0.02 = 0.06, 2 x 0.03 = 0.06, then 0.2; never falling, never above 1."""
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_normal_and_share_agree_with_scipy():
    from scipy.stats import binomtest, norm

    found = normal(0.45, 0.2, 1.4, "")
    assert found.p == pytest.approx(2 * norm.sf(2.25))
    assert found.highest == pytest.approx(0.45 + norm.ppf(0.975) * 0.2)
    share = share_of(9, 10, "")
    assert share.p == pytest.approx(22 / 1024)  # by hand: 2 x (1 + 10) / 2^10
    assert share.highest == pytest.approx(binomtest(9, 10).proportion_ci().high - 0.5)
    with pytest.raises(ValueError, match="not positive"):
        normal(0.1, 0.0, None, "")


def states(*pairs):
    claims, estimates = zip(*pairs, strict=True)
    return [verdict.state for verdict in judge(claims, estimates)]


@pytest.mark.parametrize(
    ("effect", "error", "value", "state"),
    [
        (7.0, 1.5, 0.44, REPRODUCED),
        (7.0, 1.5, 0.80, DIRECTION_ONLY),
        (7.0, 1.5, None, DIRECTION_ONLY),
        (-7.0, 1.5, 2.0, NOT_REPRODUCED),
        (0.1, 0.5, 0.99, NOT_REPRODUCED),  # 0.1 + 1.96 x 0.5 = 1.08 leaves out 2.1
        (2.0, 1.5, 0.7, UNDER_POWERED),
        (-2.0, 4.0, 1.4, UNDER_POWERED),
    ],
)
def test_verdicts_by_hand(effect, error, value, state):
    assert states((ZEPHYR, normal(effect, error, value, ""))) == [state]


def test_a_claim_without_a_number_needs_its_direction_only():
    assert states((AFTER, normal(9.0, 1.5, None, ""))) == [REPRODUCED]


def test_many_claims_are_corrected_for_and_those_not_run_are_not_counted():
    """With p = 0.03 it holds alone, and no longer beside four others of 0.5."""
    weak, chance = ClaimEstimate(3.0, 0.4, "", 0.03, 5.0), ClaimEstimate(0.5, 0.9, "", 0.5, 5.0)
    assert states((ZEPHYR, weak), (AFTER, "no results")) == [REPRODUCED, NOT_RUN]
    assert states((ZEPHYR, weak), *[(AFTER, chance)] * 4)[0] == UNDER_POWERED
