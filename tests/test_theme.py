"""Colours that a projector and most eyes can tell from the paper: WCAG 2.2, level AA."""

import re
from importlib.resources import files

import pytest

from mi_utils import claims, theme

PAGE = (files("mi_utils") / "static" / "page.css").read_text(encoding="utf8")
PAPER = "#FFFFFF"


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other=PAPER):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_hand():
    assert contrast("#000000") == pytest.approx(21)
    assert contrast("#777777") == pytest.approx(4.48, abs=0.01)


def of_page(name):
    colour = re.search(rf"--{name}: (#\w+|\w+)", PAGE)[1]
    return f"#{''.join(2 * digit for digit in colour[1:])}" if len(colour) == 4 else colour


def test_text_is_legible():
    texts = [*claims.COLOURS.values(), *map(of_page, ("ink", "soft", "link")), theme.INK]
    for colour in texts:
        assert contrast(colour) >= 4.5, colour
    for name in ("ink", "soft", "link"):
        assert contrast(of_page(name), of_page("code")) >= 4.5, name


def test_a_pale_colour_never_stands_alone():
    """Okabe and Ito's orange and sky blue are pale; darker, they would be vermilion and blue to the colour-blind."""
    for role, colour in theme.COLOURS.items():
        assert contrast(colour) >= 3 or role in theme.DASHES, role
