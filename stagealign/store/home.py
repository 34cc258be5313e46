"""The folder of the store."""

import os
from pathlib import Path


def default_home() -> Path:
    """`$STAGEALIGN_HOME`, or the user's cache folder; outside every repository."""
    return Path(os.environ.get("STAGEALIGN_HOME") or Path.home() / ".cache" / "stagealign").expanduser()
