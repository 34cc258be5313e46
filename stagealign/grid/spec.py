"""Frozen values that determine what is built: identity, unless marked otherwise; independent of the machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagealign.base.errors import BadSpec
from stagealign.base.identity import later_field, remarks_field
from stagealign.base.kind import Kind


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder that determine its cost, besides its number of weights."""

    layers: int
    width: int
    vocabulary: int
    key_width: int
    """Width of the keys that one layer keeps of a token: key heads x head width. Values have the same width."""
    tied: bool = False
    """Whether the output head is the embedding."""
    heads: int = 32
    """Attention heads."""


@dataclass(frozen=True)
class Decoding:
    """Settings of sampling."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 50
    max_new_tokens: int = 2048
    presence_penalty: float = later_field(0.0)
    """Subtracted from the logit of every token that the completion already holds."""
    frequency_penalty: float = later_field(0.0)
    """Subtracted from the logit of a token, once for each time that the completion holds it."""


@dataclass(frozen=True)
class Engine:
    """A sampler other than our own; all fields are identity."""

    key: str
    """`vllm`, or `served` for an OpenAI-compatible server; part of the ids of its cells."""
    version: str | None
    """None if a server does not report its version."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning that makes a starting policy."""

    data: str
    rows: int
    epochs: int
    learning_rate: float
    batch: int
    rotten_share: float | None = None
    """Share of rotten reviews among the rows; None if the data is not film reviews."""
    revision: str | None = later_field(None)
    """Commit of a hub data set; None for data inside a registry package."""
    max_length: int | None = later_field(None)
    """Maximum tokens of one conversation; None: the same as in preference training."""
    assumed: Mapping[str, str] = remarks_field()


@dataclass(frozen=True)
class Checkpoint:
    """The weights a model starts from at one scale."""

    source: str
    """Hub id, or `asset:NAME` for weights that come inside a registry package, or `shape:NAME`."""
    revision: str | None = None
    sft: Sft | None = None
    stand_in_for: str | None = None
    """Name of the paper's checkpoint that this one replaces; None if it replaces none."""
    gated: bool = False
    parameters: float = 0.0
    """Number of weights, for cost estimates."""
    template: str | None = later_field(None)
    """Chat template that a base model gets before SFT, a key of `policy.start.TEMPLATES`; None: the tokenizer's own."""
    shape: Shape | None = field(default=None, metadata={"identity": False})
    """Sizes for cost estimates, as the weights are not read for these."""
    context: int | None = field(default=None, metadata={"identity": False})
    """Tokens that it reads at most, prompt and completion together (`max_position_embeddings`); None if unknown."""
    licence: str = field(default="", metadata={"identity": False})
    """The base's licence, by the hub's name; empty if it is not known, or if an asset brings its own."""
    assumed: Mapping[str, str] = remarks_field()

    @property
    def asset(self) -> str | None:
        """Key of the asset that holds the weights; None if they come from elsewhere."""
        kind, _, name = self.source.partition(":")
        return name if kind == "asset" else None

    @property
    def name(self) -> str:
        """Last part of the hub id, which folders are named by."""
        return self.source.rpartition("/")[2]

    @property
    def pinned(self) -> bool:
        """Whether a revision is named or none is needed; else it is resolved and recorded at the first fetch."""
        return self.revision is not None or ":" in self.source


@dataclass(frozen=True)
class Model:
    """One of the paper's five models."""

    key: str
    name: str


@dataclass(frozen=True)
class Method:
    """A preference loss and its constants."""

    key: str
    name: str
    form: str
    """Key of a loss in `train.losses.LOSSES`."""
    beta: float
    delta: float = 1.0
    """Hinge margin: the 1 of `relu(1 - ...)`, the delta of SLiC-HF."""
    sft_weight: float = 0.0
    """Lambda of SLiC-HF's likelihood term on the chosen completion."""
    reference: str = later_field("round")
    """Reference model of a later round: `round`, the policy that the round starts from, or `first`, the very first."""
    variant_of: str | None = field(default=None, metadata={"identity": False})
    """Key of the method that this one differs from in one assumed value; its cells run only if named."""
    run_by_authors_on: tuple[str, ...] = field(default=(), metadata={"identity": False})
    """Keys of the models that the authors trained with it; its cells of other models are beyond the paper."""
    assumed: Mapping[str, str] = remarks_field()

    def __post_init__(self) -> None:
        if self.reference not in ("round", "first"):
            raise BadSpec(
                f"method {self.key!r}: reference {self.reference!r} is unknown; write 'round', the policy that a round "
                "starts from, or 'first', the very first policy"
            )


