"""Photos from strangers: each is read as it is, or skipped with a reason; nothing hangs, dies, grows or leaves its folder."""

import base64
import faulthandler
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import pytest
from helpers import ROOT, SIZE, Call, ForkedCall, Held, Script, Times, at, refusal, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from PIL import Image, ImageFile

import infer
import train
from hogwear.data import contents, dataset, decoding, safe_decoder
from hogwear.data.cache import PhotoCache
from hogwear.data.decoding import LIMITS, Limits, decode
from hogwear.data.photos import Split
from hogwear.data.safe_decoder import SafeDecoder
from hogwear.system.arrays import UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.paths import Paths
from hogwear.system.workers import FORK
from hogwear.training import time_budget

OUT_OF_THE_FOLDER = "a link that leads out of the folder; put the photo itself there"


def read(
    files: list[Path], limits: Limits = LIMITS, seconds: float = 5, processes: int = 2
) -> list[UInt8Array | str]:
    """What guarded workers make of each, in order."""
    decoder = SafeDecoder(
        Paths(files), SIZE, replace(limits, seconds=seconds), processes, [files[0].parent]
    )
    with decoder.workers({"decode": decoder.decode}) as workers:
        answers = dict(workers.run("decode", range(len(files))))
    return [answers[row] for row in range(len(files))]


def require_a_documented_outcome(answer: UInt8Array | str) -> None:
    """Pixels, or a reason in one line of a terminal."""
    if isinstance(answer, str):
        assert answer.isprintable() and 0 < len(answer) <= 200, answer
    else:
        assert answer.shape == (SIZE, SIZE, 3) and answer.dtype == np.uint8


def same(one: UInt8Array | str, other: UInt8Array | str) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def photo(photo_files: list[Path]) -> Image.Image:
    """A real one, 96 x 64."""
    with Image.open(photo_files[0]) as image:
        return image.convert("RGB").resize((96, 64))


def make(folder: Path, photo_files: list[Path]) -> Path:
    for i, name in enumerate(
        f"{split}/{label}" for split in ("train", "val", "test") for label in "ab"
    ):
        (folder / name).mkdir(parents=True)
        for j, original in enumerate(photo_files[8 * i : 8 * i + 4]):
            shutil.copy(original, folder / name / f"{j}.jpg")
    return folder


@pytest.fixture
def folder(photo_files: list[Path], tmp_path: Path) -> Path:
    """data/{train,val,test}/{a,b}, four photos in each, to be made hostile."""
    return make(tmp_path / "data", photo_files)


TINY = "--arch", "tinyvgg", "--image-size", 32, "--epochs", 1


@pytest.fixture(scope="module")
def model_dir(
    photo_files: list[Path], start: Callable[..., Script], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """With a checkpoint of a small network that knows the classes a and b."""
    home = tmp_path_factory.mktemp("tiny")
    start(
        "train.py", *TINY, *at(make(home / "data", photo_files), home / "model", home / "cache")
    ).ok()
    return home / "model"


def skipped(data: Path, cache: Path, limits: Limits = LIMITS) -> dict[str, str]:
    """{name: reason} of the photos of train/a that training would do without."""
    opened = PhotoCache(cache, limits, processes=2).open(
        dataset.find_photos(data, cache).train, SIZE
    )
    return {path.name: why for path, why in opened.skipped.items()}


# --- files that are made by hand


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width: int, height: int, bits: int, colours: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG; each row in `rows` begins with its filter, 0. `more` chunks come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def bomb() -> bytes:
    """400 megapixels of nothing in 50 kB."""
    return png(20_000, 20_000, 1, 0, bytes(20_000 * 2501))


def endless_jpeg(scans: int = 20_000, side: int = 6000) -> bytes:
    """A progressive JPEG in which scan after scan goes over all blocks to change none: minutes of work in a megabyte."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    blocks, run = (
        (-(-side // 8)) ** 2,
        16384,
    )  # the only symbol, 0: so many blocks end here, and as many as the 14 bits after it say
    bits = ("0" + "0" * 14) * (blocks // run)
    data = int("1" + bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 15) // 8, "big")[1:]
    tables = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    return (
        b"\xff\xd8"
        + tables
        + frame
        + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + data) * scans
        + b"\xff\xd9"
    )


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# --- limits


def test_a_photo_over_a_limit_is_not_decoded(
    folder: Path, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    photos = folder / "train" / "a"
    (photos / "bomb.png").write_bytes(bomb())
    photo.resize((1500, 1000)).save(photos / "large.jpg")  # whatever `draft` would make of it
    photo.resize((1000, 1000)).save(photos / "allowed.png")
    (photos / "long.jpg").write_bytes((photos / "0.jpg").read_bytes() + bytes(1_000_001))
    load, decoded = ImageFile.ImageFile.load, FORK.Value("i")

    def counted(image: Any) -> Any:
        if not hasattr(
            image, "is_counted"
        ):  # Pillow calls it again for whatever is done to the image
            image.is_counted = True
            with decoded.get_lock():
                decoded.value += 1
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    assert skipped(folder, tmp_path / "cache", Limits(1, 1)) == {
        "bomb.png": "400.0 megapixels, over the limit of 1 (--max-megapixels)",
        "large.jpg": "1.5 megapixels, over the limit of 1 (--max-megapixels)",
        "long.jpg": "1.0 megabytes, over the limit of 1 (--max-megabytes)",
    }
    assert decoded.value == 8 + 1, "the ordinary ones and the one that is allowed"
    assert set(skipped(folder, tmp_path / "cache")) == {"bomb.png"}, "other limits, another cache"
    held(
        "a decompression bomb, a photo over --max-megapixels, a file over --max-megabytes",
        3,
        "skipped with the reason, not decoded",
    )


def test_a_photo_takes_no_more_memory_than_the_limit_of_pixels_allows(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    large, small, huge = (tmp_path / name for name in ("large.png", "small.png", "huge.webp"))
    large.write_bytes(png(7000, 7000, 8, 0, bytes(7000 * 7001)))  # 250 MB as RGB
    photo.save(small)
    canvas = struct.pack("<I", 1 << 4)[:4] + 2 * struct.pack("<I", 65_000)[:3]  # 4.2 gigapixels
    huge.write_bytes(b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + canvas)
    assert [type(answer) for answer in read([large, small, huge])] == [np.ndarray, np.ndarray, str]
    monkeypatch.setattr(safe_decoder, "MIN_BYTES", 16 << 20)
    monkeypatch.setattr(safe_decoder, "BYTES_PER_PIXEL", 0)
    refused, read_after = read([large, small], Limits(megabytes=1), processes=1)
    assert isinstance(refused, str) and refused == "needs too much memory to decode"
    assert same(read_after, decode(small, SIZE))
    held("a photo that takes more memory than its pixels account for", 2, "skipped with the reason")


def peak_memory() -> int:
    """Of this process, in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "a text of 256 MB": lambda rows: png(8, 8, 8, 2, rows, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28), 1))),
    "200 texts of 1 MB": lambda rows: png(8, 8, 8, 2, rows, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))] * 200),
    "an international text of 256 MB": lambda rows: png(
        8, 8, 8, 2, rows, chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(1 << 28), 1))
    ),
    "a colour profile of 256 MB": lambda rows: png(8, 8, 8, 2, rows, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 28), 1))),
    "an EXIF block of 20 MB": lambda rows: png(8, 8, 8, 2, rows, chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + bytes(20 << 20))),
    "200,000 chunks": lambda rows: png(8, 8, 8, 2, rows, *[chunk(b"abCd", b"")] * 200_000),
    "more pixels than were promised": lambda rows: png(8, 8, 8, 2, bytes(1 << 28)),
    "a run-length BMP of 200,000 x 200": lambda rows: (
        b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + struct.pack("<IiiHHIIiiII", 40, 200_000, 200, 1, 8, 1, 0, 1, 1, 256, 0)
        + bytes(1024) + b"\0\2\xff\xff" * 250_000
    ),
}  # fmt: skip


