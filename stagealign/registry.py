"""The grid: models x methods x schedules at three scales. A new entry is one line.

What the paper did not publish is marked in `assumed`, with the recipe it is taken from.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from stagealign.errors import BadSpec, StagealignError, UnknownName
from stagealign.spec import (
    Benchmark,
    Cell,
    Checkpoint,
    Decoding,
    Engine,
    Evaluation,
    Judging,
    Lora,
    Method,
    Model,
    Preference,
    Scale,
    Sft,
    Shape,
    Source,
    Training,
)

Value = TypeVar("Value")

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

SOURCES = {
    "off": Source("off", "static candidates of a fixed set", on_policy=False),
    "on": Source("on", "samples of the policy in training", on_policy=True),
    "llama": Source("llama", "samples of Llama-3 (PC_llama)", on_policy=False, sampled_from="llama3", extra=True),
}

GRID = {
    "1off": ("off",),
    "1on": ("on",),
    "2off_off": ("off", "off"),
    "2off_on": ("off", "on"),
    "2on_off": ("on", "off"),
    "2on_on": ("on", "on"),
}
"""Schedules of every model and method; an extra source adds its own: alone, and after one round of each of the two."""

SCHEDULES = GRID | {
    f"{len(sources)}{'_'.join(sources)}": sources
    for source in SOURCES.values()
    if source.extra
    for sources in ((source.key,), ("off", source.key), ("on", source.key))
}

HANDBOOK = "alignment-handbook, zephyr-7b-beta DPO recipe"
SIMPO = "SimPO, DPO baseline of Llama-3-Instruct"
PROTOTYPE = "lab prototype"
VALIDATED = "best clean gain on validation films in round 1, mean of three stand-ins, for either source"
LEADERBOARD = "Open LLM Leaderboard's shots, as SimPO reports them; GSM8K is where it saw forgetting; HellaSwag cut"

TRL_DEFAULT = "default of TRL's DPOTrainer"
ROUND_START = "iterative DPO as published (Snorkel, SPPO): each round's reference is the policy it starts from"
SIMPO_RANGE = "SimPO's search range for SLiC-HF (delta 0.1 to 2, lambda 0.1 to 10)"

DPO = Method("dpo", "DPO", form="sigmoid", beta=0.01, assumed={"beta": HANDBOOK, "reference": ROUND_START})
SLIC_HF = Method(
    "slichf",
    "SLiC-HF",
    form="hinge",
    beta=0.01,
    assumed={"form": "TRL and RSO call it SLiC", "beta": HANDBOOK, "reference": ROUND_START},
)


def _with_variants(dpo: Method, slic: Method, betas: Iterable[float]) -> dict[str, Method]:
    """Both methods, and for each value that was not published (beta, round-2 reference, SLiC form) a variant or two."""
    found = [dpo, slic]
    for base in (dpo, slic):
        mine = replace(base, variant_of=base.key)
        found += [
            replace(mine, key=f"{base.key}_beta{beta:g}", name=f"{base.name}, beta {beta:g}", beta=beta)
            for beta in betas
        ]
        found.append(
            replace(
                mine,
                key=f"{base.key}_ref_first",
                name=f"{base.name}, reference the first start",
                reference="first",
            )
        )
    other = replace(slic, variant_of=slic.key)  # slic-hf has no beta
    assumed = {"form": "one of the three forms in use", "delta": SIMPO_RANGE, "sft_weight": SIMPO_RANGE}
    found.append(
        replace(other, key="slic_hf", name="SLiC-HF, form slic-hf", form="slic-hf", sft_weight=0.1, assumed=assumed)
    )
    assumed = {"form": "one of the three forms in use", "beta": "default of SimPO's trainer"}
    found.append(
        replace(other, key="slic_norm", name="SLiC-HF, form slic-norm", form="slic-norm", beta=2.0, assumed=assumed)
    )
    return {one.key: one for one in found}


def _at_beta(method: Method, beta: float) -> Method:
    return replace(method, beta=beta, assumed={**method.assumed, "beta": TRL_DEFAULT})


METHODS = {
    "paper": _with_variants(DPO, SLIC_HF, (0.05, 0.1)),
    "lab": _with_variants(_at_beta(DPO, 0.1), _at_beta(SLIC_HF, 0.1), (0.01, 0.5)),
    "smoke": {"dpo": _at_beta(DPO, 0.1), "slichf": _at_beta(SLIC_HF, 0.1)},
}

PREFERENCES = {
    "pan": Preference(
        "pan", "a harsher verdict on the film", oracle="tfidf", gold="minilm", judge="textcat_imdb", sign=-1
    ),
    "praise": Preference(
        "praise", "a warmer verdict on the film", oracle="tfidf", gold="minilm", judge="textcat_imdb", sign=1
    ),
    "helpful": Preference(
        "helpful", "a better answer, as PairRM sees it", oracle="pairrm", gold="alpaca_eval", judge="dataset", sign=1
    ),
    "letters": Preference(
        "letters", "plumbing only: more letters", oracle="letters", gold="vowels", judge="dataset", sign=1
    ),
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
"""The authors did an SFT of Phi-2, Qwen and Pythia; with which data and values was not found."""

INFERRED = "inferred from the paper's name of the model"


def _stand_in(share: float, real: str) -> Checkpoint:
    """A rung of the lab's ladder: SmolLM2 after SFT on human reviews, `share` of them rotten."""
    return Checkpoint(
        "asset:smollm2",
        sft=Sft("reviews", rows=128, epochs=1, learning_rate=5e-4, batch=8, rotten_share=share),
        stand_in_for=real,
        parameters=134.5e6,
        shape=Shape(layers=30, width=576, vocabulary=49_152, key_width=192, tied=True),
    )


