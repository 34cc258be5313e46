"""Output that commands share: lines on the terminal, and the file of `--json`."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stagealign.base.errors import BadData
from stagealign.base.terminal import Text
from stagealign.store.files import check_target, write_text

console = Console(soft_wrap=False, highlight=False)


def line(text: str, style: str = "") -> None:
    """Prints one line, which the terminal may wrap."""
    console.print(Text(text, style=style), soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as `1 h 05 min`, `4 min` or `12 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def where(page: Path) -> None:
    """Prints the path of the report's page."""
    console.print(Text(f"report: {page.resolve()}"), soft_wrap=True)


def wrote(paths: Sequence[Path]) -> None:
    """Prints the paths of written files."""
    for path in paths:
        console.print(Text(f"wrote {path}"), soft_wrap=True)


def check_json(json_file: str | None, html: Path | None = None) -> None:
    """Raises CannotRun, before any work, if a file of `--json` or `--html` cannot be written."""
    for option, path in (("--json", json_file), ("--html", html)):
        if path not in (None, "-"):
            check_target(option, Path(str(path)))


def check_folder(json_file: str | None) -> None:
    """Raises BadData, before any work, if the folder of the file of `--json` is missing."""
    if json_file not in (None, "-") and not Path(str(json_file)).parent.is_dir():
        raise BadData(f"--json {json_file}: no folder {str(Path(str(json_file)).parent)!r}; make it, or name another")


def write_json(json_file: str | None, value: object) -> None:
    """Writes a value as JSON to the file of `--json`, whole or not at all; `-` is standard output, None is nowhere."""
    if json_file is None:
        return
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    if json_file == "-":
        print(text, end="")
    else:
        write_text(Path(json_file), text)
