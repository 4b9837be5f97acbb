"""Video files as users have them: both engines, every way a file can be broken, and what encode leaves behind."""

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import psutil
import pytest

from stabn.data.video import DECODERS, decode, probe, scaled_size
from stabn.data.video_encoding import encode
from stabn.data.video_structure import VideoError


def pictures(num_frames: int = 12, width: int = 427, height: int = 240) -> list[np.ndarray]:
    """Return a soft pattern that moves to the right, with the frame's number as brightness of the top left corner."""
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (height, width + 4 * num_frames, 3), dtype=np.uint8), (0, 0), 6)
    wide = cv2.convertScaleAbs(wide, alpha=4, beta=-380)
    frames = [np.ascontiguousarray(wide[:, 4 * (num_frames - i) :][:, :width]) for i in range(num_frames)]
    for number, frame in enumerate(frames):
        frame[:32, :32] = 20 * number
    return frames


@pytest.fixture(scope="module")
def webm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "1420.webm"
    encode(path, pictures(), 12)
    return path


def ffmpeg(*arguments: object) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *map(str, arguments)], check=True)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_decode_gives_what_was_encoded(tmp_path: Path, codec: str, decoder: str) -> None:
    frames = pictures(width=320)
    encode(tmp_path / "video", frames, 12, codec=codec, crf=15)
    decoded = list(decode(tmp_path / "video", decoder))
    assert len(decoded) == len(frames)
    for number, (frame, image) in enumerate(zip(decoded, frames)):
        assert frame.shape == image.shape and frame.dtype == np.uint8
        assert abs(float(frame[8:24, 8:24].mean()) - 20 * number) < 8
        assert np.abs(frame.astype(int) - image).mean() < 6


@pytest.mark.parametrize("short_side", [None, 80, 101, 500])
def test_both_engines_give_the_same_frames(webm: Path, short_side: int | None) -> None:
    by_pyav, by_ffmpeg = (list(decode(webm, decoder, short_side)) for decoder in DECODERS)
    assert len(by_pyav) == len(by_ffmpeg) == 12
    for a, b in zip(by_pyav, by_ffmpeg):
        assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 2


def test_short_side_scales_down_only() -> None:
    assert scaled_size(427, 240, 80) == (142, 80)
    assert scaled_size(240, 427, 80) == (80, 142)
    assert scaled_size(427, 240, 256) == scaled_size(427, 240, None) == (427, 240)


