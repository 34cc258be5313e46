"""The command line: starts without torch, one clear message for each mistake, exit codes that a script can trust."""

import os
import subprocess
import sys

import pytest
from factory_results import fill

from stagealign.cli import app as cli
from stagealign.cli.list import UNPINNED, assumptions
from stagealign.execute.processes import Outcome
from stagealign.grid import select

HEAVY = ("torch", "transformers", "trl", "numpy", "sklearn", "spacy", "pandas", "matplotlib")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGEALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit code, output and error as one line each."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stagealign", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return caught.value.code or 0, " ".join(said.out.split()), " ".join(said.err.split())

    return run


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["list", "--scale", "paper", "-k", "zephyr"], ["run", "--help"]]
)
def test_it_starts_fast_and_without_torch(words):
    """Seconds of our own processor, the best of a few: a busy machine must not fail it."""
    script = (
        f"import sys, time; start = time.process_time(); sys.argv = {['stagealign', *words]!r}\n"
        "from stagealign.cli.app import main\n"
        "try: main()\n"
        f"finally: print('used', time.process_time() - start, *sorted({set(HEAVY)!r} & sys.modules.keys()))"
    )
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        used, *loaded = done.stdout.split("used ")[-1].split()
        assert not loaded
        if float(used) < 0.5:
            return
    pytest.fail(f"{used} s to start")


def test_list_shows_cells_stand_ins_and_assumptions(call):
    code, out, _ = call("list")
    assert code == 0
    assert out.startswith("scale lab: stand-ins on a laptop CPU; 48 cells")
    assert "stand-in for" in out
    assert "extra cells run only if they are named, as in `-k dpo_beta0.01`" in out
    assert "variants in what was not published: dpo_beta0.01, dpo_beta0.5, dpo_ref_first, slichf_beta0.01" in out
    assert "beyond the paper: qwen-slichf, pythia-slichf" in out
    assert "their schedules: 1llama, 2off_llama, 2on_llama" in out
    assert "(extra)" not in out
    code, out, _ = call("list", "--scale", "paper", "-k", "zephyr and 1on")
    assert code == 0
    assert "2 cells" in out
    assert "zephyr-dpo-1llama (extra)" in call("list", "-k", "zephyr and 1llama")[1]
    assert "zephyr-dpo-1on" in out
    assert "alignment-handbook" in out
    assert "assumed, not published" in out


def test_one_table_has_every_assumption_with_its_recipe():
    chosen = select.select("paper", "phi2 and 1on")
    places = {place: recipe for place, _, recipe in assumptions(chosen)}
    sft = {f"phi2.sft.{name}" for name in ("data", "revision", "epochs", "learning_rate", "batch", "max_length")}
    training = {"fresh_prompts", "batch", "epochs", "ladder", "learning_rate", "schedule", "warmup", "dtype"}
    assert sft | {f"training.{name}" for name in training} <= places.keys()
    assert {"phi2.source", "phi2.template", "dpo.beta", "dpo.reference", "slichf.form", "scale.seeds"} <= places.keys()
    assert places["oracle.revision"] == UNPINNED
    assert "phi2.revision" not in places
    assert all(places.values())
    zephyr = {place: value for place, value, _ in assumptions(select.select("paper", "zephyr and 1on"))}
    assert zephyr["zephyr.revision"] == "none yet"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--scale", "labs"], "stagealign: scale 'labs': unknown; nearest: lab. `stagealign list` shows all."),
        (["run", "--scale", "smok"], "scale 'smok': unknown; nearest: smoke"),
        (["report", "--scale", "papr"], "scale 'papr': unknown; nearest: paper"),
        (["run", "-k", "zefyr"], "-k 'zefyr' matches no cell at scale lab; name 'zefyr': unknown; nearest: zephyr"),
        (["list", "-k", "zephyr and dppo"], "name 'dppo': unknown; nearest: dpo"),
        (["list", "-k", "slichf-2onoff"], "-slichf-2on_off"),
        (["run", "-k", "qwen and slic_hf"], "-k 'qwen and slic_hf' matches no cell at scale lab"),
        (["run", "--scale", "smoke", "-k", "llama3"], "matches no cell at scale smoke"),
        (["list", "-k", "(zephyr"], "-k '(zephyr': a closing parenthesis is missing"),
        (["list", "-k", "zephyr dpo"], "'dpo' follows where `and`, `or` or the end was expected"),
        (
            ["report", "--results", "nowhere"],
            "nowhere/lab: no result files; run some first: `stagealign run --scale lab`",
        ),
        (["report", "--check"], "results/lab: no result files"),
        (
            ["run", "--devices", "3", "--dry-run"],
            "--devices 3: a global batch of 8 pairs cannot be split over 3 processes",
        ),
        (["run", "--peft", "qlora"], "--peft 'qlora': unknown; the one choice is lora"),
        (["export", "zephyr-dpo-1on", "--to", "out"], "run `stagealign run -k zephyr-dpo-1on --scale lab --seeds 1`"),
        (["export", "zephyr-dpo-1no", "--to", "out"], "schedule '1no': unknown; nearest: 1on"),
    ],
)
def test_a_mistake_is_one_clear_message(words, message, call):
    code, out, err = call(*words)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("words", [["fly"], ["run", "--seeds", "0"], ["run", "--workers"], ["list", "--nope"]])
