"""The folder that infer writes to: pictures, contact sheets, predictions.json and .csv."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hogwear.data.photos import Photos
from hogwear.data.safe_decoder import SafeDecoder
from hogwear.evaluation import pictures
from hogwear.evaluation.prediction import Prediction, to_label_rows, to_rows
from hogwear.system.artifacts import (
    CONTACT_SHEET,
    NEXT,
    NEXT_TABLE,
    PREDICTIONS,
    PREDICTIONS_TABLE,
    RESULTS,
    SORTED,
)
from hogwear.system.errors import BadInput
from hogwear.system.files import Manifest
from hogwear.system.text import to_csv


class Responses:
    """Writes predictions. Files that infer did not write, or that were changed since, are kept.

    If it `sorts`, sorting.py writes to its folder `sorted`. If it `lists_next`, there are a table
    and sheets of the photos to label next; otherwise, those of an earlier run stay.
    """

    def __init__(self, folder: Path, sorts: bool = False, lists_next: bool = False) -> None:
        self.folder, self.results, self.sorted = folder, folder / RESULTS, folder / SORTED
        self.written = [self.results, *([self.sorted] if sorts else [])]
        self.tables = [PREDICTIONS, PREDICTIONS_TABLE, *([NEXT_TABLE] if lists_next else [])]
        self.sheets = [CONTACT_SHEET, *([NEXT] if lists_next else [])]
        self.manifest = Manifest(folder)
        self.taken: set[str] = set()  # names of files that are kept or were just written

    def require_free(self) -> None:
        """BadInput where a file that would be overwritten is not one of ours."""
        for file in (self.folder / name for name in self.tables):
            if file.exists() and not self.manifest.owns(file):
                raise BadInput(
                    f"{file}: infer did not write this, or it was changed since; "
                    "move it away, or choose another --responses-dir"
                )

    def require_apart(self, paths: Iterable[Path]) -> None:
        """BadInput for photos or folders that overlap with the results. Links are followed."""
        folder, written = self.folder.resolve(), [path.resolve() for path in self.written]
        for path in paths:
            real = path.resolve()
            is_ours = real.parent == folder and self.manifest.owns(self.folder / real.name)
            if is_ours or any(real.is_relative_to(w) or w.is_relative_to(real) for w in written):
                raise BadInput(
                    f"--images: {path} overlaps with what infer writes to {self.folder}; "
                    "choose another --responses-dir"
                )

    def require_no_photos(self, photos: Photos) -> None:
        """BadInput where photos of the data folder are in the folder for results.

        Inside the data folder, that is the whole responses folder.
        """
        real = self.folder.resolve()
        inside = real.is_relative_to(photos.folder.resolve())
        written = real if inside else self.results.resolve()
        paths = (path for split in photos.splits for path in split.paths.strings())
        for parent in {path.rpartition("/")[0] for path in paths}:
            if Path(parent).resolve().is_relative_to(written):
                raise BadInput(
                    f"--data-dir: there are photos in {parent}, where infer writes its results; "
                    "choose another --responses-dir"
                )

    def clear(self) -> int:
        """Delete pictures and sheets of an earlier run; return the number of other files."""
        self.results.mkdir(parents=True, exist_ok=True)
        found = list(self.results.iterdir())
        for name in self.sheets:
            found += self.folder.glob(f"{name}*.png")
        kept = self.manifest.delete(path for path in found if not path.name.startswith("."))
        self.taken = {path.name.casefold() for path in kept}
        return len(kept)

    def write_pictures(
        self, predictions: Sequence[Prediction], decoder: SafeDecoder
    ) -> dict[int, str]:
        """A picture of each photo that could be read: {row: name of the file}.

        The decoder reads the same photos again, larger.
        """
        files = {
            row: pictures.free_name(self.results, pictures.stem_of(prediction), self.taken)
            for row, prediction in enumerate(predictions)
            if prediction.photo.image is not None
        }

        def draw(row: int) -> bytes:
            image, smaller = decoder.decode(row), predictions[row].photo.image
            if isinstance(image, str):  # it can no longer be read
                assert smaller is not None
                image = smaller
            return pictures.draw_prediction(predictions[row], image)

        with decoder.workers({"draw": draw}) as workers:
            for row, picture in workers.run("draw", files):
                self.manifest.write(files[row], picture)
        return {row: file.name for row, file in files.items()}

    def write_sheets(
        self, predictions: Sequence[Prediction], name: str = CONTACT_SHEET
    ) -> list[Path]:
        """Contact sheets with PHOTOS_PER_SHEET photos each: NAME.png, NAME-2.png, ..."""
        sheets = []
        for start in range(0, len(predictions), pictures.PHOTOS_PER_SHEET):
            number = f"-{start // pictures.PHOTOS_PER_SHEET + 1}" if start else ""
            sheet = pictures.free_name(self.folder, f"{name}{number}", self.taken)
            part = predictions[start : start + pictures.PHOTOS_PER_SHEET]
            self.manifest.write(sheet, pictures.draw_sheet(part))
            sheets.append(sheet)
        return sheets

    def write_tables(self, predictions: Sequence[Prediction], names: dict[int, str]) -> None:
        """predictions.json and .csv; `names` are those of the pictures, as from write_pictures."""
        entries = [
            prediction.to_json() | {"picture": names.get(row)}
            for row, prediction in enumerate(predictions)
        ]
        content = json.dumps(entries, indent=2) + "\n"
        self.manifest.write(self.folder / PREDICTIONS, content.encode())
        table = to_csv(to_rows(predictions))
        self.manifest.write(self.folder / PREDICTIONS_TABLE, table.encode())

    def write_next(self, predictions: Sequence[Prediction], decoder: SafeDecoder) -> list[Path]:
        """The table of the photos to label next, and their sheets, which are returned.

        The decoder reads the same photos again, because nobody kept their pixels.
        """
        with decoder.workers({"decode": decoder.decode}) as workers:
            decoded = dict(workers.run("decode", range(len(predictions))))
        shown = [
            replace(prediction, photo=prediction.photo.with_image(decoded[row]))
            for row, prediction in enumerate(predictions)
        ]
        table = to_csv(to_label_rows(predictions))
        self.manifest.write(self.folder / NEXT_TABLE, table.encode())
        return self.write_sheets(shown, NEXT)
