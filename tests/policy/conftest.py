"""A stand-in for vLLM and the work of sampling a tiny policy by it; made-up servers of a policy."""

import stat
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from factory_judge import PROXIES, running
from factory_policy import Fake, Loads
from factory_vllm import DECODING, ENDS, FAKE, PROMPTS
from transformers import AutoModelForCausalLM

from stagealign.base.identity import plain
from stagealign.data.records import Prompt, write_rows
from stagealign.policy import lm, vllm_sample
from stagealign.store.artifact import Context, Devices, Work


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An interpreter that has the stand-in: a folder with it, and a Python that looks there."""
    site = tmp_path / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text(FAKE)
    facts = site / "vllm-0.30.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n")
    (facts / "top_level.txt").write_text("vllm\n")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nshift\nPYTHONPATH={site} exec {sys.executable} -P "$@"\n'  # without -I, which hides the folder
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(vllm_sample.PYTHON, str(python))
    monkeypatch.setattr(vllm_sample, "gpu_count", lambda: 16)
    monkeypatch.setattr(vllm_sample, "CHUNK", 2)
    return site


@pytest.fixture
def work(tmp_path, tiny):
    """Factory of the work of sampling a tiny policy on PROMPTS; its heads are as wide as vLLM's attention needs."""
    model = tiny(chat=True)
    config = model.model.config
    config.head_dim = 64
    torch.manual_seed(0)
    model = replace(model, model=AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    model.model.generation_config.eos_token_id = ENDS
    lm.save(model, tmp_path / "policy")
    (tmp_path / "prompts").mkdir()
    write_rows(tmp_path / "prompts" / "prompts.jsonl", [*PROMPTS, PROMPTS[0], Prompt("Not asked", "test")])

    def build(name="out", count=3, processes=1, decoding=DECODING):
        (tmp_path / name).mkdir(exist_ok=True)
        params = {
            "engine": plain(vllm_sample.engine()),
            "decoding": plain(decoding),
            "count": count,
            "splits": ["train"],
            "seed": 5,
            "dtype": "float32",
        }
        inputs = {"policy": tmp_path / "policy", "prompts": tmp_path / "prompts"}
        return Work(params, inputs, tmp_path / name, tmp_path, Context(Devices(processes)))

    return build


@pytest.fixture
def no_proxy(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def loads():
    """Asked for beside `servers`: its servers load the model that a request names."""


@pytest.fixture
def servers(request):
    """Factory of running servers."""
    kind = Loads if "loads" in request.fixturenames else Fake
    with ExitStack() as running_servers:
        yield lambda *knows: running_servers.enter_context(running(kind(knows)))
