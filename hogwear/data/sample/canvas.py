"""Draw pictures like product photos: outlines, a canvas with a pose, colours, cloth and a camera.

Articles are drawn in coordinates from -1 to 1 (x right, y down); photograph() adds the background,
a shadow, light and grain.
"""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageColor, ImageDraw, ImageFilter

from hogwear.system.arrays import Float32Array

SIZE = 224
SHEET = 2 * SIZE  # drawn at twice the size and then reduced, because Pillow's edges are jagged

Colour = tuple[int, ...]
Point = tuple[float, float]
WHITE, BLACK, BRASS, LEATHER = (255, 255, 255), (24, 22, 28), (214, 178, 94), (142, 92, 56)
BLUES_AND_GREENS = "#263254 #486ea4 #8eb8d6 #247474 #7ea88c #60683c"
WARM_AND_VIOLET = "#e8b84c #de7a3e #c64840 #82263a #e2949c #7c5c96"
BROWN_TO_GREY = "#80583e #caac86 #ece2d0 #96989e #3a3a40"
HEX_COLOURS = f"{BLUES_AND_GREENS} {WARM_AND_VIOLET} {BROWN_TO_GREY}".split()
PALETTE: list[Colour] = [ImageColor.getrgb(colour) for colour in HEX_COLOURS]
Y, X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)  # (H, W) each


def mirror(*right: Point) -> list[Point]:
    """A symmetric outline from its right half, given from top to bottom."""
    return [*right, *((-x, y) for x, y in reversed(right) if x)]


def ellipse(x: float, y: float, rx: float, ry: float) -> Float32Array:
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False, dtype=np.float32)
    return np.stack((x + rx * np.cos(angle), y + ry * np.sin(angle)), axis=1)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def grow(outline: ArrayLike, factor: float) -> Float32Array:
    at = np.asarray(outline, np.float32)
    centre = at.mean(0)
    return np.asarray(centre + factor * (at - centre), np.float32)


def round_corners(outline: ArrayLike, roundness: float, *, closed: bool = True) -> Float32Array:
    """The outline with rounded corners (a quadratic B-spline): 0 keeps them sharp, 1 rounds all."""
    at = np.asarray(outline, np.float32)
    before, after = (at + roundness / 2 * (np.roll(at, step, axis=0) - at) for step in (1, -1))
    if not closed:
        before[0] = after[0] = at[0]
        before[-1] = after[-1] = at[-1]
    t = np.linspace(0, 1, 6, dtype=np.float32)[:, None]
    curve = (1 - t) ** 2 * before[:, None] + 2 * t * (1 - t) * at[:, None] + t**2 * after[:, None]
    return curve.reshape(-1, 2)[0 if closed else 5 : None if closed else -5]  # was (N, 6, 2)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b, the rest of a."""
    return tuple(round((1 - share) * x + share * y) for x, y in zip(a, b, strict=True))


class Canvas:
    """A transparent sheet, with the pose, the colours and the cloth of one article.

    Main and accent contrast. Trim and belt are the colours of smaller parts, dark is for insides,
    ink for outlines.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.pose = draw_random_pose(rng)
        self.main, *others = (PALETTE[i] for i in rng.permutation(len(PALETTE)))
        self.accent = next(c for c in others if abs(np.mean(c) - np.mean(self.main)) > 50)
        self.trim = self.main if self.maybe() else self.accent
        self.belt = LEATHER if self.maybe() else self.accent
        self.dark, self.ink = mix(self.main, BLACK, 0.4), mix(self.main, BLACK, 0.72)
        self.cloth = self.weave()
        # Ink, because the background shows through at the edges
        self.sheet = Image.new("RGBA", (SHEET, SHEET), (*self.ink, 0))
        self.pen = ImageDraw.Draw(self.sheet)

    def vary(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def maybe(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def weave(self) -> Image.Image:
        """A sheet of cloth: plain, or with a pattern in the article's coordinates."""
        cloth = Image.new("RGBA", (SIZE, SIZE), self.main)
        pattern = self.rng.choice(["plain", "plain", "plain", "down", "across", "checks", "dots"])
        if pattern != "plain":
            step, gap = self.vary(0.14, 0.26), self.vary(-0.4, 0.6)
            x, y, depth = (a * X + b * Y + c for a, b, c in np.linalg.inv(self.pose))
            u, v = (np.cos(2 * np.pi / step * along / depth) for along in (x, y))
            down, across, dots = (
                (2000 * step * (wave - gap)).clip(0, 255) for wave in (u, v, u + v - 0.7)
            )
            shares = {"down": down, "across": across, "checks": (down + across) / 2, "dots": dots}
            cloth.paste(self.accent, mask=Image.fromarray(shares[pattern].astype(np.uint8)))
        return cloth.resize((SHEET, SHEET), Image.Resampling.NEAREST)  # which photograph() undoes

    def to_pixels(self, outline: Float32Array) -> list[Point]:
        """The article's coordinates in pixels of the sheet."""
        x, y, depth = (a * outline[:, 0] + b * outline[:, 1] + c for a, b, c in self.pose)
        return list(map(tuple, (SIZE * np.stack((x / depth + 1, y / depth + 1), axis=1)).tolist()))

    def part(self, outline: ArrayLike, paint: Colour | None = None, roundness: float = 0.2) -> None:
        """A piece of cloth, or of one colour, with an outline in ink."""
        edge = self.to_pixels(round_corners(outline, roundness))
        if paint is None:
            mask = Image.new("1", self.sheet.size)
            ImageDraw.Draw(mask).polygon(edge, fill=1)
            self.sheet.paste(self.cloth, mask=mask)
        else:
            self.pen.polygon(edge, fill=paint)
        self.pen.line([*edge, *edge[:2]], fill=self.ink, width=3)

    def line(
        self, through: ArrayLike, colour: Colour, width: float = 0.013, roundness: float = 0.9
    ) -> None:
        way = self.to_pixels(round_corners(through, roundness, closed=False))
        self.pen.line(way, fill=colour, width=round(width * SIZE), joint="curve")

    def strap(self, through: ArrayLike, colour: Colour, width: float = 0.07) -> None:
        self.line(through, mix(colour, BLACK, 0.6), width + 0.025)
        self.line(through, colour, width)


