"""What would the network say with this attention? Only what a change of it reaches is computed again.

How a recognition is cut short, the network's `Perceiver` knows; what is kept of a video is in `CachedClips`.
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
MAX_DIFFERENCE = 0.005  # of a score, from float32, up to which bfloat16 is used: pages show whole percents


class CachedClips:
    """What of a video's recognition does not depend on its temporal attention, and that attention.

    Attributes:
        samples: int (num_clips, T), the source frames that the network sees.
        temporal: float32 (num_clips, S), the network's own attention.
        num_bytes: memory that it takes.
        dtype: that it is computed in.
    """

    def __init__(
        self,
        model: Any,
        perceivers: Sequence[Any],
        num_frames: int,
        read: Callable[[np.ndarray], np.ndarray],
        data: Any,
    ) -> None:
        """Run the network once.

        Args:
            model: an STABN in evaluation mode.
            perceivers: what it returned for float32, and for a quicker type if there is one.
            num_frames: source frames of the video.
            read: returns the frames of given indices, uint8 (count, H, W, 3).
            data: how clips are sampled and cropped, a DataConfig.
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
        video = to_input(clip[torch.from_numpy(places.reshape(self.samples.shape))], data, device)
        with torch.inference_mode():
            features = model.extract_features(video)
            _, spatial, temporal = model.attention_branch(features)
            self.temporal = temporal.flatten(1).cpu().numpy()
            parts = model.attend_parts(features, spatial)
            self._use(perceivers[0], parts, 0.0)
            for quick in perceivers[1:]:
                self._try(quick, parts)

    def _use(self, perceiver: Any, parts: Any, offset: Any) -> None:
        self._perceiver, self._kept, self._offset = perceiver, perceiver.keep(*parts), offset
        self.dtype, self.num_bytes = perceiver.dtype, self._kept.num_bytes

    def _try(self, quick: Any, parts: Any) -> None:
        """Use a quicker arithmetic if it says the same as float32.

        What it is off by hardly depends on the attention (weights are rounded likewise under each): so that is taken
        off, as measured under the clip's own. With a ResNet-50 a tenth of the error is left. Whether that is little
        enough is seen under an attention far from the own one.
        """
        exact, exact_kept = self._perceiver, self._kept
        own, other = self.temporal, 1 - self.temporal
        at_own, expected = self._logits(own), self.probabilities(other)
        self._use(quick, parts, 0.0)
        self._offset = at_own - self._logits(own)
        difference = float(np.abs(self.probabilities(other) - expected).max())
        if difference > MAX_DIFFERENCE:
            log.info("what-if: %s changes scores by %.1f%%; float32 is used", quick.dtype, 100 * difference)
            self._perceiver, self._kept, self._offset = exact, exact_kept, 0.0
            self.dtype, self.num_bytes = exact.dtype, exact_kept.num_bytes

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
        """Return float32 (K,) under a temporal attention, float32 (num_clips, S); one thread at a time."""
        return self._logits(temporal).mean(0).softmax(0).cpu().numpy()

    def _logits(self, temporal: np.ndarray) -> Any:
        import torch

        return self._perceiver.logits(self._kept, torch.from_numpy(temporal)) + self._offset


class WhatIf:
    """Recognise a round's videos under other temporal attention.

    One thread may `load` and `warm`, another `recognise`: who asks of a video whose clips are kept does not wait for
    those of another.

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
        self._making = threading.Lock()

    def load(self) -> None:
        """Load the round's network; without it the page goes on without this."""
        if self.state != "loading":
            return
        try:
            import torch

            from stabn.models import STABN
            from stabn.training.checkpoint import check_classes, load_model, require_attention
            from stabn.training.device import choose_device, choose_precision, prepare

            uri = self.round.storage.locate(CHECKPOINT_FILE)
            model, checkpoint = load_model(uri)
            check_classes(checkpoint, self.round.classes, uri)
            require_attention(checkpoint, uri, "")
            device = choose_device(self._device)
            assert isinstance(model, STABN)  # it has attention
            prepare(model, device).eval()
            self._model, self._data = model, checkpoint.data_config
            if THREADS_VARIABLE not in os.environ:
                torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # a core is left to serve the page
            self._perceivers = [model.perceiver(torch.float32)]
            if device.type == "cpu" and (quick := choose_precision("auto", device)) != torch.float32:
                self._perceivers.append(model.perceiver(quick))
            self.state = "ready"
        except ImportError:
            self.state, self.reason = "failed", "PyTorch is not installed on the server"
        except (StabnError, RuntimeError) as error:  # torch raises RuntimeError for a device that is not there
            self.state, self.reason = "failed", "the round's network could not be loaded"
            log.warning("what-if: %s; the page goes on without it", error)

    def is_warm(self, video_id: str) -> bool:
        """Tell whether `recognise` need not run the whole network."""
        return self._cache.get((self.round.uri, video_id)) is not None

    def warm(self, video_id: str) -> None:
        """Run the network once for a video, before its first edit is asked for."""
        if self.state == "ready":
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
        with self._making:
            if found := self._cache.get(key):
                return found[0]
            read = partial(self.frames.frames, video_id)
            clips = CachedClips(self._model, self._perceivers, self.frames.num_frames(video_id), read, self._data)
            self._cache.put(key, clips, clips.num_bytes)
        return clips
