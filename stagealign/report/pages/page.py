"""Self-contained HTML pages for a scale and for each row of the grid, and the scale's page in Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stagealign.report.pages import rowpage
from stagealign.report.read import facts
from stagealign.report.read.archive import archive_label
from stagealign.report.read.book import Book
from stagealign.report.read.contrasts import Contrast
from stagealign.report.sections import capability, curves
from stagealign.report.sections.claims import ledger as claims_ledger
from stagealign.report.sections.claims import table as claims_table
from stagealign.report.sections.claims import tally, verdicts
from stagealign.report.sections.data import data_statements, data_tables
from stagealign.report.sections.figures import ABOUT
from stagealign.report.sections.findings import findings
from stagealign.report.sections.frontier import ABOUT as FRONTIER
from stagealign.report.sections.ledgers import ladder, pairs, runs
from stagealign.report.sections.strategies import table as strategies
from stagealign.report.sections.tables import boundaries, effectiveness, ratios
from stagealign.report.sections.words import listing

FINDING_KINDS = {
    "scope": "What this is",
    "found": "Found",
    "against": "Against the paper",
    "unsure": "Not sure",
    "missing": "Missing",
}


def pages(book: Book, contrasts: Sequence[Contrast], figures: dict[str, str]) -> dict[str, str]:
    """Text of each page of the scale by file name."""
    templates = environment()
    drawn = {name: Markup(svg) for name, svg in figures.items()}  # our own SVG: matplotlib escapes its texts
    judged = verdicts(book, contrasts)
    values: dict[str, Any] = {
        "scale": book.scale,
        "archive": archive_label(book),
        "top": _top(book),
        "tally": tally(judged),
        "made": made_line(book),
        "kinds": FINDING_KINDS,
        "findings": [*findings(book, contrasts), *data_statements(book), *capability.statements(book)],
        "verdicts": claims_table(book, judged),
        "tables": [
            strategies(contrasts),
            effectiveness(book, contrasts),
            ratios(book, contrasts),
            boundaries(book),
            ladder(book),
            pairs(book),
            *data_tables(book),
            capability.table(book),
            runs(book),
            claims_ledger(book),
        ],
        "figures": drawn,
        "about": ABOUT | {"frontier.svg": FRONTIER},
        "hardware": facts.distinct(book.results, "hardware"),
        "scorers": facts.scorers(book.results),
        "notes": list(
            dict.fromkeys(f"{r['model']['name']}: {r['model']['note']}" for r in book.results if r["model"].get("note"))
        ),
    }
    values["rows"] = [
        (rowpage.file_name(*key), rowpage.title(book, *key)) for key in rowpage.keys(book) if not book.plumbing
    ]
    rows = {name: _row(templates, book, *key) for key in rowpage.keys(book) if (name := rowpage.file_name(*key))}
    return {
        **(rows if values["rows"] else {}),
        "index.html": templates.get_template("page.html.j2").render(values),
        "README.md": templates.get_template("readme.md.j2").render(values),
    }


def _row(templates: Environment, book: Book, model: str, method: str) -> str:
    """HTML page of one row of the grid."""
    runs = rowpage.results(book, model, method)
    return templates.get_template("row.html.j2").render(
        scale=book.scale,
        archive=archive_label(book),
        made=made_line(book),
        title=rowpage.title(book, model, method),
        notes=list(dict.fromkeys(run["model"]["note"] for run in runs if run["model"].get("note"))),
        tables=rowpage.tables(book, model, method),
        curves=Markup(curves.curves(book, model, method)),  # our own SVG: matplotlib escapes its texts
        about=curves.ABOUT,
        samples=rowpage.samples(book, model, method),
        versions=rowpage.versions(runs),
        cell=runs[0]["cell"],
        spec=rowpage.spec(runs),
    )


def environment() -> Environment:
    """Template environment that escapes everything except our own markup."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent.parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = lambda text: Markup(markdown(str(text)))
    environment.filters["tight"] = tight
    return environment


def _top(book: Book) -> str:
    """Way from the scale's folder up to that of all reports."""
    return "../" * (1 + book.place.count("/"))


def made_line(book: Book) -> str:
    """First line of every report: its command and the commits recorded in its results."""
    commits = facts.distinct(book.results, "commit")
    by = f"commit{'s' if len(commits) > 1 else ''} {listing(commits, 5)}" if commits else "no recorded commit"
    changes = " with uncommitted changes" if facts.dirty(book.results) else ""
    return f"stagealign report --scale {book.scale}; results of {by}{changes}"


def tight(text: str) -> str:
    """`text` without line breaks inside `0.31 [0.25, 0.37], off`."""
    return re.sub(r" \[[^\]\n]*\](, \w+$)?", lambda match: match.group().replace(" ", "\u00a0"), text)


def markdown(text: str) -> str:
    """`text` as one table cell or line of GitHub Markdown: markup is escaped, newlines become `<br>`."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    unlinked = re.sub(r"(?<=\w):(?=//)", "&#58;", escaped)  # GitHub makes links of bare addresses too
    unlinked = re.sub(r"(?i)\b(www)\.", r"\1&#46;", unlinked).replace("@", "&#64;")
    return re.sub(r"([\\`*_\[\]|~]|(?<!&)#)", r"\\\1", unlinked).replace("\n", "<br>")
