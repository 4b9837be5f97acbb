"""The losses: equations 4 to 6 against loops, and what fine-tuning moves."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from stabn.config import ModelConfig
from stabn.models import STABN, Baseline, Output
from stabn.models.output import ShapeError
from stabn.training.losses import finetuning_loss, temporal_attention_loss, training_loss
from stabn.training.recipes import class_weights

torch.set_num_threads(1)  # small tensors: more threads only wait for each other
NAN = float("nan")


def output_of(batch: int = 4, frames: int = 6, classes: int = 5, **options: Any) -> Output:
    torch.manual_seed(3)
    kind: dict[str, Any] = {"dtype": torch.float64, **options}
    return Output(
        torch.randn(batch, classes, **kind),
        torch.randn(batch, classes, **kind),
        torch.rand(batch, 1, frames, 2, 2, **kind),
        torch.rand(batch, 1, frames, 1, 1, **kind),
    )


def cross_entropy(logits: Tensor, target: Tensor) -> float:
    rows = logits.double().tolist()
    losses = [math.log(sum(map(math.exp, row))) - row[int(t)] for row, t in zip(rows, target, strict=True)]
    return sum(losses) / len(losses)


def loop(attention: Tensor, edited: Tensor) -> float:
    """Eq. 6 per video, over the frames with an opinion; summed, over the batch."""
    total = 0.0
    for own, wanted in zip(attention.flatten(1).tolist(), edited.tolist(), strict=True):
        squares = [(m - e) ** 2 for m, e in zip(own, wanted, strict=True) if not math.isnan(e)]
        if squares:
            total += sum(squares) / len(squares)
    return total / len(edited)


def test_training_loss_is_the_sum_of_both_branches() -> None:
    output, target = output_of(), torch.tensor([0, 4, 2, 2])
    losses = training_loss(output, target)
    assert float(losses.perception) == pytest.approx(cross_entropy(output.logits, target), rel=1e-12)
    assert float(losses.attention) == pytest.approx(cross_entropy(output.attention_logits, target), rel=1e-12)
    assert float(losses.total) == pytest.approx(float(losses.perception + losses.attention), rel=1e-12)
    assert losses.temporal == 0


def test_training_loss_of_the_baseline() -> None:
    target = torch.tensor([0, 4, 2, 2])
    losses = training_loss(Output(output_of().logits), target)
    assert losses.total == losses.perception == pytest.approx(cross_entropy(output_of().logits, target))
    assert losses.attention == 0


@pytest.mark.parametrize(
    "pattern",
    [
        [[0.0] * 6, [1.0] * 6, [0.5] * 6, [0.2, 0.3, 0.9, 0.0, 1.0, 0.4]],
        [[NAN] * 6, [0.1] * 6, [NAN] * 6, [NAN, NAN, 1.0, NAN, 0.0, NAN]],
        [[NAN] * 6, [NAN] * 6, [NAN] * 5 + [0.7], [NAN] * 6],
    ],
)
def test_temporal_loss_against_a_loop(pattern: list[list[float]]) -> None:
    attention, edited = output_of().temporal_attention, torch.tensor(pattern)
    assert attention is not None
    expected = loop(attention, edited)
    assert float(temporal_attention_loss(attention, edited)) == pytest.approx(expected, rel=1e-6)
    assert float(temporal_attention_loss(attention.flatten(1), edited)) == pytest.approx(expected, rel=1e-6)


def test_a_batch_weighs_as_its_videos_one_by_one() -> None:
    """Eq. 5 holds per video: the loss of a mixed batch is the mean of the losses of its videos."""
    output, target = output_of(), torch.tensor([0, 4, 2, 2])
    edited = torch.tensor([[NAN] * 6, [0.1] * 6, [NAN] * 6, [NAN, 0.2, 1.0, NAN, 0.0, NAN]], dtype=torch.float64)
    whole = finetuning_loss(output, target, edited, gamma=10.0)
    single = []
    for i in range(4):
        part = Output(*(value[i : i + 1] for value in output if value is not None))
        single.append(finetuning_loss(part, target[i : i + 1], edited[i : i + 1], gamma=10.0).total)
    torch.testing.assert_close(whole.total, torch.stack(single).mean())


def test_gamma_weighs_only_the_temporal_part() -> None:
    output, target = output_of(), torch.tensor([0, 4, 2, 2])
    edited = torch.full((4, 6), 0.5, dtype=torch.float64)
    base = training_loss(output, target)
    for gamma in (0.0, 1.0, 10.0):
        losses = finetuning_loss(output, target, edited, gamma)
        assert losses.temporal > 0
        torch.testing.assert_close(losses.total, base.total + gamma * losses.temporal)
        assert (losses.perception, losses.attention) == (base.perception, base.attention)


def test_gradient_of_the_temporal_loss() -> None:
    """2 (Mt - M't) / (n B) on frames with an opinion, exactly 0 on the others; no NaN."""
    attention = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    edited = torch.tensor([[NAN] * 4, [0.0, 1.0, 0.0, 1.0], [NAN, 0.3, NAN, NAN]], dtype=torch.float64)
    temporal_attention_loss(attention, edited).backward()
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[1] = 2 * (attention[1] - edited[1]).detach() / 4 / 3
    expected[2, 1] = 2 * (attention[2, 1] - 0.3).detach() / 1 / 3
    torch.testing.assert_close(attention.grad, expected)


def test_no_edits_is_zero_and_can_be_differentiated() -> None:
    attention = torch.rand(2, 1, 4, 1, 1, requires_grad=True)
    loss = temporal_attention_loss(attention, torch.full((2, 4), NAN))
    assert loss == 0 and loss.requires_grad
    loss.backward()
    assert attention.grad is not None and (attention.grad == 0).all()


def test_a_broken_network_is_not_hidden_by_missing_edits() -> None:
    attention = torch.tensor([[NAN, 0.5], [0.5, 0.5]])
    assert torch.isnan(temporal_attention_loss(attention, torch.tensor([[NAN, 1.0], [NAN, NAN]])))


def test_half_precision_is_summed_in_single() -> None:
    output = output_of(dtype=torch.bfloat16)
    losses = finetuning_loss(output, torch.tensor([0, 4, 2, 2]), torch.full((4, 6), 0.25), gamma=10.0)
    assert {part.dtype for part in losses} == {torch.float32}
    assert output.temporal_attention is not None
    expected = loop(output.temporal_attention.float(), torch.full((4, 6), 0.25))
    assert float(losses.temporal) == pytest.approx(expected, rel=1e-5)


def test_edits_of_another_shape_are_refused() -> None:
    output, target = output_of(batch=4, frames=6), torch.tensor([0, 4, 2, 2])
    for shape in ((6, 4), (4, 5), (4, 3), (2, 12), (24,)):
        with pytest.raises(ShapeError, match=r"\(B, S\) = \(4, 6\)"):
            finetuning_loss(output, target, torch.zeros(shape), gamma=10.0)
    with pytest.raises(ShapeError, match=r"model\.name = st_abn"):
        finetuning_loss(Output(output.logits), target, torch.zeros(4, 6), gamma=10.0)


def small_model(cls: Any = STABN) -> Any:
    torch.manual_seed(0)
    config = ModelConfig(num_blocks=(1, 1, 1, 1), width=4, num_classes=5, num_frames=6, dropout=0.0)
    return cls(config).double().train()


def test_temporal_loss_reaches_the_attention_branch_only() -> None:
    model = small_model()
    model.freeze_feature_extractor()
    video = torch.randn(2, 3, 6, 32, 32, dtype=torch.float64)
    output = model(video)
    edited = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0], [NAN] * 6], dtype=torch.float64)
    temporal_attention_loss(output.temporal_attention, edited).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    parts = ("temporal", "temporal_mix", "temporal_map", "class_maps", "trunk")
    assert {name.split(".")[1] for name in reached} == set(parts)
    assert {name.split(".")[0] for name in reached} == {"attention_branch"}
    own = [n for n, _ in model.attention_branch.named_parameters() if n.split(".")[0] in parts]
    assert len(reached) == len(own)


