"""The boundary meter as users call it: recorded scores, a real (tiny) policy and oracle, bad input before work."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from stagealign.base.errors import CannotRun, StagealignError
from stagealign.boundary.measure import measure_boundary
from stagealign.boundary.request import BoundaryRequest
from stagealign.boundary.to_judge import write_pairs
from stagealign.cli.output import check_json
from stagealign.grid.spec import Decoding
from stagealign.report.pages.meter import careful, fact_rows, figure, number, page, percent


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scored(path, count=60):
    rows = []
    for i in range(count):
        for source, score in (("on", 0.9), ("on", 0.2), ("off", 0.1), ("off", 0.1 + 0.02 * (i % 3))):
            row = {"prompt": f"prompt {i}", "source": source, "completion": f"{source} {score}", "score": score}
            rows.append(row)
    return write(path, rows)


def test_recorded_scores_need_neither_policy_nor_data_nor_torch(tmp_path):
    file = scored(tmp_path / "scored.jsonl")
    code = (
        "import sys; from stagealign import measure_boundary\n"
        f"found = measure_boundary(oracle='recorded:' + {str(file)!r})\n"
        "assert found.boundary_score == 1.0 and found.stage == 'fine-tuning' and found.prompts_used == 60\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_prints_json_and_writes_a_page_that_escapes(tmp_path):
    rows = [
        {
            "prompt": f"p{i} <script>alert(1)</script>",
            "source": source,
            "completion": f"<b>{source}</b>",
            "score": score,
        }
        for i in range(40)
        for source, score in (("on", 0.1), ("off", 0.9))
    ]
    file, page = write(tmp_path / "scored.jsonl", rows), tmp_path / "page.html"
    command = [sys.executable, "-c", "from stagealign.cli.app import main; main()", "boundary"]
    options = ["--oracle", f"recorded:{file}", "--decide", "0.95", "--json", "-", "--html", str(page)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["stage"] == "injection"
    assert {"boundary_score", "interval", "stage", "prompts_used", "votes"} <= found.keys()
    html = page.read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


@pytest.fixture
def policy_and_reward(tmp_path, tiny):
    """Folders of a tiny policy and of a tiny reward model."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    lm = tiny()
    lm.model.save_pretrained(tmp_path / "policy")
    lm.tokenizer.save_pretrained(tmp_path / "policy")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=264, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1,
        pad_token_id=0, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    lm.tokenizer.save_pretrained(tmp_path / "reward")
    return str(tmp_path / "policy"), f"reward:{tmp_path / 'reward'}"


