"""LC win rates are joined by prompt: shuffled files, subsets, own prompts, and alpaca_eval's own annotations."""

import json
import random

import numpy as np
import pytest

from stagealign.base.errors import BadData
from stagealign.data.records import prompt_hash
from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval import official_prompts
from stagealign.evaluate.alpaca_eval.comparisons import PromptKey
from stagealign.evaluate.alpaca_eval.difficulty import Difficulties, read_difficulty
from stagealign.evaluate.alpaca_eval.lc_win_rate import FITTED, NO_DIFFICULTY, lc_win_rates
from stagealign.evaluate.alpaca_eval.length_control import LEARNED, PLAIN, features, fit, too_few
from stagealign.evaluate.alpaca_eval.official_prompts import official_index

COUNT = 160


@pytest.fixture
def prompts(monkeypatch):
    """Invented prompts that take the places of AlpacaEval's first ones, with difficulties of a wide range."""
    texts = [f"Invented instruction {i}" for i in range(COUNT)]
    known = {prompt_hash(text)[: official_prompts.DIGITS]: i for i, text in enumerate(texts)}
    monkeypatch.setattr(official_prompts, "_INDEX", known)
    return texts


@pytest.fixture
def published(tmp_path):
    """Difficulties as they are published: numbered, without texts, the number in a column without a name."""
    path = tmp_path / "instruction_difficulty.csv"
    lines = "".join(f"{i},{(i * 37 % 101) / 20 - 2.5}\n" for i in range(COUNT))
    path.write_text(f",instruction_difficulty\n{lines}", encoding="utf-8")
    return path


def annotations(prompts, generator="mine"):
    """Rows as alpaca_eval writes them to `annotations.json` (0.6.6, `PairwiseAnnotator`), invented texts."""
    rng = random.Random(0)
    return [
        {
            "instruction": text,
            "output_1": "b" * (100 + i % 23),
            "generator_1": "baseline",
            "output_2": "m" * (60 + 2 * (i % 41)),
            "generator_2": generator,
            "dataset": "helpful_base",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": round(1 + rng.random() ** (1 + (i * 37 % 101) / 50), 6),
        }
        for i, text in enumerate(prompts)
    ]