def test_words_it_does_not_know(words, call):
    code, out, err = call(*words)
    assert code == 2
    assert words[-1] in err or "seeds" in err
    assert "Traceback" not in out + err


def test_a_dry_run_says_how_long_and_builds_nothing(call, tmp_path):
    code, out, _ = call("run", "--dry-run", "-k", "zephyr and dpo", "--seeds", "1", "--workers", "1")
    assert code == 0
    assert "scale lab: stand-ins on a laptop CPU; 6 runs (cell x seed)" in out
    assert "0 ready" in out
    assert "to build" in out
    assert "min on 1 x one core of a laptop CPU" in out
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "results").exists()


def test_the_paper_scale_says_what_this_machine_lacks(call, tmp_path, monkeypatch):
    monkeypatch.setattr("stagealign.plan.machine.gpu_memory", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, _, err = call("run", "--scale", "paper", "-k", "llama3")
    assert code == 2
    for words in ("this machine lacks", "a GPU: none was found", "gated weights: meta-llama", "Use `--scale lab`"):
        assert words in err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("failed", "code"), [({}, 0), ({"a/b": "ValueError: no luck"}, 1)])
@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_failed_artifact_is_a_failed_command(command, failed, code, call, monkeypatch):
    monkeypatch.setattr("stagealign.cli.run.build", lambda *_, **__: Outcome(failed=failed))
    monkeypatch.setattr("stagealign.cli.fetch.fetch", lambda: None)
    for name in ("stagealign.cli.report.write_report", "stagealign.report.build.summary_rows"):
        monkeypatch.setattr(name, lambda *_, **__: [])
    assert call(command)[0] == code


def test_ctrl_c_ends_with_130(call, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("stagealign.cli.run.build", interrupt)
    code, _, err = call("run")
    assert code == 130
    assert "interrupted; all that is built stays; run the same command to continue" in err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stagealign", "run"])
    monkeypatch.setattr("stagealign.cli.run.build", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_report_check_fails_where_reports_are_stale(call, tmp_path):
    fill(tmp_path / "results")
    code, out, _ = call("report", "--check")
    assert code == 1
    assert "not current: lab/README.md" in out
    code, out, _ = call("report")
    assert code == 0
    assert "wrote reports/lab/index.html" in out
    code, out, _ = call("report", "--check")
    assert (code, out) == (0, "reports match the results")


def test_long_paths_are_not_broken_into_lines(monkeypatch, tmp_path, capsys):
    long = tmp_path / ("deep/" * 30) / "results"
    fill(long)
    monkeypatch.setattr(
        sys, "argv", ["stagealign", "report", "--results", str(long), "--reports", str(long / "reports")]
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert f"wrote {long / 'reports/lab/index.html'}\n" in capsys.readouterr().out


def test_the_installed_command_has_the_same_exit_code(tmp_path):
    command = os.path.join(os.path.dirname(sys.executable), "stagealign")
    if not os.path.exists(command):
        pytest.skip("the command is not installed beside this Python")
    done = subprocess.run([command, "list", "--scale", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("stagealign: scale 'x': unknown")
