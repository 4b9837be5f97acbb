"""Frames of a clip and slots of the temporal attention: one mapping, both ways, whatever the temporal stride."""

import numpy as np
import pytest
import torch

from stabn.data.slots import SlotError, to_frames, to_slots
from stabn.editor.whatif import CachedClips
from stabn.evaluation.attention_modes import AttentionMode
from stabn.models.output import Output
from stabn.training.losses import finetuning_loss, temporal_attention_loss
from stabn.training.step import _replace_where_edited

NAN = float("nan")


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_frames_of_slots_give_the_slots_again(stride: int) -> None:
    slots = torch.rand(3, 4, dtype=torch.float64)
    slots[1, 2] = NAN
    frames = to_frames(slots, 4 * stride)
    assert frames.shape == (3, 4 * stride)
    for frame in range(4 * stride):
        torch.testing.assert_close(frames[:, frame], slots[:, frame // stride], equal_nan=True)
    torch.testing.assert_close(to_slots(frames, 4), slots, equal_nan=True)
    maps = torch.rand(2, 4, 3, 5)
    assert torch.equal(to_frames(maps, 4 * stride, dim=1)[:, stride - 1 :: stride], maps)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_a_slot_is_the_mean_of_the_frames_that_have_a_value(stride: int) -> None:
    frames = np.random.default_rng(0).random((5, 3 * stride))
    frames[np.random.default_rng(1).random(frames.shape) < 0.4] = NAN
    frames[0, :stride] = NAN
    found = to_slots(torch.from_numpy(frames), 3).numpy()
    for row in range(5):
        for slot in range(3):
            known = [v for v in frames[row, slot * stride : (slot + 1) * stride] if not np.isnan(v)]
            expected = sum(known) / len(known) if known else NAN
            assert found[row, slot] == pytest.approx(expected, nan_ok=True)


def test_with_a_slot_per_frame_nothing_is_computed() -> None:
    values = torch.rand(2, 6)
    assert to_slots(values, 6) is values and to_frames(values, 6) is values


def test_frames_that_do_not_divide_are_refused() -> None:
    for convert in (lambda: to_slots(torch.zeros(1, 7), 3), lambda: to_frames(torch.zeros(1, 3), 7)):
        with pytest.raises(SlotError, match="7 frames for 3 attention values"):
            convert()


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_losses_teacher_and_segments_speak_of_the_same_slots(stride: int) -> None:
    """An edit of frames is learnt, forced and shown as the same slots, and frames without an opinion say nothing."""
    own = torch.rand(2, 3)
    edited = torch.full((2, 3 * stride), NAN)
    edited[0, 0], edited[0, -1], edited[1] = 0.25, 1.0, torch.linspace(0, 1, 3 * stride)
    slots = to_slots(edited, 3)
    assert slots[0, 0] == 0.25 and slots[0, 2] == 1.0 and torch.isnan(slots[0, 1])
    known = ~torch.isnan(slots)
    squared = torch.where(known, (own - slots.nan_to_num()) ** 2, 0)
    expected = (squared.sum(1) / known.sum(1)).mean()
    torch.testing.assert_close(temporal_attention_loss(own, edited), expected)
    output = Output(torch.zeros(2, 4), torch.zeros(2, 4), None, own[:, None, :, None, None])
    losses = finetuning_loss(output, torch.tensor([0, 1]), edited, gamma=10.0)
    torch.testing.assert_close(losses.temporal, expected)
    replaced = torch.where(known, slots, own)
    torch.testing.assert_close(_replace_where_edited(edited, own), replaced)
    torch.testing.assert_close(AttentionMode("temporal_segments").replace(own, edited), replaced)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_what_if_keeps_the_clips_own_attention_where_the_curve_is_the_networks(stride: int) -> None:
    clips = CachedClips.__new__(CachedClips)
    clips.samples = np.arange(3 * stride)[None] * 2
    clips.temporal = np.array([[0.2, 0.5, 0.8]], np.float32)
    curve = np.full(6 * stride, 0.3, np.float32)
    same = np.ones(len(curve), bool)
    np.testing.assert_allclose(clips.with_curve(curve, same), clips.temporal)
    same[2 * stride] = False  # the first frame of the second slot
    curve[2 * stride] = 1.0
    expected = [[0.2, (1.0 + (stride - 1) * 0.5) / stride, 0.8]]
    np.testing.assert_allclose(clips.with_curve(curve, same), expected, rtol=1e-6)
    nobody = np.where(same, np.nan, curve).astype(np.float32)
    np.testing.assert_allclose(clips.with_curve(nobody, ~np.isfinite(nobody) & False), [[0.2, 1.0, 0.8]], rtol=1e-6)
