"""Several processes train as one does: the same curve and weights however the batch and the model are split."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import pytest
from factory_ranks import Job

from stagealign.base.errors import CannotRun, StagealignError
from stagealign.store.artifact import Context, Devices
from stagealign.train import launch as devices
from stagealign.train.launch import CONFIGS, check, command, cut

ROOT = Path(__file__).resolve().parents[2]
FACTORIES = ROOT / "tests" / "factories"
SETTINGS = {"batch": 8, "epochs": 7, "warmup": 0.0, "checkpoint_steps": 5, "micro_batch": 4}
LORA = {"peft": {"rank": 4, "alpha": 8}}
STOP = 12
"""Interrupted after this many of 21 steps, so in the middle of an epoch; the checkpoint is of step 10."""


def start(folder, processes, *jobs):
    """Trains these jobs in so many processes, all in one start."""
    pytest.importorskip("torch")
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    words = [sys.executable, *launch, str(FACTORIES / "factory_ranks.py"), str(folder)]
    path = os.pathsep.join([str(ROOT), str(FACTORIES), os.environ.get("PYTHONPATH", "")])
    given = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=os.environ | given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Curves and weights by job: of one process, of two, and of runs that two began and one ended, and back.

    22 pairs in batches of 8, 7 epochs: 21 steps, and the last batch of an epoch has 6 pairs, so that with micro-batches
    of 4, and of 2, one process has fewer pairs than the other.
    """
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("rounds")
    with_peft = find_spec("peft") is not None
    top = SETTINGS | {"trained_layers": 2}
    one = [Job("one", SETTINGS), Job("begun by one", SETTINGS, stop=STOP), Job("trunk, one", top)]
    two = [
        Job("two", SETTINGS),
        Job("half", SETTINGS | {"micro_batch": 2}),
        Job("trunk, two", top),
        Job("ended by two", SETTINGS, scratch="begun by one"),
        Job("begun by two", SETTINGS, stop=STOP),
        Job("split", SETTINGS, "fsdp2"),
        Job("split, checkpointing", SETTINGS | {"activation_checkpointing": True}, "fsdp2"),
        Job("split, begun by two", SETTINGS, "fsdp2", stop=STOP),
        Job("split, bfloat16", SETTINGS | {"dtype": "bfloat16"}, "fsdp2"),
    ]
    last = [
        Job("ended by one", SETTINGS, scratch="begun by two"),
        Job("split, ended by one", SETTINGS, "fsdp2", scratch="split, begun by two"),
        Job("bfloat16", SETTINGS | {"dtype": "bfloat16"}),
    ]
    if with_peft:
        one.append(Job("lora, one", SETTINGS | LORA))
        two += [Job("lora, two", SETTINGS | LORA), Job("lora, split", SETTINGS | LORA, "fsdp2")]
    start(folder, 0, *one)
    start(folder, 2, *two)
    start(folder, 1, *last)
    names = [job.name for job in one + two + last if job.stop is None]
    return {
        name: (json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors"))
        for name in names
    }


def distance(one, other):
    """Largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("two", "one"),
        ("half", "one"),
        ("ended by two", "one"),
        ("ended by one", "one"),
        ("split", "one"),
        ("split, checkpointing", "one"),
        ("split, ended by one", "one"),
        ("trunk, two", "trunk, one"),
        ("lora, two", "lora, one"),
        ("lora, split", "lora, one"),
    ],
)
def test_the_curve_is_that_of_one_process(name, same_as, rounds):
    if same_as not in rounds:
        pytest.skip("peft is not installed")
    (curve, weights), (expected, whole) = rounds[name], rounds[same_as]
    assert [entry["step"] for entry in curve] == list(range(1, 22))
    for key in ("loss", "margin", "kl"):
        assert [entry[key] for entry in curve] == pytest.approx([entry[key] for entry in expected], abs=1e-4)
    assert [entry["grad_norm"] for entry in curve] == pytest.approx([e["grad_norm"] for e in expected], rel=1e-3)
    assert distance(weights, whole) < 1e-4
    assert curve[0]["loss"] - curve[-1]["loss"] > 0.1  # it learned, so that equal curves say something


@pytest.mark.slow
@pytest.mark.skipif("STAGEALIGN_LONG" not in os.environ, reason="minutes on two idle cores; STAGEALIGN_LONG=1 runs it")
def test_the_curve_is_that_of_one_process_at_the_shape_of_smollm2(tmp_path):
    """20 steps of one batch of 4 short pairs, all 30 layers: one process, two, and two with half the micro-batch."""
    settings = {"batch": 4, "epochs": 20, "warmup": 0.0, "learning_rate": 1e-4, "checkpoint_steps": 1000}
    start(tmp_path, 0, Job("one", settings, pairs=4, shape="smollm2"))
    two, half = ({**settings, "micro_batch": size} for size in (2, 1))
    start(tmp_path, 2, Job("two", two, pairs=4, shape="smollm2"), Job("half", half, pairs=4, shape="smollm2"))
    curves = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two", "half")}
    losses = {name: [entry["loss"] for entry in curve] for name, curve in curves.items()}
    assert len(losses["one"]) == 20
    print({name: max(abs(a - b) for a, b in zip(losses[name], losses["one"], strict=True)) for name in losses}, losses)
    for name in ("two", "half"):
        assert losses[name] == pytest.approx(losses["one"], abs=1e-4)
    assert losses["one"][-1] < 0.9 * losses["one"][0]


@pytest.mark.slow
def test_bfloat16_learns_with_float32_weights(rounds):
    """A step of the optimizer is far below a bfloat16 weight's resolution; both ways of training keep it."""
    import torch

    for name in ("bfloat16", "split, bfloat16"):
        curve, weights = rounds[name]
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
        assert [entry["loss"] for entry in curve][:3] == pytest.approx(
            [entry["loss"] for entry in rounds["one"][0]][:3], abs=0.1
        )


@pytest.mark.slow
def test_a_policy_is_built_by_two_processes(tiny, tmp_path):
    """The builder of a worker, through accelerate's launcher and the configuration that ships."""
    policy, facts = built(tiny, tmp_path / "two", Devices(count=2))
    expected, alone = built(tiny, tmp_path / "one", Devices())
    assert [entry["loss"] for entry in facts["curve"]] == pytest.approx([e["loss"] for e in alone["curve"]], abs=1e-4)
    assert facts.keys() == alone.keys()
    assert distance(policy, expected) < 1e-4
    assert {file.name for file in (tmp_path / "two" / "out").iterdir()} == {
        file.name for file in (tmp_path / "one" / "out").iterdir()
    }


@pytest.mark.slow
def test_a_process_that_fails_says_why(tiny, tmp_path):
    with pytest.raises(StagealignError, match="fills max_length 4"):
        built(tiny, tmp_path, Devices(count=2), max_length=4)


@pytest.mark.slow
def test_ones_own_launcher(tiny, tmp_path):
    own = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    _, facts = built(tiny, tmp_path / "own", Devices(launcher=own))
    assert len(facts["curve"]) == 2
    with pytest.raises(StagealignError, match="--devices 3: a global batch of 4 pairs cannot be"):
        built(tiny, tmp_path / "three", Devices(launcher=(*own[:-1], "3")))
    with pytest.raises(StagealignError, match="no-such-launcher: No such file"):
        built(tiny, tmp_path / "none", Devices(launcher=("no-such-launcher",)))


def built(tiny, folder, spread, max_length=256):
    """Weights and facts of a policy that the builder made of 8 pairs."""
    from factory_training import data_of, pairs_of
    from safetensors.torch import load_file, save_file

    from stagealign.base.identity import plain
    from stagealign.data.records import write_rows
    from stagealign.grid.methods import METHODS
    from stagealign.policy.lm import save
    from stagealign.store.artifact import Work
    from stagealign.train import round

    inputs = {name: folder / name for name in ("policy", "pairs", "reference")}
    for place in (*inputs.values(), folder / "out"):
        place.mkdir(parents=True)
    lm = tiny()
    save(lm, inputs["policy"])
    write_rows(inputs["pairs"] / "pairs.jsonl", pairs_of(8))
    save_file({"reference": data_of(lm, pairs_of(8)).reference}, inputs["reference"] / "reference.safetensors")
    training = {"batch": 4, "epochs": 1, "warmup": 0.0, "schedule": "cosine", "max_grad_norm": 1.0, "dtype": "float32"}
    params = {
        "method": plain(METHODS["lab"]["dpo"]),
        "training": training | {"trained_layers": None, "max_length": max_length},
        "learning_rate": 1e-3,
        "seed": 5,
    }
    facts = round.build_policy(Work(params, inputs, folder / "out", folder, Context(spread)))
    return load_file(folder / "out" / "model.safetensors"), facts


@pytest.mark.parametrize(
    ("batch", "processes", "asked", "expected"),
    [(8, 1, None, (4, 2)), (8, 2, None, (4, 1)), (8, 2, 2, (2, 2)), (8, 8, None, (1, 1)), (6, 2, None, (3, 1)),
     (128, 8, None, (4, 4)), (20, 2, None, (2, 5))],
)  # fmt: skip
def test_a_global_batch_is_cut_evenly(batch, processes, asked, expected):
    micro_batch, accumulation = cut(batch, processes, asked)
    assert (micro_batch, accumulation) == expected
    assert micro_batch * accumulation * processes == batch


@pytest.mark.parametrize(
    ("spread", "gpus", "layers", "message"),
    [
        (Devices(3), 0, None, "--devices 3: a global batch of 8 pairs .* choose one of 1, 2, 4, 8"),
        (Devices(2, micro_batch=3), 0, None, "micro-batch 3: must divide .* 4 pairs each; choose one of 1, 2, 4"),
        (Devices(4), 2, None, r"--devices 4: this machine has 2 GPU\(s\); use --devices 2 or fewer"),
        (Devices(2, "fsdp3"), 0, None, "--sharding 'fsdp3': unknown; choose one of replicate, fsdp2, zero3"),
        (Devices(2, "zero3"), 0, None, "--sharding zero3: no GPU was found; use --sharding fsdp2"),
        (Devices(1, "replicate"), 0, None, "--sharding replicate: needs several processes; add --devices N"),
        (Devices(2, "fsdp2"), 2, 6, "trains its top 6 layers .* use --sharding replicate"),
    ],
)
def test_what_cannot_be_spread_is_refused_before_work(spread, gpus, layers, message, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(StagealignError, match=message):
        check(spread, 8, layers, gpus)


def test_deepspeed_is_asked_for_where_it_is_absent(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(CannotRun, match="deepspeed is not installed"):
        check(Devices(2, "zero3"), 8, None, 2)


def test_a_command_that_a_launcher_started_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StagealignError, match=r"WORLD_SIZE=2.*--launcher"):
        check(Devices(), 8, None, 0)


@pytest.mark.parametrize(
    ("sharding", "kind"), [("replicate", "multi_gpu"), ("fsdp2", "use_fsdp"), ("zero3", "use_deepspeed")]
)
def test_accelerate_reads_the_configurations(sharding, kind, tmp_path):
    """As its own launcher does, up to where processes would start."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = command(Devices(2, sharding), None, 2, tmp_path / "work.json")
    given, _, _ = _validate_launch_command(launch_command_parser().parse_args(words[3:]))
    assert (given.num_processes, given.module, given.training_script) == (2, True, "stagealign.train.worker")
    assert [name for name in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(given, name)] == [kind]
    if sharding == "fsdp2":
        assert (given.fsdp_version, given.fsdp_state_dict_type) == (2, "SHARDED_STATE_DICT")
    if sharding == "zero3":
        assert given.zero_stage == 3


def test_which_configuration_is_taken():
    def taken(spread, layers, gpus):
        words = command(spread, layers, gpus, Path("work.json"))
        return Path(words[words.index("--config_file") + 1])

    assert taken(Devices(2), None, 2) == CONFIGS / "fsdp2.yaml"
    assert taken(Devices(2), 6, 2) == CONFIGS / "replicate.yaml"
    assert taken(Devices(2), None, 0) == CONFIGS / "replicate.yaml"
    assert taken(Devices(2, "zero3"), None, 2) == CONFIGS / "zero3.yaml"
    assert {file.stem for file in CONFIGS.iterdir()} == set(devices.SHARDINGS)


def test_devices_are_no_part_of_an_identity(tmp_path):
    from stagealign.base.identity import fingerprint, plain
    from stagealign.grid import registry, variants
    from stagealign.grid.spec import Lora
    from stagealign.pipeline.rounds import plan_run
    from stagealign.store.folder import Store

    run = plan_run(registry.cell("zephyr-dpo-1on"), 0)
    assert Store(tmp_path, Context(Devices(8))).folder(run.start) == Store(tmp_path).folder(run.start)
    training = registry.scale("lab").training
    assert "peft" not in plain(training)
    (adapted,) = variants.adapted([registry.cell("zephyr-dpo-1on")], "lora")
    assert adapted.id == "zephyr-dpo_lora-1on"
    assert plain(adapted)["scale"]["training"]["peft"] == plain(Lora())
    assert fingerprint(adapted) != fingerprint(registry.cell("zephyr-dpo-1on"))
    ours, theirs = plan_run(adapted, 0).artifacts, run.artifacts
    assert all(theirs[path].fingerprint == ours[path].fingerprint for path in ours.keys() & theirs.keys())
    assert not {path for path in ours.keys() & theirs.keys() if path.endswith("/policy")}


def test_adapters_are_merged_as_their_own_forward_says(tiny):
    """Weights with adapters merged give the same logits as with adapters beside them; others are as before."""
    pytest.importorskip("peft")
    import torch

    from stagealign.grid.spec import Lora
    from stagealign.train.adapters import add_adapters, merge_adapters

    lm, before = tiny(), tiny()
    add_adapters(lm.model, Lora(4, 8), trained_layers=2)
    learning = {name for name, weight in lm.model.named_parameters() if weight.requires_grad}
    assert learning
    assert all("lora_" in name and (".layers.2." in name or ".layers.3." in name) for name in learning)
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if name in learning:
                weight += 0.05 * torch.randn_like(weight)
        ids = torch.tensor([[5, 6, 7, 8]])
        beside = lm.model(ids).logits
        merge_adapters(lm.model)
        assert torch.allclose(lm.model(ids).logits, beside, atol=1e-4)
        assert not torch.allclose(before.model(ids).logits, beside, atol=1e-2)
    assert lm.model.state_dict().keys() == before.model.state_dict().keys()


def test_processes_end_with_the_worker_that_started_them(tmp_path):
    """An interrupted run ends its workers by SIGTERM; what a worker started must not train on."""
    script = (
        "import sys; from stagealign.train.launch import _run\n"
        "_run([sys.executable, '-c', \"import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(600)\"],"
        " None, 1)"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
    child = int((tmp_path / "child").read_text())
    worker.terminate()
    assert worker.wait(60) == -signal.SIGTERM

    def gone():
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone)


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