def save(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def by_command(tmp_path, rows, order):
    """The table that `alpaca-eval --annotations` writes, with the baseline's file in this order."""
    outputs = [
        {"instruction": row["instruction"], "output": row["output_2"], "generator": row["generator_2"]} for row in rows
    ]
    baseline = [
        {"instruction": rows[i]["instruction"], "output": rows[i]["output_1"], "generator": "baseline"} for i in order
    ]
    request = alpaca.EvaluationRequest(
        str(save(tmp_path / "outputs.json", outputs)),
        str(save(tmp_path / "baseline.json", baseline)),
        judge=f"recorded:{save(tmp_path / 'annotations.json', rows)}",
    )
    alpaca.write(alpaca.evaluate(request), tmp_path / "table.jsonl")
    return tmp_path / "table.jsonl"


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_order_of_the_baseline_changes_nothing_also_on_a_subset(share, prompts, published, tmp_path):
    rows = annotations(prompts)[:: round(1 / share)]
    order = list(range(len(rows)))
    (whole,) = lc_win_rates(by_command(tmp_path, rows, order), published)
    random.Random(1).shuffle(order)
    (shuffled,) = lc_win_rates(by_command(tmp_path, rows, order), published)
    (direct,) = lc_win_rates(save(tmp_path / "direct.json", [rows[i] for i in order]), published)
    assert whole.difficulty == shuffled.difficulty == direct.difficulty == "by prompt"
    assert shuffled.lc_win_rate == pytest.approx(whole.lc_win_rate, abs=1e-8)
    assert direct.lc_win_rate == pytest.approx(whole.lc_win_rate, abs=1e-8)
    assert shuffled.lc_sampling_error == pytest.approx(whole.lc_sampling_error, abs=1e-8)
    difficulties = read_difficulty(str(published)).by_index
    values = np.array([difficulties[prompts.index(row["instruction"])] for row in rows])
    chars = ([len(row[name]) for row in rows] for name in ("output_1", "output_2"))
    weights = fit(
        features(*chars, values), np.array([row["preference"] - 1 for row in rows]), LEARNED.for_rows(len(rows))
    )
    by_hand = 100 / (1 + np.exp(-(weights.base + weights.difficulty * values)))
    assert whole.lc_win_rate == pytest.approx(by_hand.mean(), abs=1e-6)


def test_a_numbering_of_the_users_own_is_not_taken_for_alpaca_evals(prompts, published, tmp_path):
    """A table whose `prompt_index` is a place in some file, beside the hash of each prompt."""
    rows = annotations(prompts)
    (whole,) = lc_win_rates(save(tmp_path / "rows.json", rows), published)
    random.Random(2).shuffle(rows)
    (found,) = lc_win_rates(
        save(tmp_path / "rows.json", [row | {"prompt_index": i} for i, row in enumerate(rows)]), published
    )
    assert found.lc_win_rate == pytest.approx(whole.lc_win_rate, abs=1e-8)


def test_recorded_annotations_by_number_are_not_joined_by_place(tmp_path):
    """Own prompts, a baseline without numbers, and annotations that only number: nothing says which is which."""
    texts = [f"own {i}" for i in range(5)]
    rows = annotations(texts)
    numbered = [{"prompt_index": i, "generator": "mine", "preference": row["preference"]} for i, row in enumerate(rows)]
    by_command(tmp_path, rows, range(5))
    save(tmp_path / "annotations.json", numbered)
    files = str(tmp_path / "outputs.json"), str(tmp_path / "baseline.json")
    request = alpaca.EvaluationRequest(*files, judge=f"recorded:{tmp_path / 'annotations.json'}")
    with pytest.raises(BadData, match="prompt_index 0 found, and the baseline does not number its prompts"):
        alpaca.evaluate(request)


@pytest.mark.parametrize("given", [True, False])
def test_own_prompts_are_fitted_without_difficulties(given, prompts, published, tmp_path):
    """The weight of the difficulty is fixed at 0: the fit is that of length and base alone."""
    rows = annotations([f"own {i}" for i in range(COUNT)])
    (found,) = lc_win_rates(save(tmp_path / "own.json", rows), published if given else None)
    assert (found.method, found.difficulty, found.missing) == (NO_DIFFICULTY, "left out", 0)
    chars = ([len(row[name]) for row in rows] for name in ("output_1", "output_2"))
    outcomes = np.array([row["preference"] - 1 for row in rows])
    inputs = features(*chars, np.zeros(COUNT))
    weights = fit(inputs, outcomes, LEARNED.for_rows(COUNT), with_difficulty=False)
    assert weights.difficulty == 0
    assert found.lc_win_rate == pytest.approx(100 / (1 + np.exp(-weights.base)), abs=1e-9)
    assert found.lc_standard_error is None, "every prompt has the same chance at equal length"
    assert found.lc_sampling_error > 1
    plain = fit(inputs, outcomes, PLAIN, with_difficulty=False)
    assert plain.length == pytest.approx(fit(inputs, outcomes, PLAIN).length, abs=1e-4)


def test_some_prompts_without_a_difficulty_are_refused_by_name(prompts, published, tmp_path):
    rows = annotations([*prompts[:-2], "own one", "own two"])
    with pytest.raises(BadData, match=r"2 prompts have no difficulty: .*; leave these prompts out, or leave --diff"):
        lc_win_rates(save(tmp_path / "rows.json", rows), published)


def test_difficulties_by_text_or_hash(prompts, tmp_path):
    """Own difficulties of own prompts, named by text or by hash, in any order."""
    own = [f"own {i}" for i in range(COUNT)]
    rows = save(tmp_path / "rows.json", annotations(own))
    values = list(range(COUNT))[::-1]
    tables = [
        [{"instruction": text, "instruction_difficulty": i / 40} for i, text in zip(values, own[::-1], strict=True)],
        [
            {"prompt_hash": prompt_hash(t), "instruction_difficulty": i / 40}
            for i, t in zip(values, own[::-1], strict=True)
        ],
        [
            {"prompt_index": 9 - i, "prompt": t, "instruction_difficulty": i / 40}
            for i, t in zip(values, own[::-1], strict=True)
        ],
    ]
    found = [lc_win_rates(rows, save(tmp_path / "difficulty.json", table))[0] for table in tables]
    assert {(one.method, one.difficulty) for one in found} == {(FITTED, "by prompt")}
    assert len({one.lc_win_rate for one in found}) == 1


def test_a_prompt_is_looked_up_by_its_text_before_its_number(prompts):
    difficulties = Difficulties({0: 1.0, 1: 2.0}, {})
    assert difficulties.of(PromptKey(prompt_hash(prompts[1]), 0)) == 2.0
    assert difficulties.of(PromptKey(prompt_hash("another"), 0)) is None
    assert difficulties.of(PromptKey(None, 0)) == 1.0
    assert official_index(None) is None


@pytest.mark.parametrize(
    ("odd", "failed", "reason"),
    [
        ({"preference": None}, 1, "no preference: 1 (row 3)"),
        ({"preference": float("nan")}, 1, "no preference: 1 (row 3)"),
        ({"output_2": None}, 1, "no output_2: 1 (row 3)"),
        ({"output_2": ["x"]}, 1, "output_2 is a list, not text: 1 (row 3)"),
        ({"output_2": "", "preference": 1.0}, 0, ""),
        ({"preference": 0}, 0, ""),
    ],
)
def test_one_odd_annotation_does_not_refuse_the_file(odd, failed, reason, prompts, published, tmp_path):
    """Empty answers are lost as annotated, 0 is AlpacaEval 1's draw; 5 of 53 models of AlpacaEval 1 have such rows."""
    rows = annotations(prompts)
    rows[2] |= odd
    (found,) = lc_win_rates(save(tmp_path / "annotations.json", rows), published)
    assert (found.n, found.failed, found.missing) == (COUNT - failed, failed, 0)
    assert found.failures == ((reason,) if failed else ())
    assert found.warnings == ()
    (model,) = lc_win_rates(save(tmp_path / "annotations.json", rows[:2] + rows[3:]), published)
    assert (model.n, model.missing, model.missing_prompts) == (COUNT - 1, 1, ("2",))


def test_an_answer_that_the_models_file_lacks_is_lost_as_annotated(prompts, tmp_path):
    """alpaca_eval drops empty outputs from a model's file and annotates them with preference 1."""
    rows = annotations(prompts)
    rows[3] |= {"output_2": "", "preference": 1.0}
    by_command(tmp_path, rows, range(COUNT))
    outputs = json.loads((tmp_path / "outputs.json").read_text(encoding="utf-8"))
    for missing in (outputs[:3] + outputs[4:], [*outputs[:3], outputs[3] | {"output": None}, *outputs[4:]]):
        files = str(save(tmp_path / "outputs.json", missing)), str(tmp_path / "baseline.json")
        judged = alpaca.evaluate(alpaca.EvaluationRequest(*files, judge=f"recorded:{tmp_path / 'annotations.json'}"))
        assert judged.reliable
        assert judged.metric["value"] == pytest.approx(100 * (np.mean([row["preference"] for row in rows]) - 1))


@pytest.mark.parametrize(
    ("wins", "losses", "reason"),
    [
        (5, 5, "10 judged prompts, fewer than 100"),
        (60, 39, "99 judged prompts"),
        (4.5, 195.5, "4.5 wins, fewer than 5"),
        (197, 3, "3.0 losses, fewer than 5"),
        (60, 40, None),
        (14.4, 790.6, None),
    ],
)
def test_a_small_n_is_said(wins, losses, reason):
    n = round(wins + losses)
    found = too_few(np.full(n, wins / n))
    assert found is None if reason is None else found.startswith(reason)


def test_the_list_of_prompts_is_alpaca_evals(shared_data):
    import pandas as pd

    table = pd.read_parquet(shared_data / "alpaca_eval" / "instructions.parquet")
    found = [official_index(prompt_hash(text)) for text in table["instruction"]]
    assert found == table["prompt_index"].tolist()
    assert sorted(found) == list(range(official_prompts.PROMPTS))


def test_real_models_have_the_same_rate_in_any_order_of_the_baseline(shared_data, tmp_path):
    """The fault that this mends: 28.16 became 34.62 with the baseline's file in another order."""
    import pandas as pd

    folder = shared_data / "alpaca_eval"
    texts = pd.read_parquet(folder / "outputs.parquet").merge(pd.read_parquet(folder / "instructions.parquet"))
    judged = pd.read_parquet(folder / "gpt4_turbo_preferences.parquet")
    columns = ["instruction", "output", "generator"]
    for name in ("FuseChat-Llama-3.2-1B-Instruct", "vicuna-7b"):
        mine = texts[texts.generator == name]
        rates = []
        for seed in (None, 0, 1):
            baseline = texts[texts.generator == "gpt4_1106_preview"]
            baseline = baseline if seed is None else baseline.sample(frac=1, random_state=seed)
            baseline[columns].to_json(tmp_path / "baseline.json", orient="records")
            mine[columns].to_json(tmp_path / "outputs.json", orient="records")
            judged[judged.generator == name].to_parquet(tmp_path / "judged.parquet")
            files = str(tmp_path / "outputs.json"), str(tmp_path / "baseline.json")
            request = alpaca.EvaluationRequest(*files, judge=f"recorded:{tmp_path / 'judged.parquet'}")
            alpaca.write(alpaca.evaluate(request), tmp_path / "table.parquet")
            table = pd.read_parquet(tmp_path / "table.parquet")
            (found,) = lc_win_rates(tmp_path / "table.parquet", folder / "instruction_difficulty.csv", fit_all=True)
            half = table.sort_values("prompt_hash")[::2]
            half.to_parquet(tmp_path / "half.parquet")
            (part,) = lc_win_rates(tmp_path / "half.parquet", folder / "instruction_difficulty.csv", fit_all=True)
            rates.append((found.lc_win_rate, part.lc_win_rate))
        assert rates[1] == pytest.approx(rates[0], abs=1e-8)
        assert rates[2] == pytest.approx(rates[0], abs=1e-8)
