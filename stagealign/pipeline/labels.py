"""The oracle and its labels: candidates to training pairs, completions to the votes of a boundary score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagealign.data.tables import digest_of, folder_digest, table_at
from stagealign.pipeline.kinds import JOINED_PAIRS
from stagealign.pipeline.layout import Layout, Paths, make
from stagealign.store.artifact import Artifact


def oracle(at: Paths, ratings: Mapping[str, Artifact]) -> Artifact:
    """The preference's oracle: fitted here, or fetched by the name that the scale or the preference gives it."""
    row, weights = at.preference.oracle_kinds, at.scale.oracle_weights
    params: dict[str, Any] = dict(row.params)
    path = f"{at.shared}/oracle"
    name = at.preference.oracle_named
    if name:
        params |= {"oracle": at.preference.oracle}
        path, weights = f"{at.asked}/oracle", name
        if row.reads_file:
            params["content"] = digest_of(table_at(name))
        elif row.ready.fetches and Path(name).is_dir():
            params["content"] = folder_digest(Path(name))
    if row.ready.fetches:
        params |= {row.ready.fetches: weights, "revision": None}
    learned = ratings if row.learns_from_ratings else {}
    return make("oracle", row.ready, path, params, **learned)


def pairs(at: Layout, candidates: Artifact) -> Artifact:
    """Labelled candidates; those that were sampled in parts are labelled in parts, then joined."""
    kind, path = at.preference.oracle_kinds.rank, f"{candidates.folder}/pairs"
    parts = [name for name in candidates.inputs if name.startswith("part")]
    if not parts:
        return make("pairs", kind, path, at.labels, candidates=candidates, oracle=at.oracle)
    labels = at.labels | {"part": True}
    labelled = {
        name: make(
            "pairs",
            kind,
            f"{path}-{name.removeprefix('part')}of{len(parts)}",
            labels,
            candidates=candidates.inputs[name],
            oracle=at.oracle,
        )
        for name in parts
    }
    # Parts come first, so that a plan labels a part soon after sampling it.
    return make("pairs", JOINED_PAIRS, path, {}, **labelled, candidates=candidates)


def votes(at: Layout, path: str, completions: Artifact, static: Artifact) -> Artifact:
    """Votes between completions of a policy and static candidates of the same prompts."""
    kind = at.preference.oracle_kinds.votes
    return make("votes", kind, path, at.labels, completions=completions, static=static, oracle=at.oracle)
