"""Text from outside (file names, DICOM, XML, tables, messages of libraries), made safe to show."""

import re

_MARKDOWN = re.compile(r"[\\`<>|\[\]]")


def printable(text: str) -> str:
    r"""Return text on one line, without what could steer a terminal or turn its direction.

    Parameters
    ----------
    text
        Anything.

    Returns
    -------
    str
        As long as `text`; each control character, line break, mark of direction, and byte of a
        file name that is no UTF-8 is a question mark.

    Examples
    --------
    >>> printable("CT\x1b[31m\nred")
    'CT?[31m?red'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def in_markdown(text: str) -> str:
    r"""Return text for a page of Markdown: printable, without links, markup or table cells.

    Parameters
    ----------
    text
        Anything.

    Examples
    --------
    >>> in_markdown("a|b <img src=x>")
    'a\\|b \\<img src=x\\>'
    """
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))
