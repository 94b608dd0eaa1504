"""The colours of charts, pictures and the report.

Blue and orange are from Okabe and Ito's palette, which can be told apart with any colour vision.
"""

BLUE, ORANGE = "#0072b2", "#d55e00"
CORRECT, INCORRECT = BLUE, ORANGE
INK = "#22262b"  # text
SOFT = "#5b6470"  # text that matters less
GREY = "#8a929b"  # axes and grids
PALE = "#bfc5cc"  # bars and frames that are not highlighted

# The CSS variables of the report. Orange is also a colour of text there, so it has more contrast.
LIGHT = {
    "ink": INK,
    "soft": SOFT,
    "line": "#d9dde2",
    "page": "#ffffff",
    "card": "#f5f6f8",
    "blue": BLUE,
    "orange": "#b84a00",
}
DARK = {
    "ink": "#e6e8eb",
    "soft": "#a3abb5",
    "line": "#3a4048",
    "page": "#16191d",
    "card": "#20242a",
    "blue": "#56b4e9",
    "orange": "#ff9a4d",
}
