"""`stagealign doctor`: checks store, assets, results and environment, and says what to do."""

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
    deep: Annotated[bool, typer.Option("--deep", help="Check the store's files by content, not only by size.")] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the findings here; - is standard output.")
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Checks store, assets, kept answers, results and environment; exits with code 1 if something is wrong."""
    from stagealign.cli.checkup import look

    check_json(json_file)
    findings = look(results, deep)
    write_json(json_file, plain(findings))
    if json_file != "-":
        print_findings(findings)
    raise typer.Exit(1 if any(finding.state == "wrong" for finding in findings) else 0)


def plain(findings: Sequence[Finding]) -> dict[str, object]:
    """The findings as JSON-ready values."""
    wrong = sum(finding.state == "wrong" for finding in findings)
    return {"wrong": wrong, "findings": [asdict(finding) for finding in findings]}


def print_findings(findings: Sequence[Finding]) -> None:
    """Prints the findings by area, each with what to do about it, and the number of faults."""
    style = {"ok": "green", "note": "yellow", "wrong": "bold red"}
    for area in dict.fromkeys(finding.area for finding in findings):
        console.print(Text(area, style="bold"))
        for finding in findings:
            if finding.area == area:
                text = Text(f"  {finding.state:5} ", style=style[finding.state]) + Text(finding.what)
                console.print(text, soft_wrap=True)
                if finding.do:
                    console.print(Text(f"        do: {finding.do}"), soft_wrap=True)
    wrong = sum(finding.state == "wrong" for finding in findings)
    console.print(Text(f"{count(wrong, 'fault')} to fix" if wrong else "all is well"))
