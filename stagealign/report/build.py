"""Reports from result files alone. Equal results give equal bytes, so `report --check` can compare them."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stagealign.base.errors import StagealignError
from stagealign.grid.cell import Cell
from stagealign.store.files import write_text
from stagealign.store.results import ARCHIVE, archives


@dataclass(frozen=True)
class SummaryRow:
    """One starting policy in the terminal's table."""

    policy: str
    boundary: str
    named: str
    off: str
    on: str
    better: str
    named_it: str

    HEADINGS = (
        "starting policy",
        "boundary score",
        "names",
        "gain off",
        "gain on",
        "better",
        "named it?",
    )

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts in the order of `HEADINGS`."""
        return self.policy, self.boundary, self.named, self.off, self.on, self.better, self.named_it


def write(results: Path, reports: Path, scale: str) -> list[Path]:
    """Paths of the written files: the scale's in `<reports>/<scale>/`, and the front page of all scales.

    Results of earlier versions have pages of their own in `<reports>/archive/<version>/<scale>/`. Raises
    StagealignError if the scale has no results.
    """
    files = build(results, scale)
    for name, text in files.items():
        write_text(reports / name, text)
    for name in _leftover(reports, scale, files):
        (reports / name).unlink()
    return [reports / name for name in files]


def check(results: Path, reports: Path, scale: str) -> list[str]:
    """Names of the reports that are missing, left over, or differ from what the results give now."""
    files = build(results, scale) if has_results(results, scale) else {}
    stale = [name for name, text in files.items() if _read(reports / name) != text.encode()]
    return sorted([*stale, *_leftover(reports, scale, files)])


def build(results: Path, scale: str) -> dict[str, str]:
    """Text of each report by its path below the reports' folder. Writes nothing."""
    from stagealign.report.pages.overview import overview, read
    from stagealign.report.pages.page import pages
    from stagealign.report.pages.speed import page as speed

    with _uncollected():
        every = read(results, scale)
        if not every:
            raise StagealignError(f"{results / scale}: no results; make some with `stagealign run --scale {scale}`")
        files: dict[str, str] = {}
        for known in every:
            own = {**pages(known.book, known.contrasts, known.figures), **known.figures}
            files |= {f"{known.book.place}/{name}": text for name, text in own.items()}
        return {**files, **overview(results, scale, every), **speed(results)}


def has_results(results: Path, scale: str) -> bool:
    """Whether there are results of the scale, of this version or of an archived one."""
    return any((results / scale).glob("*-seed*.json")) or bool(archives(results, scale))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Disables the cycle collector inside the block: results have almost no cycles, and it takes 1/7 of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def summary_rows(results: Path, cells: Sequence[Cell]) -> list[SummaryRow]:
    """One row for each starting policy that has results and that a run of `cells` (all of one scale) starts from.

    Results of this version, or if it has none, of the newest archive.
    """
    from stagealign.report.read.archive import newest_book
    from stagealign.report.read.contrasts import NOT_RUN, contrasts
    from stagealign.report.sections.rows import policy_name
    from stagealign.report.sections.words import DASH, gain, score

    if not cells:
        return []
    book = newest_book(results, cells[0].scale.key, {cell.id for cell in cells})
    return [
        SummaryRow(
            policy_name(book, contrast.start),
            score(contrast.boundary),
            DASH if contrast.named == NOT_RUN else contrast.named,
            gain(contrast.best["off"].gain) if "off" in contrast.best else NOT_RUN,
            gain(contrast.best["on"].gain) if "on" in contrast.best else NOT_RUN,
            contrast.better,
            contrast.named_it,
        )
        for contrast in contrasts(book)
    ]


def _leftover(reports: Path, scale: str, files: dict[str, str]) -> list[str]:
    """Files of earlier versions that this one no longer writes."""
    folders = [reports / scale, *(reports / ARCHIVE).glob(f"*/{scale}")]
    pages = [path for folder in folders for kind in ("*.html", "*.md", "*.svg") for path in folder.glob(kind)]
    return sorted(name for name in (str(path.relative_to(reports)) for path in pages) if name not in files)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
