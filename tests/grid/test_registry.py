"""The grid is whole, its names are unambiguous, `-k` means what pytest means by it, and assumptions name a recipe."""

import ast
import os
import random
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from stagealign.base.errors import StagealignError, UnknownName
from stagealign.grid import methods as methods_room
from stagealign.grid import models as models_room
from stagealign.grid import registry, scales, select
from stagealign.grid import sources as sources_room

ROOT = Path(__file__).resolve().parents[2]
SCALES = tuple(scales.SCALES)


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_the_grid_is_the_papers(scale):
    cells = registry.cells(scale)
    rows = {(cell.model.key, cell.method.key) for cell in cells}
    models = ("llama3", "zephyr", "phi2", "qwen", "pythia")
    assert rows == {(m, "dpo") for m in models} | {(m, "slichf") for m in ("llama3", "zephyr", "phi2")}
    assert len(cells) == 8 * 6
    for cell in cells:
        assert cell.schedule == f"{len(cell.sources)}{'_'.join(source.key for source in cell.sources)}"
        assert all(source.on_policy == (source.key == "on") for source in cell.sources)


def test_smoke_has_pythia_with_both_methods():
    cells = registry.cells("smoke")
    assert {cell.model.key for cell in cells} == {"pythia"}
    assert len(cells) == 2 * 6
    assert select.select("smoke", "pythia160m") == cells
    training = registry.scale("smoke").training
    assert training.epochs * -(-training.pairs // training.batch) <= 10, "at most ten optimizer steps a round"


def test_another_models_samples_are_a_source_beyond_the_grid():
    """PC_llama: alone and after one round of each, for every row but Llama-3's own, and not where no Llama-3 is."""
    for scale in ("lab", "paper"):
        every = registry.cells(scale, extras=True)
        given = [cell for cell in every if any(source.extra for source in cell.sources)]
        assert [cell for cell in every if not cell.extra] == registry.cells(scale)
        rows = {(cell.model.key, cell.method.key) for cell in registry.cells(scale)}
        rows -= {("llama3", "dpo"), ("llama3", "slichf")}
        schedules = ("1llama", "2off_llama", "2on_llama")
        assert {cell.id for cell in given} == {f"{m}-{method}-{s}" for m, method in rows for s in schedules}
        assert not any(source.on_policy for cell in given for source in cell.sources if source.key == "llama")
    assert registry.cells("smoke", extras=True) == registry.cells("smoke")
    assert registry.cell("zephyr-dpo-1llama").sources == (sources_room.SOURCES["llama"],)
    with pytest.raises(UnknownName, match=r"llama3-dpo-1llama.*unknown"):
        registry.cell("llama3-dpo-1llama")


def test_slichf_is_beyond_the_paper_for_two_models():
    beyond = [cell for cell in registry.cells("paper", extras=True) if cell.beyond_paper]
    assert {(cell.model.key, cell.method.key) for cell in beyond} == {("qwen", "slichf"), ("pythia", "slichf")}
    assert len(beyond) == 2 * 6
    assert all(cell.extra for cell in beyond)
    assert not any(cell.beyond_paper for cell in registry.cells("smoke", extras=True)), "plumbing is no claim"


@pytest.mark.parametrize("scale", ["lab", "paper"])
def test_what_was_not_published_has_variants(scale):
    """Each differs from its method in the value that its name says, and only where that can matter."""
    methods = methods_room.METHODS[scale]
    variants = {key: one for key, one in methods.items() if one.variant_of}
    assert {one.form for one in methods.values()} == {"sigmoid", "hinge", "slic-hf", "slic-norm"}
    for key, one in variants.items():
        base = methods[one.variant_of]
        assert key not in base.key
        assert base.variant_of is None
        changed = {f.name for f in fields(one) if getattr(one, f.name) != getattr(base, f.name)}
        changed -= {"key", "name", "variant_of", "assumed"}
        assert changed <= one.assumed.keys(), "what was not published is marked"
        if "beta" in key:
            assert changed == {"beta"}
            assert key == f"{base.key}_beta{one.beta:g}"
        elif "ref_first" in key:
            assert changed == {"reference"}
        else:
            assert one.form == key.replace("_", "-")
        mine = {cell.schedule for cell in registry.cells(scale, extras=True) if cell.method.key == key}
        assert mine == {name for name in sources_room.GRID if "ref_first" not in key or name.startswith("2")}
    models = {cell.model.key for cell in registry.cells(scale, extras=True) if cell.method.key == "slic_norm"}
    assert models == {"llama3", "zephyr", "phi2"}


def test_paper_checkpoints_are_pinned_or_said_not_to_be():
    checkpoints = models_room.CHECKPOINTS["paper"]
    assert {key for key, one in checkpoints.items() if not one.pinned} == {"zephyr"}
    for one in checkpoints.values():
        assert one.revision is None or re.fullmatch("[0-9a-f]{40}", one.revision)
        assert "source" in one.assumed, "no checkpoint is named by the paper"
        assert one.shape is not None
        if one.sft:
            assert re.fullmatch("[0-9a-f]{40}", one.sft.revision)
            assert "data" in one.sft.assumed
    assert {key for key, one in checkpoints.items() if one.sft} == {"phi2", "qwen", "pythia"}
    assert all(one.pinned for one in models_room.CHECKPOINTS["lab"].values())
    assert re.fullmatch(r"[\w/]+@[0-9a-f]{40}", registry.scale("paper").data)


@pytest.mark.parametrize(
    ("expression", "extras"),
    [
        ("", 0),
        ("zephyr", 0),
        ("llama3", 0),
        ("off", 0),
        ("2off", 0),
        ("not slichf", 0),
        ("1llama", 6),
        ("llama", 18),
        ("zephyr and 1llama", 2),
        ("zephyr and dpo and llama", 3),
        ("zephyr-dpo-2off_llama", 1),
        ("1on or 1llama", 6),
        ("zephyr and not llama", 0),
        ("zephyr or llama3", 0),
        ("qwen", 0),
        ("slichf", 0),
        ("slic", 0),
        ("dpo and 1off", 0),
        ("qwen and slichf", 6),
        ("pythia and slichf and 1off", 1),
        ("slichf and not (llama3 or zephyr)", 0),
        ("dpo_beta0.01", 30),
        ("zephyr and dpo_ref_first", 4),
        ("ref_first", 32),
        ("slic_norm", 18),
        ("llama3-slic_hf-2off_on", 1),
        ("zephyr and (dpo or dpo_beta0.5)", 0),
    ],
)
def test_extra_cells_run_only_where_their_source_is_named(expression, extras):
    """As in pytest all else: without the extra ones the choice is the grid's."""
    chosen = select.select("lab", expression)
    assert sum(cell.extra for cell in chosen) == extras
    matches = select.matcher(expression)
    assert [cell for cell in chosen if not cell.extra] == [c for c in registry.cells("lab") if matches(c.keywords)]


@pytest.mark.parametrize("expression", ["qwen and slichf", "pythia and slichf"])
def test_a_model_whose_checkpoint_is_named_after_it_is_asked_for_by_name(expression):
    """At paper scale `qwen` stands in the hub id too, and still names the model."""
    chosen = select.select("paper", expression)
    assert len(chosen) == 6
    assert all(cell.beyond_paper for cell in chosen)
    assert not any(cell.extra for cell in select.select("paper", "qwen") + select.select("paper", "slichf"))


@pytest.mark.parametrize("scale", SCALES)
def test_no_name_is_inside_another(scale):
    """`-k` matches substrings of ids and of file and function names, so none may hold a cell id."""
    ids = [cell.id for cell in registry.cells(scale, extras=True)]
    assert len(set(ids)) == len(ids)
    files = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").glob("*.py")]
    names = {part for path in files for part in path.relative_to(ROOT).parts}
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for one in ids:
        inside = [other for other in (*ids, *names) if one in other.lower() and other != one]
        assert not inside, f"-k {one} also finds {inside}"
    benchmarks = {path.name for path in (ROOT / "benchmarks").rglob("*.py")} | {"test_cell", "test_claim", "benchmarks"}
    keys = [*models_room.MODELS, *sources_room.SCHEDULES, *methods_room.METHODS[scale]]
    assert not [(key, name) for key in keys for name in benchmarks if key in name]


@pytest.mark.parametrize("scale", SCALES)
def test_recorded_learning_rates_are_rungs(scale):
    training = registry.scale(scale).training
    assert set(training.learning_rate) <= set(sources_room.SOURCES)
    assert {training.rate(source) for source in sources_room.SOURCES.values()} <= set(training.ladder)


def test_a_source_without_a_rate_takes_that_of_its_status():
    training = registry.scale("lab").training
    training = replace(training, learning_rate={"off": 5e-4, "on": 1.5e-4})
    sources = {key: replace(sources_room.SOURCES["off"], key=key, on_policy=key == "own") for key in ("mixed", "own")}
    assert training.rate(sources_room.SOURCES["llama"]) == training.learning_rate["off"] == 5e-4
    assert training.rate(sources["mixed"]) == training.learning_rate["off"]
    assert training.rate(sources["own"]) == training.learning_rate["on"] == 1.5e-4
    own = replace(training, learning_rate=training.learning_rate | {"mixed": 1.0})
    assert own.rate(sources["mixed"]) == 1.0


@pytest.mark.parametrize("scale", SCALES)
def test_every_assumption_names_a_field_and_a_recipe(scale):
    for cell in registry.cells(scale):
        for spec in (cell.method, cell.checkpoint, cell.checkpoint.sft, cell.scale.training, cell.scale):
            if spec is not None:
                assert set(spec.assumed) <= {field.name for field in fields(spec)}
                assert all(recipe.strip() for recipe in spec.assumed.values())
    paper = registry.scale("paper").training
    assert {"learning_rate", "batch"} <= set(paper.assumed), "the paper did not publish these"
    with_beta = [method for method in methods_room.METHODS["paper"].values() if method.form != "slic-hf"]
    assert all("beta" in method.assumed for method in with_beta)


def test_stand_ins_are_one_ladder_in_the_papers_order():
    ladder = models_room.CHECKPOINTS["lab"]
    shares = {key: checkpoint.sft.rotten_share for key, checkpoint in ladder.items()}
    assert all(checkpoint.stand_in_for for checkpoint in ladder.values())
    assert max(shares["pythia"], shares["phi2"]) < shares["zephyr"] < shares["llama3"]
    assert not any(checkpoint.stand_in_for for checkpoint in models_room.CHECKPOINTS["paper"].values())


def random_expression(rng, depth=3):
    words = ("llama3", "zephyr", "dpo", "SLiCHF", "1on", "off", "2off_on", "lab", "pythia160m", "smollm2", "nothing")
    if depth == 0 or rng.random() < 0.25:
        return rng.choice(words)
    kind = rng.choice(("and", "or", "not", "brackets"))
    if kind == "not":
        return f"not {random_expression(rng, depth - 1)}"
    if kind == "brackets":
        return f"({random_expression(rng, depth - 1)})"
    return f"{random_expression(rng, depth - 1)} {kind}  {random_expression(rng, depth - 1)}"


def test_k_means_what_pytest_means():
    rng = random.Random(0)
    cells = [cell for scale in SCALES for cell in registry.cells(scale)]
    rng.shuffle(cells)
    for number in range(1500):
        text = random_expression(rng)
        theirs, ours = Expression.compile(text), select.matcher(text)
        for cell in cells[number % 7 :: 7]:
            found = theirs.evaluate(lambda word, names=cell.keywords: any(word.lower() in name for name in names))
            assert ours(cell.keywords) == found, (text, cell.keywords)


@pytest.mark.parametrize(
    "text",
    ["(", ")", "and", "llama3 and", "or llama3", "not", "(llama3", "llama3)", "llama3 zephyr", "()", "not not",
     "llama3 AND dpo", "llama3 (dpo)", "llama*", "'llama3'", "not llama?", "a,b"],
)  # fmt: skip
def test_what_pytest_refuses_is_refused(text):
    with pytest.raises(SyntaxError):
        Expression.compile(text)
    with pytest.raises(StagealignError, match="-k"):
        select.select("lab", text)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: registry.scale("labb"), ["scale 'labb'", "nearest: lab"]),
        (lambda: registry.cell("lama3-dpo-1on"), ["model 'lama3'", "llama3"]),
        (lambda: registry.cell("llama3-dpp-1on"), ["method 'dpp'", "dpo"]),
        (lambda: registry.cell("llama3-dpo-2of_on"), ["schedule '2of_on'", "2off_on"]),
        (lambda: registry.cell("llama3-dpo"), ["schedule ''"]),
        (lambda: registry.cell("llama3-dpo-1on-x"), ["cell 'llama3-dpo-1on-x'", "llama3-dpo-1on"]),
        (lambda: registry.cell("qwen-slic_hf-1on"), ["cell 'qwen-slic_hf-1on'", "slichf-1on"]),
        (lambda: registry.cell(""), ["model ''"]),
        (lambda: select.select("lab", "zefyr and dpo"), ["'zefyr'", "zephyr", "scale lab"]),
        (lambda: select.select("smoke", "llama3 and slichf"), ["matches no cell at scale smoke"]),
    ],
)
def test_unknown_names_give_the_nearest(call, words):
    with pytest.raises(UnknownName) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "stagealign list" in str(caught.value)


