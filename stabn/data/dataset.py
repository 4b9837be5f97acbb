"""Clips for the network, from packed JPEG frames in object storage."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from stabn.config import DataConfig
from stabn.data.cache import NodeCache, open_cache
from stabn.data.manifest import Manifest, ManifestError, ManifestVideo
from stabn.data.mjpeg import decode_jpeg
from stabn.data.packed_frames import PackedFrames
from stabn.data.presence import frames_gone
from stabn.data.sampling import evaluation_sample, training_sample
from stabn.data.ssv2 import flip_map
from stabn.data.transforms import Crop, color_matrix, crop_and_resize, evaluation_crops, random_crop
from stabn.storage import ObjectNotFound, Storage, open_storage


class FrameReader:
    """Read frames of a manifest's videos: one ranged GET per video for just the span that is needed.

    Args:
        manifest: the videos.
        cache_mb: memory of this process for whole objects, in MB; filled once, never emptied.
        cache: objects on the node's disk, shared with other processes; None: none.
    """

    def __init__(self, manifest: Manifest, cache_mb: int = 0, cache: NodeCache | None = None) -> None:
        self.manifest = manifest
        self.storage: Storage = open_storage(manifest.storage_uri)
        self._disk = cache
        self._memory: dict[int, bytes] = {}
        self._room = cache_mb * 2**20

    def jpegs(self, index: int, frame_indices: Sequence[int] | np.ndarray) -> dict[int, bytes]:
        """Return the JPEG bytes of the frames asked for, by frame index.

        Raises:
            ManifestError: a frame index outside the video.
            FramesGone: the video's object is not there any more.
        """
        video = self.manifest.video(index)
        wanted = sorted(set(np.ravel(frame_indices).tolist()))
        if not wanted or wanted[0] < 0 or wanted[-1] >= video.num_frames:
            raise ManifestError(f"video {video.video_id} has frames 0 to {video.num_frames - 1}; asked for {wanted}")
        ends = np.cumsum(video.frame_sizes, dtype=np.int64).tolist()
        starts = [0, *ends[:-1]]
        try:
            base, data = self._read(index, video, starts[wanted[0]], ends[wanted[-1]], ends[-1])
        except ObjectNotFound:
            raise frames_gone(self.storage, video) from None
        return {i: data[starts[i] - base : ends[i] - base] for i in wanted}

    def _read(self, index: int, video: ManifestVideo, start: int, end: int, size: int) -> tuple[int, bytes]:
        """Return at least the bytes from start to end of an object, and where they begin."""
        if index in self._memory:
            return 0, self._memory[index]
        if self._room >= size:
            self._memory[index] = data = self.storage.read_range(video.object_key, 0, size)
            self._room -= size
            return 0, data
        if self._disk is not None:
            key, version = video.object_key, video.source_sha256
            return start, self._disk.read_range(self.storage, key, size, version, start, end - start)
        return start, self.storage.read_range(video.object_key, start, end - start)

    def share_memory(self, processes: int) -> None:
        """Leave the memory for objects to several processes, of which this is one: each takes an equal part."""
        self._room //= processes

    def packed(self, index: int) -> PackedFrames:
        """Return all frames of a video, as they are stored and decoded when they are looked at."""
        video = self.manifest.video(index)
        jpegs = self.jpegs(index, np.arange(video.num_frames))
        return PackedFrames([jpegs[number] for number in range(video.num_frames)], video.video_id)


def read_frames(manifest: Manifest, index: int) -> PackedFrames:
    """Return all stored frames of one video."""
    return FrameReader(manifest).packed(index)


class View(NamedTuple):
    """One of the looks at a video whose probabilities an evaluation averages.

    Attributes:
        clip: number of the clip, from 0.
        num_clips: clips that lie evenly between each other in the video.
        crop: number of the square, from 0.
        num_crops: squares along the longer side.
    """

    clip: int = 0
    num_clips: int = 1
    crop: int = 0
    num_crops: int = 1

    @property
    def is_middle(self) -> bool:
        """Tell whether this is the look that a network without further ones has."""
        return 2 * self.clip + 1 == self.num_clips and 2 * self.crop + 1 == self.num_crops


MIDDLE = View()


def all_views(num_clips: int, num_crops: int) -> list[View]:
    """Return every clip's every square."""
    return [View(i, num_clips, j, num_crops) for i in range(num_clips) for j in range(num_crops)]


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
        view: View = MIDDLE,
    ) -> None:
        self.manifest = manifest
        self.view = view  # in evaluation
        self.indices = np.asarray(indices, dtype=np.int64)
        self.config = config
        self.train = train
        self.seed = seed
        self.epoch = 0
        self.edits = edits or {}
        self.reader = FrameReader(manifest, config.cache_mb, open_cache(config.cache_dir, config.cache_gb))
        self.flipped_class = flip_map(manifest.classes)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return self.item(position)

    def item(self, position: int, with_clips: bool = True) -> dict[str, torch.Tensor]:
        """Return an item; without clips nothing is read, and they are zeros."""
        config = self.config
        index = int(self.indices[position])
        video = self.manifest.video(index)
        rng = np.random.default_rng([self.seed, self.epoch, index]) if self.train else None
        if rng is None:
            view = self.view
            sample = evaluation_sample(video.num_frames, config.num_frames, config.num_clips * view.num_clips)
            sample = sample[view.clip :: view.num_clips]
            crop, flip = evaluation_crops(video.width, video.height, config, view.num_crops)[view.crop], False
        else:
            sample = training_sample(video.num_frames, config.num_frames, config.num_clips, rng)
            crop = random_crop(video.width, video.height, config, rng)
            flip = config.flip and bool(rng.random() < 0.5)
        clips = np.zeros((*sample.shape, config.crop_size, config.crop_size, 3), np.uint8)
        if with_clips:
            self._read(index, sample, crop, flip, clips)
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

    def _read(self, index: int, sample: np.ndarray, crop: Crop, flip: bool, clips: np.ndarray) -> None:
        """Write the sampled frames, cropped, into uint8 (num_clips, T, crop_size, crop_size, 3) `clips`."""
        video, size = self.manifest.video(index), self.config.crop_size
        first: dict[int, np.ndarray] = {}
        jpegs = self.reader.jpegs(index, sample)
        buffer = np.empty(video.height * video.width * 3, np.uint8)  # one for all frames: fresh memory is slow
        rows = -(-video.height * size // crop.side)  # of a frame in which the crop has just the size wanted
        min_height = rows if 2 * rows <= video.height else 0
        for frame_index, out in zip(sample.ravel().tolist(), clips.reshape(-1, size, size, 3), strict=True):
            if frame_index in first:
                out[...] = first[frame_index]
                continue
            frame = decode_jpeg(jpegs[frame_index], video.video_id, frame_index, min_height, buffer)
            crop_and_resize(frame, crop.scaled(frame.shape[0], frame.shape[1], video.height), out)
            if flip:
                cv2.flip(out, 1, dst=out)
            first[frame_index] = out
