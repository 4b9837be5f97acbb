"""Features of the frozen extractor, kept from epoch to epoch."""

import torch
from torch import Tensor, nn

from stabn.config import DataConfig
from stabn.models import STABN
from stabn.training.device import Batch, batch_input


class FeatureCache:
    """Keep the features of clips that are the same in every epoch, in bf16 and in memory, until it is full.

    All features pass through bf16, kept or not, so what is learnt does not depend on what had room.
    """

    def __init__(self, megabytes: int) -> None:
        self._room = megabytes * 2**20
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def features(self, model: nn.Module, batch: Batch, config: DataConfig) -> Tensor:
        """Return float32 (B * num_clips, C, S, h, w) on the device: from memory, or computed if any is missing.

        Args:
            model: ST-ABN whose feature extractor is frozen.
            batch: `ClipDataset` items on the device; clips without augmentation.
            config: how the clips are normalised.
        """
        assert isinstance(model, STABN)
        rows = batch["index"].tolist()
        device = batch["clips"].device
        if all(row in self._kept for row in rows):
            features = torch.stack([self._kept[row] for row in rows]).to(device, non_blocking=True)
        else:
            with torch.autocast(device.type, enabled=False):
                clips = batch_input(batch, config, device)
            found = model.extract_features(clips.flatten(0, 1)).bfloat16()
            features = found.unflatten(0, clips.shape[:2])
            for row, one in zip(rows, features, strict=True):
                self._keep(row, one)
        return features.flatten(0, 1).float().contiguous(memory_format=torch.channels_last_3d)

    def _keep(self, row: int, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if row not in self._kept and size <= self._room:
            self._kept[row] = features.to("cpu", copy=True)
            self._room -= size
