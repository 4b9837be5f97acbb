"""Text as people have it: other scripts in figures, halves of characters, and templates of Argo in parameters."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stabn.attention import fonts
from stabn.attention.edit_document import parse_edit
from stabn.attention.render import Panel, attention_figure
from stabn.config import ConfigError, EditorConfig
from stabn.data.edit_table import EditError
from stabn.data.labels import LabelsError
from stabn.data.ssv2 import load_labels
from stabn.editor.auth import _proxy_name
from stabn.editor.finish import FinishError, check_finish
from stabn.forms import parse_form
from stabn.masking import _MaskedStream

CLASSES = ("Pushing something", "何かを押す", "推某物 é")


def test_a_class_that_no_font_can_draw_has_its_index_and_a_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    fonts._file_for.cache_clear()
    assert [fonts.class_name(CLASSES, index) for index in range(3)] == ["Pushing something", "class 1", "class 2"]
    assert fonts.legend(CLASSES, [2, 0, 1, 1]) == "class 1: 何かを押す; class 2: 推某物 é"
    assert fonts.can_draw("Толкать що-небудь é ✓") and fonts.legend(CLASSES, [0]) == ""


def test_an_installed_font_draws_what_dejavu_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with a font for Japanese: here DejaVu's own file stands for it, with the character in its table."""
    path = tmp_path / "cjk.ttf"
    path.write_bytes(Path(fonts._own(False)).read_bytes())
    known = fonts._characters(fonts._own(False))
    monkeypatch.setattr(fonts, "_installed", lambda: (str(tmp_path / "broken.ttf"), str(path)))
    monkeypatch.setattr(
        fonts, "_characters", lambda place: known | {ord(c) for c in "何かを押す"} if place == str(path) else known
    )
    fonts._file_for.cache_clear()
    assert fonts.class_name(CLASSES, 1) == CLASSES[1] and fonts.font(CLASSES[1], 12).path == str(path)
    assert fonts.class_name(CLASSES, 2) == "class 2" and fonts.font("abc", 12).path == fonts._own(False)
    panel = Panel(f"after: {CLASSES[1]}, 10%", True, np.linspace(0, 1, 8))
    picture = attention_figure(np.zeros((8, 40, 48, 3), np.uint8), [panel], heading=f"Video 1: {CLASSES[1]}")
    assert Image.open(io.BytesIO(picture)).width >= 640
    fonts._file_for.cache_clear()


def test_what_no_font_has_alone_is_drawn_with_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noto Sans CJK has the mark of a right prediction, and not that of a wrong one."""
    here, cjk = fonts._own(False), fonts._own(True)  # the second stands for a font for Japanese
    known = fonts._characters(here)
    monkeypatch.setattr(fonts, "_installed", lambda: (cjk,))
    monkeypatch.setattr(fonts, "_characters", lambda place: frozenset(map(ord, CLASSES[1])) if place == cjk else known)
    fonts._file_for.cache_clear()
    pieces = [(piece, drawn.path) for piece, drawn in fonts.runs(f"✗ {CLASSES[1]}, 1%", 12)]
    assert pieces == [("✗ ", here), (CLASSES[1], cjk), (", 1%", here)]
    assert fonts.can_draw(f"✗ {CLASSES[1]}") and [piece for piece, _ in fonts.runs("✗ a", 12)] == ["✗ a"]
    fonts._file_for.cache_clear()


def test_japanese_chinese_and_korean_are_drawn_in_the_weight_that_is_asked_for() -> None:
    """With the fonts of this machine: each character has a picture of its own, and not the box of a missing one."""
    names = ("何かを押す", "推某物", "물건을 밀기")
    fonts._file_for.cache_clear()
    if not all(map(fonts.can_draw, names)):
        pytest.skip("no font with these characters, such as fonts-noto-cjk")
    for name in names:
        regular, bold = fonts.font(name, 24), fonts.font(name, 24, bold=True)
        missing = bytes(regular.getmask("\U0010fffd"))
        drawn = {bytes(regular.getmask(character)) for character in {*name} - {" "}}
        assert len(drawn) == len({*name} - {" "}) and missing not in drawn
        assert "bold" not in Path(str(regular.path)).name.lower()
        assert np.asarray(bold.getmask(name)).sum() >= np.asarray(regular.getmask(name)).sum()


PLACES = {"data_round_uri": "s3://data/r", "data_storage_uri": "s3://data"}


def test_halves_of_characters_are_refused_where_they_come_in(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="half a character"):
        parse_edit(b'{"note": "a\\ud800"}', "line 1")
    (tmp_path / "labels.json").write_text(json.dumps({"Pushing \ud83d": "0"}))
    with pytest.raises(LabelsError, match="half a character"):
        load_labels(str(tmp_path))
    with pytest.raises(ConfigError, match="half a character"):
        parse_form("finetune", {**PLACES, "model_name": "\udcff"})


def test_a_terminal_without_the_characters_ends_no_work() -> None:
    raw = io.BytesIO()
    stream = _MaskedStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    print("押 \udcff", file=stream)
    assert raw.getvalue() == b"\\u62bc \\udcff\n" and sys.getdefaultencoding() == "utf-8"


@pytest.mark.parametrize("text", ["{{workflow.name}}", "a {{$.outputs}}"])
def test_what_argo_would_fill_in_is_refused_at_submission(text: str) -> None:
    with pytest.raises(ConfigError, match=r"data_storage_uri = .*Argo and KFP fill in"):
        parse_form("finetune", {**PLACES, "data_storage_uri": text})
    with pytest.raises(FinishError, match="Argo"):
        check_finish(EditorConfig(kfp_host="http://h", kfp_parameters=f"data_storage_uri={text}"), "s3://a/rounds/1")


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("Aoi@Example.org", "aoi@example.org"),
        ("Zoë@example.org".encode().decode("latin-1"), "zoë@example.org"),
        ("Zoe\u0308@example.org".encode().decode("latin-1"), "zoë@example.org"),
        ("海斗".encode().decode("latin-1"), "海斗"),
        ("Zo\xeb", "zoë"),
    ],
)
def test_a_proxys_user_is_one_person_in_any_spelling(sent: str, name: str) -> None:
    assert _proxy_name(sent) == name
