"""Front page of all reports: the verdicts at each scale, with links to the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from stagealign.grid import registry, scales
from stagealign.grid.claims import of_scale
from stagealign.report.pages.faults import faults
from stagealign.report.pages.speed_results import read as read_speed
from stagealign.report.read.book import Book, open_book
from stagealign.report.read.contrasts import Contrast, contrasts
from stagealign.report.sections.claims import table, tally, verdicts
from stagealign.report.sections.figures import ABOUT, figures
from stagealign.report.sections.findings import central, findings
from stagealign.report.sections.frontier import frontier
from stagealign.report.sections.rows import Table
from stagealign.report.sections.words import count

QUESTION = (
    "The paper arXiv 2508.10530 says that preference alignment has two stages. In preference injection diverse "
    "off-policy data works better; in preference fine-tuning high-quality on-policy data does. A boundary score names "
    "the stage of a policy. Below are the verdicts on the paper's claims at each scale. Results at one scale are not "
    "evidence for another."
)


@dataclass(frozen=True)
class Part:
    """One scale's part of the front page."""

    key: str
    name: str
    tally: str
    scope: str
    central: str = ""
    verdicts: Table | None = None
    figure: Markup | None = None
    page: str = ""
    about: str = ABOUT["rule.svg"]


@dataclass(frozen=True)
class ScaleResults:
    """One scale's results, read and compared."""

    book: Book
    contrasts: Sequence[Contrast]
    figures: dict[str, str]


def read(results: Path, scale: str) -> ScaleResults:
    """Everything that a scale's pages are made from."""
    book = open_book(results, scale)
    compared = contrasts(book)
    drawn = figures(book, compared)
    reached = frontier(book, compared)
    return ScaleResults(book, compared, drawn | ({"frontier.svg": reached} if reached else {}))


def overview(results: Path, known: ScaleResults) -> dict[str, str]:
    """Text of `index.html` and `README.md` by name; `known` is a scale that was read before."""
    from stagealign.report.pages.page import environment

    parts = [part for scale in scales.SCALES for part in _part(results, scale, known)]
    shown = {"faults": faults(results), "speed": any(read_speed(results).values())}
    values = {"question": QUESTION, "parts": parts, **shown}
    pages = {"index.html": "overview.html.j2", "README.md": "overview.md.j2"}
    return {name: environment().get_template(template).render(values) for name, template in pages.items()}


def _part(results: Path, scale: str, known: ScaleResults) -> list[Part]:
    """Part of one scale; empty for a scale without claims."""
    claims = of_scale(scale)
    if not claims:
        return []
    name = registry.scale(scale).name
    if scale == known.book.scale:
        return [_judged(known, name)]
    if not any((results / scale).glob("*-seed*.json")):
        text = f"No results at this scale, so its {count(len(claims), 'claim')} are not judged."
        return [Part(scale, name, "not run", text)]
    return [_judged(read(results, scale), name)]


def _judged(known: ScaleResults, name: str) -> Part:
    book = known.book
    judged = verdicts(book, known.contrasts)
    figure = known.figures.get("rule.svg")
    scope = findings(book, known.contrasts)[0].text
    drawn = Markup(figure) if figure else None  # our own SVG: matplotlib escapes its texts
    finding = central(book, known.contrasts)
    return Part(book.scale, name, tally(judged), scope, finding, table(book, judged), drawn, f"{book.scale}/index.html")
