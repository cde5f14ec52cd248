"""What guests, images and requests say, as text that does nothing to whoever reads it."""

from __future__ import annotations


def visible(text: str, keep: str = "") -> str:
    r"""The text with everything that is not printable as an escape, such as \x1b or \u202e: control
    characters of a terminal, what turns the direction of writing, halves of characters. What is
    in `keep` stays.
    """
    if text.isprintable():  # nearly all
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode()
        for c in text
    )


def visible_lines(text: str) -> str:
    """The same of what was written to a terminal line by line."""
    return visible(text.replace("\r\n", "\n"), "\n\t")
