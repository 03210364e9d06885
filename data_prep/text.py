"""Text from outside (file names, DICOM, XML, tables, messages of libraries), made safe to show."""

import re
import unicodedata

_GB_2312 = "\x1b$)A"  # an escape sequence that pydicom leaves in
_MARKDOWN = re.compile(r"[\\`<>|\[\]]")


def printable(text: str) -> str:
    r"""Return text on one line, without what could steer a terminal or turn its direction.

    Each control character, line break, mark of direction, and byte of a file name that is no UTF-8
    is a question mark.

    Examples
    --------
    >>> printable("CT\x1b[31m\nred")
    'CT?[31m?red'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def in_markdown(text: str) -> str:
    r"""Return text for a page of Markdown: printable, without links, markup or table cells.

    Examples
    --------
    >>> in_markdown("a|b <img src=x>")
    'a\\|b \\<img src=x\\>'
    """
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def comparable(text: str) -> str:
    r"""Return text as it is compared: composed (Unicode's form NFC), without blanks at its ends.

    Examples
    --------
    >>> comparable("Mu\u0308ller ") == "M\u00fcller"
    True
    """
    return unicodedata.normalize("NFC", text.replace(_GB_2312, "")).strip(" \0\t\r\n")
