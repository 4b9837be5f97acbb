"""What files say about their pictures and times, in full: both engines, frame by frame against ffmpeg's command line.

The pictures are noise, so that each frame is told from any other and few of them make a file that FFmpeg cannot read
in one piece (32 kB).
"""

import functools
import io
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from stabn.data.video import DECODERS, decode, open_video, probe
from stabn.data.video_structure import VideoError

WIDTH, HEIGHT, COUNT, FPS = 96, 64, 24, 12
PIECE = 32 << 10  # bytes that FFmpeg reads at once
H264 = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p"


def ffmpeg(*arguments: object) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-nostdin", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


@functools.cache
def coders() -> set[str]:
    """Return the names of the codecs that this ffmpeg can encode."""
    return {line.split()[1] for line in ffmpeg("-encoders").decode().splitlines() if line.startswith(" V")}


def encoded(folder: Path, name: str, options: str, source: list[object]) -> Path:
    """Encode a source as a file, or skip the test where this ffmpeg cannot."""
    words = options.split()
    coder = words[words.index("-c:v") + 1]
    if coder != "copy" and coder not in coders():
        pytest.skip(f"this ffmpeg has no encoder {coder}")
    ffmpeg(*source, *words, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    return make_noise(tmp_path_factory.mktemp("noise"), WIDTH, HEIGHT)


def make_noise(folder: Path, width: int, height: int, count: int = COUNT) -> list[object]:
    rng = np.random.default_rng(0)
    chroma = np.full(((width + 1) // 2) * ((height + 1) // 2) * 2, 128, np.uint8)
    frames = [np.concatenate([rng.integers(30, 220, width * height, np.uint8), chroma]) for _ in range(count)]
    path = folder / f"{width}x{height}.yuv"
    np.concatenate(frames).tofile(path)
    return ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-r", FPS, "-i", path]


@pytest.fixture(scope="module")
def flat(noise: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plain MP4, to be repacked without encoding it again."""
    return encoded(tmp_path_factory.mktemp("flat"), "flat.mp4", H264, noise)


def shown(path: Path, width: int, height: int) -> np.ndarray:
    """Return what ffmpeg's command line shows, turned, mirrored and cropped by itself, with square pixels."""
    square = f"scale={width}:{height}:flags=bilinear,setsar=1"
    data = ffmpeg(
        *("-threads", 1, "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", square),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-"),
    )
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


def check(path: Path, width: int = WIDTH, height: int = HEIGHT, count: int = COUNT, close: float = 1.0) -> None:
    """Compare both engines with ffmpeg's command line, frame by frame; `close`: mean difference allowed."""
    expected = shown(path, width, height)
    assert len(expected) == count
    assert probe(path)[:2] == (width, height)
    for decoder in DECODERS:
        found = list(decode(path, decoder))
        assert [frame.shape for frame in found] == [(height, width, 3)] * count, decoder
        for number, (frame, image) in enumerate(zip(found, expected, strict=True)):
            assert np.abs(frame.astype(int) - image).mean() < close, f"{decoder}, frame {number}"


B_FRAMES = "-c:v libx264 -preset fast -bf 3 -pix_fmt yuv420p"
FILES = {
    "moov-last.mp4": B_FRAMES,
    "moov-first.mp4": f"{B_FRAMES} -movflags +faststart",
    "fragments.mp4": f"{B_FRAMES} -movflags frag_keyframe+empty_moov -g 10",
    "h264.mkv": B_FRAMES,
    "h264.flv": B_FRAMES,
    "vp8.webm": "-c:v libvpx -deadline realtime -b:v 3M -auto-alt-ref 1 -lag-in-frames 10",
    "vp9-alpha.webm": "-vf format=yuva420p -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 3M",
    "mpeg4-b.avi": "-c:v mpeg4 -bf 2 -q:v 3",
    "xvid.avi": "-c:v libxvid -bf 2 -q:v 3",
    "mpeg2-fields.ts": "-vf setfield=tff -c:v mpeg2video -bf 2 -q:v 3 -r 25 -flags +ildct+ilme",
    "theora.ogv": "-c:v libtheora -q:v 9",
    "422-10-bit.mov": "-c:v prores_ks -pix_fmt yuv422p10le",
    "bt709.mp4": f"-vf scale=out_color_matrix=bt709 -colorspace bt709 {H264}",
    "rgb.avi": "-c:v rawvideo -pix_fmt bgr24",
    "repeated-pictures.avi": "-vf setpts=(N+floor(N/4)*3)/TB/12 -fps_mode passthrough -c:v mpeg4 -q:v 3",
}


@pytest.mark.parametrize("name", FILES)
def test_both_engines_give_the_frames_of_any_file(noise: list[object], tmp_path: Path, name: str) -> None:
    path = encoded(tmp_path, name, FILES[name], noise)
    assert path.stat().st_size > PIECE
    count = 50 if "-r 25" in FILES[name] else COUNT
    check(path, count=count, close=3.0 if "10-bit" in name or name in ("rgb.avi", "bt709.mp4") else 1.0)


def test_odd_sizes(tmp_path: Path) -> None:
    source = make_noise(tmp_path, 97, 65)
    check(encoded(tmp_path, "odd.mkv", "-c:v ffv1", source), 97, 65)
    check(encoded(tmp_path, "odd.webm", FILES["vp8.webm"], source), 97, 65)


def test_a_stream_is_read_whoever_else_moves_it(flat: Path) -> None:
    expected = list(decode(flat))
    assert flat.stat().st_size > PIECE and len(expected) == COUNT
    for decoder in DECODERS:
        with flat.open("rb") as file:
            for number, frame in enumerate(decode(file, decoder)):
                assert np.array_equal(frame, expected[number])
                file.seek((7919 * number) % PIECE)
            assert number == COUNT - 1
        assert np.array_equal(list(decode(io.BytesIO(flat.read_bytes()), decoder)), expected)


def test_a_stream_s_name_is_no_path(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = encoded(tmp_path, "other.mp4", H264, make_noise(tmp_path, 32, 32, 3))
    monkeypatch.chdir(tmp_path)
    with flat.open("rb") as raw, open(raw.fileno(), "rb", closefd=False) as file:
        other.rename(tmp_path / str(file.name))  # a number
        assert len(list(decode(file, "ffmpeg"))) == COUNT


def test_packed_b_frames(noise: list[object], tmp_path: Path) -> None:
    """DivX's old way: two pictures in one packet, and a placeholder in the next."""
    path = encoded(tmp_path, "plain.avi", "-c:v mpeg4 -bf 1 -q:v 3", noise)
    picture = b"\x00\x00\x01\xb6"

    def kind(packet: bytes) -> int:
        return packet[packet.find(picture) + 4] >> 6

    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        start = packets[0].find(b"\x00\x00\x01\xb2")
        end = packets[0].find(b"\x00\x00\x01", start + 4)
        packets[0] = packets[0][:start] + b"\x00\x00\x01\xb2DivX503b1393p" + packets[0][end:]
        packed: list[bytes] = []
        while packets:
            packet = packets.pop(0)
            if packets and kind(packets[0]) == 2:
                packed += [packet + packets.pop(0), picture + b"\x40\x00\x00"]
            else:
                packed.append(packet)
        with av.open(str(tmp_path / "packed.avi"), "w") as output:
            stream = output.add_stream_from_template(container.streams.video[0])
            for number, data in enumerate(packed):
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, FPS), kind(data) == 0
                packet.pts = packet.dts = number
                output.mux(packet)
    check(tmp_path / "packed.avi")


@pytest.mark.parametrize("first", ["sound", "cover"])
def test_the_video_is_found_behind_sound_and_cover(flat: Path, tmp_path: Path, first: str) -> None:
    ffmpeg("-f", "lavfi", "-i", "color=red:s=300x300", "-frames:v", 1, tmp_path / "cover.jpg")
    path = tmp_path / "video.mp4"
    if first == "sound":
        ffmpeg("-f", "lavfi", "-i", "sine=d=2", "-i", flat, "-c:v", "copy", "-map", 0, "-map", 1, path)
    else:
        pictures = ("-i", tmp_path / "cover.jpg", "-i", flat)
        ffmpeg(*pictures, "-map", 0, "-map", 1, "-c", "copy", "-disposition:v:0", "attached_pic", path)
    assert all(np.array_equal(list(decode(path, decoder)), list(decode(flat, decoder))) for decoder in DECODERS)


def test_a_song_with_a_cover_is_no_video(tmp_path: Path) -> None:
    sources = ("-f", "lavfi", "-i", "sine=d=1", "-f", "lavfi", "-i", "color=red:s=64x64:d=0.04")
    ffmpeg(*sources, "-c:v", "mjpeg", "-disposition:v:0", "attached_pic", tmp_path / "song.mp4")
    for decoder in DECODERS:
        with pytest.raises(VideoError, match="no video in the file, only audio"):
            next(decode(tmp_path / "song.mp4", decoder))


@pytest.mark.parametrize("name", ["moov-first.mp4", "fragments.mp4", "mpeg4-b.avi", "h264.mkv"])
def test_one_byte_too_few_is_noticed(noise: list[object], tmp_path: Path, name: str) -> None:
    path = encoded(tmp_path, name, FILES[name], noise)
    data = path.read_bytes()
    missing = 1 if name == "h264.mkv" or name.endswith(".avi") else len(data) // 20
    path.write_bytes(data[:-missing])
    for decoder in DECODERS:
        with pytest.raises(VideoError, match="truncated") as error:
            next(decode(path, decoder))
        assert error.value.kind == "truncated"


# How pictures are shown


TURNS = {
    "90": "-display_rotation 90",
    "180": "-display_rotation 180",
    "270": "-display_rotation 270",
    "30": "-display_rotation 30",
    "-45": "-display_rotation -45",
    "mirror": "-display_hflip",
    "upside down": "-display_vflip",
    "mirror 90": "-display_rotation 90 -display_hflip",
    "upside down 90": "-display_rotation 90 -display_vflip",
    "mirror 270": "-display_rotation 270 -display_hflip",
    "both": "-display_hflip -display_vflip",
}


@pytest.mark.parametrize("turn", TURNS)
def test_pictures_are_turned_and_mirrored(flat: Path, tmp_path: Path, turn: str) -> None:
    ffmpeg(*TURNS[turn].split(), "-i", flat, "-c", "copy", tmp_path / "turned.mp4")
    size = (HEIGHT, WIDTH) if "90" in turn or "270" in turn else (WIDTH, HEIGHT)
    check(tmp_path / "turned.mp4", *size)


def test_turned_by_the_codec_itself(flat: Path, tmp_path: Path) -> None:
    ffmpeg("-i", flat, "-c", "copy", "-bsf:v", "h264_metadata=rotate=90", tmp_path / "turned.ts")
    check(tmp_path / "turned.ts", WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["wide.mp4", "wide.mkv", "wide.ts", "wide.avi", "wide.webm", "narrow.mp4"])
def test_pixels_become_square(noise: list[object], tmp_path: Path, name: str) -> None:
    aspect = "1/2" if name.startswith("narrow") else "4/3"
    codec = {".avi": FILES["mpeg4-b.avi"], ".webm": FILES["vp8.webm"]}.get(Path(name).suffix, H264)
    path = encoded(tmp_path, name, f"-vf setsar={aspect} {codec}", noise)
    width = 48 if aspect == "1/2" else 128
    check(path, width, HEIGHT, close=3.0)
    if name == "wide.mp4":
        ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", tmp_path / "turned.mp4")
        check(tmp_path / "turned.mp4", HEIGHT * 3 // 4, WIDTH, close=3.0)


def test_the_container_s_pixels_go_before_the_codec_s(noise: list[object], tmp_path: Path) -> None:
    path = encoded(tmp_path, "codec.mp4", f"-vf setsar=4/3 {H264}", noise)
    ffmpeg("-i", path, "-c", "copy", "-aspect", "3", tmp_path / "both.mkv")
    check(tmp_path / "both.mkv", 3 * HEIGHT, HEIGHT, close=3.0)


def test_the_codec_crops(flat: Path, tmp_path: Path) -> None:
    edges = "crop_left=4:crop_right=6:crop_top=2:crop_bottom=8"
    ffmpeg("-i", flat, "-c", "copy", "-bsf:v", f"h264_metadata={edges}", tmp_path / "cropped.mp4")
    check(tmp_path / "cropped.mp4", WIDTH - 10, HEIGHT - 10)


@pytest.mark.parametrize("edges", [(4, 6, 8, 10), (3, 6, 7, 10)])
def test_matroska_crops(flat: Path, tmp_path: Path, edges: tuple[int, int, int, int]) -> None:
    """PixelCrop in a track's header, whose sizes grow with it."""
    ffmpeg("-i", flat, "-c", "copy", tmp_path / "whole.mkv")
    data = bytearray((tmp_path / "whole.mkv").read_bytes())
    added = b"".join(
        kind.to_bytes(2) + b"\x81" + bytes([n]) for kind, n in zip((0x54BB, 0x54AA, 0x54CC, 0x54DD), edges)
    )

    def element(position: int) -> tuple[bytes, int, int, int]:
        width = 9 - data[position].bit_length()
        place = position + width
        size_width = 9 - data[place].bit_length()
        size = int.from_bytes(data[place : place + size_width]) & ((1 << 7 * size_width) - 1)
        return bytes(data[position:place]), place, place + size_width, size

    _, _, start, size = element(0)
    position, places = start + size, []
    for wanted in (b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"):
        while (found := element(position))[0] != wanted:
            position = found[2] + found[3]
        places.append(found)
        position = found[2]
    _, _, start, size = places[-1]
    data[start + size : start + size] = added
    for _, place, start, size in places:
        width = start - place
        data[place:start] = ((size + len(added)) | (1 << 7 * width)).to_bytes(width)
    (tmp_path / "cropped.mkv").write_bytes(data)
    top, bottom, left, right = edges
    check(tmp_path / "cropped.mkv", (WIDTH - left - right) // 2 * 2, (HEIGHT - top - bottom) // 2 * 2)


@pytest.mark.parametrize("aperture", [(80, 50, 0, 0), (80, 50, 3, -2), (81, 51, 0, 0)])
def test_quicktime_s_clean_aperture_crops(flat: Path, tmp_path: Path, aperture: tuple[int, int, int, int]) -> None:
    data = bytearray(flat.read_bytes())
    box = struct.pack(">I4s8i", 40, b"clap", *(number for pair in zip(aperture, (1, 1, 1, 1)) for number in pair))
    entry = data.find(b"avc1", data.find(b"stsd")) - 4
    end = entry + int.from_bytes(data[entry : entry + 4])
    data[end:end] = box
    for place in [entry, *(data.find(kind) - 4 for kind in (b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"))]:
        data[place : place + 4] = (int.from_bytes(data[place : place + 4]) + len(box)).to_bytes(4)
    (tmp_path / "cropped.mp4").write_bytes(data)
    check(tmp_path / "cropped.mp4", aperture[0] // 2 * 2, aperture[1] // 2 * 2)


def test_a_picture_of_another_shape_in_mid_stream_is_fitted_in(tmp_path: Path) -> None:
    sizes = ((96, 64), (64, 96), (48, 32))
    parts = [encoded(tmp_path, f"{size[0]}.ts", H264, make_noise(tmp_path, *size)) for size in sizes]
    path = tmp_path / "changing.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    by_pyav, by_ffmpeg = (list(decode(path, decoder)) for decoder in DECODERS)
    assert len(by_pyav) == len(by_ffmpeg) == 3 * COUNT
    for a, b in zip(by_pyav, by_ffmpeg, strict=True):
        assert a.shape == b.shape == (64, 96, 3) and np.abs(a.astype(int) - b).max() <= 2
    upright, smaller = by_pyav[COUNT], by_pyav[2 * COUNT]
    assert upright[:, :24].max() <= 1 and upright[:, -24:].max() <= 1 and upright[:, 30:66].mean() > 60
    assert smaller[:, :24].mean() > 60 and smaller[-8:].mean() > 60


def test_a_picture_that_square_pixels_make_too_large_is_refused(noise: list[object], tmp_path: Path) -> None:
    path = encoded(tmp_path, "wide.mp4", f"-vf setsar=60/1 {H264}", noise)
    with pytest.raises(VideoError, match="5760 x 64 pixels, more than 100,000"), open_video(path, 100_000):
        pass


# When pictures are shown


def test_frames_outside_the_edit_list_are_not_shown(flat: Path, noise: list[object], tmp_path: Path) -> None:
    path = encoded(tmp_path, "groups.mp4", f"{B_FRAMES} -g 12", noise)
    ffmpeg("-ss", 1.25, "-i", path, "-c", "copy", tmp_path / "skip.mp4")
    check(tmp_path / "skip.mp4", count=9)
    assert np.array_equal(list(decode(tmp_path / "skip.mp4")), list(decode(path))[15:])
    ffmpeg("-f", "lavfi", "-i", "sine=d=3", "-itsoffset", 1, "-i", path, "-c:v", "copy", tmp_path / "dwell.mp4")
    check(tmp_path / "dwell.mp4")


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv", "same.webm", "last.mkv"])
def test_every_frame_is_given_once_whatever_its_time(noise: list[object], tmp_path: Path, name: str) -> None:
    times = {"variable": "N*N/4", "same": "floor(N/2)", "last": f"N+if(eq(N,{COUNT - 1}),99,0)"}[Path(name).stem]
    codec = "-c:v libvpx -b:v 3M -deadline realtime" if name.endswith("webm") else "-c:v mpeg4 -q:v 3"
    options = f"-vf setpts='({times})/TB/12' -fps_mode passthrough {codec}"
    path = encoded(tmp_path, name, options, [*noise[:-2], "-r", 600, *noise[-2:]])
    check(path)


@pytest.mark.parametrize("offset", [0, 100, -100])
def test_a_transport_stream_that_begins_anew(flat: Path, tmp_path: Path, offset: int) -> None:
    ffmpeg("-i", flat, "-c", "copy", tmp_path / "a.ts")
    ffmpeg("-itsoffset", abs(offset), "-i", flat, "-c", "copy", tmp_path / "b.ts")
    parts = [(tmp_path / name).read_bytes() for name in ("a.ts", "b.ts")]
    (tmp_path / "both.ts").write_bytes(b"".join(parts if offset >= 0 else reversed(parts)))
    check(tmp_path / "both.ts", count=2 * COUNT)
    assert probe(tmp_path / "both.ts").fps == pytest.approx(FPS, rel=0.01)


def test_a_recording_that_begins_in_mid_stream(noise: list[object], tmp_path: Path) -> None:
    data = encoded(tmp_path, "whole.ts", f"{B_FRAMES} -g 8", noise).read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[len(data) // 6 // 188 * 188 :])
    count = len(shown(tmp_path / "cut.ts", WIDTH, HEIGHT))
    assert 8 <= count < COUNT
    check(tmp_path / "cut.ts", count=count)
