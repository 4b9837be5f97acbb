"""Which videos each process sees in each step: every video of an epoch once, whatever the number of processes."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[int]]):
    """The mini-batches of one epoch, this process' share of each; for `DataLoader(batch_sampler=…)`.

    The order is a permutation drawn from (seed, epoch) alone. Step s is its videos s*B to (s+1)*B, of which a process
    takes every `world_size`-th. So an epoch that was interrupted goes on with exactly the videos not yet seen, with
    another number of processes too.
    """

    def __init__(
        self,
        rows: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        """Plan an epoch.

        Args:
            rows: positions in the dataset of the epoch's videos, in an order that every process knows.
            batch_size: videos per step, B, over all processes.
            seed: of the run.
            epoch: counted from 0.
            rank: this process, 0 to world_size - 1.
            world_size: how many processes share each step.
            start: videos of this epoch that were seen before an interruption.
        """
        self.order = np.random.default_rng([seed, epoch]).permutation(np.asarray(rows, dtype=np.int64))[start:]
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(len(self)):
            share = self._share(step)
            # A short last step may leave nothing for this process, which must take part all the same.
            yield (share if len(share) else self._batch(step)[:1]).tolist()

    def num_real(self, step: int) -> int:
        """Return how many videos of this process' share of a step count; 0: the share is padding."""
        return len(self._share(step))

    def num_global(self, step: int) -> int:
        """Return how many videos a step has over all processes."""
        return len(self._batch(step))

    def _batch(self, step: int) -> np.ndarray:
        return self.order[step * self.batch_size : (step + 1) * self.batch_size]

    def _share(self, step: int) -> np.ndarray:
        return shard(self._batch(step), self.rank, self.world_size)


def shard(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return a process' share of some rows: over all processes, each row once."""
    return rows[rank::world_size]
