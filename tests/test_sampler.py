"""Every video of an epoch once, whatever the number of processes and interruptions."""

import numpy as np
import pytest

from stabn.data.sampler import EpochSampler, shard

ROWS = np.arange(100, 203)
BATCH = 16


def seen(world_size: int, start: int = 0, epoch: int = 0) -> list[list[int]]:
    """Return the videos that count in each step, over all processes."""
    samplers = [
        EpochSampler(ROWS, BATCH, seed=3, epoch=epoch, rank=rank, world_size=world_size, start=start)
        for rank in range(world_size)
    ]
    assert len({len(sampler) for sampler in samplers}) == 1, "a process would wait for ever for the others"
    steps: list[list[int]] = [[] for _ in range(len(samplers[0]))]
    for sampler in samplers:
        for step, share in enumerate(sampler):
            assert share, "every process takes part in every step"
            steps[step] += share[: sampler.num_real(step)]
            assert sampler.num_real(step) in (len(share), 0)
    assert [len(step) for step in steps] == [samplers[0].num_global(step) for step in range(len(steps))]
    return steps


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 16])
def test_each_step_has_the_same_videos_on_any_number_of_processes(world_size: int) -> None:
    steps = seen(world_size)
    assert sorted(video for step in steps for video in step) == ROWS.tolist()
    assert [sorted(step) for step in steps] == [sorted(step) for step in seen(1)]


@pytest.mark.parametrize("world_size", [1, 4])
def test_an_interrupted_epoch_goes_on_with_the_videos_not_yet_seen(world_size: int) -> None:
    whole = seen(2)
    for done in (0, 1, 5, len(whole)):
        rest = seen(world_size, start=sum(map(len, whole[:done])))
        assert [sorted(step) for step in rest] == [sorted(step) for step in whole[done:]]


def test_epochs_differ_and_repeat() -> None:
    assert seen(1, epoch=0) != seen(1, epoch=1)
    assert seen(1, epoch=1) == seen(1, epoch=1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 200])
def test_shards_have_every_row_once(world_size: int) -> None:
    shards = [shard(ROWS, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shards)) == ROWS.tolist()
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