def test_a_real_policy_and_reward_are_measured_and_a_second_call_reuses_them(tmp_path, monkeypatch, policy_and_reward):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    policy, oracle = policy_and_reward
    rows = [{"prompt": f"prompt {i}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(24)]
    data = str(write(tmp_path / "pairs.jsonl", rows))
    options = {"oracle": oracle, "prompts": 20, "decoding": Decoding(max_new_tokens=6)}
    first = measure_boundary(policy, data, **options)
    assert first.prompts_used == 20
    assert first.cost["sampled_tokens"] > 0
    assert 0 < first.cost["share_of_dpo_epoch"] < 1
    again = measure_boundary(policy, data, **options)
    assert again.cost["sampled_tokens"] == first.cost["sampled_tokens"]
    assert again.cost["share_of_dpo_epoch"] == first.cost["share_of_dpo_epoch"]
    assert again.cost["this_call"]["sampled_tokens"] == 0
    assert again.boundary_score == first.boundary_score
    more = measure_boundary(policy, data, **options | {"prompts": 24})
    new = more.cost["this_call"]["sampled_tokens"]
    assert 0 < new < first.cost["sampled_tokens"]
    assert more.cost["sampled_tokens"] == first.cost["sampled_tokens"] + new
    said = dict(fact_rows(again))
    assert said["cost of this call"].startswith("0 tokens sampled; loading ")
    assert said["cost of these prompts, over all calls"].startswith(f"{number(first.cost['sampled_tokens'])} tokens")
    assert said["rows"] == "24 in the data, 20 used, 4 of prompts not chosen"
    assert said["prompts"] == "20 chosen at random, 20 measured"


def test_a_tokenizer_without_a_chat_template_is_told(tmp_path, monkeypatch, policy_and_reward):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    policy, oracle = policy_and_reward
    rows = [{"prompt": f"prompt {i}", "chosen": f" good {i}", "rejected": f" bad {i}"} for i in range(4)]
    data = str(write(tmp_path / "pairs.jsonl", rows))
    options = {"oracle": oracle, "decoding": Decoding(max_new_tokens=4)}
    words = "Careful: the policy's tokenizer has no chat template"
    assert any(line.startswith(words) for line in careful(measure_boundary(policy, data, **options)))
    meant = measure_boundary(policy, data, template="none", **options)
    assert not any(line.startswith(words) for line in careful(meant))


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_pairs_are_written_judged_blind_and_found_again(tmp_path, monkeypatch, policy_and_reward, ending):
    """A judge that sees only the file prefers the static texts by what they say; the meter knows whose they are."""
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    policy, _ = policy_and_reward
    rows = [{"prompt": f'=1+{i},\n"x"', "chosen": f"=good({i})\r\n2nd", "rejected": f"-bad {i}"} for i in range(20)]
    data, file = str(write(tmp_path / "pairs.jsonl", rows)), tmp_path / f"judge{ending}"
    request = BoundaryRequest(policy, data, prompts=12, decoding=Decoding(max_new_tokens=6))
    written = write_pairs(request, file)
    assert (written.pairs, written.prompts, written.failed) == (48, 12, 0)
    assert "--prompts 12 --max-new-tokens 6 --oracle recorded:" in written.then
    if ending == ".csv":
        text = file.read_text(encoding="utf-8-sig")
        assert not re.search(r'(^|,)"[=+@-]', text, re.MULTILINE)
        table = list(csv.DictReader(io.StringIO(text, newline="")))
    else:
        table = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert list(table[0]) == ["prompt", "a", "b", "preference"]
    assert not any(row["preference"] for row in table)
    static = [any(word in row["a"] for word in ("good(", "bad ")) for row in table]
    assert 12 < sum(static) < 36  # whose is first says nothing
    prompts = [row["prompt"] for row in table]
    assert prompts == sorted(prompts, key=prompts.index)  # a prompt's rows stand together
    for row, first in zip(table, static, strict=True):
        row["preference"] = "a" if first else "b"
    judged = tmp_path / f"judged{ending}"
    if ending == ".csv":
        with open(judged, "w", encoding="utf-8", newline="") as out:
            table_writer = csv.DictWriter(out, table[0].keys())
            table_writer.writeheader()
            table_writer.writerows(table)
    else:
        write(judged, table)
    options = {"oracle": f"recorded:{judged}", "decoding": request.decoding}
    found = measure_boundary(policy, data, prompts=12, **options)
    assert (found.boundary_score, found.prompts_used, found.failures) == (0.0, 12, 0)
    assert found.cost["this_call"]["sampled_tokens"] == 0
    assert measure_boundary(policy, data, prompts=5, **options).prompts_used == 5


def test_named_columns_and_what_was_done_to_rows_are_said(tmp_path, monkeypatch, policy_and_reward):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    policy, _ = policy_and_reward
    rows = [
        {"ask": f"What is {i} and 1?", "good": f"good {i}<|im_end|>", "bad": f"bad {i}", "memo": "x"} for i in range(4)
    ]
    data = str(write(tmp_path / "pairs.jsonl", rows))
    columns = "prompt=ask,chosen=good,rejected=bad"
    request = BoundaryRequest(policy, data, prompts=4, columns=columns, decoding=Decoding(max_new_tokens=4))
    written = write_pairs(request, tmp_path / "judge.jsonl")
    assert f"--columns {columns}" in written.then
    said = " ".join(written.notes)
    assert "end tokens at the end of an answer were taken off: 4 (lines 1, 2, 3, ...)" in said
    assert "Columns that were not read: memo" in said
    with pytest.raises(StagealignError, match="no such column; found: ask, bad, good, memo"):
        write_pairs(replace(request, columns="prompt=question"), tmp_path / "judge2.jsonl")


@pytest.mark.parametrize(
    ("options", "others", "message"),
    [
        ({"decide": 0.95}, {}, "--decide with --pairs: not used"),
        ({"oracle": "reward:x"}, {}, "--oracle with --pairs: not used"),
        ({}, {"--html": "page.html"}, "--html with --pairs: not used"),
        ({"policy": None}, {}, "needs --policy and --data"),
    ],
)
def test_pairs_refuse_what_they_have_no_use_for(tmp_path, options, others, message):
    with pytest.raises(StagealignError, match=message):
        write_pairs(
            BoundaryRequest(**{"policy": "p", "data": "d.jsonl", **options}), tmp_path / "new.csv", others=others
        )


def test_pairs_never_overwrite_judgments(tmp_path):
    file = write(tmp_path / "judge.jsonl", [{"prompt": "p", "a": "x", "b": "y", "preference": "a"}])
    for path, message in (
        (file, "the file exists and may hold judgments"),
        (tmp_path / "x.txt", "unknown ending; one of .csv, .jsonl"),
    ):
        with pytest.raises(StagealignError, match=message):
            write_pairs(BoundaryRequest("p", "d.jsonl"), path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"policy": "p"}, "--policy"),
        ({"data": "d"}, "--data"),
        ({"split": "train"}, "--split"),
        ({"template": "none"}, "--template"),
        ({"policy_url": "http://x"}, "--policy-url"),
        ({"sampler": "vllm"}, "--sampler"),
        ({"decoding": Decoding(temperature=0.1)}, "--temperature, --top-p, --top-k or --max-new-tokens"),
        ({"judge_url": "http://x"}, "--judge-url"),
        ({"max_judge_tokens": 5}, "--max-judge-tokens"),
    ],
)
def test_options_that_scored_candidates_do_not_use_are_refused(tmp_path, options, named):
    file = scored(tmp_path / "scored.jsonl", 3)
    with pytest.raises(
        StagealignError, match=f"^{re.escape(named)} with --oracle .*not used.*leave {re.escape(named)}"
    ):
        measure_boundary(oracle=f"recorded:{file}", **options)


