"""A scale, and a cell: one entry of the grid at that scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagealign.base.identity import later_field, remarks_field
from stagealign.grid.preferences import Preference
from stagealign.grid.spec import Checkpoint, Decoding, Engine, Evaluation, Method, Model, Source, Training


@dataclass(frozen=True)
class Scale:
    """Sizes and checkpoints of one grid; never another code path."""

    key: str
    name: str
    task: str
    """Name of the prompt and static-candidate source: `films`, `ultrafeedback` or `smoke`."""
    preference: Preference
    decoding: Decoding
    training: Training
    evaluation: Evaluation
    seeds: tuple[int, ...]
    data: str | None = later_field(None)
    """Hub data set `name@revision` that the task reads; None if its data comes inside registry packages."""
    oracle_weights: str | None = later_field(None)
    """Hub id of the oracle's weights; None if it is fitted here."""
    engine: Engine | None = field(default=None, metadata={"identity": "where it differs"})
    """None: our own sampler, `policy.sample`."""
    parts: int = field(default=1, metadata={"identity": False})
    """Number of artifacts that a round's on-policy candidates are split into."""
    processor: str = field(default="cpu", metadata={"identity": False})
    """Processor that it is made for: `cpu`, or a key of `plan.flops.GPUS`."""
    replicates: bool = field(default=False, metadata={"identity": False})
    """Whether it has the paper's own models, so that its claims are the paper's."""
    plumbing: bool = field(default=False, metadata={"identity": False})
    """Whether it only checks that the parts fit: its numbers mean nothing."""
    assumed: Mapping[str, str] = remarks_field()

    @property
    def on_gpus(self) -> bool:
        """Whether it is made for GPUs."""
        return self.processor != "cpu"


@dataclass(frozen=True)
class Cell:
    """One entry of the grid: a model, a method and the data source of each round."""

    model: Model
    checkpoint: Checkpoint
    method: Method
    schedule: str
    sources: tuple[Source, ...]
    scale: Scale
    beyond_paper: bool = field(default=False, metadata={"identity": False})
    """Whether the authors did not run the method on this model."""

    @property
    def id(self) -> str:
        """Cell id such as `zephyr-dpo-2off_on`; `zephyr-dpo_vllm-2off_on` with another sampler."""
        return f"{self.model.key}-{self.row['key']}-{self.schedule}"

    @property
    def row(self) -> dict[str, str]:
        """Key and name of the method in ids and reports; another sampler or gold reward is part of both."""
        key, name, preference = self.method.key, self.method.name, self.scale.preference
        if self.scale.engine:
            key, name = f"{key}_{self.scale.engine.key}", f"{name}, samples: {self.scale.engine.key}"
        if preference.gold_named:
            key, name = f"{key}_{preference.gold_key}", f"{name}, gold reward: {preference.gold_named}"
        return {"key": key, "name": name}

    @property
    def extra(self) -> bool:
        """Whether the cell is beyond the grid: it runs only if `-k` names the part that makes it so."""
        return bool(self.extra_words)

    @property
    def extra_words(self) -> tuple[tuple[str, str], ...]:
        """(word, instead) of each word that `-k` must name: it must fail to match once `instead` replaces the word."""
        words = [(source.key, "") for source in self.sources if source.extra]
        if self.method.variant_of:
            words += [(self.method.key, ""), (self.method.key, self.method.variant_of)]
        if self.beyond_paper:
            words += [(self.model.key, ""), (self.method.key, "")]
        return tuple(dict.fromkeys(words))

    @property
    def keywords(self) -> tuple[str, ...]:
        """Names that `-k` finds besides the id."""
        return (self.id, self.scale.key, self.source_keyword)

    @property
    def source_keyword(self) -> str:
        """The checkpoint's source in lower case, without `-` and `_`, which separate the parts of an id."""
        return self.checkpoint.source.replace("-", "").replace("_", "").lower()
