"""Builders of the artifact `oracle` for oracles with a name, such as `judge:MODEL`."""

import json
import shutil
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.base.identity import plain
from stagealign.data.tables import digest_of, folder_digest, table_at
from stagealign.oracle.open import OracleAccess, kind_of, open_oracle, opened
from stagealign.store.artifact import Facts, Work

SAID = "identity.json"
"""File in a served oracle's artifact with the oracle's identity."""


def fetch_reward(work: Work) -> Facts:
    """Builder of `oracle` for `reward:` and `completion-reward:`: copies the weights from the hub or a local folder.

    Raises BadData if a local folder has changed since the plan was made.
    """
    from stagealign.scoring import reward_model

    name, planned = work.params["weights"], work.params.get("content")
    if planned is not None and folder_digest(Path(name)) != planned:
        raise BadData(f"{name}: its files have changed since the plan was made; plan again")
    oracle = reward_model.load(name, work.params["revision"])
    oracle.model.save_pretrained(work.out)
    oracle.tokenizer.save_pretrained(work.out)
    return {"weights": oracle.weights, "revision": oracle.weights.partition("@")[2] or None, "spearman": None}


def ask_judge(work: Work) -> Facts:
    """Builder of `oracle` for `judge:`: asks the judge one question and records its identity.

    Later labels must come from a judge of this identity. Raises StagealignError without a server that answers.
    """
    with opened(work.params["oracle"], OracleAccess(work.context.judge_url)) as judge:
        identity = plain(judge.identity)
    (work.out / SAID).write_text(json.dumps(identity, sort_keys=True), encoding="utf-8")
    return {"oracle": identity, "spearman": None}


def said_of(folder: Path) -> object:
    """Identity of an artifact's served oracle when the artifact was built; None if the oracle is not served."""
    path = folder / SAID
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def copy_recorded(work: Work) -> Facts:
    """Builder of `oracle` for `recorded:`: checks every row of the file and copies it.

    Raises BadData for a file that is missing, has changed since the plan was made, or has no pairs.
    """
    named = kind_of(work.params["oracle"])[1]
    file = table_at(named)
    if digest_of(file) != work.params["content"]:
        raise BadData(f"{named}: the file has changed since the plan was made; plan again")
    oracle = open_oracle(work.params["oracle"])
    shutil.copyfile(file, work.out / f"recorded{''.join(file.suffixes[-2:])}")
    return {"oracle": plain(oracle.identity), "spearman": None}
