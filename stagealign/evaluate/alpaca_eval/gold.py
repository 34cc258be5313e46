"""AlpacaEval 2 as the gold reward of the grid: its prompts and baseline as an artifact, and the judge's annotations."""

import json
from pathlib import Path

from stagealign.base.errors import BadData, CannotRun, StagealignError
from stagealign.data.mirrors import content_of, local_copy
from stagealign.data.records import Candidate, Prompt, read_dicts, read_rows, write_rows
from stagealign.evaluate.alpaca_eval import evaluate as alpaca
from stagealign.evaluate.alpaca_eval import rows
from stagealign.evaluate.alpaca_eval.comparisons import read_difficulty
from stagealign.store.artifact import Facts, Work

BASELINE, DIFFICULTY = "alpaca_eval_gpt4_baseline", "instruction_difficulty"
"""Files of the hub data set, and of its local copy."""
HUB_ENDINGS = {BASELINE: ".json", DIFFICULTY: ".csv"}
TOLD = ("judge", "n", "answered", "win_rate", "standard_error", "failed", "garbled", "first_shown_preferred", "cost")
"""What the record keeps of an evaluation's own."""


def prepare(work: Work) -> Facts:
    """Builder of `gold`: AlpacaEval's prompts, the baseline's completions, and how hard each prompt is.

    From the hub, or from local files in `STAGEALIGN_DATA/alpaca_eval`. Raises BadData where prompts are missing, come
    twice or have no difficulty, CannotRun where neither place has the files.
    """
    data, expected, revision = (work.params[name] for name in ("data", "prompts", "revision"))
    if content_of(data) != work.params["content"]:
        raise BadData(f"{data}: the local files have changed since the plan was made; plan again")
    baseline, difficulty = (_file(data, revision, name) for name in (BASELINE, DIFFICULTY))
    battle = rows.read(str(baseline), str(baseline))
    if len(battle.items) != expected:
        raise BadData(f"{baseline}: {len(battle.items)} prompts found, {expected} expected; take the published file")
    hard = read_difficulty(str(difficulty))
    without = [item.index for item in battle.items if item.index not in hard]
    if without:
        raise BadData(f"{difficulty}: no difficulty of {len(without)} prompts, such as {without[:3]}")
    write_rows(work.out / "prompts.jsonl", (Prompt(item.prompt, "test") for item in battle.items))
    table = [
        {"prompt_index": item.index, "instruction": item.prompt, "output": item.baseline, "generator": battle.baseline}
        for item in battle.items
    ]
    (work.out / "baseline.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    write_rows(work.out / "difficulty.jsonl", ({"prompt_index": i, "difficulty": hard[i]} for i in sorted(hard)))
    commit = None if work.params["content"] else baseline.parent.name  # the hub's cache has a folder a commit
    return {"prompts": len(table), "baseline": battle.baseline, "revision": commit, "spearman": None}


def annotate(work: Work) -> Facts:
    """Builder of `annotations`: the official judge's preference for each answer of a policy, the baseline beside it.

    What was answered is kept and never asked again, so a run that a limit or a failure stopped goes on. Raises
    StagealignError where more than 1% of the prompts have no preference.
    """
    answers = read_rows(work.inputs["answers"] / "candidates.jsonl", Candidate)
    outputs = work.out / "outputs.json"
    named = [{"instruction": one.prompt, "output": one.completion, "generator": "policy"} for one in answers]
    outputs.write_text(json.dumps(named, indent=1), encoding="utf-8")
    baseline = work.inputs["gold"] / "baseline.json"
    found = alpaca.evaluate(
        alpaca.EvaluationRequest(str(outputs), str(baseline), work.params["judge"], spend=work.context.spend)
    )
    if not found.reliable:
        raise StagealignError(f"{found.sentence}; {'; '.join(found.details)}")
    hard = {row["prompt_index"]: row["difficulty"] for row in read_dicts(work.inputs["gold"] / "difficulty.jsonl")}
    rows_with = [{**row, "difficulty": hard[row["prompt_index"]]} for row in found.table()]
    write_rows(work.out / "annotations.jsonl", rows_with)
    told = found.plain()
    return {name: told[name] for name in TOLD}


def _file(data: str, revision: str | None, name: str) -> Path:
    """The local copy of one of the data set's files, else the hub's."""
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
            f"{data}: {file} is not in the hub's cache, and the hub is out of reach; set HF_HUB_OFFLINE=0, or put the "
            f"file into STAGEALIGN_DATA/{data.rpartition('/')[2]}"
        ) from error
