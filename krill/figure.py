"""Draws figures as PNG files, with fonts for Hangul and other East Asian letters: one function for every plot."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from krill.atomic import create_folder
from krill.signals import interruptible_import

log = logging.getLogger("krill")

FONT_FAMILIES = (
    "DejaVu Sans",
    *("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK HK"),
    *("Noto Sans KR", "NanumGothic", "Nanum Gothic", "NanumBarunGothic", "Pretendard", "UnDotum"),
    *("Source Han Sans KR", "Source Han Sans K", "Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic"),
    *("Noto Serif CJK KR", "Noto Serif CJK JP", "Noto Serif KR", "NanumMyeongjo", "Unifont"),
)
"""Fonts in order of preference, for each character; fonts that are not installed are skipped. matplotlib knows a
collection such as fonts-noto-cjk by its first font, JP, which has Hangul, too."""


@contextmanager
def drawn_figure(path: Path, columns: int, width: float, height: float) -> Iterator[list[Any]]:
    """Yields `columns` plots (matplotlib axes) side by side, and saves the figure to `path` at the end, atomically.

    `width`, `height`: in inches. Logs a warning that names what to install if no font has the letters of a label.
    """
    import warnings

    with interruptible_import():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

    with pyplot.rc_context({"font.family": _list_families()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # logged by _choose_fonts
        warnings.filterwarnings(
            "ignore", message="Creating legend"
        )  # when it took a second, as on a busy machine
        figure, axes = pyplot.subplots(1, columns, figsize=(width, height), dpi=120, squeeze=False)
        try:
            yield list(axes[0])
            figure.tight_layout()
            _choose_fonts(figure)
            _save_figure(figure, path)
        finally:
            pyplot.close(figure)


def _save_figure(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    create_folder(path.parent)
    try:
        figure.savefig(partial, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _list_families() -> list[str]:
    """Returns the installed families of FONT_FAMILIES."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in FONT_FAMILIES if name in installed]


def _choose_fonts(figure: Any) -> None:
    """Adds fonts that were installed after matplotlib listed them if a letter needs one; warns if none has it."""
    from matplotlib import pyplot
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    characters = {character for text in texts for character in text.get_text() if ord(character) > 0x7F}
    if not _find_missing(characters, pyplot.rcParams["font.family"]):
        return
    _add_new_fonts()
    families = pyplot.rcParams["font.family"] = _list_families()
    for text in texts:
        text.set_fontfamily(families)
    figure.tight_layout()
    if missing := _find_missing(characters, families):
        log.warning(
            "plot        no installed font has %s, so boxes are drawn; install fonts-noto-cjk or fonts-nanum "
            "(apt install fonts-nanum) or another font with these letters",
            "".join(missing[:4]),
        )


def _find_missing(characters: set[str], families: list[str]) -> list[str]:
    """Returns the `characters` that no font of these families has, in order."""
    from matplotlib import font_manager

    if not characters:
        return []
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in families]
    return sorted(
        character
        for character in characters
        if not any(font.get_char_index(ord(character)) for font in fonts)
    )


def _add_new_fonts() -> None:
    """Adds the fonts of the system that matplotlib's own list, which it never renews, does not have."""
    from matplotlib import font_manager

    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in sorted({*font_manager.findSystemFonts()} - known):
        with suppress(Exception):  # a damaged font
            font_manager.fontManager.addfont(path)
