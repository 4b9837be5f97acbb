"""The documents about the code say what the code is."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))


def test_the_picture_is_what_the_imports_give() -> None:
    from architecture import PICTURE, draw

    assert PICTURE.read_text() == draw(), "run python docs/architecture.py"


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/walkthrough.md"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`((?:stabn|components|pipelines|docs|tests)/[\w./-]*)`", text))
    assert len(named) > 10
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
