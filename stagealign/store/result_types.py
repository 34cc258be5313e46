"""Types of one run's result file: every field with its unit. `store.results` derives its check of a file from them.

A field marked `UNCHECKED` is written and documented; a file with another form of it is still read.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeGuard

from stagealign.base.shapes import SHARE
from stagealign.store.typed_shape import UNCHECKED, Length

RunState = Literal["done", "failed", "skipped"]
RungState = Literal["done", "not run", "failed", "skipped"]
Split = Literal["validation", "test"]
Share = Annotated[float, SHARE]
ShareBounds = Annotated[list[Share], Length(2)]
Golds = Annotated[list[float], Length(2)]
"""`[gold, clean gold]` of one prompt, each the mean over the prompt's completions."""


class MetricEntry(TypedDict):
    """One number of this run with its error."""

    value: float | None
    """None if the metric has no value; `reason` then says why."""
    unit: NotRequired[str]
    n: NotRequired[int | None]
    """Number of independent values: prompts or items."""
    standard_error: NotRequired[float | None]
    """In `unit`."""
    interval: NotRequired[list[float] | None]
    """95% interval `[low, high]`, in `unit`."""
    reason: NotRequired[Annotated[str, UNCHECKED]]
    better: NotRequired[Annotated[Literal["higher", "lower"], UNCHECKED]]
    """Capability only: the direction of an improvement."""


class BoundaryEntry(TypedDict):
    """Boundary score of one policy: the share of votes that its own completions win against static candidates."""

    score: Share
    interval: ShareBounds
    """95%, over prompts."""
    votes_on: NotRequired[float]
    """Votes won by the policy's completions; a tie counts one half for each side."""
    votes_off: NotRequired[float]
    prompts: NotRequired[int]
    ties: NotRequired[Annotated[int, UNCHECKED]]
    top_score: NotRequired[Annotated[float, UNCHECKED]]
    """Share of prompts whose best candidate is on-policy."""


class SplitEntry(TypedDict):
    """Metrics of one policy on the prompts of one split."""

    gold: NotRequired[MetricEntry]
    """Gold reward, mean over prompts."""
    clean_gold: NotRequired[MetricEntry]
    """Gold reward where a degenerate completion counts as the worst reward."""
    win_rate: NotRequired[MetricEntry]
    """Percent of comparisons with the static candidates won under the gold reward."""
    length: NotRequired[MetricEntry]
    """Tokens a completion."""
    degenerate: NotRequired[MetricEntry]
    """Share of completions with too many repeated bigrams."""
    truncated: NotRequired[MetricEntry]
    """Share of completions that reached the token limit."""
    kl: NotRequired[MetricEntry]
    """KL to the start of the policy's last round, nats a completion; absent for the policy before round 1."""
    boundary: NotRequired[BoundaryEntry]
    prompts: dict[str, Golds]
    """By prompt hash."""
    collapsed: NotRequired[Annotated[str, UNCHECKED]]
    """Reason, if the policy broke down; `win_rate` then has no value."""


class PolicyEntry(TypedDict):
    """Metrics of one policy by split."""

    validation: NotRequired[SplitEntry]
    test: NotRequired[SplitEntry]


class GainEntry(TypedDict):
    """Gold reward after a round minus gold reward before it, by split, paired by prompt."""

    validation: NotRequired[MetricEntry]
    test: NotRequired[MetricEntry]


class TrainingEntry(TypedDict):
    """Course of one training run."""

    curve: NotRequired[list[dict[str, float | None]]]
    """One entry a logged step: `step`, `loss`, `margin`, `accuracy`, `grad_norm`, `kl`, `learning_rate`."""
    pairs_per_second: NotRequired[float | None]
    reference: NotRequired[dict[str, int] | None]
    """Forwards of the reference model: `computed` by this run, `reused` from others."""
    cut: NotRequired[Annotated[int, UNCHECKED]]
    """Sequences cut at the maximum length."""
    lowered: NotRequired[Annotated[int, UNCHECKED]]
    """Micro-batch that memory allowed; absent if the planned one fitted."""


class RungEntry(TypedDict):
    """One learning rate of a round's ladder; earlier rounds have only the recorded one."""

    learning_rate: float
    state: RungState
    fingerprint: NotRequired[str]


class DoneRungEntry(RungEntry):
    """A measured rung."""

    metrics: PolicyEntry
    """Metrics of the policy after the round."""
    gain: GainEntry
    """Gain in gold reward over the round's start."""
    clean_gain: GainEntry
    """Gain in clean gold reward over the round's start."""
    kl: MetricEntry | None
    """KL to the round's start on test prompts, nats a completion."""
    training: NotRequired[TrainingEntry]


def is_done(rung: RungEntry) -> TypeGuard[DoneRungEntry]:
    """Whether this rung was measured."""
    return rung["state"] == "done"


class PairsEntry(TypedDict):
    """Training pairs of one round."""

    pairs: NotRequired[int]
    margin: NotRequired[float | None]
    """Mean oracle score of chosen minus rejected, oracle points."""
    ties: NotRequired[int]
    truncated: NotRequired[int]
    drops: NotRequired[dict[str, int]]
    """Prompts and pairs left out, by reason, from sampling to training."""


