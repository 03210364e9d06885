"""The cells of a CSV file that may come from anywhere: bounded, UTF-8, separated by commas."""

import csv
import io
from pathlib import Path

from data_prep.dicom.files import printable
from data_prep.errors import NoduleTableError

MAX_BYTES = 1 << 26
"""A million rows."""


def read_cells(path: Path) -> list[tuple[int, list[str]]]:
    """Return the cells of each row, stripped, with the line of the file that the row ends on.

    Rows without any text are left out, but for the first.

    Parameters
    ----------
    path
        CSV file, UTF-8 with or without its mark, values separated by commas.

    Raises
    ------
    NoduleTableError
        ``unreadable_table``, ``too_large`` or ``encoding``.
    """
    name = printable(path.name)
    reader = csv.reader(io.StringIO(_text(path, name), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped) or not rows:
                rows.append((reader.line_num, stripped))
    except csv.Error as error:
        raise NoduleTableError(
            "unreadable_table", f"{name} isn't a CSV table ({error}): save it as CSV again."
        ) from error
    return rows


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NoduleTableError(
            "unreadable_table", f"{name} can't be read ({error.strerror}): check the path."
        ) from error
    if len(content) > MAX_BYTES:
        raise NoduleTableError(
            "too_large", f"{name} is larger than {MAX_BYTES} bytes: give a table of nodules."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoduleTableError(
            "encoding", f"{name} isn't UTF-8: save it as 'CSV UTF-8 (comma delimited)'."
        ) from error
    if "\0" in text:
        raise NoduleTableError(
            "encoding", f"{name} isn't a text file in UTF-8: save it as CSV UTF-8."
        )
    return text
