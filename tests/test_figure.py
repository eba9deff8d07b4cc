"""Every plot draws Hangul where a font has it, and else names in one line what to install."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontManager

from krill.errors import REQUEUE, SignalInterrupt
from krill.figure import drawn_figure

LABEL = "서울 말뭉치"


def make_font(path: Path, family: str, letters: str) -> Path:
    """Writes a TrueType font that draws each of `letters` as a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    names = {ord(letter): f"letter{ord(letter)}" for letter in letters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys([".notdef", *names.values()], square))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> FontManager:
    """matplotlib's list of fonts, as on a machine that has only those of matplotlib."""
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [font for font in manager.ttflist if font.name == "DejaVu Sans"])
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    return manager


def draw(path: Path, label: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what matplotlib has to say is in krill's line
        with drawn_figure(path, columns=1, width=3, height=2) as [axes]:
            axes.bar([label], [1])
    return path.read_bytes()


def test_without_a_font_one_line_says_what_to_install(
    tmp_path: Path, fonts: FontManager, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "latin.png", "Seoul")
    assert not caplog.messages
    draw(tmp_path / "hangul.png", LABEL)
    [line] = caplog.messages
    assert "no installed font has" in line
    assert "apt install fonts-nanum" in line


def test_a_font_that_was_installed_since_is_used(
    tmp_path: Path, fonts: FontManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = draw(tmp_path / "boxes.png", LABEL)
    caplog.clear()
    font = make_font(tmp_path / "nanum.ttf", "NanumGothic", LABEL)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(font)])
    drawn = draw(tmp_path / "hangul.png", LABEL)
    assert drawn != boxes
    assert "NanumGothic" in {known.name for known in fonts.ttflist}
    assert draw(tmp_path / "again.png", LABEL) == drawn
    assert not caplog.messages


def test_a_plot_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(figure: Figure, path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", fill_disk)
    with pytest.raises(OSError, match="No space left"), drawn_figure(tmp_path / "a.png", 1, 2, 2):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_slow_legend_is_not_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught, drawn_figure(tmp_path / "loss.png", 1, 2.0, 2.0):
        warnings.warn('Creating legend with loc="best" can be slow with large amounts of data.', stacklevel=1)
    assert not caught


@pytest.mark.parametrize("interrupt", [SignalInterrupt("SIGTERM", REQUEUE), KeyboardInterrupt()])
def test_an_interrupt_during_the_import_of_matplotlib_is_not_an_error(
    interrupt: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_import(backend: str) -> None:
        raise ImportError("initialization failed") from interrupt

    monkeypatch.setattr("matplotlib.use", interrupt_import)
    with pytest.raises(type(interrupt)), drawn_figure(tmp_path / "loss.png", 1, 2, 2):
        pass
