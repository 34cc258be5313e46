"""Cost of work: tokens to FLOPs, FLOPs to time and dollars, weights and tokens to memory. Pure arithmetic.

Constants that were measured say where; all others are assumed and say so. `docs/scale.md` shows what follows from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stagealign.base.batching import FREE_SHARE, SampledBatch, SamplerShape
from stagealign.grid.spec import Shape

GIB = 2**30
ASSUMED = "assumed"


@dataclass(frozen=True)
class Processor:
    """A processor, and the share of its peak that each kind of work reaches."""

    key: str
    name: str
    peak: float
    """FLOP/s, dense, in bfloat16 on a GPU and float32 on a CPU core."""
    memory_gib: float
    dollars: float
    """USD an hour; assumed."""
    source: str
    reached: Mapping[str, float] = field(
        default_factory=lambda: {"train": 0.40, "sft": 0.35, "forward": 0.40, "encode": 0.20, "decode": 0.15}
    )
    """Share of peak by kind of work (MFU); assumed for GPUs, measured for the CPU."""
    load: float = 1e9
    """Bytes of weights read and placed a second, at the start of an artifact; assumed for GPUs."""

    @property
    def gpu(self) -> bool:
        return self.key != "cpu"

    def seconds(self, flops: Mapping[str, float], loaded_bytes: float = 0.0) -> float:
        """Seconds of work by kind, after loading that many bytes of weights."""
        return (
            sum(amount / (self.peak * self.reached[kind]) for kind, amount in flops.items()) + loaded_bytes / self.load
        )


_SHEET = "NVIDIA data sheet, dense bfloat16 (half of what is printed with sparsity)"
GPUS = {
    gpu.key: gpu
    for gpu in (
        Processor("h200", "NVIDIA H200 SXM", 989e12, 139, 3.5, f"{_SHEET}: H200, 1,979 TFLOPS with sparsity, 141 GB"),
        Processor("h100", "NVIDIA H100 SXM", 989e12, 79, 2.5, f"{_SHEET}: H100, 1,979 TFLOPS with sparsity, 80 GB"),
        Processor("a100", "NVIDIA A100 SXM 80 GB", 312e12, 79, 1.5, f"{_SHEET}: A100, 312 TFLOPS, 80 GB"),
        Processor("l40s", "NVIDIA L40S", 362e12, 44, 1.0, f"{_SHEET}: L40S, 733 TFLOPS with sparsity, 48 GB"),
        Processor("rtx4090", "NVIDIA RTX 4090", 165e12, 23.5, 0.5, f"{_SHEET}: Ada whitepaper, 165 TFLOPS, 24 GB"),
    )
}
"""GPUs by name. Memory is what a program can get, in GiB; prices an hour are assumed, as rented in 2026."""
CPU = Processor(
    "cpu",
    "one core of a laptop CPU",
    1e11,
    0.0,
    0.0,
    "float32, two cores that both work; the kinds' shares from the lab's own records",
    reached={"train": 0.62, "sft": 0.36, "forward": 0.72, "encode": 0.50, "decode": 0.34},
    load=2e8,
)
"""The lab's machine. Its results were made while other work ran beside them; alone it is about 1.5 times as fast."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of one scale's texts."""

    prompt: float
    own: float
    """Tokens of the prompt that other prompts do not share."""
    static: float
    sampled: float
    source: str
    conversation: float = 0.0
    """Tokens of an SFT row; 0: those of prompt and static completion."""


LENGTHS = {
    "lab": Lengths(43.5, 8, 23, 18.4, "measured: tokens in the records of pairs and candidates"),
    "smoke": Lengths(12, 6, 12, 8, ASSUMED),
    "paper": Lengths(
        190, 190, 300, 400,
        f"{ASSUMED}; answers as long as published AlpacaEval answers of such models, 1,450 to 1,900 characters",
        conversation=1200,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ModelSize:
    """Size of a decoder, the part of it that learns, and the bytes of its weights."""

    parameters: float
    shape: Shape
    half: bool = False
    """Whether a weight has 2 bytes (bfloat16) rather than 4 (float32)."""
    trained_layers: int | None = None
    """Number of top layers that learn; None: every weight learns."""

    @property
    def size(self) -> int:
        """Bytes of one weight."""
        return 2 if self.half else 4

    @property
    def bytes(self) -> float:
        """Bytes of all weights."""
        return self.parameters * self.size

    @property
    def layer(self) -> float:
        """Weights of one decoder layer: all but embedding and head, over the layers."""
        tables = self.shape.vocabulary * self.shape.width * (1 if self.shape.tied else 2)
        return (self.parameters - tables) / self.shape.layers

    @property
    def trained(self) -> float:
        """Weights that a round changes."""
        return self.parameters if self.trained_layers is None else self.trained_layers * self.layer


def adapter_weights(model: ModelSize, rank: int) -> float:
    """Weights of low-rank adapters on every linear layer of the decoder layers that learn, three in each MLP.

    A linear layer of inputs x outputs has rank x (inputs + outputs) of them. The MLP's width follows from the layer's
    weights, less those of attention.
    """
    width, keys = model.shape.width, model.shape.key_width
    attention = 2 * width * width + 2 * width * keys
    inner = (model.layer - attention) / width  # three times the MLP's width
    layers = model.shape.layers if model.trained_layers is None else model.trained_layers
    return rank * layers * (4 * width + 2 * (width + keys) + 3 * width + inner)


def body_flops(model: ModelSize, tokens: float, context: float, layers: int | None = None) -> float:
    """FLOPs of one forward of `layers` decoder layers (None: all): 2 a weight and token, and attention.

    A token attends to `context` others on average: 2 x width for the scores and as many for the mix, 2 FLOPs each.
    """
    count = model.shape.layers if layers is None else layers
    return count * tokens * (2 * model.layer + 4 * model.shape.width * context)


def head_flops(shape: Shape, tokens: float) -> float:
    """FLOPs of the output head on scored positions: 2 a weight and token."""
    return 2 * tokens * shape.vocabulary * shape.width


def forward_flops(model: ModelSize, tokens: float, scored: float, context: float, layers: int | None = None) -> float:
    """FLOPs of one forward of `layers` decoder layers (None: all) that scores `scored` of the tokens."""
    return body_flops(model, tokens, context, layers) + head_flops(model.shape, scored)


def training_flops(
    model: ModelSize, tokens: float, scored: float, context: float, recompute: bool = False, adapters: bool = False
) -> float:
    """FLOPs of forward and backward: 3 forwards of trained weights, 2 of frozen ones, 1 more with recomputation.

    Only the trained layers run; the trunk holds the output of the frozen ones. With `adapters` every
    weight that the gradient passes is frozen; the adapters' own arithmetic is small beside it.
    """
    body = body_flops(model, tokens, context, model.trained_layers)
    learns = 2 if adapters else 3
    head = learns if model.trained_layers is None else 2
    return (learns + recompute) * body + head * head_flops(model.shape, scored)


def sampling_flops(
    model: ModelSize, prompts: float, prompt_tokens: float, rows: float, sampled_tokens: float
) -> dict[str, float]:
    """FLOPs by kind: `forward` reads each prompt once, `decode` writes every row's tokens one by one."""
    read = body_flops(model, prompts * prompt_tokens, prompt_tokens / 2)
    tokens = rows * sampled_tokens
    written = body_flops(model, tokens, prompt_tokens + sampled_tokens / 2) + head_flops(model.shape, tokens)
    return {"forward": read, "decode": written}


