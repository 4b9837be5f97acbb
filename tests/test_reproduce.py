"""docs/reproduce.md: its commands are commands, and its rows are presets and the paper's numbers."""

import re
import shlex
from pathlib import Path

import pytest

from stabn.cli import build_parser
from stabn.evaluation import tables
from stabn.presets import PRESETS

PAGE = (Path(__file__).parent.parent / "docs" / "reproduce.md").read_text()
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
ROWS = re.findall(r"^\| `(\w+)` \| (ST-ABN, )?3D ResNet-(\d+) \| (\S+) \| ([\d.]+) \| ([\d.]+) \|", PAGE, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "stabn"
    build_parser().parse_args(words[1:])


def test_every_row_of_table_1_is_a_preset_and_every_preset_a_row() -> None:
    assert sorted(name for name, *_ in ROWS) == sorted(name for name in PRESETS if re.search(r"_r\d+_32", name))
    for name, attention, depth, frames, *_ in ROWS:
        config = PRESETS[name]
        assert config.model.has_attention == bool(attention) and f"_r{depth}_" in name
        assert config.data.num_frames == 32 and config.data.num_clips == (2 if frames == "32x2" else 1)


def test_the_papers_numbers_are_those_of_the_report() -> None:
    source = Path(tables.__file__).read_text()
    for *_, top1, top5 in ROWS:
        assert top1 in source and top5 in source, (top1, top5)
