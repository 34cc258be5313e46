"""The paper's data: prompts and static pairs of UltraFeedback binarized, conversations of UltraChat for SFT.

The data is read from the hub at a pinned revision, or from local files (`mirrors.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stagealign.base.errors import BadData
from stagealign.base.identity import stream
from stagealign.data.formats import DataRow
from stagealign.data.mirrors import content_of, local_copy
from stagealign.data.preferences import PreferenceData, read_preferences
from stagealign.data.records import Candidate, Drops, Prompt, read_rows, write_rows
from stagealign.data.tables import numbered_rows
from stagealign.store.artifact import Facts, Work

SPLITS = {"train": "train_prefs", "test": "test_prefs"}
"""The data set's name of each of our splits."""
SFT_SPLIT = "train_sft"


@dataclass(frozen=True)
class StaticPair:
    """The two static candidates of a prompt, in the data set's order."""

    prompt: str
    first: str
    second: str


def build_prompts(work: Work) -> Facts:
    """Builder of `films` for UltraFeedback: prompts with their split, and the two static candidates of each.

    Rows that repeat a prompt are merged: the candidates of the first row are kept, the others counted. GPT-4's
    preference is dropped; the oracle labels the candidates again. A prompt of both splits stays in the test split. Test
    prompts are chosen by hash; the others are counted. Raises BadData.
    """
    data, facts = work.params["data"], dict[str, dict[str, object]]()
    prompts: list[Prompt] = []
    texts: list[StaticPair] = []
    seen: set[str] = set()
    for split, count in (("test", work.params["test_prompts"]), ("train", None)):
        preferences = _read(data, SPLITS[split], work.params["content"], count)
        drops = Drops(preferences.drops)
        for row in preferences.rows:
            if row.hash in seen:
                drops["prompt is in the test split"] += 1
            elif len(row.messages or ()) > 1:
                drops["more than one turn before the completions"] += 1
            else:
                seen.add(row.hash)
                prompts.append(Prompt(row.prompt_text, split))
                texts.append(StaticPair(row.prompt_text, row.chosen, row.rejected))
        used = sum(prompt.split == split for prompt in prompts)
        drops.check(preferences.given, used + preferences.repeated + preferences.not_chosen)
        facts[split] = {
            "rows": preferences.given,
            "prompts": used,
            "repeated": preferences.repeated,
            "not_chosen": preferences.not_chosen,
            "drops": dict(drops),
        }
    if not any(prompt.split == "train" for prompt in prompts):
        raise BadData(f"{data}: no training prompt is left ({facts['train']['drops']}); look at {SPLITS['train']}")
    write_rows(work.out / "prompts.jsonl", prompts)
    write_rows(work.out / "static.jsonl", texts)
    return facts


def _read(data: str, split: str, content: str | None, count: int | None) -> PreferenceData:
    """Preferences of one split, from the local copy or the hub. Raises BadData if local files have changed."""
    _same(data, content)
    local = local_copy(data, split)
    return read_preferences(str(local) if local else data, count, split=None if local else split)


def _same(data: str, content: str | None) -> None:
    """Raises BadData if the local files differ from those of the plan."""
    now = content_of(data)
    if now != content:
        raise BadData(f"{data}: planned from {content or 'the hub'}, found {now or 'no local copy'}; plan again")


def build_static(work: Work) -> Facts:
    """Builder of `static` for UltraFeedback: chosen and rejected of each prompt, in random order.

    All rounds share their prompts unless a number of prompts is set; then each round has its own, in a seeded order.
    """
    import random

    seed, count, number = work.params["seed"], work.params["prompts"], work.params["round"]
    folder = work.inputs["films"]
    prompts = [p for p in read_rows(folder / "prompts.jsonl", Prompt) if p.split in work.params["splits"]]
    if count is not None:
        random.Random(stream(seed, "prompts")).shuffle(prompts)
        if number * count > len(prompts):
            raise BadData(f"{number} rounds of {count} prompts: only {len(prompts)} found; lower training.pairs")
        prompts = prompts[(number - 1) * count : number * count]
    texts = {row.prompt: (row.first, row.second) for row in read_rows(folder / "static.jsonl", StaticPair)}
    candidates = []
    for prompt in prompts:
        pair = list(texts[prompt.text])
        random.Random(stream(seed, "static", prompt.hash)).shuffle(pair)
        candidates += [Candidate(prompt.text, text.strip(), "off", i) for i, text in enumerate(pair)]
    write_rows(work.out / "prompts.jsonl", prompts)
    write_rows(work.out / "candidates.jsonl", candidates)
    return {"prompts": len(prompts), "candidates": len(candidates)}


def build_sft(work: Work) -> Facts:
    """Builder of `reviews` for base models: conversations of UltraChat as rows with `messages`. Raises BadData."""
    data = work.params["data"]
    _same(data, work.params["content"])
    local = local_copy(data, SFT_SPLIT)
    _, rows = numbered_rows(str(local) if local else data, ("messages",), None if local else SFT_SPLIT)
    drops, kept = Drops(), 0

    def conversations() -> Iterator[Mapping[str, object]]:
        nonlocal kept
        for _, row in rows:
            messages = _messages(row)
            if messages is None:
                drops["no conversation that ends with the assistant"] += 1
            elif kept == work.params["rows"]:
                drops["beyond the number of rows"] += 1
            else:
                kept += 1
                yield {"messages": messages}

    write_rows(work.out / "sft.jsonl", conversations())
    if not kept:
        raise BadData(f"{data}: no conversation found in {SFT_SPLIT}; rows need a column `messages`")
    return {"rows": kept, "drops": dict(drops)}


def _messages(row: DataRow) -> list[dict[str, str]] | None:
    """The row's conversation as role and content; None if the last turn is not the assistant's."""
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns:
        return None
    messages = [
        {"role": turn["role"], "content": turn["content"]}
        for turn in turns
        if isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
    ]
    return messages if len(messages) == len(turns) and messages[-1]["role"] == "assistant" else None
