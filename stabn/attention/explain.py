"""What a network sees in one video, for a person at the command line."""

import re
from pathlib import Path

from stabn.attention.export import attend, panel
from stabn.attention.fonts import class_name, legend
from stabn.attention.render import attention_figure
from stabn.config import ConfigError, DataConfig
from stabn.data.dataset import read_frames
from stabn.data.extraction import encode_jpeg
from stabn.data.manifest import Manifest
from stabn.data.packed_frames import JpegFile, PackedFrames
from stabn.data.video import open_video
from stabn.storage import write_uri
from stabn.training.checkpoint import check_classes, load_model, require_attention
from stabn.training.device import choose_device, prepare

QUALITY = 95  # of a video file's frames while they are looked at


def frames_of_file(path: str, data: DataConfig) -> PackedFrames:
    """Return the frames of a video file in the size that a network looks at."""
    short_side = round(data.crop_size / data.evaluation_scale)
    with open_video(path) as opened:  # one frame at a time: minutes of video would not fit uncompressed
        jpegs = JpegFile(encode_jpeg(frame, QUALITY) for frame in opened.planes(short_side=short_side))
    return PackedFrames(jpegs, path)


def explain(video: str, checkpoint_uri: str, manifest_uri: str = "", output_path: str = "") -> str:
    """Print a video's prediction and write a figure of its attention.

    Args:
        video: a video file; or with a manifest the id of one of its videos, whose true class is then known.
        checkpoint_uri: an ST-ABN.
        manifest_uri: manifest that the id is in.
        output_path: PNG to write; by default named after the video, in the working folder.

    Returns:
        Where the figure is.

    Raises:
        ConfigError: the file does not exist and no manifest was given.
        CheckpointError: the network has no attention.
    """
    model, checkpoint = load_model(checkpoint_uri)
    require_attention(checkpoint, checkpoint_uri, " to show")
    data, class_index = checkpoint.data_config, -1
    if manifest_uri:
        manifest = Manifest.load(manifest_uri)
        check_classes(checkpoint, manifest.classes, manifest_uri)
        index = manifest.index_of(video)
        class_index = manifest.video(index).class_index
        frames = read_frames(manifest, index)
    elif Path(video).is_file():
        frames = frames_of_file(video, data)
    else:
        raise ConfigError(f"{video}: no such file; give a video file, or with --manifest the id of one of its videos")
    attention = attend(prepare(model, choose_device("auto")), frames, data)
    for _, name, score in attention.top(checkpoint.classes):
        print(f"{score:6.1%}  {name}")
    true = f": {class_name(checkpoint.classes, class_index)}" if class_index >= 0 else ""
    if class_index >= 0:
        print(f"  true  {checkpoint.classes[class_index]}")
    output = output_path or f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(video).stem)}.attention.png"
    figure = attention_figure(
        frames, [panel("prediction", attention, checkpoint.classes, class_index)], heading=f"{Path(video).name}{true}"
    )
    write_uri(output, figure)
    named = [index for index, *_ in attention.top(checkpoint.classes, 1)] + [class_index] * (class_index >= 0)
    if words := legend(checkpoint.classes, named):
        print(f"no font here has the characters of a class; in the figure {words}")
    print(f"figure: {output}")
    return output
