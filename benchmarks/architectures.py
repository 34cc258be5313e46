"""Every causal architecture of the installed transformers: fast, general or refused.

`python -m benchmarks.architectures --write` writes the table of `docs/architectures.md`, by each architecture's default
config. `--speed` times the general path against plain batches of `generate`.
"""

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stagealign.grid.spec import Decoding
from stagealign.policy.architectures import not_causal
from stagealign.policy.general import general_rows
from stagealign.policy.lm import LanguageModel
from stagealign.policy.paths import SamplingPath, first_line, key_of, proved

ROOT = Path(__file__).resolve().parents[1]
DOCS, README = ROOT / "docs" / "architectures.md", ROOT / "README.md"
START, END = "<!-- architectures: made by `python -m benchmarks.architectures --write` -->", "<!-- /architectures -->"
MEANING = {
    "fast": "our batched sampler: a miniature has the logits of `generate`",
    "general": "`generate` with the model's own cache, in batches: a miniature has the logits of one prompt alone",
    "general, not proved": "no miniature could be tried, so a loaded policy is tried itself: `generate` on rows of one "
    "length, or one row at a time; refused by name if `generate` fails on text alone",
    "refused": "cannot be a policy",
}
"""What a path of the table means."""
FULL, CONV, SLIDING = "full_attention", "conv", "sliding_attention"
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
MISSING: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {FULL: ROPE, SLIDING: ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16, "num_hidden_layers": 32},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": [CONV, FULL] * 16, "num_hidden_layers": 32},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
}
"""Values without which the default config of an architecture makes no model."""


@dataclass(frozen=True)
class Architecture:
    """How one architecture is sampled."""

    name: str
    path: str
    """A key of `MEANING`."""
    why: str = ""


def config_of(name: str, **values: Any) -> PreTrainedConfig:
    """The architecture's default config, with these values. Raises what transformers raises."""
    return AutoConfig.for_model(name, **{**MISSING.get(name, {}), **values})


def look(name: str) -> Architecture:
    """The path of one architecture."""
    try:
        config = config_of(name)
    except Exception as error:  # a config that has no defaults
        return Architecture(name, "general, not proved", first_line(error))
    why = not_causal(config)
    return Architecture(name, "refused", why) if why else Architecture(name, *row_of(proved(key_of(config))))


def row_of(path: SamplingPath) -> tuple[str, str]:
    """Row of the table that a path belongs to, and the reason."""
    if path.fast:
        return "fast", ""
    return ("general, not proved" if path.batches == "single" else "general"), path.why


def every() -> Iterator[Architecture]:
    """Each causal architecture of the installed transformers."""
    yield from map(look, sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def table(found: Sequence[Architecture]) -> str:
    """Markdown: a row a path, with the number and names of its architectures."""
    lines = [f"With transformers {transformers.__version__}:", "", "| path | architectures | which |", "|---|---:|---|"]
    for path, meaning in MEANING.items():
        names = [f"`{one.name}`" for one in found if one.path == path]
        lines.append(f"| **{path}**: {meaning} | {len(names)} | {', '.join(names)} |")
    return "\n".join(lines)


WELL_KNOWN = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt_neox",
    "falcon",
    "mamba",
    "jamba",
    "bert",
    "bart",
)
"""Names that the README shows of each path."""


def summary(docs: str) -> str:
    """Markdown: the table of `docs`, in which `table` stands, with the number and the best known names of each path."""
    lines = ["| path | architectures | such as |", "|---|---:|---|"]
    for row in re.findall(r"^\| \*\*.*\|$", docs, re.MULTILINE):
        path, count, names = (cell.strip() for cell in row.strip("|").split("|"))
        shown = [f"`{name}`" for name in WELL_KNOWN if f"`{name}`" in names]
        lines.append(f"| {path} | {count} | {', '.join(shown)} |")
    return "\n".join(lines)


def written(text: str, made: str) -> str:
    """`text` with a table between its two marks."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{made}\n{END}{rest.partition(END)[2]}"


def speed(prompts: int = 48, steps: int = 32, batch: int = 16) -> tuple[float, float]:
    """Seconds of the general path and of plain padded batches of `generate`, for the same prompts and tokens."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "stablelm",
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=8192,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    lm = LanguageModel(model, SimpleNamespace(eos_token_id=8191))
    asked = [[3 + (i * j) % 8000 for j in range(1, 20 + 3 * i % 60)] for i in range(prompts)]
    chance = [[torch.rand(steps, dtype=torch.float64)] for _ in asked]
    decoding = Decoding(temperature=1.0, max_new_tokens=steps)
    plain = GenerationConfig(
        max_new_tokens=steps, do_sample=True, top_p=0.95, top_k=50, pad_token_id=0, eos_token_id=8191
    )
    start = time.perf_counter()
    for _ in general_rows(lm, asked, chance, decoding, batch, batches="padded"):
        pass
    middle = time.perf_counter()
    for first in range(0, prompts, batch):
        rows = asked[first : first + batch]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        model.generate(ids, attention_mask=seen, generation_config=plain)
    return middle - start, time.perf_counter() - middle


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--write", action="store_true", help=f"refresh {DOCS.name}")
    words.add_argument("--speed", action="store_true", help="time the general path only")
    asked = words.parse_args()
    if asked.speed:
        ours, plain = speed()
        print(f"general path {ours:.1f} s, plain batches of generate {plain:.1f} s: ratio {ours / plain:.2f}")
        return
    found = list(every())
    for one in found:
        print(f"{one.path:20} {one.name:24} {one.why}")
    if asked.write:
        DOCS.write_text(written(DOCS.read_text(encoding="utf-8"), table(found)), encoding="utf-8")
        docs = DOCS.read_text(encoding="utf-8")
        README.write_text(written(README.read_text(encoding="utf-8"), summary(docs)), encoding="utf-8")


if __name__ == "__main__":
    main()
