"""Many more spoilt files than the tests try, video containers among them; STABN_DRILL_SIZE multiplies their number."""

from pathlib import Path

import pytest
from hostile import SIZE, spoilt_bytes, try_many
from test_hostile import CASES
from test_video_files import HOLDS, QUICK, make

from stabn.config import ExtractConfig
from stabn.data.extraction import pack_frames
from stabn.data.video import DECODERS

CONTAINERS = {"mp4": "h264", "mov": "mjpeg", "avi": "mpeg4", "mkv": "vp9", "webm": "vp8", "ts": "h264"}


@pytest.mark.parametrize("name", CASES)
def test_a_spoilt_file_is_read_or_refused(name: str, tmp_path: Path, manifest_path: str) -> None:
    spoilt, read = CASES[name](tmp_path, manifest_path=manifest_path)
    try_many(spoilt, read, int(200 * SIZE), refuses=name != "state")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_spoilt_video_is_decoded_or_refused(container: str, decoder: str, tmp_path: Path) -> None:
    """The whole way of extraction in this process: a decoder that crashed would end the drill."""
    assert CONTAINERS[container] in HOLDS[container]
    good = make(tmp_path / f"1.{container}", QUICK[CONTAINERS[container]]).read_bytes()
    config = ExtractConfig(short_side=32, decoder=decoder, max_pixels=1 << 22)

    def read(data: bytes) -> None:
        packed, row = pack_frames(data, config, "1")
        assert sum(row["frame_sizes"]) == len(packed) and row["num_frames"] <= config.max_frames

    try_many(spoilt_bytes(good[: 1 << 16]) | spoilt_bytes(good), read, int(30 * SIZE))
