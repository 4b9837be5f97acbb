"""Files as cameras, phones and converters write them: both engines, frame by frame, against what a player shows."""

import io
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from stabn.data.video import DECODERS, decode, probe, scaled_size
from stabn.data.video_structure import VideoError

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
# Noise, so that few small frames make a file of more than 32 kB, which is as much as FFmpeg reads at once.
NOISE = "nullsrc=size=96x64:rate=12:duration=1,geq=lum='random(1)*255':cb=128:cr=128,gblur=sigma=0.6"
PICTURE = "testsrc2=size=96x64:rate=12:duration=1"
QUICK = {
    "h264": "-c:v libx264 -preset ultrafast -crf 8 -bf 2",
    "hevc": "-c:v libx265 -preset ultrafast -crf 8 -x265-params log-level=none:pools=1:frame-threads=1",
    "vp8": "-c:v libvpx -deadline realtime -cpu-used 8 -b:v 8M",
    "vp9": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 8M",
    "av1": "-c:v libsvtav1 -preset 12 -crf 10 -svtav1-params lp=1",
    "mjpeg": "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p",
    "mpeg4": "-c:v mpeg4 -q:v 2 -bf 2",
}
HOLDS = {
    "mp4": ("h264", "hevc", "vp9", "av1", "mjpeg", "mpeg4"),
    "mov": ("h264", "hevc", "mjpeg", "mpeg4"),
    "avi": ("h264", "mjpeg", "mpeg4"),
    "mkv": tuple(QUICK),
    "webm": ("vp8", "vp9", "av1"),
    "ts": ("h264", "hevc"),
}


def ffmpeg(*arguments: object) -> bytes:
    command = [FFMPEG, "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def make(path: Path, how: str, source: str = PICTURE, *before: object) -> Path:
    """Make a file of a picture source; `how` are ffmpeg's options for it."""
    pixels = () if "-pix_fmt" in how else ("-pix_fmt", "yuv420p")
    ffmpeg(*before, "-f", "lavfi", "-i", source, *how.split(), *pixels, path)
    return path


def shown(path: Path) -> np.ndarray:
    """Return what a player shows, float (N, H, W) luma: upright, pixels square, no frame twice."""
    filters = "scale=w='max(1,floor(iw*sar+0.5))':h=ih:flags=bilinear:out_color_matrix=bt601:out_range=pc,setsar=1"
    command = [FFMPEG, "-nostdin", "-loglevel", "error", "-i", path, "-vf", filters, "-fps_mode", "passthrough"]
    data = subprocess.run(
        [*map(str, command), "-f", "image2pipe", "-c:v", "pgm", "-pix_fmt", "gray", "-"],
        check=True,
        capture_output=True,
    ).stdout
    frames, file = [], io.BytesIO(data)
    while file.readline().strip() == b"P5":
        width, height = map(int, file.readline().split())
        file.readline()
        frames.append(np.frombuffer(file.read(width * height), np.uint8).reshape(height, width))
    return np.array(frames, float)


def luma(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114])


def same(path: Path, tolerance: float = 2.0) -> np.ndarray:
    """Check both engines, by path and from memory, against what a player shows; return that."""
    expected = shown(path)
    assert len(expected)
    for decoder in DECODERS:
        for source in (path, io.BytesIO(path.read_bytes())):
            found = np.array(list(decode(source, decoder)), float)
            assert found.shape[:3] == expected.shape, decoder
            error = np.abs(luma(found) - expected)
            assert error.mean() < tolerance, (decoder, error.mean((1, 2)))
    return expected


@pytest.mark.parametrize(("container", "codec"), [(box, codec) for box, codecs in HOLDS.items() for codec in codecs])
def test_files_of_every_container_and_codec_are_read_whole(tmp_path: Path, container: str, codec: str) -> None:
    path = make(tmp_path / f"video.{container}", QUICK[codec], NOISE)
    assert path.stat().st_size > 33_000, "as much as FFmpeg reads at once would hide a reader that is moved"
    assert len(same(path)) == 12


@pytest.mark.parametrize(
    "how",
    [
        "-movflags +faststart",
        "-movflags +frag_keyframe+empty_moov -g 4",
        "-x264-params open-gop=1:keyint=4:bframes=2",
        "-vf crop=95:63 -pix_fmt yuv444p",
        "-pix_fmt yuv420p10le",
        "-pix_fmt gray",
        "-pix_fmt yuvj420p -color_range pc",
    ],
)
def test_the_ways_of_one_container(tmp_path: Path, how: str) -> None:
    assert len(same(make(tmp_path / "video.mp4", f"{QUICK['h264']} {how}"))) == 12


def test_what_is_beside_the_video_stream(tmp_path: Path) -> None:
    """Sound first, and a cover picture that is larger than the video."""
    video = make(tmp_path / "video.mp4", QUICK["h264"])
    ffmpeg("-f", "lavfi", "-i", "color=red:size=200x200", "-frames:v", 1, tmp_path / "cover.png")
    ffmpeg(
        *("-i", tmp_path / "cover.png", "-f", "lavfi", "-i", "sine=duration=1", "-i", video),
        *("-map", "0:v", "-map", "1:a", "-map", "2:v", "-c:v:0", "copy", "-c:v:1", "copy", "-c:a", "aac"),
        *("-disposition:v:0", "attached_pic", tmp_path / "all.mp4"),
    )
    for decoder in DECODERS:
        assert [frame.shape for frame in decode(tmp_path / "all.mp4", decoder)] == [(64, 96, 3)] * 12


