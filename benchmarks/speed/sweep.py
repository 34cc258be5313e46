"""Sweep of DPO and SLiC x 3 betas x 2 seeds: ours through the store, against one TRL run for each.

Both start from a saved checkpoint and a list of pairs, and save a checkpoint for each run. Ours works as in a grid:
pairs and reference log-probs are artifacts, so the reference runs once. TRL runs with its defaults, all runs in one
process, so it pays for its imports once. Forward passes of the reference are counted on both sides.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.speed import models
from benchmarks.speed.training import BATCH, LEARNING_RATE, MAX_LENGTH, chosen, trainer
from benchmarks.speed.turns import Given, Run, child, clock, turns
from stagealign.base.kind import Kind
from stagealign.grid.methods import DPO, SLIC_HF
from stagealign.pipeline.kinds import POLICY, REFERENCE
from stagealign.store.artifact import Artifact, Work
from stagealign.store.folder import Store

SHAPE, PAIRS, TOLERANCE = "14m", 16, 1e-5
BETAS, SEEDS = (0.05, 0.1, 0.2), (0, 1)
FORMS = {"sigmoid": DPO, "hinge": SLIC_HF}
"""TRL's name of a loss -> our method."""
PATH = "benchmarks.speed.sweep"


def measure(given: Given) -> dict[str, Any]:
    """Check of both losses, and interleaved sweeps."""
    pairs = 4 if given.small else PAIRS
    runs = len(grid(given.small))
    checked = child(f"{PATH}:check", given)
    assert checked["largest_difference"] < TOLERANCE, f"the losses differ, so the sides cannot be compared: {checked}"
    sides = {name: (f"{PATH}:side", {"peer": name == "TRL", "pairs": pairs}) for name in ("ours", "TRL")}
    sizes = {"shape": SHAPE, "pairs": pairs, "runs": runs, "betas": list(BETAS), "seeds": list(SEEDS)}
    return {"sizes": sizes, "check": checked, "runs": turns(sides, given)}


def grid(small: bool) -> list[tuple[str, float, int]]:
    """(loss, beta, seed) of each run; one seed and beta if `small`."""
    betas, seeds = (BETAS[:1], SEEDS[:1]) if small else (BETAS, SEEDS)
    return [(form, beta, seed) for form in FORMS for beta in betas for seed in seeds]


def side(given: Given, peer: bool, pairs: int) -> Run:
    """Time of one sweep, and the calls and tokens of its reference model."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        return _trl(given, pairs, home) if peer else build(given, pairs, home, grid(given.small))


def build(given: Given, pairs: int, home: Path, runs: list[tuple[str, float, int]]) -> Run:
    """Time of our sweep through a store in `home`; start and pairs are built before the clock starts."""
    store = Store(home)
    start = Artifact("start", Kind(f"{PATH}:build_start", price="free"), {"small": given.small})
    rows = Artifact("pairs", Kind(f"{PATH}:build_pairs", price="free"), {"small": given.small, "pairs": pairs})
    for artifact in (start, rows):
        store.build(artifact)
    known = {"max_length": MAX_LENGTH, "dtype": "float32", "trained_layers": None}
    reference = Artifact("reference", REFERENCE, known, {"policy": start, "pairs": rows})
    goals = [_policy(form, beta, seed, start, rows, reference) for form, beta, seed in runs]
    with counted() as passed, clock(given.device) as took:
        for goal in goals:
            for artifact in goal.lineage().values():
                store.build(artifact)
    return {**took, "work": len(goals), **passed, "recorded_forwards": _forwards(store, goals)}


def _policy(form: str, beta: float, seed: int, start: Artifact, rows: Artifact, reference: Artifact) -> Artifact:
    from dataclasses import replace

    training = {
        "batch": BATCH, "epochs": 1, "warmup": 0.0, "schedule": "linear", "max_grad_norm": 1.0, "dtype": "float32",
        "trained_layers": None, "max_length": MAX_LENGTH,
    }  # fmt: skip
    method = replace(FORMS[form], beta=beta, assumed={})
    params = {"method": method, "training": training, "learning_rate": LEARNING_RATE, "seed": seed}
    inputs = {"policy": start, "pairs": rows, "reference": reference}
    return Artifact(f"{form}-{beta:g}-{seed}/policy", POLICY, params, inputs)


def _forwards(store: Store, goals: list[Artifact]) -> int:
    """Completions scored by a reference, by the store's records."""
    references = {goal.inputs["reference"].path: goal.inputs["reference"] for goal in goals}
    return sum(store.facts(reference)["forwards"] for reference in references.values())


