"""What the book shows: plots, figures, tables, claims. Chapters and runs need none of it."""

import re

from minilib.provenance import one_line


def markdown(value, longest: int = 200) -> str:
    """A value as text of one line of a Markdown page: nothing in it is markup, HTML or a directive.

    What is not a letter, a digit or harmless punctuation becomes a character reference.
    """
    return re.sub(
        r"[^\w .,()+/·…-]|_", lambda match: f"&#{ord(match[0])};", one_line(value, longest)
    )