def training_memory(
    model: ModelSize, micro_tokens: float, scored: float, checkpointing: bool, moved: float | None = None
) -> float:
    """Peak bytes on one device: weights + gradients + optimizer states + activations + logits.

    `moved` is the number of weights that the optimizer moves; None: all that learn. Adapters move fewer.

    weights      2 a weight in bfloat16, 4 in float32
    gradients    as many a trained weight
    optimizer    8 a trained weight (Adam's two moments in float32), and 4 for its float32 copy where weights are
                 bfloat16: at a learning rate of 5e-7 a bfloat16 weight would round every update away
    activations  per layer and token 34 x width bytes in bfloat16 (twice that in float32) without the square of
                 attention, which fused kernels do not keep; with checkpointing 2 x width a layer, and one layer whole
    logits       12 a scored position and vocabulary entry: float32 logits, their log-softmax and its gradient
    Source: Rajbhandari et al. 1910.02054 (states); Korthikanti et al. 2205.05198, equation 1 (activations).
    """
    size, shape, trained = model.size, model.shape, model.trained
    states = model.parameters * size + (trained if moved is None else moved) * (size + 8 + (4 if model.half else 0))
    whole = 34 * shape.width * (size / 2)
    layers = shape.layers * trained / model.parameters if trained < model.parameters else shape.layers
    kept = layers * size * shape.width + whole if checkpointing else layers * whole
    return states + micro_tokens * kept + 12 * scored * shape.vocabulary


def sampler_shape(model: ModelSize) -> SamplerShape:
    """Sizes of a model that its sampling memory follows from; the MLP's values follow from its weights."""
    shape = model.shape
    attention = 2 * shape.width * shape.width + 2 * shape.width * shape.key_width
    mlp = max(0.0, model.layer - attention) / shape.width
    return SamplerShape(shape.layers, shape.width, shape.key_width, shape.heads, mlp, shape.vocabulary, model.size)


def sampling_memory(model: ModelSize, batch: SampledBatch) -> float:
    """Peak bytes of sampling: weights, and what the sampler holds of a batch (`SamplerShape.peak`)."""
    return model.bytes + sampler_shape(model).peak(batch)


def sampled_rows(model: ModelSize, row: SampledBatch, most: float, memory: float) -> float:
    """Rows, at most `most`, that the sampler takes on a GPU with so many bytes; `row` describes one of them."""
    free = (memory - model.bytes) * FREE_SHARE["cuda"]
    return max(1.0, min(most, free // sampler_shape(model).peak(row)))


@dataclass(frozen=True)
class EncoderSize:
    """An encoder that reads texts."""

    layer_parameters: float
    """Weights that work on every token: all but the embeddings, which are looked up."""
    parameters: float

    def flops(self, tokens: float) -> float:
        return 2 * self.layer_parameters * tokens


PAIRRM = EncoderSize(303e6, 435e6)
"""DeBERTa-v3-large: 24 layers of width 1,024."""
MINILM = EncoderSize(10.6e6, 22.7e6)
"""all-MiniLM-L6-v2: 6 layers of width 384."""
