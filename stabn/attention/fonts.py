"""Fonts of figures: DejaVu Sans, which Matplotlib ships, or what the machine has for characters that it lacks."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont


def font(text: str, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font of a size in pixels that has all characters of a text, DejaVu Sans if none has."""
    return _load(_file_for(frozenset(text), bold) or _own(bold), size)


def runs(text: str, size: int, bold: bool = False) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Return a text in pieces, each with a font that has its characters: one piece where one font has all."""
    if _file_for(frozenset(text), bold):
        return [(text, font(text, size, bold))]
    fonts = ((character, font(character, size, bold)) for character in text)
    return [("".join(item[0] for item in items), drawn) for drawn, items in groupby(fonts, key=lambda item: item[1])]


def can_draw(text: str) -> bool:
    """Tell whether the fonts of this machine have all characters of a text."""
    return all(_file_for(frozenset(character), False) for character in text)


def class_name(classes: Sequence[str], index: int) -> str:
    """Return a class as figures name it: by its index where no font has its characters."""
    return classes[index] if can_draw(classes[index]) else f"class {index}"


def legend(classes: Sequence[str], indices: Sequence[int]) -> str:
    """Return the names of those classes that figures name by index; empty: there are none."""
    return "; ".join(f"class {index}: {classes[index]}" for index in sorted({*indices}) if not can_draw(classes[index]))


def _own(bold: bool) -> str:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


@lru_cache(maxsize=1024)
def _file_for(characters: frozenset[str], bold: bool) -> str | None:
    wanted = {ord(character) for character in characters if not character.isspace()}
    installed = sorted(_installed(), key=lambda path: (bold != ("bold" in Path(path).name.lower()), path))
    return next((path for path in (_own(bold), *installed) if wanted <= _characters(path)), None)


@lru_cache
def _installed() -> tuple[str, ...]:
    return tuple(font_manager.findSystemFonts())


@lru_cache
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # a bitmap or broken font
        return frozenset()


@lru_cache
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
