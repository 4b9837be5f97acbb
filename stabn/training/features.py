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

    def __contains__(self, row: int) -> bool:
        return row in self._kept

    @torch.no_grad()
    def features(self, model: nn.Module, batch: Batch, config: DataConfig) -> Tensor:
        """Return float32 (B * num_clips, C, S, h, w) on the device: from memory, or computed.

        Args:
            model: ST-ABN whose feature extractor is frozen.
            batch: `ClipDataset` items on the device; clips without augmentation, of those that are not kept.
            config: how the clips are normalised.
        """
        assert isinstance(model, STABN)
        rows, device = batch["index"].tolist(), batch["target"].device
        found = {row: self._kept[row] for row in rows if row in self._kept}
        missing = [number for number, row in enumerate(rows) if row not in found]
        if missing:
            with torch.autocast(device.type, enabled=False):
                clips = batch_input({name: batch[name][missing] for name in ("clips", "color")}, config, device)
            computed = model.extract_features(clips.flatten(0, 1)).bfloat16().unflatten(0, clips.shape[:2])
            for number, one in zip(missing, computed, strict=True):
                found[rows[number]] = one
                self._keep(rows[number], one)
        features = torch.stack([found[row].to(device, non_blocking=True) for row in rows])
        return features.flatten(0, 1).float().contiguous(memory_format=torch.channels_last_3d)

    def _keep(self, row: int, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if row not in self._kept and size <= self._room:
            self._kept[row] = features.to("cpu", copy=True)
            self._room -= size