def test_photos_that_grow_when_decoded_stay_within_limits(tmp_path: Path, held: Held) -> None:
    files = [tmp_path / str(i) for i in range(len(BOMBS))]
    for file, make in zip(files, BOMBS.values(), strict=True):
        file.write_bytes(make((b"\0" + bytes(24)) * 8))
    decoder = SafeDecoder(Paths(files), SIZE, Limits(seconds=60), 1, [tmp_path])

    def measured(row: int) -> tuple[UInt8Array | str, int]:
        before = peak_memory()
        answer = decoder.decode(row)
        return answer, peak_memory() - before

    with decoder.workers({"measure": measured}) as workers:
        for row, (answer, grown) in workers.run("measure", range(len(files))):
            require_a_documented_outcome(answer)
            assert grown < 300e6, (list(BOMBS)[row], grown)
    assert not decoder.rejected, "none crashed the decoder or kept it busy"
    held(
        "bombs in text, profile, EXIF, chunks and runs",
        len(files),
        "read or skipped, less than 300 MB",
    )


# An AVIF of 256 megapixels, whose header promises 64 x 64: compressed with zlib, in base 85
AVIF_BOMB = (
    "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^nKdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A="
    "T8N_h`@fjhajKT~I+~q*FMrLMS8eFXukdw*;<t3IG7&_<Y<b&<X$}A`<0Mg!>1<Cn9S|qc$AQft#0~8AsWL9"
    "K?1eiHEIDiySVws_HqdX5tNH{q^rzkHurvhj)F9TZxP)IzpAQ$E*pu<=gnVMOEuBy*XNh}d!;Nq75URVF~?;"
    "<8CUJj$DVgl^RhYziJ|NsBT^al(KQRh!-9-k7~m|PIMf8UgjjO;B7?>xV_Ld}OQp~Ys+uJ2!`wJ*84Mvdph`"
    "5Si~=4R~><-W4&<?`;rvcKnfQtJQf@hAy71{h2YSXOY%LGIE=BW|zM|I<%uKCWVA{V-I`jwHqGg+~%wjS5R8"
    "Hcz&l-XV1$Ou2g2q~)EbuW%n@+qZAovy?4wjYR^V|9N63pLFSm!)S1i2KQ)ij|TT>aE}J}XmF1P_uvWcAnH5"
    "&-%v4=>Y@4!0OZUjW&"
)


