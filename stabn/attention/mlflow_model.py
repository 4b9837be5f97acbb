"""ST-ABN as MLflow loads and serves it: videos or frames in, classes and both attentions out.

MLflow keeps this file with a registered version and runs it when the version is loaded ("models from code"), so that
nothing is unpickled. The weights stay where they are: the version's configuration names their place and fingerprint.
"""

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel

from stabn.attention.explain import frames_of_file
from stabn.attention.export import TOP, attend
from stabn.config import DataConfig
from stabn.data.packed_frames import Frames
from stabn.data.sampling import evaluation_sample
from stabn.data.transforms import crop_clip, evaluation_crop, to_input
from stabn.errors import StabnError
from stabn.storage import fetch
from stabn.training.checkpoint import load_model
from stabn.training.device import choose_device, forward_clips, prepare


class InputError(StabnError):
    """A row of the input holds no video that can be read."""


class AttentionModel(PythonModel):  # type: ignore[misc]
    """Recognise videos, and say what the network looked at."""

    def load_context(self, context: Any) -> None:
        """Read the network from the place that the configuration names.

        Raises:
            StabnError: it is not there, or another network is.
        """
        uri, fingerprint = context.model_config["checkpoint"], context.model_config.get("fingerprint", "")
        network, self.checkpoint = load_model(uri)
        if fingerprint and self.checkpoint.fingerprint != fingerprint:
            raise StabnError(
                f"{uri}: holds the network {self.checkpoint.fingerprint}, this version is {fingerprint}; say where its "
                "weights are: load_model(…, model_config={'checkpoint': URI})"
            )
        self.network = prepare(network, choose_device("auto"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Recognise the video of each row.

        Args:
            context: MLflow's, not used.
            model_input: a table with the column `video`, path or s3:// URI of a video file, or `frames`: uint8
                (num_source, H, W, 3) RGB, or a list of JPEG or PNG images, bytes or base64.
            params: `top`: how many classes are told.

        Returns:
            A row for each: `classes`, best first, their `scores` in [0, 1], `temporal_attention`, a number in [0, 1]
            per source frame, and `spatial_attention`, (num_source, h, w) in [0, 1]; empty for a network without.

        Raises:
            InputError: names the row and what to give.
        """
        table = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        top = int((params or {}).get("top", TOP))
        if "video" in table:  # MLflow takes {"video": ["a.webm", "b.webm"]} for one row
            table = table.explode("video")
        rows: Any = enumerate(table.to_dict("records"))
        return pd.DataFrame([self._recognise(self._frames(row, f"row {number}"), top) for number, row in rows])

    def _frames(self, row: dict[str, Any], where: str) -> Frames:
        """Return the frames of a row: of the video file that it names, or those that it holds."""
        video, frames = row.get("video"), row.get("frames")
        if isinstance(video, str) and video:
            return _frames_at(video, self.checkpoint.data_config, where)
        if isinstance(frames, list | tuple | np.ndarray) and len(frames):
            return np.stack(_alike([_image(item, f"{where}, frame {i}") for i, item in enumerate(frames)], where))
        raise InputError(f"{where}: give `video`, a path or s3:// URI, or `frames`, a list of images")

    def _recognise(self, frames: Frames, top: int) -> dict[str, Any]:
        temporal, spatial = np.zeros(0), np.zeros((0, 0, 0))
        if self.checkpoint.model_config.has_attention:
            seen = attend(self.network, frames, self.checkpoint.data_config)
            probabilities, temporal, spatial = seen.probabilities, seen.temporal.astype(float), seen.spatial / 255.0
        else:
            probabilities = self._probabilities(frames)
        best = np.argsort(-probabilities, kind="stable")[:top]
        return {
            "classes": [self.checkpoint.classes[i] for i in best],
            "scores": [float(probabilities[i]) for i in best],
            "temporal_attention": temporal.tolist(),
            "spatial_attention": spatial.round(3).tolist(),
        }

    @torch.inference_mode()
    def _probabilities(self, frames: Frames) -> np.ndarray:
        """Return float32 (K,) of a network without attention, of the evaluation clips."""
        data, device = self.checkpoint.data_config, next(self.network.parameters()).device
        crop = evaluation_crop(frames.shape[2], frames.shape[1], data)
        sample = evaluation_sample(len(frames), data.num_frames, data.num_clips)
        clips = torch.from_numpy(np.stack([crop_clip(frames[index], crop, data.crop_size) for index in sample]))
        logits: torch.Tensor = forward_clips(self.network, to_input(clips, data, device)[None]).logits
        return logits[0].float().softmax(0).cpu().numpy()


def _frames_at(video: str, data: DataConfig, where: str) -> Frames:
    if "://" not in video:
        if not Path(video).is_file():
            raise InputError(f"{where}: {video!r}: no such file here; give a path on this machine, s3:// or `frames`")
        return frames_of_file(video, data)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, Path(video).name)
        fetch(video, local)
        return frames_of_file(str(local), data)


def _image(item: Any, where: str) -> np.ndarray:
    """Return uint8 (H, W, 3) RGB of an image: an array, the bytes of a file, or those in base64."""
    if isinstance(item, str):
        try:
            item = base64.b64decode(item, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"{where}: not base64; encode the bytes of a JPEG or PNG image") from None
    if isinstance(item, bytes):
        decoded = cv2.imdecode(np.frombuffer(item, np.uint8), cv2.IMREAD_COLOR) if item else None
        if decoded is None:
            raise InputError(f"{where}: {len(item)} bytes that are no JPEG or PNG image")
        return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    array = np.asarray(item)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise InputError(f"{where}: {array.dtype} {array.shape}; give whole numbers 0 to 255, (H, W, 3) RGB")
    return array.astype(np.uint8)


def _alike(images: list[np.ndarray], where: str) -> list[np.ndarray]:
    other = next((image for image in images if image.shape != images[0].shape), None)
    if other is not None:
        raise InputError(f"{where}: frames of {images[0].shape[:2]} and {other.shape[:2]}; give all in one size")
    return images


mlflow.models.set_model(AttentionModel())