class DataEntry(TypedDict):
    """Description of one round's candidates and pairs."""

    metrics: NotRequired[dict[str, MetricEntry]]
    """By name, over prompts:

    `distinct_1`, `distinct_2`: share of different n-grams among a prompt's candidates;
    `self_bleu`: 0 to 1, high means alike; `embedding`: mean cosine distance by the encoder;
    `surprise`, `surprise_gap`: nats a token under the round's start, mean of the pair and distance of the two;
    `quality`: percent of comparisons with the prompt's static candidates won under the oracle (50 for static ones);
    `length`, `length_gap`: words, mean and chosen minus rejected; `margin`: oracle points;
    `ties`, `duplicates`, `repeats`: shares of pairs with margin 0, of prompts with equal candidates, and of candidates
    whose text another prompt has too.
    """
    prompts: NotRequired[int]
    candidates: NotRequired[int]
    drops: NotRequired[dict[str, int]]
    """Prompts left out, by reason."""
    agreement: NotRequired[dict[str, MetricEntry]]
    """`measure, measure` -> rank correlation over prompts; all measures count more diversity upward."""


class RoundEntry(TypedDict):
    """One round: its start, its data and its rungs."""

    source: str
    """Key of the source of candidates, as in `grid.sources`."""
    round: NotRequired[int]
    """From 1."""
    learning_rate: NotRequired[float]
    """Recorded learning rate: later rounds continue from this rung."""
    start: NotRequired[PolicyEntry]
    """Metrics of the policy before the round."""
    pairs: NotRequired[PairsEntry]
    data: NotRequired[DataEntry]
    """Absent in results older than this measurement."""
    rungs: list[RungEntry]


class ArtifactEntry(TypedDict):
    """Origin of one artifact; nothing but its fingerprint is identity."""

    fingerprint: NotRequired[str]
    seconds: NotRequired[float | None]
    peak_memory_mib: NotRequired[float | None]
    commit: NotRequired[str | None]
    revision: NotRequired[str]
    """Commit of the downloaded data set or model."""
    capped: NotRequired[Annotated[int, UNCHECKED]]
    """Prompts whose completions the policy's context caps below the tokens that were asked for."""
    drops: NotRequired[Annotated[dict[str, int], UNCHECKED]]
    """Prompts left out because they are too long, by reason."""
    dropped: NotRequired[Annotated[dict[str, int], UNCHECKED]]
    """Tokens of each of them, by prompt hash."""
    hardware: NotRequired[Annotated[str | None, UNCHECKED]]
    threads: NotRequired[Annotated[int | None, UNCHECKED]]
    dirty: NotRequired[Annotated[bool | None, UNCHECKED]]
    """Whether the working tree had uncommitted changes."""
    versions: NotRequired[Annotated[dict[str, str] | None, UNCHECKED]]
    """Package -> version."""


class SampleEntry(TypedDict):
    """Completions of one test prompt by the policies that the run's rounds start from and end with."""

    prompt: str
    """Prompt hash."""
    text: str
    completions: dict[str, list[str]]
    """`start` or `round N` -> completions, at the recorded learning rates."""


class TaskEntry(TypedDict, total=False):
    """Number and form of the questions of one capability task."""

    items: int
    shots: int
    cut: int
    """Requests longer than the model's context."""
    drops: dict[str, int]
    """Items left out, by reason."""


class CapabilityEntry(TypedDict):
    """Capability of one policy."""

    fingerprint: str
    """Fingerprint of the measurement."""
    policy: str
    """Fingerprint of the policy."""
    tasks: dict[str, TaskEntry]
    metrics: dict[str, MetricEntry]
    """`<task> <metric>` -> metric over items."""
    items: dict[str, dict[str, float]]
    """`<task> <metric>` -> value by item hash; two policies are compared item by item."""


class ModelEntry(TypedDict):
    """The model that the run's policy started from."""

    key: str
    name: str
    weights: NotRequired[str]
    """`published`, `stand-in`, `random` or `not built`."""
    note: NotRequired[str | None]
    checkpoint: NotRequired[str]
    stand_in_for: NotRequired[Annotated[str | None, UNCHECKED]]


class MethodEntry(TypedDict):
    """The run's row: `key` and `name`, beside all fields of its method's spec."""

    key: str
    name: NotRequired[str]


class PreferenceEntry(TypedDict):
    """The run's preference, beside all other fields of its spec."""

    key: str
    wish: NotRequired[str]


class Result(TypedDict):
    """One run: a cell with one seed at one scale."""

    schema: Annotated[int, UNCHECKED]
    state: RunState
    reason: NotRequired[str | None]
    """Why the run failed or was skipped."""
    cell: str
    seed: int
    scale: str
    model: ModelEntry
    method: MethodEntry
    schedule: str
    """`2off_on`."""
    sources: list[str]
    """`["off", "on"]`."""
    spec: dict[str, Any]
    """The whole cell as identity."""
    claims: NotRequired[dict[str, str]]
    """Key -> fingerprint, at the time of the run, of the claims that this result helps to judge."""
    scorers: NotRequired[dict[str, dict[str, Any]]]
    """Held-out quality of `oracle` and `gold`."""
    artifacts: NotRequired[dict[str, ArtifactEntry]]
    """By path in the store."""
    start: NotRequired[PolicyEntry]
    """Metrics of the policy before round 1."""
    rounds: list[RoundEntry]
    samples: NotRequired[list[SampleEntry]]
    """One entry for each of 20 test prompts."""
    preference: NotRequired[Annotated[PreferenceEntry, UNCHECKED]]
    capability: NotRequired[Annotated[dict[str, CapabilityEntry], UNCHECKED]]
    """`start` or `round N` -> capability of that policy; absent if it was not requested."""
    seal: NotRequired[Annotated[str, UNCHECKED]]
    """Checksum of all other fields; absent in older results and after reading."""
