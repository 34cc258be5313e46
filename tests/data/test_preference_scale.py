"""One reading of recorded preferences by `boundary`, `alpaca-eval` and `lc-win-rate`: equal numbers, equal side."""

import json

import pytest

from stagealign.base.errors import BadData
from stagealign.data.preference_scale import COMPARISONS, PAIRS, OddPreference, PreferenceScale, declared_scale
from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval.lc_win_rate import lc_win_rates
from stagealign.oracle.recorded import RecordedOracle
from stagealign.oracle.recorded_file import read_recorded
from stagealign.scoring.contest import Contest


def save(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def evaluated(tmp_path, values, scale=None, **more):
    """Win rate of the model by `alpaca-eval --judge recorded:` and by `lc-win-rate`, of the same file."""
    prompts = [f"prompt {i}" for i in range(len(values))]
    sides = [
        [{"instruction": p, "output": f"{name} {p}", "generator": name} for p in prompts]
        for name in ("model", "baseline")
    ]
    rows = [
        {
            "instruction": prompt,
            "output_1": f"baseline {prompt}",
            "output_2": f"model {prompt}",
            "generator_1": "baseline",
            "generator_2": "model",
            "annotator": "people",
            "preference": value,
            **more,
        }
        for prompt, value in zip(prompts, values, strict=True)
    ]
    table = save(tmp_path / "annotations.json", rows)
    files = save(tmp_path / "outputs.json", sides[0]), save(tmp_path / "baseline.json", sides[1])

    def by_command():
        request = alpaca.EvaluationRequest(*files, judge=f"recorded:{table}", preference_scale=scale)
        return alpaca.evaluate(request).metric["value"]

    return by_command, lambda: lc_win_rates(table, preference_scale=scale)[0].win_rate


def meter(tmp_path, values):
    """Shares of `a` by `boundary --oracle recorded:`, of the same numbers as pairs of one contest each."""
    rows = [{"prompt": f"p{i}", "a": "on", "b": "off", "preference": value} for i, value in enumerate(values)]
    oracle = RecordedOracle(read_recorded(save(tmp_path / "pairs.json", rows)))
    return [judged.won[0] for judged in oracle.judge([Contest(f"p{i}", ("on",), ("off",)) for i in range(len(values))])]


@pytest.mark.parametrize(
    ("values", "scale", "more", "rate"),
    [
        ([1, 2, 2, 2], None, {}, 75.0),
        ([1.0, 2.0, 1.5, 1.5], None, {}, 50.0),
        ([1, 2, 0, 2], None, {}, 62.5),  # 0 among 1 and 2 is AlpacaEval 1's draw
        (["1", "2", "2", "2"], None, {}, 75.0),
        ([1.01, 1.99, 1.5, 1.5], None, {}, 50.0),
        (["baseline", "model", "tie", "model"], None, {}, 62.5),
        (["baseline", 2, 2, 2], None, {}, 75.0),
        ([0, 1, 1, 1], "0-1", {}, 75.0),
        ([0, 1, 1, 1], None, {"preference_scale": "0-1"}, 75.0),
        ([0.25, 0.75, 1, 1], "0-1", {}, 75.0),
        ([1, 1, 1, 1], "1-2", {}, 0.0),
        ([1, 1, 1, 1], "0-1", {}, 100.0),
        ([0, 1, 1, 1], "1-2", {}, 12.5),  # said so: one draw and three losses
        ([1, 1, 1, 1], None, {"raw_completion": "M"}, 0.0),
        ([1, 1, 1, 1], None, {"preference_scale": "1-2"}, 0.0),
    ],
)
def test_both_commands_read_a_file_alike(values, scale, more, rate, tmp_path):
    for read in evaluated(tmp_path, values, scale, **more):
        assert read() == pytest.approx(rate)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0, 1, 1, 1], "0 and 1 found"),
        ([1, 1, 1, 1], "only 1 found"),
        ([0, 0, 0], "0 found"),
        ([0.2, 0.9, 0.5], "numbers from 0 to 1 found"),
        ([0.2, 1, 0], "numbers from 0 to 1 found"),
        ([None, 1, "baseline"], "only 1 found"),
        ([0.5, 1.5, 2], "belong to different scales"),
        ([0, 0.25, 2], "belong to different scales"),
        ([3, 9, 7, 1], "3 of 4 values are on no known scale, the first 3 in row 1"),
        ([True, False, True], "3 of 3 values are on no known scale, the first True"),
        (["A", "B", "A"], "3 of 3 values are on no known scale, the first 'A'"),
        ([1, 2, -1, -1], "2 of 4 values are on no known scale, the first -1 in row 3"),
    ],
)
def test_a_file_that_two_scales_explain_is_refused_by_both_commands(values, found, tmp_path):
    for read in evaluated(tmp_path, values):
        with pytest.raises(BadData, match=r"column 'preference': ") as caught:
            read()
        assert found in str(caught.value)
        if "no known" not in found and "different" not in found:
            assert "--preference-scale 1-2 (1 the baseline wins, 2 the model) or 0-1" in str(caught.value)


def test_an_unknown_scale_and_values_off_the_named_one_are_refused(tmp_path):
    for read in evaluated(tmp_path, [0, 1], "yes"):
        with pytest.raises(BadData, match="--preference-scale: 'yes' found; write 1-2"):
            read()
    for read in evaluated(tmp_path, [1, 2, 2], "0-1"):
        with pytest.raises(BadData, match="2 of 3 values are on no known scale, the first 2 in row 2"):
            read()
    for read in evaluated(tmp_path, [1, 2], preference_scale="0..1"):
        with pytest.raises(BadData, match=r"column 'preference_scale': '0..1' found"):
            read()


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ([1, 0, 0.5], [1.0, 0.0, 0.5]),
        ([0.9, 0.1, 1], [1.0, 0.0, 1.0]),
        ([1, 2, 1.5], [1.0, 0.0, 0.5]),
        ([1, 1, 1], [1.0, 1.0, 1.0]),  # `a` wins on both scales
        (["a", "B", " tie "], [1.0, 0.0, 0.5]),
    ],
)
def test_the_meter_reads_a_share_of_a_or_one_to_two(values, shares, tmp_path):
    assert meter(tmp_path, values) == shares


@pytest.mark.parametrize("values", [[0, 1, 2], [0.5, 1.5], [1, 2, 0]])
def test_the_meter_refuses_a_mixture(values, tmp_path):
    """0, 1, 2 may be AlpacaEval 1's codes or loss, tie and win."""
    with pytest.raises(BadData, match="belong to different scales"):
        meter(tmp_path, values)


def test_one_class_reads_both():
    for sides, expected in ((PAIRS, 0.25), (COMPARISONS, 0.75)):
        scale = PreferenceScale("file", "row", sides, "1-2")
        assert scale.share(scale.add(1, 1.75)) == expected
        assert (scale.share("first"), scale.share("tie")) == ((1.0, 0.5) if sides is PAIRS else (0.0, 0.5))
        with pytest.raises(OddPreference, match="outside 1 to 2"):
            scale.add(2, 0.3)
    assert declared_scale({"preference": 1}, "file") is None
    assert declared_scale({"prompt_hash": "x", "failed": None}, "file") == "1-2"