def test_odd_sizes_are_kept_by_vp9_and_cut_by_h264(tmp_path: Path, webm: Path) -> None:
    assert probe(webm) == (427, 240, pytest.approx(12.0, rel=1e-3))
    encode(tmp_path / "odd.mp4", pictures(3), 12, codec="h264")
    assert probe(tmp_path / "odd.mp4")[:2] == (426, 240)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_object_serves_like_a_path(webm: Path, decoder: str) -> None:
    expected = list(decode(webm, decoder))
    assert np.array_equal(list(decode(io.BytesIO(webm.read_bytes()), decoder)), expected)
    with webm.open("rb") as file:
        assert np.array_equal(list(decode(file, decoder)), expected)


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_both_engines_turn_a_phone_s_video_upright(tmp_path: Path, angle: int) -> None:
    encode(tmp_path / "flat.mp4", pictures(4, 320), 12, codec="h264")
    ffmpeg("-display_rotation", angle, "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
    flat = list(decode(tmp_path / "flat.mp4"))
    by_pyav, by_ffmpeg = (list(decode(tmp_path / "turned.mp4", decoder)) for decoder in DECODERS)
    upright = [np.rot90(frame, angle // 90) for frame in flat]
    assert np.abs(np.array(by_pyav, int) - np.array(upright)).max() <= 2  # colour is interpolated row by row
    assert np.abs(np.array(by_pyav, int) - np.array(by_ffmpeg)).max() <= 2


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_8_frame_and_a_1_frame_video(tmp_path: Path, decoder: str) -> None:
    for num_frames in (8, 1):
        encode(tmp_path / "short.webm", pictures(num_frames), 12)
        assert len(list(decode(tmp_path / "short.webm", decoder))) == num_frames


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_broken_file_is_an_error_before_its_first_frame(tmp_path: Path, webm: Path, decoder: str) -> None:
    whole = webm.read_bytes()
    quarter = len(whole) // 4
    hole = whole[:quarter] + bytes(len(whole) - 2 * quarter) + whole[-quarter:]
    for name, data, message in (
        ("empty", b"", "the file is empty"),
        ("header", whole[:100], "cut off within its header"),
        ("half", whole[: len(whole) // 2], f"truncated, .* of {len(whole):,} bytes"),
        ("last", whole[:-1], "truncated"),
        ("text", b"<html>404 not found</html>" * 40, "not a video"),
        ("hole", hole, "damaged"),
    ):
        path = tmp_path / f"{name}.webm"
        path.write_bytes(data)
        with pytest.raises(VideoError, match=message) as error:
            next(decode(path, decoder))
        assert str(path) in str(error.value) and "leave it out" in str(error.value)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_without_video_says_what_it_has(tmp_path: Path, decoder: str) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.webm")
    with pytest.raises(VideoError, match=r"sound\.webm: no video in the file, only audio"):
        next(decode(tmp_path / "sound.webm", decoder))


@pytest.mark.parametrize("decoder", DECODERS)
def test_names_and_contents_cannot_reach_other_files(tmp_path: Path, webm: Path, decoder: str) -> None:
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{webm}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile {webm}\n")
    for source in (tmp_path / "list.m3u8", tmp_path / "list.ffconcat"):
        with pytest.raises(VideoError, match="not a video"):
            next(decode(source, decoder))
    for name in (f"concat:{webm}", f"file:{webm}", "http://127.0.0.1:9/a.webm", str(tmp_path / "none.webm")):
        with pytest.raises(VideoError, match="no such file"):
            next(decode(name, decoder))
    with pytest.raises(VideoError, match="cannot be read"):
        next(decode(tmp_path, decoder))


def test_a_name_that_ffmpeg_would_misread_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-y.webm", "concat:a.webm", "50%d.webm"):
        encode(name, pictures(2), 12)
        assert (tmp_path / name).exists()
        for decoder in DECODERS:
            assert len(list(decode(name, decoder))) == 2


def test_stopping_early_leaves_no_process(webm: Path) -> None:
    before = set(psutil.Process().children())
    frames = decode(webm, "ffmpeg")
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert set(psutil.Process().children()) <= before


def test_encode_is_whole_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept.webm").write_bytes(b"before")

    def failing() -> Iterator[np.ndarray]:
        yield from pictures(3)
        raise RuntimeError("the camera was unplugged")

    def changing() -> Iterator[np.ndarray]:
        yield from pictures(3)
        yield pictures(1, width=100)[0]

    with pytest.raises(RuntimeError, match="unplugged"):
        encode(tmp_path / "kept.webm", failing(), 12)
    with pytest.raises(
        VideoError, match=r"kept.webm: frame 3 is uint8 \(240, 100, 3\); expected uint8 \(240, 427, 3\)"
    ):
        encode(tmp_path / "kept.webm", changing(), 12)
    with pytest.raises(VideoError, match="no frames"):
        encode(tmp_path / "kept.webm", [], 12)
    with pytest.raises(VideoError, match="choose one of vp9, h264"):
        encode(tmp_path / "kept.webm", pictures(1), 12, codec="av1")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.webm"]
    assert (tmp_path / "kept.webm").read_bytes() == b"before"


def test_ffmpeg_s_own_message_becomes_the_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="No such file or directory"):
        encode(tmp_path / "no" / "folder.webm", pictures(12) * 20, 12)


def test_the_same_frames_give_the_same_bytes(tmp_path: Path, webm: Path) -> None:
    encode(tmp_path / "again.webm", pictures(), 12)
    assert (tmp_path / "again.webm").read_bytes() == webm.read_bytes()


def test_unknown_decoder_is_named(webm: Path) -> None:
    with pytest.raises(VideoError, match="decoder 'opencv': choose one of pyav, ffmpeg"):
        next(decode(webm, "opencv"))
