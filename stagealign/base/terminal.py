"""Text that is safe to print on a terminal: no markup, no control codes, no change of writing direction."""

import re
from typing import Any

import rich.text

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, marks of the writing direction, and lone surrogates."""


def plain(text: str) -> str:
    """`text` with every character that could control a terminal escaped, such as `\\x1b`."""
    return UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


class Text(rich.text.Text):
    """Rich's text, with unsafe characters escaped by `plain`."""

    def __init__(self, text: str = "", *given: Any, **named: Any):
        super().__init__(plain(text), *given, **named)
