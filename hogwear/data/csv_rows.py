"""The rows of a CSV file from anywhere: of any separator, in UTF-8, within limits."""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from hogwear.system.errors import BadInput

MAX_MEGABYTES, LONGEST_LINE = 500, 1 << 20  # a million rows are 100 megabytes
SEPARATORS = ",;\t"
NAMED_SEPARATOR = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)  # a first line for Excel


def rows_of(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV with the line each begins in, the header first.

    A row may be shorter than that. What is too much belongs to its last cell, which somebody forgot to quote. Cells
    are separated by what a first line `sep=;` says, else by what the header has most of: , ; or tab.
    """
    if (megabytes := file.stat().st_size / 1e6) > MAX_MEGABYTES:
        raise BadInput(
            f"{file}: {megabytes:.0f} megabytes, over the limit of {MAX_MEGABYTES} for a table; leave out columns that are not needed"
        )
    # Names of files need not be UTF-8: surrogates stand for what is not, as they do in what os.scandir gives.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        header = text.readline(LONGEST_LINE)
        if "\0" in header:
            raise BadInput(f"{file}: not in UTF-8; save it as CSV in UTF-8")
        text.seek(0)
        every_line = lines(text, file)
        if named := NAMED_SEPARATOR.fullmatch(header):
            next(every_line)
        separator, before = (named[1], 1) if named else (max(SEPARATORS, key=header.count), 0)
        reader = csv.reader(every_line, delimiter=separator, strict=True)
        line, width = before + 1, 0
        try:
            for row in reader:
                if row:  # not an empty line
                    width = width or len(row)
                    if len(row) > width:
                        row[width - 1 :] = [separator.join(row[width - 1 :]).rstrip(separator)]
                    yield line, row
                line = before + reader.line_num + 1
        except csv.Error as error:
            raise BadInput(
                f"{file}: the row that begins in line {line} is no CSV ({error}); look for a quote that is not closed"
            ) from None


def lines(text: TextIO, file: Path) -> Iterator[str]:
    """Of a file that may be one endless line."""
    for number in itertools.count(1):
        line = text.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE:
            raise BadInput(
                f"{file}: line {number} has more than {LONGEST_LINE:,} characters; that is no table of photos"
            )
        if not line:
            return
        yield line
