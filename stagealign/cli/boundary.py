"""`stagealign boundary`."""

from pathlib import Path

from stagealign.boundary.measurement import Measurement
from stagealign.store.files import check_target, write_text


def writable(json_file: str | None, html: Path | None) -> None:
    """Raises CannotRun where the files that are asked for could not be written, before anything is measured."""
    for option, path in (("--json", json_file), ("--html", html)):
        if path not in (None, "-"):
            check_target(option, Path(str(path)))


def write(found: Measurement, json_file: str | None, html: Path | None) -> None:
    """Writes the measurement where it was asked for; `-` is standard output."""
    import json

    if json_file:
        text = json.dumps(found.plain(), indent=1, sort_keys=True) + "\n"
        if json_file == "-":
            print(text, end="")
        else:
            write_text(Path(json_file), text)
    if html:
        from stagealign.report.pages.meter import page

        write_text(html, page(found))
