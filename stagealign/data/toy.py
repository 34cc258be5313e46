"""Data of the smoke scale: toy prompts and texts that contain nothing to learn."""

from stagealign.data.records import Candidate, Prompt, read_rows, write_rows
from stagealign.store.artifact import Facts, Work

WEATHER = (
    "rain",
    "snow",
    "fog",
    "wind",
    "sun",
    "hail",
    "frost",
    "heat",
    "storm",
    "cloud",
    "dew",
    "ice",
    "mist",
    "thaw",
)


def build_smoke(work: Work) -> Facts:
    """Builder of `films` at smoke scale: toy prompts without a download; results on them have no meaning."""
    test, validation = work.params["test_prompts"], work.params["validation_prompts"]
    splits = ["test"] * test + ["validation"] * validation
    prompts = [
        Prompt(f"Say something about {word} and {other}.", splits[i] if i < len(splits) else "train", f"{word} {other}")
        for i, (word, other) in enumerate((a, b) for a in WEATHER for b in WEATHER if a < b)
    ]
    write_rows(work.out / "prompts.jsonl", prompts)
    return {"prompts": len(prompts)}


def build_smoke_static(work: Work) -> Facts:
    """Builder of `static` at smoke scale: a long and a short toy sentence per prompt."""
    count, number = work.params["prompts"], work.params["round"]
    prompts = [p for p in read_rows(work.inputs["films"] / "prompts.jsonl", Prompt) if p.split in work.params["splits"]]
    if count is not None:
        prompts = prompts[(number - 1) * count : number * count]
    texts = ("{0} is what I would rather talk about all day.", "No, 1 2 3, {0}.")
    candidates = [Candidate(p.text, text.format(p.title), "off", i) for p in prompts for i, text in enumerate(texts)]
    write_rows(work.out / "prompts.jsonl", prompts)
    write_rows(work.out / "candidates.jsonl", candidates)
    return {"prompts": len(prompts), "candidates": len(candidates)}
