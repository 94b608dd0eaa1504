"""The articles of the built-in sample: a function for each kind, which draws on a Canvas."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from hogwear.data.sample.canvas import (
    BLACK,
    BRASS,
    WHITE,
    Canvas,
    ellipse,
    grow,
    mirror,
    mix,
    photograph,
    rectangle,
    round_corners,
)
from hogwear.system.arrays import Float32Array


def trousers(c: Canvas) -> None:
    legs(c, c.vary(0.8, 0.95), c.vary(0.24, 0.36))


def shorts(c: Canvas) -> None:
    legs(c, c.vary(0.1, 0.35), c.vary(0.36, 0.42))


def legs(c: Canvas, length: float, wide: float) -> None:
    """Trousers that reach down to y = `length` and are `wide` there."""
    waist, hip = c.vary(0.32, 0.38), c.vary(0.42, 0.48)
    out = hip + (length + 0.5) * c.vary(0, 0.1)
    leg = [(hip, -0.4), (out, length), (out - wide, length), (0.02, -0.12)]
    c.part(mirror((0, -0.8), (waist, -0.8), *leg), None, 0.12)
    for side in (1, -1):
        c.strap([(out * side, length), ((out - wide) * side, length)], c.trim, 0.05)
        c.line([(0.2 * side, -0.7), (0.22 * side, -0.48), ((hip - 0.02) * side, -0.46)], c.ink)
    c.line([(0, -0.7), (0, -0.12)], c.ink)
    c.line([(0.09, -0.7), (0.09, -0.3), (0, -0.25)], c.ink)
    waistband(c, waist)


def waistband(c: Canvas, waist: float) -> None:
    c.part(mirror((0, -0.84), (waist, -0.86), (waist + 0.02, -0.7), (0, -0.68)), c.trim)
    c.part(ellipse(0, -0.76, 0.035, 0.035), BRASS)


def skirt(c: Canvas) -> None:
    waist, hem, low = c.vary(0.28, 0.36), c.vary(0.5, 0.85), c.vary(0.2, 0.7)
    c.part(mirror((waist, -0.75), (hem, low), (hem / 2, low + 0.1)))
    for x in np.linspace(-0.75, 0.75, int(c.rng.integers(3, 7))).tolist():
        c.line([(x * waist, -0.7), (x * hem, low + 0.1 * (1 - x**2))], c.ink)
    waistband(c, waist)


def round_glasses(c: Canvas) -> None:
    size = c.vary(0.28, 0.34)
    glasses(c, ellipse(0.44, 0, size, size), -0.05)


def square_glasses(c: Canvas) -> None:
    y = c.vary(0.2, 0.28)
    lens = [(0.13, -y), (0.82, -y), (0.78, y), (0.18, y)]
    glasses(c, round_corners(lens, c.vary(0.25, 0.6)), -0.1)


def aviators(c: Canvas) -> None:
    low = c.vary(0.42, 0.56)
    tear = [(0.12, -0.22), (0.45, -0.28), (0.84, -0.24), (0.82, 0.2), (0.52, low), (0.2, 0.22)]
    glasses(c, round_corners(tear, 0.9), -0.22, -0.05)


def cat_eyes(c: Canvas) -> None:
    tip = c.vary(-0.46, -0.36)
    wing = [(0.12, -0.2), (0.5, -0.26), (0.98, tip), (0.84, 0.12), (0.5, 0.3), (0.16, 0.16)]
    glasses(c, round_corners(wing, 0.75), -0.1)


def glasses(c: Canvas, lens: Float32Array, *bridges: float) -> None:
    """Arms, bridges at these heights, and a rim around the right `lens` and its mirror image."""
    tint = c.accent if c.maybe() else BLACK
    opacity, rim = int(c.rng.integers(50, 230)), c.vary(1.12, 1.28)
    for y in bridges:
        c.strap([(-0.2, y + 0.05), (0, y - 0.06), (0.2, y + 0.05)], c.main, 0.05)
    for side in np.array([(1, 1), (-1, 1)], np.float32):
        c.strap(side * [(0.84, -0.1), (0.86, -0.34), (0.7, -0.6), (0.6, -0.58)], c.main, 0.045)
        c.part(grow(side * lens, rim), None, 0)
        c.part(side * lens, (*tint, opacity), 0)
        for x in (-0.06, 0.05):
            glint = np.array([(x - 0.05, 0.1), (x + 0.08, -0.12)]) + (side * lens).mean(0)
            c.line(glint, (*mix(tint, WHITE, 0.6), opacity), 0.03)


def sneaker(c: Canvas) -> None:
    top = c.vary(-0.6, -0.3)
    tongue = [(-0.3, top - 0.05), (-0.05, top - 0.12), (0.1, -0.1), (-0.2, 0.1)]
    c.part(tongue, c.accent, 0.3)
    ankle = [(-0.84, 0.4), (-0.84, top), (-0.6, top - 0.06), (-0.3, top + 0.05), (-0.1, top + 0.02)]
    c.part([*ankle, (0.15, -0.08), (0.6, 0.05), (0.92, 0.18), (0.9, 0.4)], None, 0.5)
    c.part([(0.55, 0.42), (0.52, 0.2), (0.66, 0.06), (0.9, 0.18), (0.9, 0.42)], c.trim, 0.5)
    c.part([(-0.84, 0.42), (-0.84, -0.1), (-0.58, 0), (-0.52, 0.42)], c.trim, 0.3)
    for t in np.linspace(0.1, 0.95, 4).tolist():
        x, y = -0.1 + 0.36 * t, top + 0.05 + (0.02 - top) * t
        c.strap([(x - 0.12, y + 0.1), (x + 0.05, y)], WHITE, 0.035)
    c.part([(-0.9, 0.32), (0.93, 0.32), (0.9, 0.5), (-0.86, 0.5)], WHITE, 0.5)
    c.line([(-0.86, 0.42), (0.9, 0.42)], c.accent, 0.025)


def boot(c: Canvas) -> None:
    top = c.vary(-0.9, -0.55)
    shaft, foot = [(-0.62, 0.5), (-0.6, top), (0.02, top)], [(0.35, 0.05), (0.82, 0.15)]
    c.part([*shaft, (0, -0.1), *foot, (0.86, 0.5)], None, 0.4)
    c.part(rectangle(-0.62, top - 0.03, 0.04, top + 0.13), c.trim)
    heel = [(-0.12, 0.58), (-0.16, 0.74), (-0.64, 0.74)]
    c.part([(-0.66, 0.46), (0.9, 0.46), (0.88, 0.58), *heel], c.ink)
    for y in np.linspace(top + 0.25, 0, 4).tolist():
        c.strap([(-0.22, y + 0.02), (0, y - 0.02)], c.accent, 0.03)


def heel(c: Canvas) -> None:
    y = c.vary(-0.4, -0.1)
    c.part([(-0.8, y), (-0.5, y + 0.1), (-0.62, 0.6), (-0.72, 0.6)], c.dark)
    back = [(-0.82, y - 0.32), (-0.66, y - 0.34), (-0.3, y + 0.18)]
    toe = [(0.15, 0.22), (0.36, 0.1), (0.94, 0.5)]
    sole = [(0.9, 0.6), (0.4, 0.6), (-0.05, 0.44), (-0.5, y + 0.2), (-0.8, y + 0.08)]
    c.part([*back, *toe, *sole], None, 0.6)
    c.line(sole, c.ink, 0.035)
    if c.maybe():
        bow = [(0.37, 0.17), (0.24, 0.06), (0.28, 0.26), (0.37, 0.17), (0.46, 0.08), (0.5, 0.28)]
        c.part(bow, c.accent, 0.3)


def sandals(c: Canvas) -> None:
    outside = [(0.62, -0.9), (0.74, -0.45), (0.62, 0.1), (0.66, 0.6), (0.5, 0.88)]
    sole = np.array([(0.3, -0.92), *outside, (0.26, 0.84), (0.2, 0.4), (0.12, -0.3)])
    strap = [(0.18, 0.02), (0.2, -0.35), (0.38, -0.56), (0.6, -0.35), (0.6, 0.06)]
    for side in np.array([(1, 1), (-1, 1)]):
        c.part(side * sole, c.ink, 0.9)
        c.part(side * grow(sole, 0.9), None, 0.9)
        c.strap(side * strap, c.accent)


def tote(c: Canvas) -> None:
    wide, low, reach = c.vary(0.5, 0.6), c.vary(0.52, 0.7), c.vary(-0.95, -0.7)
    rear = [(-0.26, -0.3), (-0.26, reach - 0.06), (0.26, reach - 0.06), (0.26, -0.3)]
    c.strap(rear, mix(c.belt, BLACK, 0.3), 0.06)
    c.part(mirror((0, -0.34), (wide - 0.02, -0.37), (wide, -0.2)), c.dark)
    c.part(mirror((0, -0.28), (wide, -0.3), (low, 0.8), (0, 0.82)), None, 0.1)
    c.strap([(-0.3, -0.1), (-0.3, reach), (0.3, reach), (0.3, -0.1)], c.belt, 0.06)
    c.strap([(-low, 0.78), (0, 0.8), (low, 0.78)], c.belt, 0.06)


def satchel(c: Canvas) -> None:
    low, flap = c.vary(0.6, 0.75), c.vary(0.05, 0.3)
    c.strap([(-0.25, -0.3), (-0.25, -0.72), (0.25, -0.72), (0.25, -0.3)], c.belt)
    c.part(mirror((0, -0.35), (0.7, -0.35), (0.76, low), (0, low)), None, 0.3)
    edge = [(0.78, flap - 0.1), (0.5, flap + 0.05), (0, flap + 0.1)]
    c.part(mirror((0, -0.42), (0.74, -0.42), *edge), None, 0.4)
    for x in (-0.4, 0.4):
        c.strap([(x, -0.38), (x, flap + 0.22)], c.belt, 0.09)
        c.part(rectangle(x - 0.09, flap, x + 0.09, flap + 0.14), BRASS)


def clutch(c: Canvas) -> None:
    high, tip = c.vary(0.42, 0.52), c.vary(0, 0.25)
    if c.maybe():
        c.strap([(0.8, -0.3), (1.1, 0.1), (0.95, 0.7), (0.75, 0.6), (0.8, -0.3)], c.belt, 0.05)
    c.part(mirror((0, -high), (0.9, -high), (0.9, high), (0, high)))
    c.part(mirror((0, -high - 0.03), (0.92, -high - 0.03), (0, tip)), c.trim, 0.12)
    c.part(ellipse(0, tip - 0.12, 0.07, 0.07), BRASS)


def hobo(c: Canvas) -> None:
    c.strap([(-0.62, -0.1), (-0.5, -0.9), (0.5, -0.9), (0.62, -0.1)], c.belt)
    body = mirror((0, -0.02), (0.4, -0.06), (0.72, -0.32), (0.92, 0.3), (0.5, 0.82), (0, 0.84))
    c.part(body, None, 0.7)
    c.strap([(-0.6, -0.12), (0, 0.14), (0.6, -0.12)], BRASS, 0.03)


def t_shirt(c: Canvas) -> None:
    neckline(c, top(c, c.vary(0.7, 0.78), c.vary(-0.2, -0.05)), c.vary(0.15, 0.3))
    if c.maybe():
        c.part(ellipse(0, -0.05, 0.2, 0.2), c.accent)


def pullover(c: Canvas) -> None:
    neckline(c, top(c, c.vary(0.62, 0.8), c.vary(0.35, 0.6)), 0.15)


def hoodie(c: Canvas) -> None:
    c.part(mirror((0, -1.02), (0.3, -0.95), (0.4, -0.6), (0, -0.5)), None, 0.8)
    top(c, c.vary(0.62, 0.8), c.vary(0.35, 0.6))
    c.part(mirror((0, -0.98), (0.26, -0.88), (0.27, -0.6), (0, -0.38)), None, 0.9)
    c.part(mirror((0, -0.9), (0.17, -0.8), (0.2, -0.6), (0, -0.46)), c.dark, 0.9)
    c.part(mirror((0, 0.25), (0.2, 0.25), (0.34, 0.62), (0, 0.62)))
    for x in (-0.1, 0.1):
        c.line([(x, -0.48), (1.2 * x, -0.3), (x, -0.1)], WHITE, 0.03)


def top(c: Canvas, x: float, y: float) -> float:
    """A body and two sleeves, the right cuff at (x, y). Returns half the width of the neck."""
    neck, hem = c.vary(0.17, 0.24), c.vary(0.42, 0.52)
    cuff = [(x + 0.12, y - 0.05), (x - 0.12, y + 0.06)]
    for side in np.array([(1, 1), (-1, 1)]):
        c.part(side * [(0.3, -0.7), (0.44, -0.6), *cuff, (0.4, -0.12)])
        c.strap(side * [(x + 0.11, y - 0.05), (x - 0.11, y + 0.06)], c.trim, 0.05)
    flank = [(0.46, -0.6), (0.42, -0.1), (hem, 0.8), (0, 0.83)]
    c.part(mirror((0, -0.72), (neck + 0.02, -0.74), *flank))
    c.line([(-hem, 0.73), (0, 0.76), (hem, 0.73)], c.ink)
    return neck


def neckline(c: Canvas, neck: float, depth: float) -> None:
    opening = mirror((0, -0.79), (neck, -0.78), (neck * 0.9, depth - 0.78), (0, depth - 0.7))
    c.part(grow(opening, 1.25), c.trim, 0.7)
    c.part(opening, c.dark, 0.7)


def tank_top(c: Canvas) -> None:
    neck, hem = c.vary(0.18, 0.25), c.vary(0.42, 0.55)
    c.part(mirror((0, -0.6), (neck, -0.84), (neck + 0.12, -0.84), (0.34, -0.4), (0, -0.2)), c.dark)
    strap = [(neck, -0.84), (neck + 0.14, -0.84), (0.3, -0.42), (0.45, -0.22)]
    c.part(mirror((0, -0.35), (neck - 0.04, -0.46), *strap, (hem, 0.8), (0, 0.84)), None, 0.35)
    c.line([(-hem, 0.72), (0, 0.76), (hem, 0.72)], c.trim, 0.04)


KINDS: dict[str, tuple[Callable[[Canvas], None], ...]] = {
    "bottomwear": (trousers, shorts, skirt),
    "eyewear": (round_glasses, square_glasses, aviators, cat_eyes),
    "footwear": (sneaker, boot, heel, sandals),
    "handbag": (tote, satchel, clutch, hobo),
    "topwear": (t_shirt, pullover, hoodie, tank_top),
}


def draw(class_name: str, index: int, rng: np.random.Generator) -> Image.Image:
    """One RGB picture. The kinds of a class take turns, so that every split has all of them."""
    canvas, kinds = Canvas(rng), KINDS[class_name]
    kinds[index % len(kinds)](canvas)
    return photograph(canvas.sheet, rng)
