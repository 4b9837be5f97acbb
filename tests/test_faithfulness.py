"""Whether the network's answer depends on where its attention is high, and whether the attention is learnt."""

import numpy as np
import pytest
import torch
from tiny_run import settings
from torch import Tensor

from stabn.attention.gradcam import grad_cam
from stabn.attention.perturbation import (
    FILLS,
    Score,
    area,
    blurred,
    control_maps,
    fill_blurred,
    fill_mean,
    fill_still,
    motion_energy,
    perturb,
    ranks,
    step_counts,
)
from stabn.attention.randomised import CASCADE, randomised_networks, rank_correlation
from stabn.models import STABN

FRAMES, CELLS, SIDE = 6, (3, 4), (27, 32)
IMPORTANT, CELL = 4, (2, 3)  # the frame, and of each frame the cell, that the toy network looks at


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_clip() -> Tensor:
    """Return a clip with a bright spot in the important cell of the important frame."""
    clip = 0.2 * torch.randn(3, FRAMES, *SIDE, generator=generator(1))
    clip[:, IMPORTANT, 20:24, 26:30] += 3
    return clip


def toy_score(clips: Tensor) -> Tensor:
    """Return how bright that spot is, as a probability."""
    return torch.sigmoid(4 * (clips[:, :, IMPORTANT, 20:24, 26:30].mean((1, 2, 3)) - 1.5))


def toy_maps(kind: str, seed: int = 0) -> dict[str, Tensor]:
    """Return a map that is right, the same upside down, and those that know nothing."""
    if kind == "temporal":
        right = torch.zeros(FRAMES)
        right[IMPORTANT] = 1.0
    else:
        right = torch.zeros(FRAMES, *CELLS)
        right[:, CELL[0], CELL[1]] = 1.0
    return {"right": right, "upside down": -right, **control_maps(toy_clip(), CELLS, generator(seed))[kind]}


def gaps(kind: str, fill: str, score: Score = toy_score, seed: int = 0) -> dict[str, float]:
    """Return insertion minus deletion of each map."""
    counts, curves = perturb(
        score,
        toy_clip(),
        toy_maps(kind, seed),
        FILLS[kind][fill],
        max_steps=100,
        batch_size=64,
        generator=generator(100 + seed),
    )
    return {name: area(pair.insertion, counts) - area(pair.deletion, counts) for name, pair in curves.items()}


@pytest.mark.parametrize(("kind", "fill"), [(kind, fill) for kind, fills in FILLS.items() for fill in fills])
def test_what_the_network_looks_at_is_found_and_the_controls_do_not_find_it(kind: str, fill: str) -> None:
    found = [gaps(kind, fill, seed=seed) for seed in range(40)]
    means = {name: np.mean([row[name] for row in found]) for name in found[0]}
    assert means["right"] > 0.7 and means["upside down"] == pytest.approx(-means["right"], abs=0.01)
    assert means["centre"] < means["right"] - 0.3
    for name in ("uniform", "random"):  # what knows nothing has a gap of 0 in the mean
        values = [row[name] for row in found]
        assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5 and np.std(values) > 0.1


def test_a_network_that_looks_at_nothing_depends_on_nothing() -> None:
    for kind, fills in FILLS.items():
        for fill in fills:
            found = gaps(kind, fill, score=lambda clips: torch.full((len(clips),), 0.3))
            assert set(found.values()) == {0.0}


def test_curves_begin_and_end_with_all_and_nothing_whatever_the_batch() -> None:
    clip, maps = toy_clip(), toy_maps("spatial")
    results = []
    for batch_size in (1, 5, 1000):
        seen: list[int] = []

        def score(clips: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(len(clips))
            return toy_score(clips)

        counts, curves = perturb(
            score, clip, maps, fill_mean, max_steps=4, batch_size=batch_size, generator=generator(3)
        )
        assert max(seen) <= batch_size and counts.tolist() == [0, 3, 6, 9, 12]
        results.append(np.array(list(curves.values())))
        whole, nothing = toy_score(clip[None]).item(), toy_score(torch.zeros_like(clip)[None]).item()
        for pair in curves.values():
            assert pair.deletion[[0, -1]] == pytest.approx([whole, nothing])
            assert pair.insertion[[0, -1]] == pytest.approx([nothing, whole])
    assert all(np.allclose(result, results[0]) for result in results)
    # deleting the lowest first is inserting the highest, read backwards
    upside, right = curves["upside down"], curves["right"]
    assert right.insertion[1] == pytest.approx(upside.deletion[-2], abs=1e-6)


def test_the_area_is_that_under_the_curve() -> None:
    assert area(np.array([1.0, 1.0, 1.0]), np.array([0, 1, 4])) == 1
    assert area(np.array([1.0, 0.0, 0.0]), np.array([0, 1, 4])) == pytest.approx(0.125)


def test_steps_go_from_none_to_all_for_any_number() -> None:
    assert step_counts(8, 8).tolist() == list(range(9))
    assert step_counts(3, 10).tolist() == [0, 1, 2, 3]
    assert step_counts(32, 4).tolist() == [0, 8, 16, 24, 32]
    assert step_counts(1, 8).tolist() == [0, 1]


def test_equal_values_are_ranked_at_random_and_others_by_value() -> None:
    values = torch.tensor([0.5, 1.0, 1.0, 1.0, 0.1])
    found = torch.stack([ranks(values, generator(seed)) for seed in range(200)])
    assert (found[:, 0] == 3).all() and (found[:, 4] == 4).all()
    first = [(found[:, place] == 0).float().mean().item() for place in (1, 2, 3)]
    assert sum(first) == pytest.approx(1) and min(first) > 0.2
    assert torch.equal(ranks(values, generator(1)), ranks(values, generator(1)))


def test_fills_show_what_they_say() -> None:
    clip = toy_clip()
    kept = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)[
        :, :, None, None
    ]
    still = fill_still(clip, kept)
    for row, frames in enumerate(([1, 1, 1, 1, 4, 4], [0] * 6, range(6))):
        assert torch.equal(still[row], clip[:, list(frames)])
    mean = fill_mean(clip, kept)
    assert torch.equal(mean[0][:, [1, 4]], clip[:, [1, 4]]) and not mean[0][:, [0, 2, 3, 5]].any() and not mean[1].any()
    cells = torch.zeros(1, FRAMES, *CELLS, dtype=torch.bool)
    cells[0, 2, 0, 3] = True
    part = fill_blurred(clip, cells)[0]
    assert torch.equal(part[:, 2, :9, 24:], clip[:, 2, :9, 24:])
    assert torch.equal(part[:, 2, 9:], blurred(clip)[:, 2, 9:]) and torch.equal(part[:, :2], blurred(clip)[:, :2])


