"""A reward model as gold reward: builders of its weights and scores."""

from collections.abc import Sequence
from pathlib import Path

from stagealign.base.errors import BadData, StagealignError
from stagealign.data.records import Candidate, by_prompt, prompt_hash, read_rows, write_rows
from stagealign.data.tables import folder_digest
from stagealign.scoring.contest import Contest, answers
from stagealign.scoring.reward_model import load
from stagealign.store.artifact import Facts, Work


def fetch(work: Work) -> Facts:
    """Builder of `gold` for a reward model: copies the weights from the hub or a local folder.

    The identity of a folder is its content, `name@hash`. Raises StagealignError if the content has changed.
    """
    name, folder = work.params["weights"], work.context.gold_folder
    if folder and folder_digest(Path(folder)) != name.partition("@")[2]:
        raise StagealignError(f"--gold reward:{folder}: its files have changed since the plan was made; plan again")
    oracle = load(folder or name, work.params["revision"])
    oracle.model.save_pretrained(work.out)
    oracle.tokenizer.save_pretrained(work.out)
    commit = {} if folder else {"revision": oracle.weights.partition("@")[2]}
    return {"weights": oracle.weights, "text": oracle.text, "spearman": None, **commit}


def score(work: Work) -> Facts:
    """Builder of `rewards`: a reward model's score of each completion and static candidate.

    Raises BadData for a text that cannot be scored, as an evaluation may not leave texts out.
    """
    groups = [
        by_prompt(read_rows(work.inputs[name] / "candidates.jsonl", Candidate)) for name in ("completions", "static")
    ]
    prompts = list(dict.fromkeys([*groups[0], *groups[1]]))
    sides = [(groups[0].get(prompt, []), groups[1].get(prompt, [])) for prompt in prompts]
    contests = [
        Contest(prompt, answers(own), answers(static)) for prompt, (own, static) in zip(prompts, sides, strict=True)
    ]
    rows: list[dict[str, object]] = []
    cut = 0
    for prompt, both, verdict in zip(prompts, sides, load(str(work.inputs["gold"])).judge(contests), strict=True):
        if verdict.failed:
            raise BadData(f"prompt {prompt[-60:]!r}: {verdict.failed}; take a reward model that reads longer texts")
        cut += verdict.truncated
        scored = zip((*both[0], *both[1]), (*verdict.on, *verdict.off), strict=True)
        rows += [
            {
                "prompt": prompt_hash(candidate.prompt),
                "source": candidate.source,
                "index": candidate.index,
                "reward": reward,
            }
            for candidate, reward in scored
        ]
    write_rows(work.out / "rewards.jsonl", rows)
    return {"texts": len(rows), "truncated_for_gold": cut}


def _texts(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(candidate.completion for candidate in candidates)