CHECKPOINTS = {
    "paper": {
        "llama3": Checkpoint(
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2",
            gated=True,
            parameters=8.03e9,
            shape=Shape(layers=32, width=4096, vocabulary=128_256, key_width=1024),
            assumed={"source": INFERRED + ", strongly"},
        ),
        "zephyr": Checkpoint(
            "alignment-handbook/zephyr-7b-sft-full",  # its files changed once, so the newest commit must be looked up
            parameters=7.24e9,
            shape=Shape(layers=32, width=4096, vocabulary=32_000, key_width=1024),
            assumed={"source": INFERRED + ", fairly strongly"},
        ),
        "phi2": Checkpoint(
            "microsoft/phi-2",
            "ef382358ec9e382308935a992d908de099b64c23",
            sft=PAPER_SFT,
            parameters=2.78e9,
            template="zephyr",
            shape=Shape(layers=32, width=2560, vocabulary=51_200, key_width=2560),
            assumed={"source": INFERRED, "template": HANDBOOK},
        ),
        "qwen": Checkpoint(
            "Qwen/Qwen1.5-7B",
            "831096e3a59a0789a541415da25ef195ceb802fe",
            sft=PAPER_SFT,
            parameters=7.72e9,
            shape=Shape(layers=32, width=4096, vocabulary=151_936, key_width=4096),
            assumed={"source": "version and size not found"},
        ),
        "pythia": Checkpoint(
            "EleutherAI/pythia-2.8b",
            "2a259cdd96a4beb1cdf467512e3904197345f6a9",
            sft=PAPER_SFT,
            parameters=2.78e9,
            template="zephyr",
            shape=Shape(layers=32, width=2560, vocabulary=50_304, key_width=2560),
            assumed={"source": "size not found", "template": HANDBOOK},
        ),
    },
    # One ladder, chosen by boundary score before any round was run; the order is the paper's where it is known.
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
            shape=Shape(layers=12, width=768, vocabulary=50_304, key_width=768),
        )
    },
}

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
            judging=Judging(
                "tatsu-lab/alpaca_eval",
                revision=None,  # resolved and recorded at the first fetch
                prompts=805,
                judge="official",
                decoding=Decoding(top_k=40, max_new_tokens=4096, presence_penalty=0.1, frequency_penalty=0.1),
            ),
            assumed={"capability": LEADERBOARD},
        ),
        seeds=(0,),
        data="HuggingFaceH4/ultrafeedback_binarized@3949bf5f8c17c394422ccfab0c31ea9c20bdeb85",
        oracle_weights="llm-blender/PairRM-hf",
        parts=8,
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
    ),
}

