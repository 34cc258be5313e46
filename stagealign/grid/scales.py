"""The scales: sizes, decoding, training and evaluation of each grid."""

from stagealign.grid.cell import Scale
from stagealign.grid.preferences import PREFERENCES
from stagealign.grid.recipes import HANDBOOK, LEADERBOARD, PROTOTYPE, SIMPO, VALIDATED
from stagealign.grid.spec import Benchmark, Decoding, Evaluation, Training

SCALES = {
    "paper": Scale(
        "paper",
        "the real models on GPUs",
        task="ultrafeedback",
        preference=PREFERENCES["helpful"],
        decoding=Decoding(),
        training=Training(
            pairs=61_135,
            batch=128,
            epochs=1,
            ladder=(5e-7,),
            learning_rate={"off": 5e-7, "on": 5e-7},
            max_length=2048,
            dtype="bfloat16",
            fresh_prompts=False,
            assumed={
                "fresh_prompts": "whether rounds share their prompts was not found; the authors' scripts name one set",
                "dtype": HANDBOOK,
                "max_length": SIMPO,
                "max_grad_norm": "default of transformers' Trainer",
                **dict.fromkeys(("batch", "epochs", "ladder", "learning_rate", "schedule", "warmup"), HANDBOOK),
            },
        ),
        evaluation=Evaluation(
            validation_prompts=0,
            test_prompts=2_000,
            capability=(
                Benchmark("arc_challenge", ("acc_norm",), shots=25),
                Benchmark("hellaswag", ("acc_norm",), items=2000, shots=10),
                Benchmark("gsm8k", ("exact_match,strict-match",), shots=5),
            ),
            judging=PREFERENCES["helpful"].gold_kinds.judging,
            assumed={"capability": LEADERBOARD},
        ),
        seeds=(0,),
        data="HuggingFaceH4/ultrafeedback_binarized@3949bf5f8c17c394422ccfab0c31ea9c20bdeb85",
        oracle_weights="llm-blender/PairRM-hf",
        parts=8,
        processor="h200",
        replicates=True,
        assumed={"seeds": "not published; one run of each cell", "data": "the revision of 61,135 training rows"},
    ),
    "lab": Scale(
        "lab",
        "stand-ins on a laptop CPU",
        task="films",
        preference=PREFERENCES["pan"],
        decoding=Decoding(max_new_tokens=32),
        training=Training(
            pairs=128,
            batch=8,
            epochs=1,
            ladder=(1.5e-4, 5e-4),
            learning_rate={"off": 5e-4, "on": 5e-4},
            warmup=0.0,
            max_length=160,
            trained_layers=6,
            assumed={"learning_rate": VALIDATED, "trained_layers": PROTOTYPE},
        ),
        evaluation=Evaluation(
            validation_prompts=16,
            test_prompts=64,
            capability=(
                Benchmark("piqa", ("acc", "margin"), items=40),
                Benchmark("passages", ("bits_per_byte",), items=10),
            ),
        ),
        seeds=(0, 1),
    ),
    "smoke": Scale(
        "smoke",
        "plumbing check in CI",
        task="smoke",
        preference=PREFERENCES["letters"],
        decoding=Decoding(max_new_tokens=8),
        training=Training(
            pairs=8,
            batch=4,
            epochs=1,
            ladder=(1e-5,),
            learning_rate={"off": 1e-5, "on": 1e-5},
            max_length=64,
            trained_layers=2,
        ),
        evaluation=Evaluation(
            validation_prompts=2, test_prompts=4, capability=(Benchmark("sums", ("acc", "margin"), items=4),)
        ),
        seeds=(0,),
        plumbing=True,
    ),
}
