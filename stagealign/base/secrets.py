"""Text without secrets: keys of the environment and passwords in URLs, for whatever is shown, logged or recorded."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
"""Environment variables whose values are nobody's business."""
SHORTEST = 8
"""Characters of a value that is looked for; a shorter one stands in any text by chance."""
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@'\"]+@")


def without_secrets(text: str) -> str:
    """`text` with each secret replaced by the name of its variable, and `user:password@` taken out of URLs."""
    secrets = {value.strip(): name for name, value in os.environ.items() if NAMES.search(name)}
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, f"[{secrets[value]}]")
    return _USER.sub(r"\1[hidden]@", text)


LONGEST = 1 << 16
"""Bytes of a line that are waited for."""
LONGEST_SECRET = 1 << 13
"""Bytes that are held back of a longer one, so that no secret is cut in two."""


def printing_to(log: Path) -> None:
    """From now on whatever this process prints, and its libraries and children, goes to a file, less the secrets.

    Through a process that only copies, so that nothing is lost where this one is killed.
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
    """Copies lines as they come, each without its secrets."""
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
