"""Steps whose gradient is not finite: noticed, named by their videos, and limited."""

import math
from collections.abc import Sequence

import torch

from stabn.training.distributed import World
from stabn.training.recipes import Recipe, TrainingError
from stabn.training.step import Measured


class Divergence:
    """Look at steps together some time after they were taken: looking waits for the device.

    Attributes:
        skipped: steps of the run that were left out.
    """

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.skipped = 0
        self._recipe, self._world = recipe, world
        self._unchecked: list[tuple[Sequence[int], Measured]] = []

    def __len__(self) -> int:
        return len(self._unchecked)

    def add(self, positions: Sequence[int], measured: Measured) -> None:
        """Remember a step, with the positions of its videos in the dataset."""
        self._unchecked.append((positions, measured))

    def check(self, epoch: int) -> None:
        """Look at the steps since the last check.

        Raises:
            TrainingError: more gradients were not finite than `max_skipped_steps`.
        """
        if not self._unchecked:
            return
        values = torch.stack([torch.stack([m.losses[0], m.norm.double()]) for _, m in self._unchecked]).tolist()
        for (positions, _), (loss, norm) in zip(self._unchecked, values, strict=True):
            if not math.isfinite(norm):
                self._skip(positions, loss, norm, epoch)
        self._unchecked.clear()

    def _skip(self, positions: Sequence[int], loss: float, norm: float, epoch: int) -> None:
        losses = [one for one in self._world.gather(loss) if not math.isfinite(one)]
        what = f"the loss is {losses[0]}" if losses else f"the gradient is {norm}"
        name, videos, limit = self._recipe.name, self._recipe.videos, self._recipe.settings.max_skipped_steps
        ids = ", ".join(videos.manifest.video_id(int(videos.indices[p])) for p in positions)
        self.skipped += 1
        if self.skipped > limit:
            newest = "the newest state is from before" if epoch else "no state was saved yet"
            raise TrainingError(
                f"{name}: {what} in epoch {epoch + 1}, videos {ids}; lower the learning rate, or look at "
                f"these videos ({self.skipped - 1} such steps were skipped before; {newest})"
            )
        self._world.say(
            f"{name}: {what} in epoch {epoch + 1}, videos {ids}: step skipped, {self.skipped} of at most {limit}"
        )
