"""The colours of charts, pictures and pages.

Blue and orange are from Okabe and Ito's palette, which can be told apart with any colour vision.
"""

BLUE, ORANGE = "#0072b2", "#d55e00"
INK = "#22262b"  # text
SOFT = "#5b6470"  # text that matters less
GREY = "#8a929b"  # axes and grids
PALE = "#bfc5cc"  # bars and frames that are not highlighted

# The CSS variables of our pages, light and dark. Their orange has more contrast, because it is also
# a colour of text there.
PAGE = {
    "ink": (INK, "#e6e8eb"),
    "soft": (SOFT, "#a3abb5"),
    "line": ("#d9dde2", "#3a4048"),
    "page": ("#ffffff", "#16191d"),
    "card": ("#f5f6f8", "#20242a"),
    "blue": (BLUE, "#56b4e9"),
    "orange": ("#b84a00", "#ff9a4d"),
}
