"""Nothing leaks: no output, file or traceback of a command holds a secret."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stagealign
from stagealign.base.errors import StagealignError
from stagealign.base.secrets import without_secrets

PACKAGE = Path(stagealign.__file__).parent
SECRETS = {
    "HF_TOKEN": "hf_plantedAAAAAAAAAAAA",
    "OPENAI_API_KEY": "sk-plantedBBBBBBBBBBBB",
    "STAGEALIGN_JUDGE_KEY": "sk-plantedCCCCCCCCCCCC",
}


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
    """Places that hold a secret: `output`, and the files below the folder."""
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
