"""Read the rows of an untrusted CSV file: any separator, UTF-8, within limits."""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from hogwear.system.errors import BadInput

MAX_MEGABYTES = 500  # a million rows have about 100
MAX_LINE = 1 << 20  # characters
SEPARATORS = ",;\t"
SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)  # a first line for Excel


def read_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each row that is not empty, the header first.

    The separator is what a first line `sep=;` says, else the most frequent one in the header: a
    comma, semicolon or tab. A row may be shorter than the header; if it is longer, the surplus
    belongs to the last cell, which somebody forgot to quote. Raises BadInput for invalid CSV.
    """
    if (megabytes := file.stat().st_size / 1e6) > MAX_MEGABYTES:
        raise BadInput(
            f"{file}: {megabytes:.0f} megabytes, over the limit of {MAX_MEGABYTES} for a table; "
            "leave out columns that are not needed"
        )
    # File names need not be UTF-8: surrogates stand for other bytes, as in what os.scandir returns
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        header = text.readline(MAX_LINE)
        if "\0" in header:
            raise BadInput(f"{file}: not in UTF-8; save it as CSV in UTF-8")
        text.seek(0)
        lines = read_lines(text, file)
        if named := SEPARATOR_LINE.fullmatch(header):
            next(lines)
        separator, skipped = (named[1], 1) if named else (max(SEPARATORS, key=header.count), 0)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        line, width = skipped + 1, 0
        try:
            for row in reader:
                if row:
                    width = width or len(row)
                    if len(row) > width:
                        row[width - 1 :] = [separator.join(row[width - 1 :]).rstrip(separator)]
                    yield line, row
                line = skipped + reader.line_num + 1
        except csv.Error as error:
            raise BadInput(
                f"{file}: line {line} is not valid CSV ({error}); check for an unclosed quote"
            ) from None


def read_lines(text: TextIO, file: Path) -> Iterator[str]:
    """The lines of a file that may be one endless line."""
    for number in itertools.count(1):
        line = text.readline(MAX_LINE)
        if len(line) == MAX_LINE:
            raise BadInput(
                f"{file}: line {number} has more than {MAX_LINE:,} characters, so this is not a "
                "table of photos"
            )
        if not line:
            return
        yield line
