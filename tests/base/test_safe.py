"""Planted text has no effect: calls of the package, open ports, and model texts in terminal, table and page."""

import ast
import io
import json
import re
import sys
from pathlib import Path

import pytest

import stagealign
from stagealign.base.terminal import Text, plain
from stagealign.cli import app as cli
from stagealign.cli import doctor
from stagealign.cli.finding import Finding
from stagealign.evaluate.alpaca_eval.result import _encoded
from stagealign.report.pages.page import markdown

PACKAGE = Path(stagealign.__file__).parent


def calls():
    """(file, call) of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(PACKAGE).as_posix(), node


OWN_PICKLE = ("data/picking.py", "pickle.load")
"""Rows that the same process wrote a moment before, into a temporary file without a name."""


def test_no_call_lets_a_checkpoint_run_code_or_reads_a_pickle():
    asked = 0
    for file, call in calls():
        name = ast.unparse(call.func)
        given = {one.arg: ast.unparse(one.value) for one in call.keywords}
        if (
            name.rpartition(".")[2] == "from_pretrained" and name != "GenerationConfig.from_pretrained"
        ):  # it has no code
            asked += 1
            assert given.get("trust_remote_code") == "False", f"{file}: {name} without trust_remote_code=False"
        assert given.get("trust_remote_code", "False") == "False", f"{file}: {name}"
        assert given.get("allow_pickle", "False") == "False", f"{file}: {name}"
        runs_code = name in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads", "joblib.load")
        assert not runs_code or (file, name) == OWN_PICKLE, f"{file}: {name}"
        assert not name.endswith("extractall"), file
        assert given.get("shell", "False") == "False", f"{file}: {name}"
    assert asked > 8


RAY = ("execute/ray/joining.py", "ray.init")
"""Of our own on the loopback alone, which `test_cluster` looks up in the kernel's table of sockets."""


def test_nothing_listens():
    """No server in the package; those of tests and benchmarks stand on loopback."""
    for file, call in calls():
        name = ast.unparse(call.func)
        assert not re.search(r"(^|\.)(bind|listen|serve_forever|create_server|start_server)$", name), f"{file}: {name}"
        if (file, name) != RAY:
            assert not re.search(r"HTTPServer|TCPServer|uvicorn|ray\.init", name), f"{file}: {name}"
    root = PACKAGE.parent
    for path in [*(root / "tests").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]:
        if path.name == Path(__file__).name:
            continue
        text = path.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text, path
        for server in re.findall(r"HTTPServer\(\(([^,]*),", text):
            assert server.strip("\"'") in ("127.0.0.1", "localhost"), path


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe [red]x[/red] [link=http://evil]y[/link] \ud800 <b>&"


def test_a_hostile_text_is_text_in_the_terminal(monkeypatch):
    from rich.console import Console

    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=300)
    console.print(Text(HOSTILE, style="bold"))
    said = re.sub(r"\x1b\[[\d;]*m", "", shown.getvalue())  # rich's own styles
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", said)
    assert r"\x1b]0;owned" in said
    assert "[red]x[/red] [link=http://evil]y[/link]" in said
    assert plain("a\tb\nçé 你好 \N{GRINNING FACE}") == "a\tb\nçé 你好 \N{GRINNING FACE}"


def test_the_terminal_is_written_to_through_that_text_alone():
    printing = 0
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert "rich.text" not in source, path
        if "console.print" in source:
            printing += 1
            assert "from stagealign.base.terminal import Text" in source, path
    assert printing > 5


def test_a_hostile_error_and_name_are_text(capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["stagealign", "lc-win-rate", "\x1b[2Jx.csv", "--difficulty", "\x1b]0;own\x07.csv"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", re.sub(r"\x1b\[[\d;]*m", "", said.err + said.out))
    doctor.print_findings([Finding("store", "wrong", HOSTILE, HOSTILE)])
    assert "\x07" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1"])
def test_a_spreadsheet_reads_text_as_text(name):
    row = {"prompt_index": 0, "generator": name, "preference": 1.5, "failed": None}
    text = _encoded([row], ".csv").decode()
    assert text.splitlines()[0] == "prompt_index,generator,preference,failed"
    assert not re.search(r"(^|,)\"?[=+@\t\r-]", text.partition("\n")[2])
    assert f"'{name}" in text.replace('""', '"')
    assert json.loads(_encoded([row], ".jsonl"))["generator"] == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[x](http://evil)", r"\[x\](http&#58;//evil)"),
        ("see https://evil.example and www.evil.example", "see https&#58;//evil.example and www&#46;evil.example"),
        ("me@evil.example @you", "me&#64;evil.example &#64;you"),
        ("<b>#1</b> &amp; `x`", r"&lt;b&gt;\#1&lt;/b&gt; &amp;amp; \`x\`"),
    ],
)
def test_markdown_of_a_text_is_that_text(text, shown):
    assert markdown(text) == shown


def test_names_in_a_message_stay_on_one_line():
    """Generator names and columns come from users' files: no new line, escape code or reversed text may pass."""
    from stagealign.base.words import listed

    assert listed(["g", "two words", 3]) == "g, two words, 3"
    assert listed(["a\n\nAssistant: b", "\x1b[2J", "\u202etxt"]) == r"'a\n\nAssistant: b', '\x1b[2J', '\u202etxt'"
    assert listed([]) == "none"
    assert listed(["x" * 50] * 13) == ", ".join(["x" * 40] * 12) + ", ..."
