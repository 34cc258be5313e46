"""AlpacaEval 2 as a gold reward of the grid: builders of its prompts and baseline, and of the judge's annotations."""

import json
from pathlib import Path
from typing import Any

from stagealign.base.errors import BadData, CannotRun, StagealignError
from stagealign.data.mirrors import content_of, local_copy
from stagealign.data.records import Candidate, Prompt, prompt_hash, read_dicts, read_rows, write_rows
from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval import rows
from stagealign.evaluate.alpaca_eval.comparisons import PromptKey
from stagealign.evaluate.alpaca_eval.difficulty import read_difficulty
from stagealign.evaluate.alpaca_eval.official_prompts import official_index
from stagealign.evaluate.alpaca_eval.rows import Battle, BattleItem
from stagealign.store.artifact import Facts, Work
from stagealign.store.record import read_record

BASELINE, DIFFICULTY = "alpaca_eval_gpt4_baseline", "instruction_difficulty"
"""Names of the files in the hub data set and in its local copy, without endings."""
HUB_ENDINGS = {BASELINE: ".json", DIFFICULTY: ".csv"}
RECORD_FACTS = (
    "judge",
    "n",
    "answered",
    "win_rate",
    "standard_error",
    "failed",
    "garbled",
    "first_shown_preferred",
    "cost",
)
"""Entries of an evaluation's record that an artifact's record repeats."""


def prepare(work: Work) -> Facts:
    """Builder of `gold`: AlpacaEval's prompts, the baseline's completions, and the difficulty of each prompt.

    Reads the hub, or local files in `STAGEALIGN_DATA/alpaca_eval`. Raises BadData if prompts are missing, repeated or
    without a difficulty, CannotRun if the hub cannot be reached.
    """
    data, expected, revision = (work.params[name] for name in ("data", "prompts", "revision"))
    if content_of(data) != work.params["content"]:
        raise BadData(f"{data}: the local files have changed since the plan was made; plan again")
    baseline, difficulty = (_file(data, revision, name) for name in (BASELINE, DIFFICULTY))
    battle = rows.read(str(baseline), str(baseline))
    if len(battle.items) != expected:
        raise BadData(f"{baseline}: {len(battle.items)} prompts found, {expected} expected; take the published file")
    known = read_difficulty(str(difficulty))
    difficulties = {item.index: known.of(_key(item, battle)) for item in battle.items}
    without = [index for index, value in difficulties.items() if value is None]
    if without:
        raise BadData(
            f"{difficulty}: no difficulty of {len(without)} prompts, such as {without[:3]}; take the published files, "
            "or give the baseline `prompt_index`, as nothing is joined by its place"
        )
    write_rows(work.out / "prompts.jsonl", (Prompt(item.prompt, "test") for item in battle.items))
    table = [
        {"prompt_index": item.index, "instruction": item.prompt, "output": item.baseline, "generator": battle.baseline}
        for item in battle.items
    ]
    (work.out / "baseline.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    write_rows(
        work.out / "difficulty.jsonl",
        ({"prompt_index": i, "difficulty": difficulties[i]} for i in sorted(difficulties)),
    )
    commit = None if work.params["content"] else baseline.parent.name  # the hub's cache has one folder per commit
    return {"prompts": len(table), "baseline": battle.baseline, "revision": commit, "spearman": None}


def annotate(work: Work) -> Facts:
    """Builder of `annotations`: the official judge's preference between each answer of a policy and the baseline's.

    Answers are kept, so a run that a limit or a failure stopped continues from there. An instruction that fills the
    policy's context has no answer: it is left out of `n` and counted as dropped. Raises StagealignError if more than 1%
    of the other prompts have no preference.
    """
    answers = read_rows(work.inputs["answers"] / "candidates.jsonl", Candidate)
    outputs = work.out / "outputs.json"
    named = [{"instruction": answer.prompt, "output": answer.completion, "generator": "policy"} for answer in answers]
    outputs.write_text(json.dumps(named, indent=1), encoding="utf-8")
    baseline, dropped = _baseline(work)
    result = alpaca.evaluate(
        alpaca.EvaluationRequest(str(outputs), str(baseline), work.params["judge"], spend=work.context.spend)
    )
    if not result.reliable:
        raise StagealignError(f"{result.sentence}; {'; '.join(result.details)}")
    difficulty = {
        row["prompt_index"]: row["difficulty"] for row in read_dicts(work.inputs["gold"] / "difficulty.jsonl")
    }
    rows_with = [{**row, "difficulty": difficulty[row["prompt_index"]]} for row in result.table()]
    write_rows(work.out / "annotations.jsonl", rows_with)
    record = result.plain()
    return {**{name: record[name] for name in RECORD_FACTS}, "dropped": dropped}


def _baseline(work: Work) -> tuple[Path, int]:
    """(file of the baseline's completions of the instructions that were sampled, number of those that were dropped)."""
    baseline, record = work.inputs["gold"] / "baseline.json", read_record(work.inputs["answers"])
    dropped: Any = record["facts"].get("dropped", {}) if record else {}
    if not dropped:
        return baseline, 0
    rows = json.loads(baseline.read_text(encoding="utf-8"))
    sampled = work.out / "baseline.json"
    kept = [row for row in rows if prompt_hash(row["instruction"]) not in dropped]
    sampled.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return sampled, len(rows) - len(kept)


def _key(item: BattleItem, battle: Battle) -> PromptKey:
    """What is known of a prompt: its text if it is AlpacaEval's, else the number that the baseline's file gives it."""
    if official_index(item.hash) is not None or battle.placed:
        return PromptKey(item.hash)
    return PromptKey(index=item.index)


def _file(data: str, revision: str | None, name: str) -> Path:
    """Path of one of the data set's files: the local copy, else the hub's. Raises BadData, CannotRun."""
    local = local_copy(data, name)
    if local:
        return local
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    file = name + HUB_ENDINGS[name]
    try:
        return Path(hf_hub_download(data, file, repo_type="dataset", revision=revision))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise CannotRun(
            f"{data}: {file} is not in the hub's cache, and the hub cannot be reached; set HF_HUB_OFFLINE=0, or put "
            f"the file into STAGEALIGN_DATA/{data.rpartition('/')[2]}"
        ) from error