def test_fine_tuning_moves_the_attention_to_the_edit() -> None:
    """A few steps of eq. 5 bring Mt near a person's edit, and the frozen features stay."""
    model = small_model()
    model.freeze_feature_extractor()
    video, target = torch.randn(4, 3, 6, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    edited = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]] * 2 + [[NAN] * 6] * 2, dtype=torch.float64)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    history = []
    for _ in range(60):
        losses = finetuning_loss(model(video), target, edited, gamma=10.0)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(float(losses.temporal.detach()))
    assert history[-1] < 0.05 * history[0]


def test_training_loss_trains_the_baseline() -> None:
    model = small_model(Baseline)
    losses = training_loss(model(torch.randn(2, 3, 6, 32, 32, dtype=torch.float64)), torch.tensor([0, 1]))
    losses.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_smoothed_labels_leave_a_share_to_every_class() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.3]])
    target = torch.tensor([0, 2])
    shares = torch.full((2, 3), 0.3 / 3)
    shares[[0, 1], target] += 0.7
    expected = -(shares * logits.log_softmax(1)).sum(1).mean()
    found = training_loss(Output(logits, logits), target, 0.3)
    torch.testing.assert_close(found.perception, expected)
    torch.testing.assert_close(found.total, 2 * expected)


def test_class_weights_count_each_video_by_its_class_however_the_batch_is_shared() -> None:
    output, target = output_of(), torch.tensor([0, 4, 2, 2])
    weights = torch.tensor([2.0, 1, 0.5, 1, 3], dtype=torch.float64)
    alone = [cross_entropy(output.logits[i : i + 1], target[i : i + 1]) for i in range(4)]
    expected = sum(float(weights[t]) * loss for t, loss in zip(target, alone, strict=True)) / 4
    losses = training_loss(output, target, class_weights=weights)
    assert float(losses.perception) == pytest.approx(expected, rel=1e-12)
    halves = [
        training_loss(Output(output.logits[part], output.attention_logits[part]), target[part], 0.1, weights)  # type: ignore[index]
        for part in (slice(0, 1), slice(1, 4))
    ]
    whole = training_loss(output, target, 0.1, weights)
    assert float(halves[0].total + 3 * halves[1].total) / 4 == pytest.approx(float(whole.total), rel=1e-12)
    same = training_loss(output, target, 0.1, torch.ones(5, dtype=torch.float64))
    assert float(same.total) == pytest.approx(float(training_loss(output, target, 0.1).total), rel=1e-12)


@pytest.mark.parametrize(("balance", "ratio"), [(1.0, 4.0), (0.5, 2.0), (0.0, 1.0)])
def test_classes_are_balanced_by_a_power_of_their_videos(balance: float, ratio: float) -> None:
    classes = [0, 0, 0, 0, 2]
    manifest: Any = SimpleNamespace(
        classes=("a", "b", "c"),
        indices=lambda split: np.arange(len(classes)),
        table=pa.table({"class_index": classes}),
    )
    weights = class_weights(manifest, balance)
    assert float(weights[2] / weights[0]) == pytest.approx(ratio) and weights[1] == weights[2]
    assert float(weights[classes].mean()) == pytest.approx(1.0)
