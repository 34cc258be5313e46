"""Completions as a server returned them, and those kept by earlier calls."""

from dataclasses import asdict, dataclass
from pathlib import Path

from stagealign.base.shapes import FLAG, TEXT, WHOLE, misfit
from stagealign.store.kept import RowFile


@dataclass(frozen=True)
class ServedText:
    """One completion as the server returned it."""

    text: str
    tokens: int
    """Number of tokens by the server's count."""
    cut: bool
    """True if it ended at the token limit."""
    capped: bool = False
    """True if the context left fewer new tokens than were asked for."""
    apart: bool = False
    """True if the server took reasoning off and sent it in a field of its own."""


@dataclass(frozen=True)
class ServedCompletions:
    """Completions of one prompt, or the reason of a failure."""

    texts: tuple[ServedText, ...] = ()
    failed: str | None = None
    refused: bool = False
    """True if it is this prompt that failed, not the server."""

    @property
    def completions(self) -> tuple[str, ...]:
        """Texts without white space around them."""
        return tuple(text.text.strip() for text in self.texts)

    @property
    def tokens(self) -> int:
        """Number of tokens by the server's count."""
        return sum(text.tokens for text in self.texts)

    @property
    def truncated(self) -> int:
        """Number of completions that ended at the token limit."""
        return sum(text.cut for text in self.texts)

    @property
    def capped(self) -> int:
        """Number of completions for which the context left fewer new tokens than were asked for."""
        return sum(text.capped for text in self.texts)


class KeptCompletions:
    """Completions by prompt hash and index, written to disk as they arrive; thread-safe."""

    def __init__(self, path: Path | None):
        """Reads completions that earlier calls kept at `path`; with None, nothing is kept."""
        self._file = None if path is None else RowFile(path, lambda row: misfit(row, KEPT) is None)
        self._texts = {
            (row["key"], row["index"]): ServedText(
                row["text"], row["tokens"], row["cut"], row.get("capped", False), row.get("apart", False)
            )
            for _, row in (self._file.read() if self._file else ())
        }

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, key: str, index: int) -> ServedText | None:
        """The kept completion of a prompt at `index`; None if there is none."""
        return self._texts.get((key, index))

    def add(self, key: str, index: int, text: ServedText) -> None:
        """Keeps a completion. Raises CannotRun if it cannot be written to disk."""
        if self._file:
            self._file.add({"key": key, "index": index, **asdict(text)})
            self._texts[key, index] = text


KEPT = {"key": TEXT, "index": WHOLE, "text": TEXT, "tokens": WHOLE, "cut": FLAG, "capped?": FLAG, "apart?": FLAG}
"""Shape of a row of `KeptCompletions`."""
