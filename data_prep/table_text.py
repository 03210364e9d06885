"""The rows of a CSV file that may come from anywhere: bounded, UTF-8, separated by commas."""

import csv
from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import NoduleTableError
from data_prep.text import printable

MAX_BYTES = 1 << 28
"""Some millions of rows; the longest table of a challenge has a quarter of it."""


def read_rows(path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the cells of each row, stripped, with the line of the file that the row starts on.

    Rows without any text are left out, but for the first. Of a row that can't be taken apart it
    is said, in place of its cells, what is wrong with it.

    Parameters
    ----------
    path
        CSV file, UTF-8 with or without its mark, values separated by commas.

    Raises
    ------
    NoduleTableError
        ``unreadable_table`` (no such file; a quote that isn't closed), ``too_large`` or
        ``encoding``.
    """
    name = printable(path.name)
    try:
        if path.exists() and not path.is_file():
            raise NoduleTableError(
                "unreadable_table", f"{name} is no file: give the path of a CSV table."
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.stat().st_size > MAX_BYTES:
                raise NoduleTableError(
                    "too_large",
                    f"{name} is larger than {MAX_BYTES} bytes: give a table of nodules.",
                )
            yield from _rows(csv.reader(file, strict=True), name)
    except OSError as error:
        raise NoduleTableError(
            "unreadable_table", f"{name} can't be read ({error.strerror}): check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise _not_utf8(name) from error


def _rows(reader: "csv._reader", name: str) -> Iterator[tuple[int, list[str] | str]]:
    is_first = True
    while True:
        line = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > line or "end of data" in str(error):
                raise NoduleTableError(
                    "unreadable_table",
                    f"{name} has a quote on line {line} that isn't closed there, so that the rows "
                    "after it can't be told apart: close it, or save the table as CSV again.",
                ) from error
            yield line, f"isn't CSV ({error})"
            continue
        if any("\0" in cell for cell in cells):
            raise _not_utf8(name)
        if any(cells) or is_first:
            yield line, cells
        is_first = False


def _not_utf8(name: str) -> NoduleTableError:
    return NoduleTableError(
        "encoding", f"{name} isn't UTF-8: save it as 'CSV UTF-8 (comma delimited)'."
    )
