"""A reward model as gold reward: builders of its weights and scores."""

from pathlib import Path

from stagealign.base.errors import BadData, StagealignError
from stagealign.data.records import Candidate, by_prompt, prompt_hash, read_rows, write_rows
from stagealign.data.tables import folder_digest
from stagealign.scoring.contest import Contest
from stagealign.scoring.reward_model import load
from stagealign.store.artifact import Facts, Work


def fetch(work: Work) -> Facts:
    """Builder of `gold` where it is a reward model: the weights as they are, from the hub or a local folder.

    A folder is named by its content, `name@hash`. Raises StagealignError where it holds something else by now.
    """
    name, folder = work.params["weights"], work.context.gold_folder
    if folder and folder_digest(Path(folder)) != name.partition("@")[2]:
        raise StagealignError(f"--gold reward:{folder}: its files have changed since the plan was made; plan again")
    found = load(folder or name, work.params["revision"])
    found.model.save_pretrained(work.out)
    found.tokenizer.save_pretrained(work.out)
    commit = {} if folder else {"revision": found.weights.partition("@")[2]}
    return {"weights": found.weights, "text": found.text, "spearman": None, **commit}


def score(work: Work) -> Facts:
    """Builder of `rewards`: a reward model's score of each completion and static candidate, equal texts scored once.

    Raises BadData for a text that cannot be scored: an evaluation leaves nothing out.
    """
    groups = [
        by_prompt(read_rows(work.inputs[name] / "candidates.jsonl", Candidate)) for name in ("completions", "static")
    ]
    prompts = list(dict.fromkeys([*groups[0], *groups[1]]))
    sides = [tuple(group.get(prompt, []) for group in groups) for prompt in prompts]
    contests = [
        Contest(prompt, *(tuple(one.completion for one in side) for side in both))
        for prompt, both in zip(prompts, sides, strict=True)
    ]
    rows: list[dict[str, object]] = []
    cut = 0
    for prompt, both, found in zip(prompts, sides, load(str(work.inputs["gold"])).judge(contests), strict=True):
        if found.failed:
            raise BadData(f"prompt {prompt[-60:]!r}: {found.failed}; take a reward model that reads longer texts")
        cut += found.truncated
        scored = zip((*both[0], *both[1]), (*found.on, *found.off), strict=True)
        rows += [
            {"prompt": prompt_hash(one.prompt), "source": one.source, "index": one.index, "reward": reward}
            for one, reward in scored
        ]
    write_rows(work.out / "rewards.jsonl", rows)
    return {"texts": len(rows), "truncated_for_gold": cut}