def test_an_oracle_is_known_in_any_letter_case_and_a_near_one_is_suggested(tmp_path):
    file = scored(tmp_path / "scored.jsonl", 3)
    assert measure_boundary(oracle=f"Recorded:{file}").prompts_used == 3
    for name in ("pairm", "llm-blender/PairRM"):
        with pytest.raises(StagealignError, match="did you mean pairrm"):
            measure_boundary(oracle=name)
    with pytest.raises(StagealignError, match="needs --policy and --data"):
        measure_boundary(oracle="PairRM")


def test_pairrm_that_cannot_be_reached_names_a_local_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = (
        "from stagealign.boundary.measure import open_oracle\n"
        "try:\n    open_oracle('PairRM')\nexcept Exception as error:\n    print(error)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "llm-blender/PairRM-hf" in done.stdout
    assert "or name a local copy of PairRM: --oracle pairrm:PATH" in done.stdout


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0.0%"), (0.00001, "less than 0.01%"), (0.0004, "0.04%"), (0.032, "3.2%"), (0.0996, "10%"), (1.2, "120%"),
     (123.4, "12,340%")],
)  # fmt: skip
def test_shares_are_shown_without_an_exponent(share, shown):
    assert percent(share) == shown


def test_votes_are_shown_without_an_exponent():
    assert [number(one) for one in (3, 2.5, 1234567.5)] == ["3", "2.5", "1,234,567.5"]


