"""Results of earlier versions: which book a report shows, and how it is labelled."""

from collections.abc import Collection
from pathlib import Path

from stagealign.report.read.book import Book, open_book
from stagealign.store.results import archives


def archive_label(book: Book) -> str:
    """What an archive is, in two sentences; empty for results of this version."""
    if not book.archived:
        return ""
    return (
        f"Archive: stagealign {book.archived} made these results. This version samples, tokenizes or trains otherwise "
        "(CHANGELOG.md names each number that moves), so it would not give the same numbers."
    )


def newest_book(results: Path, scale: str, cells: Collection[str] | None = None) -> Book:
    """Results of the scale: this version's if there are any, else those of the newest archive."""
    own = open_book(results, scale, cells)
    if own.results or own.damaged:
        return own
    return next((open_book(folder, scale, cells, version) for version, folder in archives(results, scale)), own)