def test_an_avif_with_more_pixels_than_it_promises_takes_no_more_memory_than_is_allowed(
    photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    lying, honest, small = (tmp_path / name for name in ("lying.avif", "honest.avif", "small.avif"))
    content = zlib.decompress(base64.b85decode(AVIF_BOMB))
    lying.write_bytes(content)
    promised, true_size = struct.pack(">II", 64, 64), struct.pack(">II", 16_000, 16_000)
    assert content.count(promised) == 1
    honest.write_bytes(content.replace(promised, true_size))
    photo.save(small)
    assert read([honest]) == ["256.0 megapixels, over the limit of 50 (--max-megapixels)"]
    decoder = SafeDecoder(Paths([lying]), SIZE, Limits(1, 1), 1, [tmp_path])
    with decoder.workers({"decode": decoder.decode, "peak": lambda row: peak_memory()}) as workers:
        before = dict(workers.run("peak", [0]))[0]
        require_a_documented_outcome(dict(workers.run("decode", [0]))[0])
        assert dict(workers.run("peak", [0]))[0] - before < safe_decoder.MIN_BYTES
    monkeypatch.setattr(safe_decoder, "MIN_BYTES", 64 << 20)
    monkeypatch.setattr(safe_decoder, "BYTES_PER_PIXEL", 0)
    refused, read_after = read([lying, small], Limits(megabytes=1), processes=1)
    assert isinstance(refused, str) and same(read_after, decode(small, SIZE))
    held(
        "an AVIF with more pixels than its header promises", 1, "read or skipped, within the limit"
    )


# --- formats


def other_formats(photo: Image.Image) -> dict[str, bytes]:
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    eps = saved(photo, "EPS")
    return {format: saved(photo, format) for format in ("PPM", "ICO", "PDF", "JPEG2000", "TGA")} | {
        "SVG": svg,
        "EPS": eps,
    }


def named_formats(photo: Image.Image) -> dict[str, list[bytes]]:
    """{reason: files that are refused with it}. There is no encoder of HEIC and of raw photos."""
    convert = "which is not read; convert it to JPEG"
    heif = [(b"heic", b"mif1heic"), (b"mif1", b"mif1heicheix"), (b"heix", b""), (b"msf1", b"hevc")]
    rest = b"\0\0\0\x08free" + bytes(100)
    return {
        f"HEIC, {convert}: magick mogrify -format jpg *.heic": [
            struct.pack(">I", 16 + len(others)) + b"ftyp" + brand + bytes(4) + others + rest
            for brand, others in heif
        ],
        f"TIFF or a raw photo, {convert}: magick mogrify -format jpg *.tif": [
            saved(photo, "TIFF"), saved(photo, "TIFF", big_tiff=True), b"MM\0*" + bytes(100),
        ],
        f"a raw photo, {convert}, for example with darktable": [
            b"II*\0\x10\0\0\0CR\2\0" + bytes(100), b"\0\0\0\x18ftypcrx " + bytes(100),
            b"FUJIFILMCCD-RAW 0201" + bytes(100), b"IIU\0\x18\0\0\0" + bytes(100),
            b"IIRO\x08\0\0\0" + bytes(100), b"MMOR\0\0\0\x08" + bytes(100),
        ],
    }  # fmt: skip


def test_other_formats_are_refused_whatever_they_are_called(
    photo: Image.Image, tmp_path: Path, held: Held
) -> None:
    contents = other_formats(photo)
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    assert set(map(str, read(sorted(tmp_path.iterdir())))) == {
        "not one of JPEG, PNG, WEBP, BMP, GIF, AVIF"
    }
    held("SVG, EPS, PDF and others named .png", len(contents), "skipped with the reason")


def test_common_formats_that_are_not_read_are_named_with_the_way_to_convert_them(
    photo: Image.Image, tmp_path: Path, held: Held
) -> None:
    named = [(why, content) for why, files in named_formats(photo).items() for content in files]
    files = [tmp_path / f"{i:02d}.jpg" for i in range(len(named))]
    for file, (_, content) in zip(files, named, strict=True):
        file.write_bytes(content)
    assert read(files) == [why for why, _ in named]
    held("HEIC, TIFF and raw photos", len(files), "skipped, with how to convert them")


def kinds(photo: Image.Image) -> dict[str, tuple[bytes, Image.Image, float]]:
    """{kind: (a file of it, what it shows, how far a channel may be off in the mean)}."""
    grey, palette, other = (
        photo.convert("L"),
        photo.quantize(64),
        photo.transpose(Image.Transpose.ROTATE_180),
    )
    sixteen = (np.asarray(photo).astype(np.uint16) * 256 + 99).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in sixteen)
    with_alpha = photo.copy()
    with_alpha.putalpha(255)
    return {
        "16-bit RGB": (png(*photo.size, 16, 2, rows), photo, 0),
        "16-bit grey": (
            saved(Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 99), "PNG"),
            grey,
            0,
        ),
        "grey with alpha": (saved(with_alpha.convert("LA"), "PNG"), grey, 0),
        "1 bit": (saved(photo.convert("1"), "PNG"), photo.convert("1"), 0),
        "palette": (saved(palette, "PNG"), palette, 0),
        "palette of 2 bits": (saved(photo.quantize(4), "PNG", bits=2), photo.quantize(4), 0),
        "CMYK": (saved(photo.convert("CMYK"), "JPEG", quality=95), photo, 4),
        "grey JPEG": (saved(grey, "JPEG", quality=95), grey, 4),
        "animated GIF": (
            saved(palette, "GIF", save_all=True, append_images=[other.quantize(64)] * 3),
            palette,
            1,
        ),
        "animated PNG": (saved(photo, "PNG", save_all=True, append_images=[other] * 3), photo, 0),
        "animated WebP": (
            saved(photo, "WEBP", save_all=True, append_images=[other] * 3, lossless=True),
            photo,
            0,
        ),
        "AVIF": (saved(photo, "AVIF", quality=95), photo, 4),
        "AVIF with alpha": (saved(with_alpha, "AVIF", quality=95, subsampling="4:4:4"), photo, 4),
        "grey AVIF": (saved(grey, "AVIF", quality=95), grey, 4),
        "animated AVIF": (
            saved(photo, "AVIF", save_all=True, append_images=[other] * 3, quality=95),
            photo,
            4,
        ),
        "several photos in a JPEG (MPO)": (
            saved(photo, "MPO", save_all=True, append_images=[other], quality=95),
            photo,
            4,
        ),
    }


