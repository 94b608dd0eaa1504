"""Similar class names are noted."""

from pathlib import Path

import pytest
from table_files import FEW, make_images, of_two, write

from hogwear.data import dataset


@pytest.fixture
def folder(tmp_path: Path, photo_files: list[Path]) -> Path:
    return make_images(tmp_path / "data", photo_files)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("1", "1.0"), "'1' and '1.0'"),
        (("eyewear", "EYEWEAR"), "'EYEWEAR' and 'eyewear'"),
        (("flip flops", "flip\u00a0 flops"), "'flip flops' and 'flip\u00a0 flops'"),
    ],
)
def test_similar_class_names_are_noted_and_stay_separate(
    labels: tuple[str, str], said: str, folder: Path, cache: Path
) -> None:
    photos = dataset.find_photos(
        write(
            folder,
            "id,label",
            *of_two([str(i) for i in range(8)], labels),
            "9,10",
            "10,100",
            "11,1234567",
            "12,1234568",
        ),
        cache,
        FEW,
    )
    assert set(photos.class_names) == set(labels)
    assert (
        photos.notes[1]
        == f"Similar class names: {said}. They count as different classes; if they are the same, give them one name."
    )


def test_a_similar_class_name_with_too_few_photos_is_noted_too(folder: Path, cache: Path) -> None:
    photos = dataset.find_photos(
        write(folder, "id,label", *of_two([str(i) for i in range(8)]), "9,Hats"), cache, FEW
    )
    assert photos.class_names == ("boots", "hats") and photos.notes[1].startswith(
        "Similar class names: 'Hats' and 'hats'."
    )