PAPER_METHODS = {"dpo": tuple(MODELS), "slichf": ("llama3", "zephyr", "phi2")}
"""The grid that the authors ran is not full: SLiC-HF for three models only. The others are cells beyond the paper."""


def scale(key: str) -> Scale:
    """The scale called `key`; UnknownName otherwise."""
    return _known("scale", key, SCALES)


def cells(scale_key: str, extras: bool = False) -> list[Cell]:
    """Every cell of one scale's grid, in the paper's order of models, methods and schedules; `extras` adds the others.

    Extra are: a source that samples from one model, given to the other models at scales that have it; the methods on
    models that the authors left out; variants of a method in what was not published, on the grid's schedules.
    """
    chosen = scale(scale_key)
    found = [
        Cell(
            MODELS[model],
            CHECKPOINTS[scale_key][model],
            method,
            schedule,
            tuple(SOURCES[source] for source in sources),
            chosen,
            beyond_paper=scale_key != "smoke" and model not in PAPER_METHODS[method.variant_of or method.key],
        )
        for model in MODELS
        if model in CHECKPOINTS[scale_key]
        for method in METHODS[scale_key].values()
        for schedule, sources in SCHEDULES.items()
    ]
    return [one for one in found if _makes_sense(one) and (extras or not one.extra)]


LORA_RATE = {"paper": 5e-6}
"""Learning rate of adapters by scale, where the full one would hardly move them (handbook's QLoRA recipe of Zephyr)."""


def adapted(chosen: Iterable[Cell], peft: str | None) -> list[Cell]:
    """The cells as `--peft` changes them: cells of their own, called `zephyr-dpo_lora-1on`, as their numbers differ."""
    cells = list(chosen)
    if peft is None:
        return cells
    if peft != "lora":
        raise StagealignError(f"--peft {peft!r}: unknown; the one choice is lora")
    return [_with_lora(one) for one in cells]


def _with_lora(one: Cell) -> Cell:
    method = replace(one.method, key=f"{one.method.key}_lora", name=f"{one.method.name}, LoRA")
    training = replace(one.scale.training, peft=Lora(), assumed={**one.scale.training.assumed, "peft": HANDBOOK})
    if one.scale.key in LORA_RATE:
        rate = LORA_RATE[one.scale.key]
        training = replace(training, ladder=(rate,), learning_rate=dict.fromkeys(training.learning_rate, rate))
    return replace(one, method=method, scale=replace(one.scale, training=training))


def evaluated_by(chosen: Iterable[Cell], gold: str) -> list[Cell]:
    """The cells with a one-logit classifier as gold reward, `reward:NAME`: cells of their own, as their numbers differ.

    Training is the same and shared. Raises BadSpec where the classifier is the oracle that labels the pairs.
    """
    found = []
    for one in chosen:
        preference = replace(one.scale.preference, gold=gold)
        if preference.rewarded == one.scale.oracle_weights:
            raise BadSpec(f"--gold {gold}: it is the oracle that labels the training pairs; name another scorer")
        evaluation = replace(one.scale.evaluation, judging=None)
        found.append(replace(one, scale=replace(one.scale, preference=preference, evaluation=evaluation)))
    return found


def sampled_by(chosen: Iterable[Cell], engine: Engine | None) -> list[Cell]:
    """The cells with another sampler: cells of their own, called `zephyr-dpo_vllm-1on`, as their numbers differ."""
    return [replace(one, scale=replace(one.scale, engine=engine)) if engine else one for one in chosen]


def _makes_sense(one: Cell) -> bool:
    """Whether every writer of this cell's candidates is another model of the scale, and what is extra is one thing.

    A variant of the reference alone differs from its method in later rounds only.
    """
    writers = {source.sampled_from for source in one.sources if source.sampled_from}
    more = bool(writers) + bool(one.method.variant_of) + one.beyond_paper
    if one.method.reference != "round" and len(one.sources) == 1:
        return False
    return more < 2 and one.model.key not in writers and writers <= CHECKPOINTS[one.scale.key].keys()