def test_unusual_formats_show_the_right_picture(
    photo: Image.Image, tmp_path: Path, held: Held
) -> None:
    found = kinds(photo)
    files = [tmp_path / f"{i:02d}" for i in range(len(found))]
    for file, (content, _, _) in zip(files, found.values(), strict=True):
        file.write_bytes(content)
    for answer, (kind, (_, shown, tolerance)) in zip(read(files), found.items(), strict=True):
        saved_plainly = tmp_path / "plain.png"
        shown.convert("RGB").save(saved_plainly)
        off = np.abs(np.asarray(answer, np.int64) - decode(saved_plainly, SIZE)).mean()
        assert off <= tolerance, (kind, off)
    held(
        "CMYK, 16-bit, palette, 1-bit, animated and other unusual photos",
        len(files),
        "read as they are meant",
    )


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF"])
@pytest.mark.parametrize("size", [(50_000, 10), (10, 50_000)], ids=str)
def test_a_long_strip_is_read(tmp_path: Path, size: tuple[int, int], format: str) -> None:
    Image.new("RGB", size, "black").save(tmp_path / "strip", format)
    [answer] = read([tmp_path / "strip"])
    black = np.asarray(answer) < 50
    assert black.sum() == 3 * SIZE and black.any(axis=2 if size[0] > size[1] else 1).any()


@pytest.mark.parametrize(
    "mode", ["RGBA", "LA", "L", "1", "P", "CMYK", "I;16", "P with transparency"]
)
def test_converting_in_strips_changes_no_pixel(
    photo: Image.Image, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_alpha = photo.copy()
    with_alpha.putalpha(Image.linear_gradient("L").resize(photo.size))
    image = (
        photo.quantize(64)
        if mode.startswith("P")
        else Image.new(mode, photo.size)
        if mode == "I;16"
        else with_alpha.convert(mode)
    )
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    if mode == "P with transparency":
        image.info["transparency"] = bytes(range(64))
    whole = decoding.flatten_onto_white(image)
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 500)  # pixels: strips of 5 rows, and a rest
    assert same(np.asarray(decoding.flatten_onto_white(image)), np.asarray(whole))


# --- time, crashes, other deaths


@pytest.fixture
def quiet_crashes() -> Iterator[None]:
    """Without the stack that pytest prints of a process that crashes."""
    was_on = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if was_on:
        faulthandler.enable()


@pytest.fixture
def endless(folder: Path) -> Path:
    (folder / "train" / "a" / "endless.jpg").write_bytes(endless_jpeg())
    return folder / "train" / "a" / "endless.jpg"


def test_a_photo_that_hangs_its_decoder_is_skipped(
    folder: Path,
    endless: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: Times,
    held: Held,
) -> None:
    """The real limit, 10 s of CPU time, is waited for where all faults are tried."""
    seconds = times(1, 10)
    limits = Limits(seconds=seconds)
    shutil.copy(endless, endless.with_name("second.jpg"))
    why = f"takes more than {seconds} s to decode"
    assert skipped(folder, tmp_path / "cache", limits) == {"endless.jpg": why, "second.jpg": why}
    opened = PhotoCache(tmp_path / "cache", limits, processes=2).open(
        dataset.find_photos(folder, tmp_path).train, SIZE
    )
    others = [decode(path, SIZE) for path in sorted(folder.glob("train/?/?.jpg"))]
    assert len(others) == 8 and same(opened.images[opened.rows], np.array(others))
    held(
        "a JPEG with 20,000 scans, stuck in C",
        2,
        f"skipped after {seconds} s of CPU time, the others read",
    )


def kill_while_decoding(decoder: SafeDecoder, pid: int, row: int, number: int) -> None:
    wait_until(lambda: decoder.current_rows[0] == row)
    os.kill(pid, number)


@pytest.mark.parametrize("number", safe_decoder.CRASHES, ids=lambda number: number.name)
def test_a_photo_that_crashes_its_decoder_is_skipped(
    folder: Path, endless: Path, number: signal.Signals, quiet_crashes: None, held: Held
) -> None:
    files = [folder / "train" / "a" / "0.jpg", endless, folder / "train" / "a" / "1.jpg"]
    decoder = SafeDecoder(Paths(files), SIZE, LIMITS, 1, [folder])
    with decoder.workers({"decode": decoder.decode}) as workers:
        killer = FORK.Process(
            target=kill_while_decoding, args=(decoder, workers.slots[0].process.pid, 1, number)
        )
        killer.start()
        answers = dict(workers.run("decode", range(3)))
        killer.join()
    assert answers[1] == f"its decoder crashed ({number.name})"
    assert same(answers[0], decode(files[0], SIZE)) and same(answers[2], decode(files[2], SIZE))
    held(f"{number.name} while a photo is decoded", 1, "skipped with the reason, the others read")


def test_a_photo_is_not_rejected_when_its_worker_was_killed(
    folder: Path, endless: Path, quiet_crashes: None, held: Held
) -> None:
    files = [endless, folder / "train" / "a" / "0.jpg"]
    decoder = SafeDecoder(Paths(files), SIZE, Limits(seconds=0.5), 1, [folder])
    with decoder.workers({"decode": decoder.decode}) as workers:
        killer = FORK.Process(
            target=kill_while_decoding,
            args=(decoder, workers.slots[0].process.pid, 0, signal.SIGKILL),
        )
        killer.start()
        answers = dict(workers.run("decode", [0]))
        killer.join()
    assert answers == {0: "takes more than 0.5 s to decode"}, "tried again by the next worker"

    def die(row: int) -> None:
        assert same(decoder.decode(row), decode(files[row], SIZE))
        os.kill(os.getpid(), signal.SIGSEGV)

    with decoder.workers({"die": die}) as workers, pytest.raises(BadInput, match="SIGSEGV"):
        list(workers.run("die", [1]))
    assert 1 not in decoder.rejected
    held(
        "SIGKILL while a photo is decoded; SIGSEGV while none is",
        2,
        "tried again; counted as a death",
    )