def test_the_blur_keeps_a_plain_colour_and_takes_detail_away() -> None:
    plain = torch.full((3, 2, 20, 30), 0.7)
    torch.testing.assert_close(blurred(plain), plain)
    noise = torch.randn(3, 2, 40, 30, generator=generator())
    assert blurred(noise).std() < 0.2 * noise.std()


def test_motion_energy_is_where_something_moves() -> None:
    clip = torch.zeros(3, 5, 8, 8)
    clip[:, 3, 2, 5] = 1.0  # there in frame 3 only
    energy = motion_energy(clip)
    assert energy[:, 2, 5].tolist() == [0, 0, 0.5, 1, 1] and energy.sum() == energy[:, 2, 5].sum()
    assert not motion_energy(clip[:, :1]).any()
    maps = control_maps(clip, (4, 4), generator())
    assert maps["temporal"]["motion"].argmax() in (3, 4) and maps["spatial"]["motion"][3].argmax() == 4 * 1 + 2
    assert maps["temporal"]["centre"].argmax() == 2 and maps["spatial"]["centre"][0, 1:3, 1:3].min() > (
        maps["spatial"]["centre"][0, 0].max()
    )


def tiny(**changes: object) -> STABN:
    torch.manual_seed(0)
    model = STABN(settings(**changes).model)
    for name, value in model.state_dict().items():  # as after training: none is as it began
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.add_(torch.randn(value.shape), alpha=0.1)
    return model.eval()


def test_grad_cam_is_cam_where_the_classes_are_linear_in_the_features() -> None:
    """With global average pooling and one linear layer behind f', Grad-CAM is CAM (Selvaraju et al., section 3)."""
    model = tiny()
    channels = model.attention_mechanism[0].out_channels
    fc = torch.nn.Linear(channels, 3)

    class Linear(torch.nn.Module):
        def forward(self, attended: Tensor) -> Tensor:
            return fc(attended.mean((2, 3, 4)))

    model.perception_branch = Linear()  # type: ignore[assignment]
    video = torch.randn(2, 3, 4, 32, 32, generator=generator())
    found = grad_cam(model, video, torch.tensor([2, 0]))
    with torch.no_grad():
        features = model.extract_features(video)
        attended = model.attend(features, *model.attention_branch(features)[1:])
    assert found.shape == (2, 4, 2, 2)
    for row, index in enumerate((2, 0)):
        cam = torch.einsum("c,cthw->thw", fc.weight[index], attended[row]).clamp(min=0) / attended[row, 0].numel()
        torch.testing.assert_close(found[row], cam.detach())


def test_grad_cam_leaves_the_network_as_it_is() -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        grad_cam(model, torch.randn(1, 3, 4, 48, 48), torch.tensor([0]))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_cascade_covers_every_weight_and_begins_at_the_top() -> None:
    model = tiny()
    original = {name: value.clone() for name, value in model.state_dict().items()}
    left = {name for name in original if not name.endswith("num_batches_tracked")}
    clip = torch.randn(1, 3, 4, 32, 32, generator=generator())
    own = model(clip)
    for name, changed in randomised_networks(model, seed=1):
        now = changed.state_dict()
        left = {key for key in left if torch.equal(now[key], original[key])}
        output = changed(clip)
        same = torch.equal(output.spatial_attention, own.spatial_attention)
        assert same == (name in ("perception branch", "attention mechanism")), name
        assert not torch.equal(output.logits, own.logits)
    assert next(iter(CASCADE)) == "perception branch" and name == "stem"
    assert not left
    assert all(torch.equal(value, original[key]) for key, value in model.state_dict().items()), "the network is kept"


def test_random_weights_are_the_same_for_a_seed_and_touch_no_other_random_numbers() -> None:
    model = tiny()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    last = [list(randomised_networks(model, seed))[-1][1].state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    key = "feature_extractor.stem.conv1.weight"
    assert torch.equal(last[0][key], last[1][key]) and not torch.equal(last[0][key], last[2][key])


def test_rank_correlation_sees_order_alone() -> None:
    values = np.array([[0.1, 0.5], [0.2, 0.9]])
    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(values, np.ones((2, 2))) == 0
