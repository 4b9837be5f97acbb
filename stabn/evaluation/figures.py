"""Figures of single videos before and after fine-tuning, as the report shows them (paper, figure 4)."""

from collections.abc import Callable, Mapping

import numpy as np

from stabn.attention.export import attend, panel
from stabn.attention.fonts import class_name, legend
from stabn.attention.render import attention_figure
from stabn.data.dataset import read_frames
from stabn.data.manifest import Manifest
from stabn.evaluation.examples import VideoFigure
from stabn.training.checkpoint import load_model
from stabn.training.device import choose_device, prepare


def make_figure_maker(
    manifest_uri: str,
    before_uri: str,
    after_uri: str,
    edits: Mapping[str, np.ndarray],
    names: tuple[str, str] = ("before", "after"),
) -> Callable[[str], VideoFigure]:
    """Return a function that runs both networks on a video of the manifest and draws what they attend to.

    Args:
        manifest_uri: the videos.
        before_uri: the network before fine-tuning.
        after_uri: the network after.
        edits: edited curves by video id, drawn beside the networks' own.
        names: what the networks are called in the figures.
    """
    manifest = Manifest.load(manifest_uri)
    device = choose_device("auto")
    networks = {}
    for name, uri in zip(names, (before_uri, after_uri), strict=True):
        model, checkpoint = load_model(uri)
        networks[name] = (prepare(model, device), checkpoint.data_config)

    def make(video_id: str) -> VideoFigure:
        index = manifest.index_of(video_id)
        class_index = manifest.video(index).class_index
        frames = read_frames(manifest, index)
        attentions = {name: attend(model, frames, data) for name, (model, data) in networks.items()}
        picture = attention_figure(
            frames,
            [panel(name, attention, manifest.classes, class_index) for name, attention in attentions.items()],
            heading=f"Video {video_id}: {class_name(manifest.classes, class_index)}",
            edited=edits.get(video_id),
        )
        shown = [class_index, *(attention.top(manifest.classes, 1)[0][0] for attention in attentions.values())]
        caption = "Temporal attention over each frame, spatial attention below it"
        if words := legend(manifest.classes, shown):
            caption = f"{caption}; {words}"
        return VideoFigure(pictures=[(caption, picture)])

    return make