def build_start(work: Work) -> dict[str, Any]:
    """Builds the start: the shape with seeded weights."""
    from stagealign.policy.lm import save

    save(models.policy(SHAPE, Given(small=work.params["small"])), work.out)
    return {}


def build_pairs(work: Work) -> dict[str, Any]:
    """Builds the pairs."""
    from stagealign.data.records import write_rows

    write_rows(work.out / "pairs.jsonl", chosen(work.params["pairs"], Given(small=work.params["small"]))[0])
    return {}


def _trl(given: Given, pairs: int, home: Path) -> Run:
    from stagealign.policy.lm import load, save

    save(models.policy(SHAPE, given), home / "start")
    data, _ = chosen(pairs, given)
    with counted() as passed, clock(given.device) as took:
        for form, beta, seed in grid(given.small):
            lm, reference = load(home / "start"), load(home / "start")
            folder = home / f"{form}-{beta:g}-{seed}"
            settings = {"loss_type": [form], "beta": beta, "seed": seed}
            peer = trainer(lm, data, reference.model, str(folder), given.device, **settings)
            peer.train()
            peer.save_model(str(folder / "policy"))
    return {**took, "work": len(grid(given.small)), **passed}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts calls and tokens, with padding, of the reference inside the block: decoders without gradients."""
    import torch
    from transformers import GPTNeoXModel

    from stagealign.policy.miniature import SIZES

    passed = {"reference_calls": 0, "reference_tokens": 0}

    def note(module: Any, arguments: Any, words: dict[str, Any], out: Any) -> None:
        if not isinstance(module, GPTNeoXModel) or module.config.vocab_size <= SIZES["vocab_size"]:
            return  # a miniature, which proves the layout
        if not torch.is_grad_enabled():
            passed["reference_calls"] += 1
            passed["reference_tokens"] += (words["input_ids"] if "input_ids" in words else arguments[0]).numel()

    hook = torch.nn.modules.module.register_module_forward_hook(note, with_kwargs=True)
    try:
        yield passed
    finally:
        hook.remove()


def check(given: Given) -> Run:
    """Largest difference between our losses and TRL's, over both losses and all betas."""
    import torch

    from stagealign.train.losses import LOSSES, Constants, Logps
    from stagealign.train.reference import reference_logps, tokenize

    lm = models.policy(SHAPE, given)
    reference = models.shifted(lm)
    data, _ = chosen(64, given)
    few = sorted(data, key=lambda pair: len(pair.chosen) + len(pair.rejected))[:4]
    tokens = tokenize(lm, few, MAX_LENGTH)
    policy, fixed = (reference_logps(model, tokens, None, None) for model in (lm, reference))
    lengths = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in tokens])
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            for beta in BETAS:
                ours = LOSSES[form](Logps(*policy.T, *fixed.T, *lengths.T), Constants(beta)).mean().item()
                peer = trainer(lm, few, reference.model, folder, given.device, loss_type=[form], beta=beta)
                batch = peer.data_collator([peer.train_dataset[i] for i in range(len(few))])
                with torch.no_grad():
                    theirs = peer.compute_loss(peer.model, {k: v.to(given.device) for k, v in batch.items()}).item()
                differences.append(abs(ours - theirs))
    return {"losses": len(differences), "largest_difference": max(differences)}