@dataclass(frozen=True)
class Source:
    """A source of a round's candidates."""

    key: str
    name: str
    on_policy: bool
    sampled_from: str | None = None
    """Model whose starting policy writes the candidates for every other model; None: a fixed set, or the policy."""
    extra: bool = field(default=False, metadata={"identity": False})
    """Whether it is beyond the grid: its cells run only if named."""
    candidates: Kind | None = field(default=None, metadata={"identity": False})
    """Kind that builds its candidates; None if they are sampled, or the task's own static ones."""

    @property
    def pool(self) -> str:
        """Origin of the candidates: `policy`, `start of MODEL`, `data set` (its own) or `static` (the task's)."""
        if self.on_policy:
            return "policy"
        if self.sampled_from:
            return f"start of {self.sampled_from}"
        return "data set" if self.candidates else "static"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on every linear layer that learns, merged into the weights after the round."""

    rank: int = 128
    alpha: int = 128
    """The adapter's output is scaled by alpha / rank."""


@dataclass(frozen=True)
class Training:
    """Settings of one round of preference optimisation that may change a number."""

    pairs: int
    batch: int
    epochs: int
    ladder: tuple[float, ...]
    """Learning rates that the last round of a cell tries, the same for every source."""
    learning_rate: Mapping[str, float]
    """By source, the recorded rung: all rounds but the last use only it, and so does the demo. See `rate`."""
    warmup: float = 0.1
    schedule: str = "cosine"
    max_length: int = 1024
    max_grad_norm: float = 1.0
    trained_layers: int | None = None
    """Only the top N decoder layers and the final norm learn; None trains everything."""
    dtype: str = "float32"
    """Type of the arithmetic; with bfloat16 the optimizer still moves float32 weights."""
    fresh_prompts: bool = later_field(True)
    """Whether each round has prompts of its own; otherwise every round uses all training prompts."""
    peft: Lora | None = field(default=None, metadata={"identity": "where it differs"})
    """None trains the weights themselves."""
    assumed: Mapping[str, str] = remarks_field()

    def rate(self, source: Source) -> float:
        """Learning rate recorded for a source; without its own, that of `on` if it is on-policy, else of `off`."""
        return self.learning_rate.get(source.key, self.learning_rate["on" if source.on_policy else "off"])


@dataclass(frozen=True)
class Benchmark:
    """A task of lm-eval that measures what a policy can do besides what it is trained for."""

    task: str
    """A key of `evaluate.capability.LOCAL`, else lm-eval's name of a task whose data are on the hub."""
    metrics: tuple[str, ...]
    """lm-eval's names, with a filter unless it is `none` (`exact_match,strict-match`); `margin` is ours."""
    items: int | None = None
    """Most items, None for all; of a hub task with subtasks, the most of each."""
    shots: int = 0
    """Solved examples before each item."""


@dataclass(frozen=True)
class Judging:
    """Evaluation by a judge against a baseline, on prompts of its own."""

    data: str
    """Hub data set of the prompts and the baseline's completions."""
    revision: str | None
    prompts: int
    judge: str
    """Value of `stagealign alpaca-eval --judge`."""
    decoding: Decoding


@dataclass(frozen=True)
class Evaluation:
    """Held-out prompts and how many completions each gets."""

    validation_prompts: int
    test_prompts: int
    completions: int = 2
    repetition_limit: float = 0.2
    """A completion with a larger share of repeated bigrams is degenerate."""
    capability: tuple[Benchmark, ...] = ()
    """Tasks of `stagealign run --capability` for the start and for the policy that each round ends with."""
    judging: Judging | None = field(default=None, metadata={"identity": "where it differs"})
    """None if the gold reward is a scorer of single texts."""
    assumed: Mapping[str, str] = remarks_field()
