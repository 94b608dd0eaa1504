"""Products: photos of one thing, which belong into one split and are left out together.

    data/CLASS/PRODUCT/*.jpg   where the subfolders of a class look like products: `why_plain`
    data/NAME.csv              with a column that names the product of each photo

The photos of a product have the same key, (HASH_SIZE,) uint8: a hash of its name. Zeros stand for
a photo of no product. Reasons and measurements: docs/decisions/products.md.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hogwear.data.class_names import MAX_NAME, MAX_NAMES
from hogwear.data.contents import view_as_keys
from hogwear.data.decoding import HASH_SIZE, hash_content
from hogwear.data.photos import Split
from hogwear.system.arrays import Int64Array, UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.paths import Paths
from hogwear.system.text import join_some, normalize, shorten

BY_FOLDER, BY_NOTHING = GROUP_BY = ("folder", "none")  # the values of --group-by
MIN_FOLDERS, MAX_SHARE = 10, 0.1  # of a class, for its subfolders to be products
USER_SPLIT = "put all photos of a product into one split"
OWN_SPLIT = (
    "a class has too few products, or model/split.json is older than they are: to split all photos "
    "anew, use another --model-dir"
)


class Products(NamedTuple):
    """The products of photos."""

    keys: list[UInt8Array]  # (n, HASH_SIZE) of each split
    notes: list[str]  # for people: what is a product, and how many there are


def hash_names(names: Sequence[str]) -> UInt8Array:
    """The keys of products, (n, HASH_SIZE), by their names; zeros for an empty name."""
    keys = {name: hash_content(os.fsencode(normalize(name))) for name in set(names) if name}
    content = b"".join(keys.get(name, bytes(HASH_SIZE)) for name in names)
    return np.frombuffer(content, np.uint8).reshape(len(names), HASH_SIZE)


def group_by_folder(splits: list[dict[str, Paths]], group_by: str | None) -> Products:
    """The products of photos CLASS/.../NAME, {class: photos} of each split, in this order.

    They are the subfolders of their classes; without `group_by`, only where these look like
    products. The splits have the same classes. BadInput for "folder" if there are no subfolders.
    """
    folders = [{name: name_subfolders(paths) for name, paths in each.items()} for each in splits]
    whole = {name: [folder for each in folders for folder in each[name]] for name in splits[0]}
    nested = [name for name, of_class in whole.items() if any(of_class)]
    if group_by == BY_FOLDER and not nested:
        raise BadInput("--group-by folder: no class has subfolders; leave it out, or add them")
    reasons = {} if group_by else {name: why_plain(whole[name]) for name in nested}
    plain = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
    grouped = [] if group_by == BY_NOTHING else [name for name in nested if not reasons.get(name)]
    keys = [
        hash_names(
            [
                f"{name}/{folder}" if folder and name in grouped else ""
                for name, of_class in each.items()
                for folder in of_class
            ]
        )
        for each in folders
    ]
    notes = []
    if grouped:
        notes = [count_products(keys, f"the subfolders of {join_some(grouped, MAX_NAMES)}")]
    if plain:
        notes.append(
            f"Plain folders, not products: the subfolders of {join_some(plain, MAX_NAMES)}; "
            "--group-by folder makes them products."
        )
    return Products(keys, notes)


def group_by_column(
    splits: list[list[list[str]]], names: dict[str, str], column: str | None
) -> Products:
    """The products of photos, the paths of each class of each split, by their `names`."""
    keys = [
        hash_names([names.get(path, "") for paths in classes for path in paths])
        for classes in splits
    ]
    notes = [count_products(keys, f"the values of column {column}")] if column else []
    return Products(keys, notes)


def name_subfolders(paths: Paths) -> list[str]:
    """The subfolder of its class that each photo, CLASS/.../NAME, is in; "" for none."""
    if paths.encoded.count(b"/") == len(paths):
        return [""] * len(paths)
    parts = (path.split("/", 2) for path in paths.strings())
    return [part[1] if len(part) > 2 else "" for part in parts]


def why_plain(folders: list[str]) -> str:
    """Why the subfolders of the photos of a class are no products; "" where they look like some."""
    counts = Counter(filter(None, folders))
    [(name, most)] = counts.most_common(1)
    if len(counts) < MIN_FOLDERS:
        return str(len(counts))
    if most > MAX_SHARE * len(folders):
        return f"{most / len(folders):.0%} of the photos in {shorten(name, MAX_NAME)}"
    return ""


def count_products(keys: list[UInt8Array], source: str) -> str:
    """A note on the products of photos with these keys."""
    every = np.concatenate(keys)
    of_product = view_as_keys(every[every.any(axis=1)])
    others = f"; {len(every) - len(of_product):,} others" if len(of_product) < len(every) else ""
    return (
        f"Products: {len(of_product):,} photos of {len(np.unique(of_product)):,} products, "
        f"{source}{others}."
    )


def pair_products(keys: UInt8Array) -> Int64Array:
    """(n, HASH_SIZE) -> (k, 2): pairs of rows that connect all photos of each product."""
    rows = np.flatnonzero(keys.any(axis=1))
    names = view_as_keys(keys[rows])
    order = np.argsort(names, kind="stable")
    is_same = names[order[1:]] == names[order[:-1]]
    return np.stack([rows[order[:-1]], rows[order[1:]]], axis=1)[is_same]


def find_divided(splits: list[Split]) -> list[list[tuple[int, int]]]:
    """The products with photos in several splits: (split, row) of a photo in each of these."""
    photos = defaultdict(list)
    for number, split in enumerate(splits):
        rows = np.flatnonzero(split.products.any(axis=1))
        keys, first = np.unique(view_as_keys(split.products[rows]), return_index=True)
        for key, row in zip(keys.tolist(), rows[first].tolist(), strict=True):
            photos[key].append((number, row))
    return [each for each in photos.values() if len(each) > 1]


def warn_about_divided(splits: list[Split], fix: str) -> list[str]:
    """The warning about products with photos in several splits; none if there are none."""
    divided = find_divided(splits)
    if not divided:
        return []
    examples = [splits[number].paths[row].relative_to(splits[0].root) for number, row in divided[0]]
    are = "product has" if len(divided) == 1 else "products have"
    return [
        f"leakage: {len(divided):,} {are} photos in several splits, for example "
        f"{' and '.join(map(str, examples))}, so figures may be too good; {fix}"
    ]
