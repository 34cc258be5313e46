"""The candidates of a round: static ones of a data set, or samples of a policy, in one piece or in parts.

At paper scale a round is sampled in parts, each an artifact: a cluster labels one while it samples the next, several
devices share a round, and a kill loses one part. In the lab it is one artifact, as labelling is quick there.
"""

from dataclasses import dataclass, replace
from typing import Any

from stagealign.base.identity import stream
from stagealign.base.kind import Kind
from stagealign.grid import models, sources
from stagealign.grid.samplers import OWN, SAMPLERS
from stagealign.grid.spec import Decoding, Source
from stagealign.pipeline.kinds import JOINED_CANDIDATES
from stagealign.pipeline.layout import Layout, Paths, make
from stagealign.store.artifact import Artifact

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Asked:
    """Request for samples of a policy."""

    role: str
    """`candidates`, `completions` or `answers`; also the name of their random stream."""
    prompts: Artifact
    splits: tuple[str, ...]
    count: int
    """Completions a prompt."""
    decoding: Decoding
    part: tuple[int, int] | None = None
    """(number of this part, number of parts); None if there is one part."""


def sample(at: Paths, path: str, policy: Artifact, asked: Asked) -> Artifact:
    """Samples of a policy, by the cell's sampler."""
    params: dict[str, Any] = {
        "decoding": asked.decoding,
        "count": asked.count,
        "splits": asked.splits,
        "seed": stream(at.seed, asked.role),
        "dtype": at.training.dtype,
    }
    if asked.part:
        params["part"] = asked.part
    if at.scale.engine:
        params["engine"] = at.scale.engine
    kind = SAMPLERS[at.engine or OWN].kind
    return make(asked.role, kind, path, params, policy=policy, prompts=asked.prompts)


def held_out(at: Paths, films: Artifact) -> Artifact:
    """Static candidates of the held-out prompts."""
    return _static(at, "held-out", {"splits": HELD_OUT, "prompts": None, "round": 1}, films)


def pool(at: Layout, number: int) -> Artifact:
    """Static candidates of one round's prompts."""
    number = prompt_set(at, number)
    count = at.training.pairs if at.training.fresh_prompts else None
    drawn = {"splits": ("train",), "prompts": count, "round": number}
    return _static(at, f"static{number}", drawn, at.prompts)


def prompt_set(at: Paths, number: int) -> int:
    """Number of a round's set of prompts: its own, or 1 if all rounds share one."""
    return number if at.training.fresh_prompts else 1


def candidates(at: Layout, number: int, source: Source, start: Artifact) -> Artifact:
    """Candidates of one round: those of a data set are shared by all models, sampled ones belong to their policy.

    What another model's start writes is the same artifact as that model's own on-policy candidates.
    """
    if source.sampled_from:
        writer = _writer(at, source.sampled_from)
        return candidates(writer, prompt_set(at, number), sources.SOURCES["on"], writer.start)
    if source.candidates:
        return _of_source(at, number, source, source.candidates)
    if not source.on_policy:
        return pool(at, number)
    path, count = f"{folder(at, number, source, start)}/candidates", at.scale.parts
    asked = Asked("candidates", pool(at, number), ("train",), 2, at.scale.decoding)
    if count == 1:
        return sample(at, path, start, asked)
    parts = {
        f"part{k}": sample(at, f"{path}-{k}of{count}", start, replace(asked, part=(k, count)))
        for k in range(1, count + 1)
    }
    return make("candidates", JOINED_CANDIDATES, path, {}, **parts)


def folder(at: Layout, number: int, source: Source, start: Artifact) -> str:
    """Folder of a round: below the policy that it starts from, so that cells share equal rounds.

    Another engine than our own sampler has folders of its own.
    """
    sampled = source.on_policy or source.sampled_from
    engine = f"_{at.engine}" if at.engine and sampled else ""
    return f"{at.beside(start)}/{number}{source.key}{engine}"


def _writer(at: Layout, model: str) -> Layout:
    """The layout of the model that writes the candidates for all others."""
    from stagealign.pipeline.rounds import lay_out

    checkpoint = models.CHECKPOINTS[at.scale.key][model]
    return lay_out(replace(at.cell, model=models.MODELS[model], checkpoint=checkpoint), at.seed)


def _of_source(at: Layout, number: int, source: Source, kind: Kind) -> Artifact:
    """Candidates that a source's own builder writes for the round's prompts, shared by all models."""
    params = {"splits": ("train",), "count": 2, "seed": stream(at.seed, source.key)}
    path = f"{at.asked}/seed{at.seed}/{source.key}{prompt_set(at, number)}/candidates"
    return make("candidates", kind, path, params, prompts=pool(at, number))


def _static(at: Paths, name: str, drawn: dict[str, Any], films: Artifact) -> Artifact:
    params = {**drawn, "seed": at.seed, "sign": at.preference.sign}
    path = f"{at.asked}/seed{at.seed}/{name}/candidates"
    return make("candidates", at.task.static, path, params, films=films)
