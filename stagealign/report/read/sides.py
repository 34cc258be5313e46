"""Sources of candidates in the order of the grid; a source that the grid no longer has comes last, by name."""

from collections.abc import Iterable

from stagealign.grid import sources

COMPARED = ("off", "on")
"""The two sources that the paper compares and that the boundary score chooses between."""


def source_place(source: str) -> tuple[int, str]:
    """Sort key of a source: its place in `grid.sources.SOURCES`."""
    known = list(sources.SOURCES)
    return (known.index(source) if source in known else len(known)), source


def ordered(names: Iterable[str]) -> list[str]:
    """These sources, each once, in the grid's order."""
    return sorted(set(names), key=source_place)


def others(names: Iterable[str]) -> list[str]:
    """These sources without the two compared ones, each once, in the grid's order."""
    return [source for source in ordered(names) if source not in COMPARED]


def data_name(source: str) -> str:
    """`on-policy` or `off-policy` for the two compared sources; any other source keeps its own name."""
    return f"{source}-policy" if source in COMPARED else source


def on_policy(source: str) -> bool:
    """Whether a source's candidates depend on the policy in training; True for an unknown source."""
    known = sources.SOURCES.get(source)
    return known is None or known.on_policy