def draw_random_pose(rng: np.random.Generator) -> Float32Array:
    """A homography: mirror, shear, turn by up to 20 degrees, scale, shift, and a slight tilt."""
    angle, scale = np.radians(rng.uniform(-20, 20)), rng.uniform(0.66, 0.86)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    (x, y), (tilt_x, tilt_y) = rng.uniform(-0.08, 0.08, (2, 2))
    flat = np.diag([rng.choice([-1, 1]), rng.uniform(0.92, 1.05), 1])
    flat[0, 1] = rng.uniform(-0.12, 0.12)
    return np.asarray([[cos, -sin, x], [sin, cos, y], [tilt_x, tilt_y, 1]] @ flat, np.float32)


def photograph(sheet: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put the article on a background, with a shadow, light, and the grain of a camera."""
    opaque = sheet.getchannel("A")
    silhouette = opaque.reduce(8).filter(ImageFilter.GaussianBlur(2.5))
    fallen = Image.new("L", silhouette.size)
    fallen.paste(silhouette, (int(rng.integers(-2, 3)), int(rng.integers(1, 4))))
    # Darker towards the edges, which makes things look round
    light = 0.74 + 0.34 / 255 * enlarge(silhouette)
    behind = make_background(rng) * (1 - rng.uniform(0.1, 0.45) / 255 * enlarge(fallen))
    reduced = np.asarray(sheet.convert("RGB").reduce(SHEET // SIZE))
    article = reduced.transpose(2, 0, 1).astype(np.float32, order="C")
    alpha = np.asarray(opaque.reduce(SHEET // SIZE), np.float32) / 255
    picture = behind + alpha * (light * article - behind)  # (3, H, W)
    picture += rng.uniform(0, 9) * (rng.random((SIZE, SIZE), np.float32) - 0.5)
    planes = picture.clip(0, 255).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def make_background(rng: np.random.Generator) -> Float32Array:
    """(3, H, W), 0 to 255: white, a tint, or two in a gradient, spotlight, rough wall or floor."""
    one, two = (
        mix(PALETTE[i], WHITE, rng.uniform(0.6, 0.9)) for i in rng.integers(len(PALETTE), size=2)
    )
    share = np.zeros_like(X)
    match rng.choice(["white", "tint", "gradient", "spotlight", "wall", "floor"]):
        case "white":
            one = WHITE
        case "gradient":
            share = 0.5 + 0.5 * (rng.uniform(-1, 1) * X + rng.uniform(-1, 1) * Y)
        case "spotlight":
            share = (X**2 + Y**2) / 2
        case "wall":
            share = 0.3 * enlarge(Image.fromarray(rng.random((28, 28), np.float32)))
        case "floor":
            share = ((Y - rng.uniform(0.2, 0.6)) * 40).clip(0, 1)
    near, far = (np.array(colour, np.float32)[:, None, None] for colour in (one, two))
    return np.asarray(near + share * (far - near), np.float32)


def enlarge(image: Image.Image) -> Float32Array:
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)
