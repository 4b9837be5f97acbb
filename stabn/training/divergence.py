"""Steps whose gradient is not finite: noticed, named by their videos, and limited; weights that are not: never kept."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stabn.training.distributed import World
from stabn.training.recipes import Recipe, TrainingError
from stabn.training.step import Measured


class Divergence:
    """Look at steps together some time after they were taken: looking waits for the device.

    Attributes:
        skipped: steps of the run that were left out.
        saved: whether the run has a state to go on from.
    """

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.skipped, self.saved = 0, False
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

    def check_validation(self, loss: float) -> None:
        """Look at the loss of a validation.

        Raises:
            TrainingError: it is not finite, so the weights, though they are, are of no use.
        """
        if not math.isfinite(loss):
            raise TrainingError(f"{self._recipe.name}: the validation loss is {loss}; {self._remedy()}")

    def check_weights(self, *networks: nn.Module | None) -> None:
        """Look at all weights and statistics, before they are validated or saved.

        Raises:
            TrainingError: some are not finite: a step was far too large, though its gradient was finite.
        """
        if not all(is_finite(network.state_dict()) for network in networks if network is not None):
            raise TrainingError(f"{self._recipe.name}: the weights are not finite any more; {self._remedy()}")

    def _remedy(self) -> str:
        rate = self._recipe.settings.learning_rate
        how = f"lower learning_rate (it is {rate:g}) or clip_norm and run it again"
        if not self.saved:
            return f"{how}; no state was saved yet"
        return f"{how}; in this output it goes on from the newest state, from before, in another one it begins anew"

    def _skip(self, positions: Sequence[int], loss: float, norm: float, epoch: int) -> None:
        losses = [one for one in self._world.gather(loss) if not math.isfinite(one)]
        what = f"the loss is {losses[0]}" if losses else f"the gradient is {norm}"
        name, videos, limit = self._recipe.name, self._recipe.videos, self._recipe.settings.max_skipped_steps
        ids = ", ".join(videos.manifest.video_id(int(videos.indices[p])) for p in positions)
        self.skipped += 1
        if self.skipped > limit:
            raise TrainingError(
                f"{name}: {what} in epoch {epoch + 1}, videos {ids}; look at these videos, or {self._remedy()} "
                f"({self.skipped - 1} such steps were skipped before)"
            )
        self._world.say(
            f"{name}: {what} in epoch {epoch + 1}, videos {ids}: step skipped, {self.skipped} of at most {limit}"
        )


def is_finite(weights: Mapping[str, Tensor]) -> bool:
    """Tell whether all values of a state dict are finite; waits once for their device."""
    values = [value for value in weights.values() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in values]).all()) if values else True