def pytest_run(*arguments, code="pass"):
    """Exit code and output of pytest on the benchmarks, in a process of its own without anyone else's plugins."""
    run = f"start = time.process_time(); end = pytest.main({list(arguments)!r})"
    script = f"import sys, time, pytest; {run}; {code}; sys.exit(end)"
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_row_of_a_model_is_collected_without_torch():
    seconds = "print('seconds', time.process_time() - start, 'torch' in sys.modules)"
    code, out = pytest_run("benchmarks", "--collect-only", "-q", "-k", "llama3", code=seconds)
    assert code == 0, out
    found = re.findall(r"test_cells.py::test_cell\[(.*)\]", out)
    expected = [f"{c.id}-seed{k}" for c in select.select("lab", "llama3") for k in registry.scale("lab").seeds]
    assert found == expected
    assert "test_claims.py::" not in out
    used, torch = re.search(r"seconds (\S+) (\S+)", out).groups()
    assert torch == "False"
    assert float(used) < 0.8, "pytest's own share is about 0.2 s"


def test_extra_cells_are_items_only_where_named():
    """The same choice as `stagealign run -k`; pytest's own names may stand beside it."""
    for words, count in (("zephyr", 24), ("1llama and seed0", 6), ("test_cell and phi2-dpo-2on_llama", 2), ("", 96)):
        code, out = pytest_run("benchmarks/test_cells.py", "--collect-only", "-q", *(("-k", words) if words else ()))
        assert code == 0, out
        assert out.count("test_cells.py::test_cell[") == count, words


