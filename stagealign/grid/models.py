"""The models, and the checkpoint that each starts from, by scale. To add a model: a row of both tables."""

from stagealign.grid.recipes import HANDBOOK, INFERRED
from stagealign.grid.spec import Checkpoint, Model, Sft, Shape

MODELS = {
    model.key: model
    for model in (
        Model("llama3", "Llama-3"),
        Model("zephyr", "Zephyr"),
        Model("phi2", "Phi-2"),
        Model("qwen", "Qwen"),
        Model("pythia", "Pythia"),
    )
}
PAPER_SFT = Sft(
    "HuggingFaceH4/ultrachat_200k",
    rows=207_865,
    epochs=1,
    learning_rate=2e-5,
    batch=128,
    revision="8049631c405ae6576f93f445c6b8166f76f5505a",
    max_length=2048,
    assumed=dict.fromkeys(
        ("data", "revision", "epochs", "learning_rate", "batch", "max_length"),
        "alignment-handbook, zephyr-7b SFT recipe",
    ),
)
"""The authors fine-tuned Phi-2, Qwen and Pythia first; their data and values were not found."""


def _stand_in(share: float, real: str) -> Checkpoint:
    """A rung of the lab's ladder: SmolLM2 after SFT on human film reviews, a `share` of them negative (rotten)."""
    return Checkpoint(
        "asset:smollm2",
        sft=Sft("reviews", rows=128, epochs=1, learning_rate=5e-4, batch=8, rotten_share=share),
        stand_in_for=real,
        parameters=134.5e6,
        shape=Shape(layers=30, width=576, vocabulary=49_152, key_width=192, tied=True, heads=9),
        context=8192,
    )


CHECKPOINTS = {
    "paper": {
        "llama3": Checkpoint(
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2",
            gated=True,
            parameters=8.03e9,
            shape=Shape(layers=32, width=4096, vocabulary=128_256, key_width=1024),
            context=8192,
            licence="llama3",
            assumed={"source": INFERRED + ", strongly"},
        ),
        "zephyr": Checkpoint(
            "alignment-handbook/zephyr-7b-sft-full",  # its files changed once, so the newest commit must be looked up
            parameters=7.24e9,
            shape=Shape(layers=32, width=4096, vocabulary=32_000, key_width=1024),
            context=32_768,
            licence="apache-2.0",
            assumed={"source": INFERRED + ", fairly strongly"},
        ),
        "phi2": Checkpoint(
            "microsoft/phi-2",
            "ef382358ec9e382308935a992d908de099b64c23",
            sft=PAPER_SFT,
            parameters=2.78e9,
            template="zephyr",
            shape=Shape(layers=32, width=2560, vocabulary=51_200, key_width=2560),
            context=2048,
            licence="mit",
            assumed={"source": INFERRED, "template": HANDBOOK},
        ),
        "qwen": Checkpoint(
            "Qwen/Qwen1.5-7B",
            "831096e3a59a0789a541415da25ef195ceb802fe",
            sft=PAPER_SFT,
            parameters=7.72e9,
            shape=Shape(layers=32, width=4096, vocabulary=151_936, key_width=4096),
            context=32_768,
            licence="other",
            assumed={"source": "version and size not found"},
        ),
        "pythia": Checkpoint(
            "EleutherAI/pythia-2.8b",
            "2a259cdd96a4beb1cdf467512e3904197345f6a9",
            sft=PAPER_SFT,
            parameters=2.78e9,
            template="zephyr",
            shape=Shape(layers=32, width=2560, vocabulary=50_304, key_width=2560),
            context=2048,
            licence="apache-2.0",
            assumed={"source": "size not found", "template": HANDBOOK},
        ),
    },
    # One ladder, chosen by boundary score before any round was run; its order is the paper's as far as that is known.
    "lab": {
        "pythia": _stand_in(0.0, "Pythia"),
        "phi2": _stand_in(0.25, "Phi-2"),
        "zephyr": _stand_in(0.5, "Zephyr"),
        "qwen": _stand_in(0.75, "Qwen"),
        "llama3": _stand_in(1.0, "Llama-3"),
    },
    "smoke": {
        "pythia": Checkpoint(
            "EleutherAI/pythia-160m",
            "50f5173d932e8e61f858120bcb800b97af589f46",
            parameters=162e6,
            shape=Shape(layers=12, width=768, vocabulary=50_304, key_width=768, heads=12),
            context=2048,
            licence="apache-2.0",
        )
    },
}
