"""Clips for the network, from packed JPEG frames in object storage."""

from collections.abc import Mapping, Sequence

import numpy as np
import simplejpeg
import torch
from torch.utils.data import Dataset

from stabn.config import DataConfig
from stabn.data.manifest import Manifest, ManifestError
from stabn.data.sampling import evaluation_sample, training_sample
from stabn.data.ssv2 import flip_map
from stabn.data.transforms import color_matrix, crop_and_resize, evaluation_crop, random_crop
from stabn.storage import Storage, open_storage


class FrameReader:
    """Read frames of a manifest's videos: one ranged GET per video for just the span that is needed."""

    def __init__(self, manifest: Manifest, cache_mb: int = 0) -> None:
        self.manifest = manifest
        self.storage: Storage = open_storage(manifest.storage_uri)
        self._cache: dict[int, bytes] = {}
        self._room = cache_mb * 2**20

    def jpegs(self, index: int, frame_indices: Sequence[int] | np.ndarray) -> dict[int, bytes]:
        """Return the JPEG bytes of the frames asked for, by frame index.

        Raises:
            ManifestError: a frame index outside the video.
        """
        video = self.manifest.video(index)
        wanted = np.unique(frame_indices)
        if len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= video.num_frames:
            raise ManifestError(f"video {video.video_id} has frames 0 to {video.num_frames - 1}; asked for {wanted}")
        ends = np.cumsum(video.frame_sizes, dtype=np.int64)
        starts = ends - video.frame_sizes
        if index in self._cache:
            base, data = 0, self._cache[index]
        elif self._room >= ends[-1]:
            base, data = 0, self.storage.read_range(video.object_key, 0, int(ends[-1]))
            self._cache[index] = data
            self._room -= len(data)
        else:
            base = int(starts[wanted[0]])
            data = self.storage.read_range(video.object_key, base, int(ends[wanted[-1]]) - base)
        return {int(i): data[starts[i] - base : ends[i] - base] for i in wanted}

    def frames(self, index: int, frame_indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return uint8 (n, H, W, 3) RGB frames, by default all of the video, in source order."""
        video = self.manifest.video(index)
        if frame_indices is None:
            frame_indices = np.arange(video.num_frames)
        jpegs = self.jpegs(index, frame_indices)
        decoded = {i: decode_jpeg(data, video.video_id, i) for i, data in jpegs.items()}
        return np.stack([decoded[int(i)] for i in frame_indices])


def decode_jpeg(data: bytes, video_id: str, frame_index: int) -> np.ndarray:
    """Decode one stored frame to uint8 (H, W, 3) RGB.

    Raises:
        ManifestError: the bytes are no JPEG: object and manifest do not belong together.
    """
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise ManifestError(
            f"video {video_id}, frame {frame_index}: not a JPEG ({error}); the object changed since the manifest "
            "was written, run extract-frames again"
        ) from None


def read_frames(manifest: Manifest, index: int, frame_indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Return stored frames of one video as uint8 (n, H, W, 3) RGB, by default all of them."""
    return FrameReader(manifest).frames(index, frame_indices)


class ClipDataset(Dataset):
    """Clips of some videos of a manifest.

    Augmentation is a function of (seed, epoch, row of the manifest) alone, so it does not depend on the number of
    workers or processes. An item is a dict:
        clips: uint8 (num_clips, T, crop_size, crop_size, 3)
        color: float32 (3, 4), see `transforms.color_matrix`
        target: int64 (), class after a possible flip; -1 in the test split
        index: int64 (), row of the manifest
        temporal_target: float32 (num_clips, T), the edited attention at the sampled frames; NaN where there is none
    """

    def __init__(
        self,
        manifest: Manifest,
        indices: Sequence[int] | np.ndarray,
        config: DataConfig,
        *,
        train: bool,
        seed: int = 0,
        edits: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.manifest = manifest
        self.indices = np.asarray(indices, dtype=np.int64)
        self.config = config
        self.train = train
        self.seed = seed
        self.epoch = 0
        self.edits = edits or {}
        self.reader = FrameReader(manifest, config.cache_mb)
        self.flipped_class = flip_map(manifest.classes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        config = self.config
        index = int(self.indices[position])
        video = self.manifest.video(index)
        rng = np.random.default_rng([self.seed, self.epoch, index]) if self.train else None
        if rng is None:
            sample = evaluation_sample(video.num_frames, config.num_frames, config.num_clips)
            crop, flip = evaluation_crop(video.width, video.height, config), False
        else:
            sample = training_sample(video.num_frames, config.num_frames, config.num_clips, rng)
            crop = random_crop(video.width, video.height, config, rng)
            flip = config.flip and bool(rng.random() < 0.5)
        size = config.crop_size
        clips = np.empty((*sample.shape, size, size, 3), np.uint8)
        first: dict[int, np.ndarray] = {}
        jpegs = self.reader.jpegs(index, sample)
        for position_in_clips, frame_index in np.ndenumerate(sample):
            out = clips[position_in_clips]
            if frame_index in first:
                out[...] = first[frame_index]
            else:
                crop_and_resize(decode_jpeg(jpegs[int(frame_index)], video.video_id, int(frame_index)), crop, out)
                first[frame_index] = out
        if flip:
            clips = np.ascontiguousarray(clips[:, :, :, ::-1])
        target = self.flipped_class[video.class_index] if flip and video.class_index >= 0 else video.class_index
        edit = self.edits.get(video.video_id)
        temporal = np.full(sample.shape, np.nan, np.float32) if edit is None else edit[sample].astype(np.float32)
        return {
            "clips": torch.from_numpy(clips),
            "color": torch.from_numpy(color_matrix(config, rng)),
            "target": torch.tensor(target),
            "index": torch.tensor(index),
            "temporal_target": torch.from_numpy(temporal),
        }