def test_counts_are_in_plain_words(tmp_path):
    rows = [json.loads(line) for line in scored(tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    rows += [{"prompt": "lonely", "source": "on", "completion": "x", "score": 1.0}]
    file = write(tmp_path / "scored.jsonl", rows)
    said = dict(fact_rows(measure_boundary(oracle=f"recorded:{file}", decide=0.95)))
    assert said["rows"].startswith("241 in the data, 240 used, 1 cannot be used (prompt without candidates of source")
    assert said["prompts"] == "60 in the data, 16 measured, 44 no longer needed"
    assert said["cost"] == "none: the candidates were scored beforehand"
    assert not any("{" in value for value in said.values())
    some = dict(fact_rows(measure_boundary(oracle=f"recorded:{file}", prompts=10)))
    assert some["prompts"] == "10 chosen at random, 10 measured"


def test_the_figure_is_drawn_over_prompts_in_light_and_dark(tmp_path):
    found = measure_boundary(oracle=f"recorded:{scored(tmp_path / 'scored.jsonl')}")
    assert len(found.running) == 60
    drawn = figure(found)
    assert drawn.startswith("<svg")
    assert "@media (prefers-color-scheme: dark)" in drawn
    assert drawn == figure(found)
    assert "background: #fff" not in page(found)
    assert "not known" in page(found)  # whether candidates that were scored beforehand had been cut


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oracle": "gpt4"}, "unknown; one of pairrm"),
        ({"oracle": "judge:m"}, "needs --judge-url"),
        ({"oracle": "reward:x"}, "needs --policy and --data"),
        ({"decide": 0.3, "oracle": "pairrm"}, "not a level"),
        ({"template": "chatml"}, "auto or none"),
        ({"sampler": "tgi"}, r"--sampler 'tgi': unknown; transformers \(our own\), vllm, or --policy-url URL"),
        ({"sampler": "served"}, "--sampler 'served': unknown"),
        ({"sampler": "vllm", "policy_url": "http://x"}, "--sampler vllm and --policy-url: two samplers; name one"),
        ({"decoding": Decoding(top_p=0)}, "top_p"),
        ({"policy": "p", "data": "absent.jsonl", "oracle": "reward:x"}, "absent.jsonl"),
    ],
)
def test_bad_options_are_errors_before_anything_is_loaded(options, message):
    with pytest.raises(StagealignError, match=message):
        measure_boundary(**options)


@pytest.mark.parametrize("option", ["json_file", "html"])
def test_a_place_that_cannot_be_written_is_refused_before_the_measurement(option, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for place, words in ((tmp_path, "a folder; name a file in it"), (tmp_path / "file/x.json", "is no folder")):
        asked = {"json_file": None, "html": None, option: place}
        with pytest.raises(CannotRun, match=words):
            check_json(**asked)
    check_json("-", tmp_path / "new" / "page.html")


def test_a_folder_that_is_not_there_is_called_one():
    from stagealign.policy.weight_files import check_weights

    with pytest.raises(StagealignError, match=r"checkpoint './nope': no such folder"):
        check_weights("./nope")


def test_a_measurement_says_what_was_measured_and_what_to_look_at(tmp_path):
    rows = [
        {"prompt": f"p{n}", "source": source, "completion": f"same {source}", "score": 1.0}
        for n in range(20)
        for source in ("on", "on", "off", "off")
    ]
    file = tmp_path / "scored.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = measure_boundary(oracle=f"recorded:{file}", decide=0.95)
    assert found.request["oracle"] == f"recorded:{file}"
    assert (found.request["decide"], found.request["seed"]) == (0.95, 0)
    assert "decoding" not in found.request  # nothing was sampled
    assert found.request["version"]
    said = careful(found)
    assert any("100% of the comparisons are ties" in line for line in said)
    assert any("of the candidates repeat another" in line for line in said)
    assert all(line in page(found) for line in said)
