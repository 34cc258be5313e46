"""Export: the store's policy, loadable by anyone, with a card that says what it is and how sure its numbers are."""

import json
from dataclasses import replace

import pytest
from factory_results import of_cell, result

from stagealign.base.errors import BadData, CannotRun, StagealignError
from stagealign.cli import variants
from stagealign.cli.exporting import base_of, export, last_step, what_it_is
from stagealign.grid import registry, scales
from stagealign.grid import variants as variants_room
from stagealign.grid.spec import Engine
from stagealign.pipeline.rounds import plan_run
from stagealign.report.read.cells import options
from stagealign.store.folder import Store
from stagealign.store.results import write_result

CELL = registry.cell("zephyr-dpo-2off_on")


def metric(value, unit="rating points"):
    return {"value": value, "interval": [value - 0.5, value + 0.25], "unit": unit, "n": 64, "standard_error": 0.1}


@pytest.fixture
def results(tmp_path):
    """A folder with the result of the cell's run; only what a card shows."""
    step = last_step(plan_run(CELL, 0))
    test = {"gold": metric(1.4), "win_rate": metric(83.98, "percent"), "kl": metric(2.15, "nats a completion")}
    test["boundary"] = {"score": 0.84, "interval": [0.78, 0.89], "prompts": 64}
    rung = {
        "fingerprint": step.fingerprint,
        "state": "done",
        "metrics": {"test": test},
        "gain": {"test": metric(1.234)},
    }
    other = rung | {"fingerprint": "0" * 16, "gain": {"test": metric(-7.0)}}
    path = tmp_path / "results" / "lab" / f"{CELL.id}-seed0.json"
    path.parent.mkdir(parents=True)
    made = result(CELL.id)
    for entry, own in zip(made["rounds"], ([other], [other, rung]), strict=True):
        whole = entry["rungs"][0]
        entry["rungs"] = [
            whole | one | {"metrics": {**whole["metrics"], "test": whole["metrics"]["test"] | one["metrics"]["test"]}}
            for one in own
        ]
    path.write_text(json.dumps(made))
    return tmp_path / "results"


@pytest.fixture
def store(tiny, tmp_path):
    """A store that holds a tiny policy where the cell's last one stands, in two shards as the lab writes them."""
    from stagealign.policy.lm import save

    held = Store(tmp_path / "home")
    policy = last_step(plan_run(CELL, 0)).policy
    folder = held.folder(policy)
    folder.mkdir(parents=True)
    save(tiny(chat=True, tied=True), folder, top_layers=2)
    facts = {"commit": "abc", "versions": {"torch": "2.13.0"}, "hardware": "a CPU, 2 cores"}
    record = {"fingerprint": policy.fingerprint, "identity": policy.identity, "facts": facts}
    (folder / "record.json").write_text(json.dumps(record))
    return held