def cell(cell_id: str, scale_key: str = "lab") -> Cell:
    """The cell called `cell_id`; UnknownName names the part that is wrong."""
    known = {found.id: found for found in cells(scale_key, extras=True)}
    if cell_id not in known:
        parts = [*cell_id.split("-"), "", ""]
        _known("model", parts[0], MODELS)
        _known("method", parts[1], METHODS[scale_key])
        _known("schedule", parts[2], SCHEDULES)
    return _known("cell", cell_id, known)


def select(scale_key: str, expression: str = "") -> list[Cell]:
    """Cells of one scale that a `-k` expression matches, as pytest would match them; extra ones only where named.

    Raises StagealignError where the expression is malformed or matches nothing.
    """
    every = cells(scale_key, extras=True)
    matches = matcher(expression)
    chosen = [one for one in every if asked_for(one, matches, one.keywords)]
    if not chosen:
        words = [word for word in re.findall(r"[\w.+-]+", expression) if word not in ("and", "or", "not")]
        names = [*MODELS, *METHODS[scale_key], *SCHEDULES, *(one.id for one in every)]
        unknown = next((word for word in words if not any(word.lower() in name for name in names)), expression)
        raise UnknownName(f"-k {expression!r} matches no cell at scale {scale_key}; name", unknown, names)
    return chosen


def asked_for(one: Cell, matches: Callable[[Iterable[str]], bool], names: Iterable[str]) -> bool:
    """Whether an expression matches a cell's names; for an extra cell, only by the name of what makes it extra.

    So `-k zephyr` is the row of the grid, and `-k "zephyr and 1llama"` or `-k llama` also finds `zephyr-dpo-1llama`,
    `-k dpo_beta0.1` that variant, `-k "qwen and slichf"` the cells that are beyond the paper.
    """
    names = list(names)
    if not matches(names):
        return False
    without = ([_without(name, one, word, instead) for name in names] for word, instead in one.extra_words)
    return not any(matches(others) for others in without)


def _without(name: str, one: Cell, word: str, instead: str) -> str:
    """A name of the cell as it would be without what makes the cell extra: `word` in its id reads `instead`."""
    return name.replace(one.id, "-".join(part.replace(word, instead) for part in one.id.split("-")))


def matcher(expression: str) -> Callable[[Iterable[str]], bool]:
    """Predicate over a cell's names: `and`, `or`, `not`, parentheses, and words that match as substrings."""
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    position = 0

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1] if position <= len(tokens) else ""

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def either() -> Callable[[str], bool]:
        left = both()
        while peek() == "or":
            take()
            left = _combine(any, left, both())
        return left

    def both() -> Callable[[str], bool]:
        left = single()
        while peek() == "and":
            take()
            left = _combine(all, left, single())
        return left

    def single() -> Callable[[str], bool]:
        word = take()
        if word == "not":
            inner = single()
            return lambda names: not inner(names)
        if word == "(":
            inner = either()
            if take() != ")":
                raise StagealignError(f"-k {expression!r}: a closing parenthesis is missing")
            return inner
        if word in ("", ")", "and", "or"):
            raise StagealignError(f"-k {expression!r}: a name is missing before {word or 'the end'!r}")
        if not re.fullmatch(r"[\w:+.\[\]\\/-]+", word):
            raise StagealignError(
                f"-k {expression!r}: {word!r} is no name; write words, `and`, `or`, `not` and parentheses"
            )
        return lambda names: word.lower() in names

    if not tokens:
        return lambda names: True
    matches = either()
    if position < len(tokens):
        raise StagealignError(f"-k {expression!r}: {peek()!r} follows where `and`, `or` or the end was expected")
    return lambda names: matches(" ".join(names).lower())


def _combine(quantifier: Callable[[Iterator[bool]], bool], *parts: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda names: quantifier(part(names) for part in parts)


def _known(kind: str, key: str, values: dict[str, Value]) -> Value:
    if key not in values:
        raise UnknownName(kind, key, values)
    return values[key]
