"""`stagealign doctor`: looks store, assets, results and environment over, and says what to do."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stagealign.base.terminal import Text
from stagealign.cli.finding import Finding
from stagealign.cli.options import Results
from stagealign.cli.output import check_json, console, write_json
from stagealign.report.sections.words import count


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Read every file of the store, not its size alone.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the findings here; - is standard output.")
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Checks store, assets, kept answers, results and environment, and says what to do; exit code 1 where not well."""
    from stagealign.cli.checkup import look

    check_json(json_file)
    found = look(results, deep)
    write_json(json_file, plain(found))
    if json_file != "-":
        findings(found)
    raise typer.Exit(1 if any(one.state == "wrong" for one in found) else 0)


def plain(found: Sequence[Finding]) -> dict[str, object]:
    """The findings as JSON-ready values."""
    return {"wrong": sum(one.state == "wrong" for one in found), "findings": [asdict(one) for one in found]}


def findings(found: Sequence["Finding"]) -> None:
    """What the doctor found, by area, and what to do about it."""
    style = {"ok": "green", "note": "yellow", "wrong": "bold red"}
    for area in dict.fromkeys(one.area for one in found):
        console.print(Text(area, style="bold"))
        for one in found:
            if one.area == area:
                said = Text(f"  {one.state:5} ", style=style[one.state]) + Text(one.what)
                console.print(said, soft_wrap=True)
                if one.do:
                    console.print(Text(f"        do: {one.do}"), soft_wrap=True)
    wrong = sum(one.state == "wrong" for one in found)
    console.print(Text(f"{count(wrong, 'thing')} to mend" if wrong else "all is well"))