def test_an_export_gives_the_logits_of_the_stores_policy(store, results, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stagealign.policy.lm import load

    folder = export(CELL, 0, tmp_path / "out" / "mine", results, store)
    policy = load(store.folder(last_step(plan_run(CELL, 0)).policy))
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([policy.prompt_ids("Review this film.")])
    assert torch.equal(model(ids).logits, policy.model(ids).logits)
    turns = [{"role": "user", "content": "Review this film."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer(text, add_special_tokens=False).input_ids == ids[0].tolist()
    names = {file.name for file in folder.iterdir()}
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "README.md"} <= names
    assert "record.json" not in names
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_the_card_says_what_it_is_and_how_sure(store, results, tmp_path):
    from huggingface_hub import ModelCard

    text = (export(CELL, 0, tmp_path / "out", results, store) / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert (data.license, data.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "It is a stand-in for Zephyr: SmolLM2-135M-Instruct after SFT on film reviews, 50% of them rotten." in text
    assert "It is not Zephyr, nor trained from it." in text
    assert "| gain in gold reward over the round's start | 1.234 | [0.734, 1.484] | rating points | 64 |" in text
    assert "| win rate | 83.980 | [83.480, 84.230] | percent | 64 |" in text
    assert "| boundary score | 0.840 | [0.780, 0.890] |" in text
    assert "-7.0" not in text  # another policy's
    assert "$ stagealign run -k zephyr-dpo-2off_on --scale lab --seeds 1" in text
    assert (
        "2 round(s): round 1 on static candidates of a fixed set; round 2 on samples of the policy in training" in text
    )
    spec = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
    assert spec["checkpoint"]["stand_in_for"] == "Zephyr"
    assert spec["seed"] == 0
    assert str(tmp_path) not in text


def test_a_policy_without_a_result_is_not_measured(store, tmp_path):
    text = (export(CELL, 0, tmp_path / "out", tmp_path / "none", store) / "README.md").read_text(encoding="utf-8")
    assert "Not measured: no result file of this policy was found." in text


def test_numbers_of_another_policy_are_refused(store, results, tmp_path):
    path = results / "lab" / f"{CELL.id}-seed0.json"
    path.write_text(path.read_text().replace(last_step(plan_run(CELL, 0)).fingerprint, "f" * 16))
    with pytest.raises(BadData, match="of another policy than the store's; run `stagealign run --again"):
        export(CELL, 0, tmp_path / "out", results, store)
    assert not (tmp_path / "out").exists()


def test_a_cell_that_is_not_built_names_the_command(tmp_path):
    with pytest.raises(StagealignError, match=r"not in the store .* `stagealign run -k zephyr-dpo-2off_on --scale lab"):
        export(CELL, 0, tmp_path / "out", tmp_path, Store(tmp_path / "home"))


@pytest.mark.parametrize(
    ("cell", "asked"),
    [
        (variants_room.sampled_by([CELL], Engine("vllm", "0.31.0", {"a": 1}))[0], "--sampler vllm"),
        (variants_room.sampled_by([CELL], Engine("served", None))[0], "--policy-url URL"),
        (variants_room.evaluated_by([CELL], "reward:owner/Name-1@abc")[0], "--gold reward:owner/Name-1@abc"),
        (variants_room.evaluated_by([CELL], "reward:Name-1@abc")[0], "--gold reward:PATH"),
        (variants_room.adapted([CELL], "lora")[0], "--peft lora"),
        (CELL, ""),
    ],
)
def test_a_cell_is_read_off_its_result_with_all_that_makes_it_another(cell, asked, tmp_path):
    write_result(tmp_path, of_cell(cell, 1))
    found = variants.named(cell.id, "lab", 1, tmp_path)
    assert found == cell
    assert plan_run(found, 1).goals[-1].fingerprint == plan_run(cell, 1).goals[-1].fingerprint
    assert options(found) == f"-k zephyr-dpo-2off_on --scale lab {asked}".strip()


@pytest.mark.parametrize("name", ["model", "./model", "somewhere/model", "model.safetensors"])
def test_a_folder_or_file_is_not_a_cell(tmp_path, monkeypatch, name):
    from stagealign.cli.export import export as command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(BadData, match="a file or folder found; the name of a cell is expected"):
        command(name, tmp_path / "out")


def test_a_name_that_no_result_explains_is_refused(tmp_path):
    with pytest.raises(
        StagealignError, match=r"dpo_vllm.*is read from its result.*zephyr-dpo_vllm-2off_on-seed0.json is missing"
    ):
        variants.named("zephyr-dpo_vllm-2off_on", "lab", 0, tmp_path)
    assert variants.named("zephyr-dpo_lora-2off_on", "lab", 0, tmp_path) == variants_room.adapted([CELL], "lora")[0]


def test_a_cell_with_adapters_goes_by_the_name_that_the_command_takes(tmp_path):
    (adapted,) = variants_room.adapted([CELL], "lora")
    with pytest.raises(StagealignError, match=r"run -k zephyr-dpo-2off_on --scale lab --peft lora --seeds 2`"):
        export(adapted, 1, tmp_path / "out", tmp_path, Store(tmp_path / "home"))


def test_a_folder_that_holds_something_is_left_alone(store, results, tmp_path):
    (tmp_path / "out").mkdir()
    export(CELL, 0, tmp_path / "out", results, store)  # an empty one is taken
    with pytest.raises(StagealignError, match="exists and is not an empty folder; name a new one"):
        export(CELL, 0, tmp_path / "out", results, store)


def test_no_licence_no_export(store, results, tmp_path):
    paper = registry.cell("llama3-dpo-1on", "paper")
    assert base_of(paper) == ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3")
    assert all(base_of(cell)[1] for scale in scales.SCALES for cell in registry.cells(scale, extras=True))
    unknown = replace(paper, checkpoint=replace(paper.checkpoint, licence=""))
    with pytest.raises(StagealignError, match="no licence is known for its base 'meta-llama/Meta-Llama-3-8B-Instruct'"):
        base_of(unknown)


def test_random_weights_are_called_random():
    smoke = registry.cell("pythia-dpo-1on", "smoke")
    assert "**It started from random weights in the shape of EleutherAI/pythia-160m**" in what_it_is(
        smoke, "EleutherAI/pythia-160m", "random"
    )
    assert "random" not in what_it_is(smoke, "EleutherAI/pythia-160m", "published")


def test_push_needs_a_login_before_anything_is_written(store, results, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(CannotRun, match="no access token of the hub was found; log in with `hf auth login`"):
        export(CELL, 0, tmp_path / "out", results, store, push="me/mine")
    assert not (tmp_path / "out").exists()


def test_push_uploads_the_folder_as_a_private_repository(store, results, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, name, **given):
            calls.append((name, given))

        def upload_folder(self, repo_id, folder_path, **_):
            calls.append((repo_id, {file.name for file in folder_path.iterdir()}))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    folder = export(CELL, 0, tmp_path / "out", results, store, push="me/mine")
    assert calls[:2] == ["secret", ("me/mine", {"private": True, "exist_ok": True})]
    assert calls[2][0] == "me/mine"
    assert {"README.md", "config.json", "tokenizer.json"} <= calls[2][1]
    assert all(b"secret" not in file.read_bytes() for file in folder.iterdir())
