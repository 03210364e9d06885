"""Text of DICOM files, in the character set that the file says it is in.

SpecificCharacterSet (PS3.3 C.12.1.1.2) decides, with its code extensions (PS3.5 6.1.2).
"""

import unicodedata
import warnings
from functools import lru_cache

from pydicom import config
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import TEXT_VR_DELIMS

_ESCAPE = b"\x1b"
_GB_2312 = "\x1b$)A"  # pydicom leaves this escape sequence in


def comparable(text: str) -> str:
    r"""Return text as it is compared: composed (Unicode's form NFC), without blanks at its ends.

    Examples
    --------
    >>> comparable("Mu\u0308ller ") == "M\u00fcller"
    True
    """
    return unicodedata.normalize("NFC", text.replace(_GB_2312, "")).strip(" \0\t\r\n")


def decode_text(value: bytes, character_set: bytes) -> str:
    """Return the text of an attribute, comparable.

    Parameters
    ----------
    value
        As in the file; several values are separated by backslashes.
    character_set
        SpecificCharacterSet, as in the file; empty where absent.

    Returns
    -------
    str
        Where the character set is unknown or the bytes don't fit it, what isn't ASCII is kept as
        Python's lone surrogates: different bytes stay different and equal no real text. See
        `is_decoded`.
    """
    if value.isascii() and _ESCAPE not in value:
        return comparable(value.decode("ascii"))
    # pydicom warns of the misspelt names that it understands
    with warnings.catch_warnings(action="ignore"), config.strict_reading():
        try:
            text = decode_bytes(value, list(_encodings(character_set)), TEXT_VR_DELIMS)
        except (LookupError, ValueError):
            text = value.decode("ascii", "surrogateescape")
    return comparable(text)


def is_decoded(text: str) -> bool:
    """Tell whether a text's character set was known, and its bytes fitted it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@lru_cache(maxsize=64)
def _encodings(character_set: bytes) -> tuple[str, ...]:
    """Return Python's names of the character sets; pydicom raises where one is unknown."""
    names = character_set.decode("ascii", "replace").upper().split("\\")
    return tuple(convert_encodings([name.strip(" \0") for name in names]))
