"""Every causal architecture of the installed transformers: fast, general or refused.

`python -m benchmarks.architectures --write` writes the table of `docs/architectures.md`. A miniature of each (`policy.
miniature`) is sampled by the path that it would take, and held against `generate` on one unpadded prompt, and against
the model's own forward.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stagealign.grid.spec import Decoding
from stagealign.policy.general import general_rows
from stagealign.policy.lm import LanguageModel
from stagealign.policy.miniature import miniature
from stagealign.policy.paths import key_of, structure

DOCS = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
START, END = "<!-- architectures: made by `python -m benchmarks.architectures --write` -->", "<!-- /architectures -->"
PROMPTS = tuple(tuple((7 * i + 11 * n) % 90 + 5 for i in range(40)) for n in range(3))
STEPS = 8
FAST, GENERAL, UNPROVED, REFUSED = "fast", "general", "general, unproved", "refused"
MEANING = {
    FAST: "our batched sampler; a miniature proves that it equals `generate`",
    GENERAL: "`generate` with the model's own cache; a miniature proves that a batch changes no text",
    UNPROVED: "`generate` with the model's own cache; no miniature could be built here to try it",
    REFUSED: "cannot be a policy",
}


@dataclass(frozen=True)
class Found:
    """How one architecture is sampled."""

    name: str
    path: str
    why: str


def config_of(name: str) -> PreTrainedConfig:
    """The architecture's default config, as a decoder."""
    return AutoConfig.for_model(name)


def look(name: str) -> Found:
    """The path of one architecture, by its default config."""
    try:
        config = config_of(name)
    except Exception as error:  # a config that needs values of its own
        return Found(name, UNPROVED, _first_line(error))
    if config.is_encoder_decoder:
        return Found(name, REFUSED, "an encoder and a decoder")
    if getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention"):
        return Found(name, REFUSED, "an encoder, unless its config says is_decoder")
    why = structure(key_of(config))
    if not why:
        return Found(name, FAST, "")
    try:
        lm = LanguageModel(miniature(config), SimpleNamespace(eos_token_id=2, pad_token_id=0))  # type: ignore[arg-type]
    except Exception as error:
        return Found(name, UNPROVED, _first_line(error))
    try:
        same = general_is_generate(lm)
    except Exception as error:
        return Found(name, REFUSED, f"generate fails on it: {_first_line(error)}")
    return Found(name, GENERAL, why) if same else Found(name, REFUSED, "a batch changes what it writes")


def generated(lm: LanguageModel, prompt: Sequence[int], steps: int = STEPS) -> tuple[int, ...]:
    """Greedy tokens of `generate` on one unpadded prompt."""
    ids = torch.tensor([list(prompt)])
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=2, pad_token_id=0)
    with torch.inference_mode():
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return tuple(token for token in out[0, len(prompt) :].tolist() if token != 2)


def general_is_generate(lm: LanguageModel) -> bool:
    """Whether the general path, in one batch, writes what `generate` writes of each prompt alone."""
    greedy = Decoding(temperature=0.0, max_new_tokens=STEPS)
    chance = [[torch.zeros(STEPS, dtype=torch.float64)] for _ in PROMPTS]
    ours = dict(general_rows(lm, PROMPTS, chance, greedy))
    return all(ours[i][0].ids == generated(lm, prompt) for i, prompt in enumerate(PROMPTS))


def every() -> Iterator[Found]:
    """Each causal architecture of the installed transformers."""
    yield from map(look, sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def table(found: Sequence[Found]) -> str:
    """Markdown: a row a path, with the number and names of its architectures."""
    lines = ["| path | architectures | which |", "|---|---:|---|"]
    for path, meaning in MEANING.items():
        names = [one.name for one in found if one.path == path]
        lines.append(f"| **{path}**: {meaning} | {len(names)} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines)


def written(text: str, found: Sequence[Found]) -> str:
    """`text` with the table between its two marks."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table(found)}\n{END}{rest.partition(END)[2]}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--write", action="store_true", help=f"refresh {DOCS.name}")
    found = list(every())
    for one in found:
        print(f"{one.path:18} {one.name:24} {one.why}")
    if words.parse_args().write:
        DOCS.write_text(written(DOCS.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
