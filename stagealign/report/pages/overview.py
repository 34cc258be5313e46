"""Front page of all reports: the verdicts at each scale, with links to the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from stagealign.grid import registry, scales
from stagealign.grid.claims import of_scale
from stagealign.report.pages.faults import faults
from stagealign.report.pages.speed_results import read as read_speed
from stagealign.report.read.archive import archive_label
from stagealign.report.read.book import Book, open_book
from stagealign.report.read.contrasts import Contrast, contrasts
from stagealign.report.sections.claims import table, tally, verdicts
from stagealign.report.sections.figures import ABOUT, figures
from stagealign.report.sections.findings import central, findings
from stagealign.report.sections.frontier import frontier
from stagealign.report.sections.rows import Table
from stagealign.report.sections.words import count
from stagealign.store.results import archives

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
    """Folder of its pages; empty without results."""
    archive: str = ""
    """What its results are an archive of, in a sentence; empty for this version's."""
    about: str = ABOUT["rule.svg"]


@dataclass(frozen=True)
class ScaleResults:
    """One scale's results, read and compared."""

    book: Book
    contrasts: Sequence[Contrast]
    figures: dict[str, str]


def read(results: Path, scale: str) -> list[ScaleResults]:
    """Everything that a scale's pages are made from: this version's results if it has any, then each archive's."""
    folders = [("", results), *archives(results, scale)]
    books = [open_book(folder, scale, archived=version) for version, folder in folders]
    return [_compared(book) for book in books if book.results or book.damaged]


def _compared(book: Book) -> ScaleResults:
    compared = contrasts(book)
    drawn = figures(book, compared)
    reached = frontier(book, compared)
    return ScaleResults(book, compared, drawn | ({"frontier.svg": reached} if reached else {}))


def overview(results: Path, scale: str, known: list[ScaleResults]) -> dict[str, str]:
    """Text of `index.html` and `README.md` by name; `known` are the results of `scale`, read before."""
    from stagealign.report.pages.page import environment

    parts = [part for key in scales.SCALES for part in _parts(key, known if key == scale else read(results, key))]
    shown = {"faults": faults(results), "speed": any(read_speed(results).values())}
    values = {"question": QUESTION, "parts": parts, **shown}
    pages = {"index.html": "overview.html.j2", "README.md": "overview.md.j2"}
    return {name: environment().get_template(template).render(values) for name, template in pages.items()}


def _parts(scale: str, known: list[ScaleResults]) -> list[Part]:
    """Parts of one scale: this version's results, then each archive's; empty for a scale without claims."""
    claims = of_scale(scale)
    if not claims:
        return []
    name = registry.scale(scale).name
    judged = [_judged(results, name) for results in known]
    if judged and not known[0].book.archived:
        return judged
    whose = "of this version at this scale" if judged else "at this scale"
    text = f"No results {whose}, so its {count(len(claims), 'claim')} are not judged."
    return [Part(scale, name, "not run", text), *judged]


def _judged(known: ScaleResults, name: str) -> Part:
    book = known.book
    judged = verdicts(book, known.contrasts)
    figure = known.figures.get("rule.svg")
    scope = findings(book, known.contrasts)[0].text
    drawn = Markup(figure) if figure else None  # our own SVG: matplotlib escapes its texts
    finding = central(book, known.contrasts)
    return Part(
        book.scale, name, tally(judged), scope, finding, table(book, judged), drawn, book.place, archive_label(book)
    )
