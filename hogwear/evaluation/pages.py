"""What our HTML pages have in common: templates that escape what they show, and photos inline."""

import base64
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hogwear.evaluation import palette
from hogwear.system.text import plural, shorten

MAX_TEXT = 200  # characters of a name


def render(template: str, **values: Any) -> str:
    """The page that a template in this folder makes of the values; they are text, never markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=escape_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = format_percent
    environment.filters["photos"] = count_photos
    environment.filters["data_url"] = to_data_url
    return environment.get_template(template).render(palette=palette.PAGE, **values)


def escape_value(value: object) -> object:
    """Escape and shorten a value for the page. Markup is our own and stays as it is."""
    return value if isinstance(value, Markup) else shorten(str(value), MAX_TEXT)


def format_percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def count_photos(count: int) -> str:
    return plural(count, "photo")


def to_data_url(jpeg: bytes) -> Markup:
    """A photo as a data: URL."""
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}")
