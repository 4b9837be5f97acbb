"""Other attention than the network's own, to see whether it uses it: inverted, flattened, reversed, somebody else's.

`temporal_inverted` and `temporal_uniform` also change the level of Mt. Whether the network reads Mt frame by frame is
told by `temporal_mean`, which keeps each video's level, `temporal_reversed` and `temporal_other`, which keep a shape.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stabn.attention.automatic import segment_curve
from stabn.config import ConfigError
from stabn.data.manifest import Manifest
from stabn.data.segments import check_segment, load_segments
from stabn.data.slots import to_slots
from stabn.models.st_abn import invert
from stabn.stages import ATTENTION_MODES

UNIFORM = 0.5  # between what attention has inside and outside of an action
Curves = dict[str, np.ndarray]


class AttentionMode:
    """How the attention is changed on its way from the attention branch to the mechanism.

    Args:
        name: one of ATTENTION_MODES.

    Raises:
        ConfigError: no such mode.
    """

    def __init__(self, name: str) -> None:
        if name not in ATTENTION_MODES:
            raise ConfigError(f"attention = {name!r}: choose one of {', '.join(ATTENTION_MODES)}")
        self.name = name
        self._former: Tensor | None = None  # Mt of the last video of the batch before

    def options(self, known: Tensor | None) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the arguments of ST-ABN's forward for one batch.

        Args:
            known: (B, T) the true attention, NaN where it is not known; for temporal_segments.
        """
        if self.name == "as_is":
            return {}
        if self.name == "spatial_inverted":
            return {"spatial_transform": invert}
        return {"temporal_transform": lambda own: self.replace(own, known)}

    def replace(self, own: Tensor, known: Tensor | None = None) -> Tensor:
        """Return what takes the place of Mt, both (B, S); `known` is of frames, (B, T). For the temporal modes."""
        if self.name == "temporal_inverted":
            return invert(own)
        if self.name == "temporal_mean":
            return own.mean(1, keepdim=True).expand_as(own)
        if self.name == "temporal_reversed":
            return own.flip(1)
        if self.name == "temporal_uniform":
            return torch.full_like(own, UNIFORM)
        if self.name == "temporal_other":
            first = own[-1:] if self._former is None else self._former
            self._former = own[-1:].clone()
            return torch.cat([first, own[:-1]])
        assert known is not None, "temporal_segments needs the segments"
        known = to_slots(known, own.shape[1])
        return torch.where(torch.isnan(known), own, known.to(own))


def known_curves(manifest: Manifest, rows: np.ndarray, segments_uri: str) -> Curves:
    """Return the attention of known action segments, per source frame, by video id; videos without one are left out.

    Raises:
        SegmentsError: the file is no such file, or a segment lies outside its video.
    """
    segments = load_segments(segments_uri)
    curves = {}
    for row in rows:
        video = manifest.video(int(row))
        if video.video_id in segments:
            segment = segments[video.video_id]
            check_segment(segments_uri, video.video_id, segment, video.num_frames)
            curves[video.video_id] = segment_curve(video.num_frames, *segment).astype(np.float32)
    return curves
