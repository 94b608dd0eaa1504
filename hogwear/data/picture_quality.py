"""What makes a decoded photo a poor example: blurred, dark, of an odd shape, or almost empty.

The thresholds are measured on real photos: docs/decisions/picture-quality.md.
"""

import numpy as np
from PIL import Image, ImageChops

from hogwear.system.arrays import FloatArray, UInt8Array

# Near-empty: at least this share of the pixels is this close, of 255, to the median colour
PLAIN_SHARE, PLAIN_DISTANCE = 0.995, 8
# Dark: in this share of the pixels, the brightest channel is below this level, of 255
DARK_SHARE, DARK_LEVEL = 0.95, 80
ODD_RATIO = 3  # odd shape: the longer side is more than so many times the shorter one
# Blurred: this share of the edges is soft; no step from pixel to pixel is that share of the rise
BLURRED_SHARE, BLURRED_STEP = 0.75, 0.4
EDGE_WINDOW = 16  # pixels of a row or column in which an edge rises
MIN_RISE = 40  # of 255: less is noise or a shadow
MIN_EDGES = 50  # windows with an edge, to judge by


def is_plain(image: Image.Image) -> bool:
    """Whether an RGB image has almost only one colour."""
    colours = np.asarray(image, np.int16).reshape(-1, 3)
    is_near = (np.abs(colours - np.median(colours, axis=0)) <= PLAIN_DISTANCE).all(axis=1)
    return bool(is_near.mean() >= PLAIN_SHARE)


def is_dark(image: Image.Image) -> bool:
    """Whether hardly anything in an RGB image is bright in any channel: a deep blue is not dark."""
    red, green, blue = image.split()
    brightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return bool((np.asarray(brightest) < DARK_LEVEL).mean() > DARK_SHARE)


def is_odd_shape(sides: tuple[int, int]) -> bool:
    """Whether a photo with this shorter and longer side is a strip."""
    return sides[1] > ODD_RATIO * sides[0]


def is_blurred(image: Image.Image, longer_side: int) -> bool:
    """Whether an RGB image has edges, but hardly any sharp one.

    `longer_side` is that of the file: an image that was enlarged is judged in its own size.
    """
    if longer_side < (enlarged := max(image.size)):
        width, height = (max(1, side * longer_side // enlarged) for side in image.size)
        image = image.resize((width, height))
    steps = measure_steps(np.asarray(image.convert("L")))
    return len(steps) >= MIN_EDGES and bool((steps < BLURRED_STEP).mean() > BLURRED_SHARE)


def measure_steps(grey: UInt8Array) -> FloatArray:
    """(H, W) -> (n,): for all windows in which a row or column has an edge, how steep it is.

    That is the largest step from pixel to pixel, as a share of the whole rise: 1 for a perfect
    edge, 0.4 / sigma after a Gaussian blur of sigma pixels. Unlike the variance of the Laplacian,
    it does not depend on how much detail a photo shows.
    """
    found = []
    for lines in (grey, grey.T):
        if len(lines) > EDGE_WINDOW:
            brightest = slide(np.maximum, lines, EDGE_WINDOW)
            rise = brightest - slide(np.minimum, lines, EDGE_WINDOW)
            steps = np.maximum(lines[1:], lines[:-1]) - np.minimum(lines[1:], lines[:-1])
            largest = slide(np.maximum, steps, EDGE_WINDOW - 1)
            has_edge = rise >= MIN_RISE
            found.append(largest[has_edge] / rise[has_edge])
    return np.concatenate([np.empty(0), *found])


def slide(extreme: np.ufunc, values: UInt8Array, window: int) -> UInt8Array:
    """(n, m) -> (n - window + 1, m): the extreme of each window of rows."""
    covered = 1
    while covered < window:
        offset = min(covered, window - covered)
        values = extreme(values[:-offset], values[offset:])
        covered += offset
    return values
