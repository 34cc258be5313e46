"""Builders of the artifact `oracle` for oracles that a preference names, as in `judge:MODEL`."""

import json
import shutil
from pathlib import Path

from stagealign.base.errors import BadData
from stagealign.base.identity import plain
from stagealign.data.tables import digest_of, folder_digest, table_at
from stagealign.oracle.open import Asking, kind_of, open_oracle, opened
from stagealign.store.artifact import Facts, Work

SAID = "identity.json"
"""File of a served oracle's artifact: what the oracle called itself."""


def fetch_reward(work: Work) -> Facts:
    """Builder of `oracle` for `reward:` and `completion-reward:`: the weights, from the hub or a local folder."""
    from stagealign.scoring import reward_model

    name, planned = work.params["weights"], work.params.get("content")
    if planned is not None and folder_digest(Path(name)) != planned:
        raise BadData(f"{name}: its files have changed since the plan was made; plan again")
    found = reward_model.load(name, work.params["revision"])
    found.model.save_pretrained(work.out)
    found.tokenizer.save_pretrained(work.out)
    return {"weights": found.weights, "revision": found.weights.partition("@")[2] or None, "spearman": None}


def ask_judge(work: Work) -> Facts:
    """Builder of `oracle` for `judge:`: asks it one question, and keeps what it calls itself.

    Labels are then taken from that judge alone. Raises StagealignError if no server is named or nothing answers.
    """
    with opened(work.params["oracle"], Asking(work.context.judge_url)) as judge:
        identity = plain(judge.identity)
    (work.out / SAID).write_text(json.dumps(identity, sort_keys=True), encoding="utf-8")
    return {"oracle": identity, "spearman": None}


def said_of(folder: Path) -> object:
    """What the served oracle of an artifact called itself; None for one that is not served."""
    path = folder / SAID
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def copy_recorded(work: Work) -> Facts:
    """Builder of `oracle` for `recorded:`: a copy of the file, read once so that a bad row is an error now.

    Raises BadData for a file that is not there, has changed since the plan was made, or holds no pairs.
    """
    named = kind_of(work.params["oracle"])[1]
    file = table_at(named)
    if digest_of(file) != work.params["content"]:
        raise BadData(f"{named}: the file has changed since the plan was made; plan again")
    oracle = open_oracle(work.params["oracle"])
    shutil.copyfile(file, work.out / f"recorded{''.join(file.suffixes[-2:])}")
    return {"oracle": plain(oracle.identity), "spearman": None}
