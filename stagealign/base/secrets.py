"""Secrets (keys of the environment, passwords in URLs) are hidden in text that is shown, logged or recorded."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
"""Names of environment variables whose values are secret."""
SHORTEST = 8
"""Minimum characters of a value to hide; a shorter one occurs in text by chance."""
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@'\"]+@")


def without_secrets(text: str) -> str:
    """`text` with each secret replaced by the name of its variable, and `user:password@` taken out of URLs."""
    secrets = {value.strip(): name for name, value in os.environ.items() if NAMES.search(name)}
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, f"[{secrets[value]}]")
    return _USER.sub(r"\1[hidden]@", text)


LONGEST = 1 << 16
"""Bytes of an unfinished line after which its start is copied."""
LONGEST_SECRET = 1 << 13
"""Bytes held back at the end of such a line, so that no secret is split."""


def printing_to(log: Path) -> None:
    """Redirects the output of this process and its children to a file, with secrets hidden.

    A separate process copies the output, so that nothing is lost if this one is killed.
    """
    command = [sys.executable, "-I", str(Path(__file__).resolve()), str(log.resolve())]
    copier = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert copier.stdin is not None
    sys.stdout.flush()
    sys.stderr.flush()
    for output in (1, 2):
        os.dup2(copier.stdin.fileno(), output)
    copier.stdin.close()


def copy(source: BinaryIO, target: BinaryIO) -> None:
    """Copies lines as they arrive, with secrets hidden."""
    kept = b""
    while chunk := source.read1(LONGEST):  # type: ignore[attr-defined]
        kept += chunk
        end = max(kept.rfind(b"\n"), kept.rfind(b"\r")) + 1
        if end or len(kept) > LONGEST:
            end = end or len(kept) - LONGEST_SECRET
            target.write(without_secrets(kept[:end].decode("utf-8", "replace")).encode())
            target.flush()
            kept = kept[end:]
    target.write(without_secrets(kept.decode("utf-8", "replace")).encode())


if __name__ == "__main__":
    with open(sys.argv[1], "ab") as file:
        copy(sys.stdin.buffer, file)