def test_a_crash_leaves_no_core_file(folder: Path, endless: Path) -> None:
    decoder, limits = (
        SafeDecoder(Paths([endless]), SIZE, LIMITS, 1, [folder]),
        resource.getrlimit(resource.RLIMIT_CORE),
    )
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    with decoder.workers(
        {"limit": lambda row: resource.getrlimit(resource.RLIMIT_CORE)[0]}
    ) as workers:
        assert dict(workers.run("limit", [0])) == {0: 0}
    resource.setrlimit(resource.RLIMIT_CORE, limits)


@pytest.mark.long
def test_a_time_budget_is_planned_despite_a_photo_that_hangs(
    folder: Path, endless: Path, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    import model

    readable = folder / "train" / "a" / "0.jpg"
    now = [0.0]  # a clock for each worker, which only the one readable photo moves

    def by_the_clock(file: BinaryIO, *rest: Any) -> UInt8Array:
        image = decode(file, *rest)
        now[0] += 0.5 if os.path.samestat(os.fstat(file.fileno()), readable.stat()) else 0
        return image

    monkeypatch.setattr(decoding, "decode", by_the_clock)
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    empty = folder / "empty.jpg"
    empty.touch()
    paths = Paths([endless, empty, empty, readable])
    hashes, unread = contents.read_contents(paths, folder, folder.parent / "cache", LIMITS)
    labels, products = np.zeros(4, np.int64), np.zeros_like(hashes)
    split = Split("train", paths, labels, folder, hashes, products, unread)
    net = model.build("tinyvgg", 2, time_budget.MEASURED_SIZE)
    speed = ForkedCall(time_budget.measure_speed, net, split, LIMITS, 2).result()
    assert speed.decoding == 0.5 / 2, "of two workers, by what could be read"
    held("a photo that hangs, with --time-budget", 1, "the plan is made without it")


# --- links


def test_a_photo_may_link_only_into_the_data_folder(
    folder: Path, photo_files: list[Path], tmp_path: Path, held: Held
) -> None:
    photos, outside = folder / "train" / "a", tmp_path / "outside.jpg"
    shutil.copy(photo_files[30], outside)
    (folder.parent / "data2").mkdir()
    shutil.copy(photo_files[30], folder.parent / "data2" / "0.jpg")
    links: dict[str, Path | str] = {
        "absolute.jpg": folder / "val" / "b" / "0.jpg", "relative.jpg": "../b/1.jpg", "chain.jpg": "relative.jpg",
        "out.jpg": outside, "out-relative.jpg": "../../../outside.jpg", "out-chain.jpg": "out.jpg", "beside.jpg": "../../../data2/0.jpg",
        "nowhere.jpg": "nothing.jpg", "loop.jpg": "loop.jpg", "folder.jpg": "../b", "device.jpg": "/dev/zero",
    }  # fmt: skip
    for name, target in links.items():
        (photos / name).symlink_to(target)
    out = ("out.jpg", "out-relative.jpg", "out-chain.jpg", "beside.jpg", "device.jpg")
    expected = dict.fromkeys(out, OUT_OF_THE_FOLDER) | {
        "nowhere.jpg": "No such file or directory", "loop.jpg": "Too many levels of symbolic links",
    }  # fmt: skip
    assert skipped(folder, tmp_path / "cache") == expected
    assert dataset.find_photos(folder, tmp_path / "cache").notes[0] == (
        "Not used: 1 link to a folder in a class (train/a/folder.jpg)."
    )
    opened = PhotoCache(tmp_path / "cache", processes=2).open(
        dataset.find_photos(folder, tmp_path).train, SIZE
    )
    pixels_of = {path.name: opened.images[np.array([row])][0] for row, path in zip(
        opened.rows.tolist(), (p for p in dataset.find_photos(folder, tmp_path).train.paths if p not in opened.skipped), strict=True)}  # fmt: skip
    assert same(pixels_of["chain.jpg"], decode(folder / "train" / "b" / "1.jpg", SIZE))
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert skipped(linked, tmp_path / "cache") == expected, "the data folder may be a link itself"
    (photos / "out.jpg").unlink()
    (photos / "out.jpg").symlink_to("0.jpg")
    assert set(skipped(folder, tmp_path / "cache")) == set(expected) - {
        "out.jpg",
        "out-chain.jpg",
    }, "a link that changed is looked at again"
    (folder / "val" / "b" / "0.jpg").write_bytes(b"")
    assert skipped(folder, tmp_path / "cache")["absolute.jpg"] == "empty file", (
        "and one whose target changed"
    )
    held(
        "links out of the data folder, to nowhere, to itself, to a device",
        len(expected),
        "skipped with the reason",
    )


@pytest.mark.parametrize("name", ["train", "train/a"])
def test_a_folder_that_links_out_of_the_data_folder_is_refused(
    folder: Path, name: str, tmp_path: Path, held: Held
) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to("../elsewhere" if name == "train" else "../../elsewhere")
    with pytest.raises(BadInput) as error:
        dataset.find_photos(folder, tmp_path / "cache")
    said = f"{folder / name}: a link that leads out of {folder}, to {tmp_path}/elsewhere; put the folder itself there, or mount it there"
    assert str(error.value) == said
    held("a folder that is a link out of the data folder", 1, "refused in one line")


def test_a_folder_that_links_into_the_data_folder_is_used(folder: Path, tmp_path: Path) -> None:
    (folder / "val").rename(folder / "raw")
    (folder / "val").symlink_to("raw")
    (folder / "test" / "b" / "0.jpg").rename(folder / "test" / "a" / "9.jpg")
    shutil.rmtree(folder / "test" / "b")
    (folder / "test" / "b").symlink_to(folder / "raw" / "b")
    photos = dataset.find_photos(folder, tmp_path / "cache")
    assert photos.test and (len(photos.val), len(photos.test)) == (8, 9)


# --- names, and what is no file


WILD = [
    "$$.jpg", "$\\frac{1}{0}$.jpg", "two\nlines.jpg", "\x1b[31mred\x1b]0;title\x07.jpg", "a*[?].jpg", "-rf", "%s{0}.jpg", "\u202egpj.exe",
    "x" * 255, "🧦" * 63, os.fsdecode(b"\xff\xfe.jpg"), "'; rm -rf ~.jpg", " .. .jpg", "写真.jpg",
]  # fmt: skip


def make_hostile(data: Path, outside: Path) -> None:
    """Into every class: wild names, and everything that is no photo."""
    for place in data.glob("*/*"):
        photo = (place / "0.jpg").read_bytes()
        for name in WILD:
            (place / name).write_bytes(photo)
        (place / "bomb.png").write_bytes(bomb())
        twice = [chunk(b"acTL", struct.pack(">II", 2, 0))] * 2
        (place / "strange.png").write_bytes(
            png(8, 8, 8, 2, (b"\0" + bytes(24)) * 8, *twice)
        )  # Pillow reads it, with a warning
        (place / "empty.jpg").touch()
        (place / "tiff.png").write_bytes(saved(Image.new("RGB", (9, 9)), "TIFF"))
        (place / "cut\x1b[2J.jpg").write_bytes(photo[: len(photo) // 2])
        (place / "out.jpg").symlink_to(outside)
        (place / "loop").symlink_to("..")
        os.mkfifo(place / "fifo.jpg")
        (place / "folder.jpg").mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(place)  # the name of a socket has 108 bytes
            listener.bind("socket")
        for name, seconds in {
            "1.jpg": 13_000_000_000,
            "2.jpg": -1_000_000_000,
        }.items():  # in the years 2381 and 1938
            os.utime(place / name, ns=(0, seconds * 10**9))
    os.chdir(ROOT)


def tree(*folders: Path) -> set[tuple[str, int, int]]:
    """Every entry with its size and time."""
    entries = (path for folder in folders for path in (folder, *folder.rglob("*")))
    return {(str(p), (status := p.lstat()).st_size, status.st_mtime_ns) for p in entries}


def test_a_hostile_folder_is_trained_evaluated_and_predicted_and_nothing_is_written_elsewhere(
    folder: Path, tmp_path: Path, held: Held
) -> None:
    """Training talks to a terminal that knows no more than ASCII, which lacks a word for one of the classes."""
    for split in ("train", "val", "test"):
        (folder / split / "a").rename(folder / split / "žába")
    outside, home, temporary, here = (
        tmp_path / name for name in ("outside.jpg", "home", "tmp", "here")
    )
    for path in (home, temporary, here):
        path.mkdir()
    shutil.copy(folder / "train" / "b" / "0.jpg", outside)
    make_hostile(folder, outside)
    env = {k: v for k, v in os.environ.items() if not k.startswith("HOGWEAR_")} | {
        "HOME": str(home), "TMPDIR": str(temporary), "HOGWEAR_MAX_MEGAPIXELS": "20", "MPLCONFIGDIR": str(tmp_path / "cache" / "matplotlib"),
    }  # fmt: skip
    before = tree(folder, home, temporary, here, outside)
    where = at(folder, tmp_path / "model", tmp_path / "cache")

    def run(script: str, *arguments: object, **more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / script), *map(str, (*where, *arguments))]
        return subprocess.run(
            command,
            cwd=here,
            env=env | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    runs = [
        run("train.py", *TINY, PYTHONIOENCODING="ascii"),
        run("eval.py"),
        run(
            "infer.py", "--responses-dir", tmp_path / "responses", "--images", folder / "test" / "b"
        ),
    ]
    assert [run.returncode for run in runs] == [0, 0, 0], runs
    assert tree(folder, home, temporary, here, outside) == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "data",
        "model",
        "cache",
        "responses",
        "outside.jpg",
        "home",
        "tmp",
        "here",
    }
    for done in runs:
        text = done.stdout + done.stderr
        assert all(line.isprintable() for line in text.splitlines()) and "Traceback" not in text, (
            text
        )
        warnings = [line for line in done.stderr.splitlines() if not line.startswith("training: ")]
        leaked = re.compile(
            r"Warning: 2 of \d+ photos in (val|test) were used for training and are excluded"
            r"|Warning: 1 of \d+ photos were used for training; .*"
        )
        copies = [line for line in warnings if leaked.fullmatch(line)]
        assert len(copies) == 1, "strange.png is the same everywhere"
        assert all(
            line.startswith("Warning: skipped ") for line in warnings if line not in copies
        ), warnings
        assert " 20 (--max-megapixels)" in text, text
    assert "Classes: b, \\u017e\\xe1ba." in runs[0].stdout
    rows = json.loads((tmp_path / "responses" / "predictions.json").read_text())
    errors = {Path(row["file"]).name: row["error"] for row in rows if row["error"]}
    assert errors.pop("cut\x1b[2J.jpg").startswith("image file is truncated")
    assert errors == {
        "bomb.png": "400.0 megapixels, over the limit of 20 (--max-megapixels)", "empty.jpg": "empty file",
        "tiff.png": "TIFF or a raw photo, which is not read; convert it to JPEG: magick mogrify -format jpg *.tif", "out.jpg": OUT_OF_THE_FOLDER, "loop": OUT_OF_THE_FOLDER,
        "fifo.jpg": "not a file", "socket": "No such device or address",
    }  # fmt: skip
    assert {Path(row["file"]).name for row in rows if not row["error"]} == {
        *WILD,
        "strange.png",
        *(f"{i}.jpg" for i in range(4)),
    }
    pictures = {row["picture"] for row in rows} - {None}
    assert (
        pictures == {path.name for path in (tmp_path / "responses" / "results").iterdir()}
        and len(pictures) == len(WILD) + 5
    )
    assert all(name.isprintable() for name in pictures)
    held(
        "a folder of hostile photos and names through all three scripts",
        3,
        "exit 0, all accounted for, nothing written elsewhere",
    )


@pytest.mark.parametrize(
    "name", ["two\nlines", "\x1b[31mred", os.fsdecode(b"\xff"), "\u202etxet"], ids=repr
)
def test_a_class_whose_name_cannot_be_printed_is_refused(
    folder: Path, name: str, call: Call, tmp_path: Path, held: Held
) -> None:
    (folder / "train" / "a").rename(folder / "train" / name)
    answer = call(train, *at(folder, tmp_path / "model", tmp_path / "cache"))
    line = refusal(answer.stderr)
    assert answer.code == 2 and line.rstrip().isprintable()
    assert line.rstrip().endswith(
        f"data/train: the name of the class folder {name!r} cannot be printed; rename it"
    )
    held("a class named with control characters or undecodable bytes", 1, "refused in one line")


def test_a_refusal_that_names_a_hostile_photo_is_one_printable_line(
    folder: Path, call: Call, tmp_path: Path
) -> None:
    for path in (folder / "train" / "a").iterdir():
        path.unlink()
    (folder / "train" / "a" / "two\nlines\x1b[31m.jpg").touch()
    answer = call(train, *at(folder, tmp_path / "model", tmp_path / "cache"))
    assert "no readable photo in this class (two\\nlines\\x1b[31m.jpg: empty file)" in refusal(
        answer.stderr
    )


def test_infer_survives_files_that_are_not_photos(
    folder: Path, model_dir: Path, call: Call, tmp_path: Path, held: Held
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "again").symlink_to(tmp_path / "album")
    (tmp_path / "album" / "out.jpg").symlink_to(folder / "train" / "a" / "0.jpg")
    (tmp_path / "chosen.jpg").symlink_to(folder / "train" / "a" / "1.jpg")
    inputs = "fifo", "album", "chosen.jpg"
    answer = call(infer, *at(folder, model_dir, tmp_path), "--responses-dir", tmp_path / "responses",
                  "--images", *(tmp_path / name for name in inputs), "/dev/zero")  # fmt: skip
    assert answer.code == 0, answer.stderr
    rows = {
        row["file"]: row["error"]
        for row in json.loads((tmp_path / "responses" / "predictions.json").read_text())
    }
    assert {Path(file).name: error for file, error in rows.items()} == {
        "fifo": "not a file", "zero": "not a file", "again": "not a file", "out.jpg": OUT_OF_THE_FOLDER,
        "chosen.jpg": None,
    }  # fmt: skip
    held(
        "infer given a FIFO, a device, a loop of folders, a link that leads out",
        4,
        "said so, and went on",
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody who may not read")
def test_a_photo_without_read_permission_is_skipped_until_it_has_one(
    folder: Path, tmp_path: Path, held: Held
) -> None:
    assert (
        skipped(folder, tmp_path / "everybody's") == {}
    )  # and all is imported that nobody else could
    private = folder / "train" / "a" / "0.jpg"
    private.chmod(0)
    modes = {place: place.stat().st_mode for place in (tmp_path, *tmp_path.parents)}
    (tmp_path / "cache").mkdir()
    try:
        for place, mode in modes.items():
            place.chmod(mode | 0o011)
        (tmp_path / "cache").chmod(0o777)
        os.seteuid(65534)
        assert skipped(folder, tmp_path / "cache") == {"0.jpg": "Permission denied"}
    finally:
        os.seteuid(0)
        for place, mode in modes.items():
            place.chmod(mode)
    private.chmod(0o644)
    assert skipped(folder, tmp_path / "cache") == {}
    held("a photo that may not be read", 1, "skipped with the reason, read as soon as it may be")


def test_random_photos_are_the_first_readable_ones_in_the_order_of_the_seed(
    folder: Path, model_dir: Path, call: Call, tmp_path: Path
) -> None:
    for i in range(4):
        (folder / "test" / "ab"[i % 2] / f"broken{i}.jpg").write_bytes(b"")
    (folder / "test" / "a" / "slow.png").write_bytes(png(7000, 7000, 8, 0, bytes(7000 * 7001)))
    paths = dataset.find_photos(folder, tmp_path).evaluated.paths

    def order(seed: int) -> list[str]:
        return [paths[i].name for i in np.random.default_rng(seed).permutation(len(paths))]

    def is_telling(names: list[str]) -> bool:
        return (
            names[0] == "slow.png"
            and "broken" in names[1]
            and not any("broken" in name for name in names[2:5])
        )

    seed = next(seed for seed in range(10_000) if is_telling(order(seed)))
    answer = call(
        infer,
        *at(folder, model_dir, tmp_path),
        "--responses-dir",
        tmp_path / "responses",
        "--seed",
        seed,
        "--num-images",
        2,
    )
    assert answer.code == 0 and answer.stderr.count("\n") == 1 and order(seed)[1] in answer.stderr
    rows = json.loads((tmp_path / "responses" / "predictions.json").read_text())
    assert [Path(row["file"]).name for row in rows] == [order(seed)[0], order(seed)[2]]


def test_a_reason_is_one_short_printable_line() -> None:
    assert decoding.describe_error(ValueError("two\nlines \x1b[31m")) == "two\\nlines \\x1b[31m"
    assert (
        decoding.describe_error(KeyError()) == "KeyError"
        and len(decoding.describe_error(ValueError("x" * 10_000))) == 200
    )
    assert (
        decoding.describe_error(PermissionError(13, "Permission denied", "photo.jpg"))
        == "Permission denied"
    )


def calls_in(work: Callable[[], object]) -> int:
    """How many functions of Python and of C are called in this process."""
    calls = itertools.count()
    sys.setprofile(lambda frame, event, argument: next(calls) and None)
    try:
        work()
    finally:
        sys.setprofile(None)
    return next(calls)


def test_the_work_for_files_that_are_not_photos_grows_linearly(
    folder: Path, tmp_path: Path, times: Times, held: Held
) -> None:
    count, calls = times(3_000, 100_000), []
    for part in range(2):
        for i in range(part * count // 2, (part + 1) * count // 2):
            os.close(os.open(folder / "train" / "a" / f"{i:06d}", os.O_CREAT))
        found: dict[str, str] = {}
        calls.append(
            calls_in(
                lambda found=found: found.update(  # type: ignore[misc]
                    skipped(folder, tmp_path / "cache")
                )
            )
        )
        assert len(found) == (part + 1) * count // 2 and set(found.values()) == {"empty file"}
    assert calls[1] < 3 * calls[0], "twice as many"
    held(f"{count} empty files in a class", count, "skipped with the reason")


# --- thousands of damaged photos


def originals(photo: Image.Image) -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo"
    return {kind: content for kind, (content, _, _) in kinds(photo).items()} | {
        "JPEG": saved(photo, "JPEG", exif=exif, icc_profile=bytes(500)),
        "progressive JPEG": saved(photo, "JPEG", progressive=True, exif=exif),
        "PNG": saved(photo, "PNG", exif=exif),
        "WebP": saved(photo, "WEBP", exif=exif),
        "lossless WebP": saved(photo, "WEBP", lossless=True),
        "BMP": saved(photo, "BMP"),
        "palette BMP": saved(photo.quantize(16), "BMP"),
        "GIF": saved(photo, "GIF", interlace=True),
        "AVIF": saved(photo, "AVIF", exif=exif, icc_profile=bytes(500)),
    }


def with_right_checksums(content: bytes) -> bytes:
    """A PNG that is past the first check of its chunks, so that the damage is looked at."""
    repaired, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + length > len(content):
            break
        repaired += chunk(content[at + 4 : at + 8], content[at + 8 : at + 8 + length])
        at += 12 + length
    return repaired + content[at:]


# One damage: (what, where, how far, bytes); most near the front, where sizes and tables are.
places = some.one_of(some.integers(0, 64), some.integers(0, 1 << 16))
edges = some.sampled_from(
    [bytes(n) for n in (1, 2, 4)]
    + [b"\xff" * n for n in (1, 2, 4)]
    + [b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0"]
)
damages = some.tuples(
    some.sampled_from(["overwrite", "insert", "cut", "zero", "duplicate", "truncate", "splice"]),
    places, some.integers(1, 64) | some.integers(1, 1 << 14), some.binary(min_size=1, max_size=8) | edges,
)  # fmt: skip


def damaged(content: bytes, damage: tuple[str, int, int, bytes], other: bytes) -> bytes:
    what, where, length, new = damage
    start = where % (len(content) + 1)
    before, hit, after = content[:start], content[start : start + length], content[start + length :]
    return {
        "overwrite": before + new + content[start + len(new) :],
        "insert": before + new + hit + after,
        "cut": before + after,
        "zero": before + bytes(len(hit)) + after,
        "duplicate": before + hit + hit + after,
        "truncate": before,
        "splice": before + other[start : start + length] + after,
    }[what]


@contextmanager
def failing_if_it_hangs(seconds: int) -> Iterator[None]:
    def fail(signum: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_damaged_photos_are_read_or_skipped_and_nothing_else(
    photo: Image.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str], times: Times, held: Held
) -> None:
    count, files = times(400, 6000), originals(photo)
    (tmp_path / "photos").mkdir()
    paths = [
        tmp_path / "photos" / str(i) for i in range(20 * count)
    ]  # one each, because a photo stays rejected; more, for shrinking
    decoder = SafeDecoder(Paths(paths), SIZE, LIMITS, 1, [tmp_path])
    rows: Iterator[int] = iter(range(len(paths)))
    outcomes: list[str] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 1000,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        some.sampled_from(sorted(files)),
        some.lists(damages, min_size=1, max_size=4),
        some.sampled_from(sorted(files)),
        some.booleans(),
    )
    def documented_outcome(kind: str, hits: list[Any], other: str, repair: bool) -> None:
        content = files[kind]
        for damage in hits:
            content = damaged(content, damage, files[other])
        row = next(rows)
        paths[row].write_bytes(with_right_checksums(content) if repair else content)
        with failing_if_it_hangs(60):
            [(_, answer)] = workers.run("decode", [row])
        paths[row].unlink()
        assert not isinstance(answer, str) or not answer.startswith("its decoder crashed"), answer
        require_a_documented_outcome(answer)
        outcomes.append("skipped" if isinstance(answer, str) else "read")

    with decoder.workers({"decode": decoder.decode}) as workers:
        documented_outcome()
    assert list(tmp_path.rglob("*")) == [tmp_path / "photos"]
    assert capfd.readouterr() == ("", "")
    read, unread = outcomes.count("read"), outcomes.count("skipped")
    assert min(read, unread) > len(outcomes) / 10, "some of each"
    held(
        "photos damaged at random",
        len(outcomes),
        f"{read} read, {unread} skipped with a reason; no crash, no hang, nothing on stderr",
    )