def test_options_of_the_benchmarks(tmp_path):
    code, out = pytest_run("benchmarks", "--collect-only", "--scale", "smoke", "--seeds", "2", "-k", "pythia160m")
    assert code == 0, out
    assert out.count("<Function test_cell") == 24
    assert "scale smoke: plumbing check in CI; seeds 0, 1" in out
    code, out = pytest_run("benchmarks", "--scale", "smok", "-k", "pythia")
    assert code == 4
    assert "scale 'smok': unknown; nearest: smoke" in out


def test_claims_are_not_met_by_other_scales_or_weights(tmp_path):
    from factory_results import result

    from stagealign.store.results import write_result

    cells = ("zephyr-dpo-1on", "zephyr-dpo-1off", "llama3-dpo-1on", "llama3-dpo-1off", "phi2-dpo-1on")
    for cell in cells:
        write_result(tmp_path, result(cell))
    paper = ("benchmarks/test_claims.py", "--scale", "paper", "--results", str(tmp_path))
    code, out = pytest_run(*paper)
    assert code == 0, out
    assert "failed" not in out
    assert "passed" not in out
    assert "not run: no paper-scale results" in out
    for cell in cells:
        write_result(tmp_path, result(cell, scale="paper"))  # random weights that got into the folder
    code, out = pytest_run(*paper)
    assert code == 0, out
    assert "passed" not in out
    assert "other weights than the published ones stand in the folder: llama3-dpo-1off" in out
    for cell in cells:
        made = result(cell, scale="paper")
        write_result(tmp_path, made | {"model": made["model"] | {"weights": "published"}})
    code, out = pytest_run(*paper, "-q")
    assert "FAILED" in out, "made-up results do not reproduce the paper"
    assert "direction only" in out