@pytest.mark.parametrize(
    ("flags", "shape"),
    [
        (("-display_rotation", 90), (96, 64)),
        (("-display_rotation", 180), (64, 96)),
        (("-display_rotation", 270), (96, 64)),
        (("-display_hflip",), (64, 96)),
        (("-display_vflip",), (64, 96)),
        (("-display_rotation", 90, "-display_hflip"), (96, 64)),
        (("-display_rotation", 270, "-display_vflip"), (96, 64)),
        (("-display_rotation", 30), (64, 96)),
    ],
)
def test_pictures_are_turned_and_mirrored(tmp_path: Path, flags: tuple[object, ...], shape: tuple[int, int]) -> None:
    make(tmp_path / "plain.mp4", QUICK["h264"])
    ffmpeg(*flags, "-i", tmp_path / "plain.mp4", "-c", "copy", tmp_path / "turned.mp4")
    expected = same(tmp_path / "turned.mp4", tolerance=4.0 if 30 in flags else 2.0)
    assert expected.shape[1:] == shape
    assert np.abs(expected - expected[:, ::-1, ::-1]).mean() > 20, "the picture would look the same either way"


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize(("aspect", "width"), [("4:3", 85), ("2:1", 128)])
def test_pixels_are_square(tmp_path: Path, container: str, aspect: str, width: int) -> None:
    path = make(tmp_path / f"video.{container}", f"{QUICK['h264']} -aspect {aspect}")
    assert same(path).shape == (12, 64, width)
    assert next(decode(path, short_side=32)).shape == (*scaled_size(width, 64, 32)[::-1], 3)


def test_a_turned_picture_has_square_pixels_too(tmp_path: Path) -> None:
    make(tmp_path / "plain.mp4", f"{QUICK['h264']} -aspect 2:1")
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "plain.mp4", "-c", "copy", tmp_path / "turned.mp4")
    first = {decoder: next(decode(tmp_path / "turned.mp4", decoder)) for decoder in DECODERS}
    assert (
        first["pyav"].shape == first["ffmpeg"].shape and np.abs(first["pyav"] - first["ffmpeg"].astype(int)).max() < 9
    )
    height, width = first["pyav"].shape[:2]
    assert height / width == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("cut", [("-ss", 0.5), ("-ss", 0.3, "-t", 0.4), ("-itsoffset", 0.7)])
def test_frames_outside_an_edit_list_are_not_shown(tmp_path: Path, cut: tuple[object, ...]) -> None:
    make(tmp_path / "plain.mp4", f"{QUICK['h264']} -g 12")
    ffmpeg(*cut, "-i", tmp_path / "plain.mp4", "-c", "copy", tmp_path / "cut.mp4")
    expected = same(tmp_path / "cut.mp4")
    assert (len(expected) < 12) is ("-ss" in cut)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_times_do_not_decide_which_frames_there_are(tmp_path: Path, container: str) -> None:
    """A variable rate, two frames of one time, and a last frame that stands for long."""
    rate = "setpts='if(lt(N,4),N,if(lt(N,8),N*3,N*3+(N-8)*7))/12/TB'"
    path = make(tmp_path / f"video.{container}", f"-vf {rate} -fps_mode passthrough {QUICK['h264']}")
    assert len(same(path)) == 12
    assert 0 < probe(path).fps < 12
    held = make(tmp_path / f"held.{container}", f"-vf tpad=stop_duration=0 -fps_mode passthrough {QUICK['h264']}")
    ffmpeg(
        *("-i", held, "-c", "copy", "-bsf:v", "setts=duration='if(eq(N,11),120/12/TB,DURATION)'"),
        tmp_path / f"long.{container}",
    )
    assert len(same(tmp_path / f"long.{container}")) >= 10, "what a player shows of it"


@pytest.mark.parametrize("container", ["mp4", "avi", "mkv"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, container: str) -> None:
    how = f"{QUICK['h264']} -movflags +faststart" if container == "mp4" else QUICK["h264"]
    data = make(tmp_path / f"whole.{container}", how, NOISE).read_bytes()
    (tmp_path / f"half.{container}").write_bytes(data[: len(data) // 2])
    for decoder in DECODERS:
        with pytest.raises(VideoError, match="truncated"):
            list(decode(tmp_path / f"half.{container}", decoder))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_codec_that_nobody_knows_is_refused(tmp_path: Path, decoder: str) -> None:
    path = make(tmp_path / "1.avi", QUICK["mpeg4"])
    data = path.read_bytes()
    assert data.count(b"FMP4") == 2
    path.write_bytes(data.replace(b"FMP4", b"QQQQ"))
    with pytest.raises(VideoError, match=r"1\.avi: its video is in a codec that FFmpeg does not know"):
        list(decode(path, decoder=decoder))


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_a_decoder_says_of_a_damaged_video_is_one_line(tmp_path: Path, decoder: str) -> None:
    path = make(tmp_path / "1.mkv", QUICK["vp9"])
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(range(256)) * (len(data) // 1536 + 1)
    path.write_bytes(data[: path.stat().st_size])
    with pytest.raises(VideoError) as refused:
        list(decode(path, decoder=decoder))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
