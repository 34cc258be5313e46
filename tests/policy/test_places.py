"""Checkpoints with one fault each: whoever opens one says in one line what is wrong and what to do, and reads no more.

Sources of the kinds: issues of TRL, PEFT, transformers, Unsloth, DeepSpeed and OpenRLHF, and folders that their
programs write.
"""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
from factory_broken import CASES, JUDGE, OPENERS, PAIRRM, POLICY, REWARD, TABLE, whole

from stagealign.base.errors import StagealignError
from stagealign.oracle import pairrm
from stagealign.policy import lm
from stagealign.scoring import reward_model

NAMES = [f"{broken.key}-{opener}" for broken, opener in CASES]
READS = ("missing weight", "other shapes", "encoder as reward")
"""Faults that only the weights show, once they are read."""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Whole checkpoints, one for each opener."""
    folder = tmp_path_factory.mktemp("good")
    for opener in OPENERS:
        whole(folder / opener, opener)
    return folder


@pytest.fixture
def broken_copy(good, tmp_path, monkeypatch):
    """Factory of a copy with a fault; gives the name to open."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def build(broken, opener):
        shutil.copytree(good / opener, tmp_path / "c")
        return str(broken.make(tmp_path / "c") or tmp_path / "c")

    return build


def opened(opener, name):
    if opener == JUDGE:
        from stagealign.evaluate.alpaca_eval.local import open_local

        return open_local(name, None)
    return {POLICY: lm.load, REWARD: reward_model.load, PAIRRM: pairrm.load}[opener](name)


@pytest.mark.parametrize(("broken", "opener"), CASES, ids=NAMES)
def test_a_broken_checkpoint_is_named_with_its_fix(broken, opener, broken_copy, monkeypatch):
    name = broken_copy(broken, opener)
    if broken.key not in READS:

        def no_weights(*_, **__):
            raise AssertionError("weights were read before the checkpoint was refused")

        monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", no_weights)
    with pytest.raises(StagealignError, match=broken.says) as refused:
        opened(opener, name)
    said = str(refused.value)
    assert said.startswith(f"checkpoint {name!r}: ")
    assert "\n" not in said
    assert "; " in said


@pytest.mark.parametrize(("broken", "opener"), [case for case in CASES if case[1] in (POLICY, REWARD)],
                         ids=[name for name in NAMES if name.endswith((POLICY, REWARD))])  # fmt: skip
def test_the_command_line_ends_with_2_and_without_a_traceback(
    broken, opener, broken_copy, good, monkeypatch, capsys, tmp_path
):
    from stagealign.cli import app as cli

    names = {POLICY: str(good / POLICY), REWARD: str(good / REWARD), opener: broken_copy(broken, opener)}
    rows = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    words = ["--data", str(tmp_path / "data.jsonl"), "--policy", names[POLICY], "--oracle", f"reward:{names[REWARD]}"]
    monkeypatch.setattr("sys.argv", ["stagealign", "boundary", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "Traceback" not in said.err + said.out
    assert f"stagealign: checkpoint {names[opener]!r}: " in said.err


def test_the_command_that_is_named_merges_an_adapter(good, tmp_path):
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    known = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(good / POLICY), known)
    tuned.save_pretrained(tmp_path / "adapter")
    shutil.copy(good / POLICY / "tokenizer.json", tmp_path / "adapter")
    shutil.copy(good / POLICY / "tokenizer_config.json", tmp_path / "adapter")
    with pytest.raises(StagealignError, match="merge it into its base model") as refused:
        lm.load(tmp_path / "adapter")
    words = shlex.split("python" + str(refused.value).partition(": python")[2])
    subprocess.run([sys.executable, *words[1:]], check=True, cwd=tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        merged = lm.load(tmp_path / "adapter-merged").model(ids).logits
        assert torch.allclose(merged, tuned.eval()(input_ids=ids).logits, atol=1e-4)
        assert not torch.allclose(merged, lm.load(good / POLICY).model(ids).logits, atol=1e-2)


def test_commands_that_are_named_are_python(good, tmp_path):
    """What converts GGUF or another adapter is not run here; it must at least be read by a shell and by Python."""
    for broken in TABLE:
        if "python -c" in broken.says:
            shutil.copytree(good / POLICY, tmp_path / "a b")
            name = broken.make(tmp_path / "a b") or tmp_path / "a b"
            with pytest.raises(StagealignError) as refused:
                lm.load(name)
            words = shlex.split("python" + str(refused.value).partition(": python")[2])
            assert words[:2] == ["python", "-c"]
            compile(words[2], broken.key, "exec")
            shutil.rmtree(tmp_path / "a b")


@pytest.mark.parametrize("opener", OPENERS[:3])
def test_whole_checkpoints_open(opener, good):
    assert opened(opener, str(good / opener))
