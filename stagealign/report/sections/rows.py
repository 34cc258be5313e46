"""The table that both templates draw, and the names of policies and methods in it."""

from dataclasses import dataclass

from stagealign.report.read.book import Book
from stagealign.report.read.rungs import Start


@dataclass(frozen=True)
class TableRow:
    """Texts of one row; a newline starts a second line in the cell."""

    cells: tuple[str, ...]
    state: str = "done"


@dataclass(frozen=True)
class Table:
    """One table of a report."""

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    folded: bool = False


def policy_name(book: Book, start: Start) -> str:
    """`Zephyr stand-in, DPO, after off`."""
    return f"{book.label(start.model)}, {method_name(book, start.method)}, {start.name}"


def method_name(book: Book, key: str) -> str:
    """Name of a method in the results, such as `DPO`."""
    return next((str(r["method"].get("name", key)) for r in book.results if r["method"]["key"] == key), key)
