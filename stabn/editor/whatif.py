"""What would the network say with this attention? Only what follows the feature extractor is run again.

Everything that knows how a recognition is cut short is in `CachedClips`.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from stabn.attention.rounds import CHECKPOINT_FILE, Round
from stabn.editor.cache import Cache
from stabn.editor.frames import FrameStore
from stabn.editor.http import ApiError
from stabn.errors import StabnError

log = logging.getLogger(__name__)

TOP = 5
THREADS_VARIABLE = "OMP_NUM_THREADS"  # what the operator sets counts
SAME = 1e-4  # a frame left this close to the network's own level keeps the network's value of the clip


class CachedClips:
    """What of a video's recognition does not depend on its temporal attention, and that attention.

    Attributes:
        samples: int (num_clips, T), the source frames that the network sees.
        temporal: float32 (num_clips, S), the network's own attention.
        num_bytes: memory that it takes.
    """

    def __init__(
        self, model: Any, num_frames: int, read: Callable[[np.ndarray], np.ndarray], data: Any, precision: Any
    ) -> None:
        """Run the network once.

        Args:
            model: an STABN in evaluation mode.
            num_frames: source frames of the video.
            read: returns the frames of given indices, uint8 (count, H, W, 3).
            data: how clips are sampled and cropped, a DataConfig.
            precision: the torch dtype to compute in.
        """
        import torch

        from stabn.data.sampling import evaluation_sample
        from stabn.data.transforms import crop_clip, evaluation_crop, to_input

        device = next(model.parameters()).device
        self.samples = evaluation_sample(num_frames, data.num_frames, data.num_clips)
        seen, places = np.unique(self.samples, return_inverse=True)
        frames = read(seen)
        crop = evaluation_crop(frames.shape[2], frames.shape[1], data)
        clip = torch.from_numpy(crop_clip(frames, crop, data.crop_size))
        self._model, self._autocast = model, (device.type, precision, precision != torch.float32)
        with torch.inference_mode(), self._arithmetic():
            features = model.extract_features(
                to_input(clip[torch.from_numpy(places.reshape(self.samples.shape))], data, device)
            )
            _, spatial, temporal = model.attention_branch(features)
            # Behind BatchNorm, so that half precision holds them: that is half the memory, and percentages do not move.
            self._constant, self._slope = (part.half() for part in model.attend_parts(features, spatial))
        self.temporal = temporal.float().flatten(1).cpu().numpy()
        self.num_bytes = sum(part.numel() * part.element_size() for part in (self._constant, self._slope))

    def with_curve(self, curve: np.ndarray, same: np.ndarray) -> np.ndarray:
        """Return float32 (num_clips, S), the temporal attention of the clips that a curve stands for.

        Args:
            curve: float32 (num_frames,) by source frame; NaN where nobody says.
            same: bool (num_frames,), where the curve is the network's own; there the clip's own value stands.
        """
        import torch

        from stabn.data.slots import to_frames, to_slots

        own = torch.from_numpy(self.temporal)
        frames = np.where(same[self.samples], to_frames(own, self.samples.shape[1]).numpy(), curve[self.samples])
        slots = to_slots(torch.from_numpy(frames), own.shape[1])
        return torch.where(torch.isnan(slots), own, slots).numpy()

    def probabilities(self, temporal: np.ndarray) -> np.ndarray:
        """Return float32 (K,) under a temporal attention, float32 (num_clips, S)."""
        import torch

        with torch.inference_mode(), self._arithmetic():
            attention = torch.from_numpy(temporal).to(self._slope.device)[:, None, :, None, None]
            attended = torch.addcmul(self._constant.float(), attention, self._slope.float())
            return self._model.classify(attended).float().mean(0).softmax(0).cpu().numpy()

    def _arithmetic(self) -> Any:
        import torch

        kind, dtype, enabled = self._autocast
        return torch.autocast(kind, dtype, enabled=enabled)


class WhatIf:
    """Recognise a round's videos under other temporal attention, one at a time.

    Attributes:
        state: `off`, `loading`, `ready` or `failed`.
        reason: why it is off or failed, for people.
    """

    def __init__(
        self, item: Round, frames: FrameStore, *, enabled: bool, device: str, cache: Cache[CachedClips]
    ) -> None:
        self.round, self.frames, self._device = item, frames, device
        self.state, self.reason = ("loading", "") if enabled else ("off", "switched off by editor.what_if")
        self._cache = cache
        self._busy = threading.Lock()

    def load(self) -> None:
        """Load the round's network; without it the page goes on without this."""
        if self.state != "loading":
            return
        try:
            import torch

            from stabn.training.checkpoint import check_classes, load_model, require_attention
            from stabn.training.device import choose_device, choose_precision, prepare

            uri = self.round.storage.locate(CHECKPOINT_FILE)
            model, checkpoint = load_model(uri)
            check_classes(checkpoint, self.round.classes, uri)
            require_attention(checkpoint, uri, "")
            device = choose_device(self._device)
            self._model, self._data = prepare(model, device).eval(), checkpoint.data_config
            self._precision = choose_precision("auto", device)
            if THREADS_VARIABLE not in os.environ:
                torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # a core is left to serve the page
            self.state = "ready"
        except ImportError:
            self.state, self.reason = "failed", "PyTorch is not installed on the server"
        except (StabnError, RuntimeError) as error:  # torch raises RuntimeError for a device that is not there
            self.state, self.reason = "failed", "the round's network could not be loaded"
            log.warning("what-if: %s; the page goes on without it", error)

    def warm(self, video_id: str) -> None:
        """Compute a video's features before they are asked for."""
        if self.state == "ready":
            with self._busy:
                self._clips(video_id)

    def recognise(self, video_id: str, curve: Sequence[float | None], own: Sequence[float]) -> dict[str, Any]:
        """Return what the network says of a video with this attention.

        Args:
            video_id: a video of the round.
            curve: a value per source frame; None, like a frame left at the network's own level, keeps its own.
            own: the network's own curve.

        Returns:
            `top`: class index and score of the best classes; `true`: score and rank (from 1) of the true class;
            `sampled`: the source frames that the network sees.

        Raises:
            ApiError: the network is not there.
        """
        if self.state != "ready":
            reason = self.reason or "the network is still being loaded"
            raise ApiError(503, "no_network", reason, state=self.state)
        with self._busy:
            clips = self._clips(video_id)
            mine = np.array([np.nan if value is None else value for value in curve], np.float32)
            same = np.abs(mine - np.array(own, np.float32)) < SAME
            probabilities = clips.probabilities(clips.with_curve(mine, same))
        order = np.argsort(-probabilities, kind="stable")
        truth = self.round.video(video_id).class_index
        return {
            "top": [{"class_index": int(i), "score": float(probabilities[i])} for i in order[:TOP]],
            "true": {"score": float(probabilities[truth]), "rank": int(np.flatnonzero(order == truth)[0]) + 1},
            "sampled": np.unique(clips.samples).tolist(),
        }

    def _clips(self, video_id: str) -> CachedClips:
        key = (self.round.uri, video_id)
        if found := self._cache.get(key):
            return found[0]
        read = partial(self.frames.frames, video_id)
        clips = CachedClips(self._model, self.frames.num_frames(video_id), read, self._data, self._precision)
        self._cache.put(key, clips, clips.num_bytes)
        return clips
