"""Every identity that the project gives out, as lines `group`, `fingerprint`, `what`: none of them may ever move.

`tests/test_identities.py` holds their digest. A group moves only where its numbers do: then its builder gets a new
version, the CHANGELOG says so, and `python -m tests.identities` prints the digest to commit.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from stagealign.base.identity import fingerprint, plain, stream
from stagealign.boundary.meter import kept_at, texts_of
from stagealign.boundary.sampling import MeterPrompt, SampledPrompt
from stagealign.evaluate.alpaca_eval.answers import key_of
from stagealign.evaluate.alpaca_eval.asking import ServedJudge
from stagealign.evaluate.alpaca_eval.local import LocalJudge
from stagealign.evaluate.alpaca_eval.rows import BattleItem
from stagealign.grid import registry, samplers, scales, variants
from stagealign.grid.cell import Cell
from stagealign.grid.claims import CLAIMS, cited
from stagealign.grid.spec import Decoding, Engine
from stagealign.oracle.judge import LLMJudge
from stagealign.oracle.pairrm import PairRMOracle
from stagealign.oracle.recorded import RecordedOracle
from stagealign.pipeline.rounds import plan_run
from stagealign.scoring.reward_model import RewardOracle

COMMITTED = Path(__file__).with_name("identities.json")
VLLM = Engine("vllm", "0.31.0", {"enable_prefix_caching": True, "logprobs_mode": "raw_logprobs"})
SERVED = Engine("served", None, {"style": "generation_config"})
Change = Callable[[list[Cell]], list[Cell]]
CHANGES: dict[str, Change] = {
    "plain": lambda cells: cells,
    "lora": lambda cells: variants.adapted(cells, "lora"),
    "vllm": lambda cells: variants.sampled_by(cells, VLLM),
    "served": lambda cells: variants.sampled_by(cells, SERVED),
    "gold of the hub": lambda cells: variants.evaluated_by(cells, "reward:org/Reward-Model"),
    "gold of a folder": lambda cells: variants.evaluated_by(cells, "reward:folder@0123456789abcdef"),
}


def lines() -> Iterator[tuple[str, str, str]]:
    """(group, fingerprint, what it is of)."""
    for scale in scales.SCALES:
        for name, change in CHANGES.items():
            yield from _artifacts(f"{scale}, {name}", change(registry.cells(scale, extras=name == "plain")))
        yield from _artifacts(f"{scale}, capability", registry.cells(scale), capability=True)
        for cell in registry.cells(scale, extras=True):
            yield f"{scale}, specs", fingerprint(plain(cell)), cell.id
            yield from ((f"{scale}, claims", found, f"{cell.id} {key}") for key, found in cited(cell).items())
    yield from (("claims", claim.fingerprint, claim.key) for claim in CLAIMS)
    yield from _kept()


def _artifacts(group: str, cells: list[Cell], capability: bool = False) -> Iterator[tuple[str, str, str]]:
    seen: dict[str, str] = {}
    for cell in cells:
        for seed in cell.scale.seeds:
            run = plan_run(cell, seed, capability=capability)
            seen |= {path: artifact.fingerprint for path, artifact in run.artifacts.items()}
            seen |= {f"{run.id} rung {rung}": rung for rung in run.rungs}
            seen |= {f"{run.id} capability {one}": one for one in run.measured}
    yield from ((group, found, path) for path, found in sorted(seen.items()))


def _kept() -> Iterator[tuple[str, str, str]]:
    """Keys of what the meter and AlpacaEval keep: samples, verdicts, answers."""
    settings = {
        "decoding": vars(Decoding(max_new_tokens=512)),
        "template": "auto",
        "seed": 0,
        "count": 2,
        "rendering": samplers.RENDERING_VERSION,
    }
    policies: dict[str, dict[str, Any]] = {
        "loaded": {"weights": "org/model@0123456789abcdef", **settings},
        "served": {
            "served": "model",
            "as": "model-1",
            "style": "top_k",
            "says": fingerprint({"text": "a"}),
            **settings,
        },
    }
    item = MeterPrompt("key", "a prompt", ("chosen", "rejected"))
    for name, policy in policies.items():
        for kind, oracle in _oracles().items():
            with TemporaryDirectory() as folder, chdir(folder):
                samples, verdicts = kept_at(Path("home"), policy, oracle)
            yield "kept samples", str(samples.path), name
            yield "kept verdicts", str(verdicts.path), f"{name}, {kind}"
    yield "kept verdicts", texts_of(item, SampledPrompt(("one", "two"), 2, 0)), "texts of a verdict"
    for name, judge in _judges().items():
        yield "kept answers", key_of(judge, BattleItem(0, "prompt", "baseline", "model")), name
    for names in (("sample", "key", 0), ("sample", "key"), ("order", 1), ("completions",)):
        yield "streams", str(stream(7, *names)), repr(names)


def _oracles() -> dict[str, dict[str, Any]]:
    model = SimpleNamespace(dtype="torch.float32")
    stubs: dict[str, tuple[type, dict[str, Any]]] = {
        "pairrm": (PairRMOracle, {"model": model, "weights": "org/pairrm@1"}),
        "reward": (RewardOracle, {"model": model, "weights": "org/rm@1", "text": "chat", "max_length": 512}),
        "judge": (
            LLMJudge,
            {"model": "judge", "served": "judge-1", "style": "logprobs", "check": lambda: None, "weights": None},
        ),
        "recorded": (RecordedOracle, {"recorded": SimpleNamespace(digest="0" * 64)}),
    }
    return {kind: dict(of.identity.fget(SimpleNamespace(**fields))) for kind, (of, fields) in stubs.items()}


def _judges() -> dict[str, dict[str, Any]]:
    official = SimpleNamespace(identity={"prompt": "1"}, settings={"temperature": 0, "max_tokens": 1})
    lm = SimpleNamespace(model=SimpleNamespace(dtype="torch.float32"))
    served = object.__new__(ServedJudge)
    served.__dict__.update(kind="official", model="gpt", official=official, style="logprobs", weights=None)
    local = object.__new__(LocalJudge)
    local.__dict__.update(lm=lm, named="org/judge@1", official=official)
    return {"served": served.identity, "local": local.identity}


def digests() -> dict[str, list[Any]]:
    """By group: how many identities, and the first 32 hex digits of the sha256 of all their lines."""
    groups: dict[str, list[str]] = {}
    for group, found, what in lines():
        groups.setdefault(group, []).append(f"{found} {what}\n")
    return {
        group: [len(found), hashlib.sha256("".join(found).encode()).hexdigest()[:32]] for group, found in groups.items()
    }


if __name__ == "__main__":
    print(json.dumps(digests(), indent=1))
