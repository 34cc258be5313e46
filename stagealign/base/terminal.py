"""Text for the terminal in which nothing is an order to it: no markup, no control codes, no turned-around writing."""

import re
from typing import Any

import rich.text

ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that turn the direction of writing, and halves of characters."""


def plain(text: str) -> str:
    """`text` with every character that could steer a terminal spelled out, such as `\\x1b`."""
    return ORDERS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


class Text(rich.text.Text):
    """Rich's text, made of `plain` text."""

    def __init__(self, text: str = "", *given: Any, **named: Any):
        super().__init__(plain(text), *given, **named)
