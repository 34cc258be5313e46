"""The boundary meter as users call it: recorded scores, a real (tiny) policy and oracle, bad input before work."""

import json
import subprocess
import sys

import pytest

from stagealign import measuring
from stagealign.errors import CannotRun, StagealignError
from stagealign.measuring import measure_boundary
from stagealign.spec import Decoding


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
    command = [sys.executable, "-c", "from stagealign.cli import main; main()", "boundary"]
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
    assert again.cost["sampled_tokens"] == 0
    assert again.boundary_score == first.boundary_score
    more = measure_boundary(policy, data, **options | {"prompts": 24})
    assert 0 < more.cost["sampled_tokens"] < first.cost["sampled_tokens"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oracle": "gpt4"}, "unknown; one of pairrm"),
        ({"oracle": "judge:m"}, "needs --judge-url"),
        ({"oracle": "reward:x"}, "needs --policy and --data"),
        ({"decide": 0.3, "oracle": "pairrm"}, "not a level"),
        ({"template": "chatml"}, "auto or none"),
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
            measuring.writable(**asked)
    measuring.writable("-", tmp_path / "new" / "page.html")


def test_a_folder_that_is_not_there_is_called_one():
    from stagealign.checkpoints import check_weights

    with pytest.raises(StagealignError, match=r"checkpoint './nope': no such folder"):
        check_weights("./nope")


def test_a_measurement_says_what_was_measured_and_what_to_look_at(tmp_path):
    from stagealign.report.meter import careful, page

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
    assert found.request["decoding"]["temperature"] == 0.7
    assert found.request["version"]
    said = careful(found)
    assert any("100% of the comparisons are ties" in line for line in said)
    assert any("of the candidates repeat another" in line for line in said)
    assert all(line in page(found) for line in said)
