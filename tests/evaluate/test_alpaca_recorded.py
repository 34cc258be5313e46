"""AlpacaEval by recorded annotations, made up and published."""

import json
import math
import re

import pytest

from stagealign.base.errors import StagealignError
from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval.rows import read

pytestmark = pytest.mark.usefixtures("own_home")


def test_recorded_annotations_by_prompt_and_by_index(files, tmp_path):
    """(1 + 2 + 1.25 * 10) / 12 - 1 = 29.17%; NaN is no draw, 0 is AlpacaEval's old code of one."""
    outputs, baseline = files()
    battle = read(outputs, baseline)
    preferences = [1, 2, *[1.25] * 10]
    full = [
        {
            "instruction": item.prompt,
            "output_1": item.baseline,
            "output_2": item.model,
            "generator_1": "baseline",
            "generator_2": "outputs",
            "annotator": "someone",
            "preference": p,
        }
        for item, p in zip(battle.items, preferences, strict=True)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(full), encoding="utf-8")
    found = alpaca.evaluate(alpaca.EvaluationRequest(outputs, baseline, judge=f"recorded:{path}"))
    assert found.metric["value"] == pytest.approx(100 * (15.5 / 12 - 1))
    assert found.judge["annotators"] == ["someone"]

    alpaca.write(found, tmp_path / "table.csv")
    alpaca.write(found, tmp_path / "table.jsonl")
    alpaca.write(found, tmp_path / "table.parquet")
    for ending in ("csv", "jsonl", "parquet"):
        table = f"recorded:{tmp_path}/table.{ending}"
        again = alpaca.evaluate(alpaca.EvaluationRequest(outputs, baseline, judge=table))
        assert again.preferences == pytest.approx(preferences)

    for odd, answered in ((math.nan, 11), (None, 11), (-1, 11), (7, 11), (0, 12)):
        full[0]["preference"] = odd
        path.write_text(json.dumps(full), encoding="utf-8")
        found = alpaca.evaluate(alpaca.EvaluationRequest(outputs, baseline, judge=f"recorded:{path}"))
        assert len(found.preferences) == answered
        assert found.reliable == (answered == 12)
        json.dumps(found.plain(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: [*t, t[2]],
            "2 prompts ('Task 2: explain it.' (row 3), 'Task 2: explain it.' (row 13)) annotated more",
        ),
        (lambda t: [*t, t[2] | {"instruction": "New?"}], "1 prompt ('New?' (row 13)) not in the baseline"),
        (lambda t: [t[0] | {"output_2": "edited"}, *t[1:]], "annotated for other texts than those given"),
        (lambda t: [t[0] | {"model_chars": 3}, *t[1:]], "1 prompt ('Task 0: explain it.' (row 1)) annotated for other"),
        (lambda t: [row | {"generator_2": "other"} for row in t], "no annotation of 'outputs'; it has other"),
        (lambda t: [{"prompt_index": 0}], "`preference`"),
        (lambda t: [{"preference": 1}], "neither `instruction` nor `prompt_index`"),
    ],
)
def test_recorded_annotations_that_do_not_fit(files, tmp_path, change, message):
    outputs, baseline = files()
    table = [
        {"instruction": item.prompt, "output_2": item.model, "generator_2": "outputs", "preference": 1.5}
        for item in read(outputs, baseline).items
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(change(table)), encoding="utf-8")
    with pytest.raises(StagealignError, match=re.escape(message)):
        alpaca.evaluate(alpaca.EvaluationRequest(outputs, baseline, judge=f"recorded:{path}"))


def test_published_win_rates_come_back_from_published_annotations(shared_data, tmp_path):
    """29 models judged by the official annotator: win rate and standard error of the leaderboard, to 1e-6."""
    import pandas as pd

    folder = shared_data / "alpaca_eval"
    texts = pd.read_parquet(folder / "outputs.parquet").merge(pd.read_parquet(folder / "instructions.parquet"))
    judged = pd.read_parquet(folder / "gpt4_turbo_preferences.parquet")
    published = pd.read_csv(folder / "leaderboard.csv", index_col=0)
    baseline = tmp_path / "baseline.parquet"
    texts[texts.generator == "gpt4_1106_preview"].to_parquet(baseline)
    names = sorted(judged.generator.unique())
    assert len(names) == 29
    for name in names:
        texts[texts.generator == name].to_parquet(tmp_path / "outputs.parquet")
        judged[judged.generator == name].to_parquet(tmp_path / "judged.parquet")
        recorded = f"recorded:{tmp_path / 'judged.parquet'}"
        outputs = str(tmp_path / "outputs.parquet")
        found = alpaca.evaluate(alpaca.EvaluationRequest(outputs, str(baseline), judge=recorded))
        assert found.metric["value"] == pytest.approx(published.loc[name, "win_rate"], abs=1e-6)
        assert found.metric["standard_error"] == pytest.approx(published.loc[name, "standard_error"], abs=1e-6)
        assert len(found.battle.items) == 805
        assert len(found.preferences) == published.loc[name, "n_total"]
        assert found.reliable
