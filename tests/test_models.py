"""The network: shapes, equations 1 to 3, what-if calls, freezing, activation checkpointing."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stabn.config import ModelConfig, spec_of
from stabn.models import STABN, Baseline, Output, build_model
from stabn.models.output import ShapeError
from stabn.models.st_abn import invert
from stabn.presets import PRESETS, backbone, load

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


def small(**settings: Any) -> ModelConfig:
    values: dict[str, Any] = {"num_blocks": (1, 1, 1, 1), "width": 4, "num_classes": 5, "num_frames": 4, "dropout": 0.0}
    return ModelConfig(**{**values, **settings})


def make(seed: int = 0, **settings: Any) -> STABN:
    """Return a small double-precision ST-ABN whose BatchNorm statistics are those of real activations."""
    torch.manual_seed(seed)
    model = STABN(small(**settings)).double().train()
    with torch.no_grad():
        for _ in range(3):
            model(videos(4, seed=None, frames=model.config.num_frames))
    return model.eval()


def videos(batch: int = 2, seed: int | None = 1, frames: int = 4, size: int = 32) -> Tensor:
    if seed is not None:
        torch.manual_seed(seed)
    return torch.randn(batch, 3, frames, size, size, dtype=torch.float64)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("head", ["gap", "linear"])
@pytest.mark.parametrize("kernel", ["1x3x3", "3x3x3"])
@pytest.mark.parametrize(
    ("block", "blocks", "frames", "classes", "height", "width"),
    [
        ("bottleneck", (1, 1, 1, 1), 8, 6, 64, 64),
        ("basic", (2, 1, 1, 2), 1, 2, 33, 50),
        ("basic", (1, 1, 2, 1), 5, 1, 16, 112),
    ],
)
def test_shapes(
    block: str, blocks: tuple[int, ...], frames: int, classes: int, height: int, width: int, head: str, kernel: str
) -> None:
    config = small(
        block=block,
        num_blocks=blocks,
        num_frames=frames,
        num_classes=classes,
        attention_head=head,
        temporal_kernel=kernel,
    )
    model = build_model(config).eval()
    assert isinstance(model, STABN)
    video = torch.randn(2, 3, frames, height, width)
    h, w = -(-height // 16), -(-width // 16)
    features = model.extract_features(video)
    assert features.shape == (2, 16 * (4 if block == "bottleneck" else 1), frames, h, w)
    output = model(video)
    assert output.logits.shape == output.attention_logits.shape == (2, classes)
    assert output.spatial_attention.shape == (2, 1, frames, h, w)
    assert output.temporal_attention.shape == (2, 1, frames, 1, 1)
    for attention in (output.spatial_attention, output.temporal_attention):
        assert attention.min() >= 0 and attention.max() <= 1


@pytest.mark.parametrize(
    ("depth", "channels", "millions"),
    [(18, 256, None), (34, 256, None), (50, 1024, (54.7, 55.7, 32.0)), (101, 1024, (82.6, 83.6, 59.9))],
)
def test_paper_networks(depth: int, channels: int, millions: tuple[float, float, float] | None) -> None:
    """Full networks; parameters of ST-ABN with the paper's head, with the released head, and of the baseline."""
    with torch.device("meta"):
        released = build_model(backbone(depth, attention_head="linear", temporal_kernel="3x3x3"))
        model = build_model(backbone(depth))
        plain = build_model(backbone(depth, name="baseline"))
        video = torch.empty(2, 3, 32, 224, 224)
        assert model.extract_features(video).shape == (2, channels, 32, 14, 14)
        assert model.attention_branch.trunk(torch.empty(2, channels, 32, 14, 14)).shape == (2, 2 * channels, 32, 14, 14)
        output, plain_output = model(video), plain(video)
    assert [tuple(part.shape) for part in output] == [(2, 174), (2, 174), (2, 1, 32, 14, 14), (2, 1, 32, 1, 1)]
    assert plain_output.logits.shape == (2, 174) and plain_output[1:] == (None, None, None)
    if millions:
        assert tuple(round(count(network) / 1e6, 1) for network in (model, released, plain)) == millions
    assert count(released) - count(model) == 174 * 32 * 174 + 174 + 174 * 18  # the head, and 27 - 9 weights a class


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_runs_at_its_own_size(name: str) -> None:
    config = load(name)
    frames, size = config.data.num_frames, config.data.crop_size
    with torch.device("meta"):
        output = build_model(config.model)(torch.empty(2, 3, frames, size, size))
    assert output.logits.shape == (2, config.model.num_classes)
    if config.model.name == "st_abn":
        spec = spec_of(config.model)
        cells = size // spec.spatial_stride
        assert output.temporal_attention.shape == (2, 1, frames // spec.temporal_stride, 1, 1)
        assert output.spatial_attention.shape == (2, 1, spec.num_slots, cells, cells)


def test_kernels_in_time() -> None:
    """Only conv1 of the blocks of layers 3 and 4 and of the trunk looks at other frames; no stride in time anywhere."""
    for block in ("bottleneck", "basic"):
        model = STABN(small(block=block, num_blocks=(2, 2, 2, 2)))
        convs = {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv3d)}
        temporal = {name for name, part in convs.items() if part.kernel_size[0] > 1}
        parts = ("feature_extractor.layer3", "perception_branch.layer4", "attention_branch.trunk")
        assert temporal == {f"{part}.{i}.conv1" for part in parts for i in (0, 1)}
        assert all(part.stride[0] == 1 for part in convs.values())
        strided = {name for name, part in convs.items() if part.stride[1] == 2 and "downsample" not in name}
        inner = "conv2" if block == "bottleneck" else "conv1"
        layers = ("feature_extractor.layer2", "feature_extractor.layer3", "perception_branch.layer4")
        assert strided == {"feature_extractor.stem.conv1", *(f"{layer}.0.{inner}" for layer in layers)}


def test_time_is_seen_only_where_kernels_reach() -> None:
    """With one block in layer 3, a change in a frame reaches the features of that frame and its neighbours."""
    model, video = make(num_frames=6), videos(1, frames=6)
    changed = video.clone()
    changed[:, :, 3] += 1
    difference = (model.extract_features(changed) - model.extract_features(video)).abs().amax((0, 1, 3, 4))
    assert (difference > 0).tolist() == [False, False, True, True, True, False]


def test_replacing_attention_by_itself_changes_nothing() -> None:
    model, video = make(), videos()
    output = model(video)
    same = model(
        video, temporal_attention=output.temporal_attention.flatten(1), spatial_transform=lambda attention: attention
    )
    for a, b in zip(output, same, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("spatial_transform", [None, invert, lambda attention: attention**2])
@pytest.mark.parametrize("replacement", [None, "ones", "zeros", "ramp"])
def test_equations_1_to_3_by_hand(spatial_transform: Any, replacement: str | None) -> None:
    """Logits are those of f' = W [(1 + Ms) f, Mt f], computed value by value."""
    model, video = make(), videos()
    ramp = torch.linspace(0, 1, 4, dtype=torch.float64)
    values = {"ones": torch.ones(4).double(), "zeros": torch.zeros(4).double(), "ramp": ramp}
    replaced = values[replacement].repeat(2, 1) if replacement else None
    own = model(video)
    output = model(video, temporal_attention=replaced, spatial_transform=spatial_transform)
    f = model.extract_features(video)
    ms = (spatial_transform or (lambda attention: attention))(own.spatial_attention)
    mt = own.temporal_attention.flatten(1) if replaced is None else replaced
    joined = torch.empty(f.shape[0], 2 * f.shape[1], *f.shape[2:], dtype=torch.float64)
    for c in range(f.shape[1]):
        for t in range(f.shape[2]):
            joined[:, c, t] = f[:, c, t] + ms[:, 0, t] * f[:, c, t]  # eq. 1, with its residual
            joined[:, f.shape[1] + c, t] = mt[:, t, None, None] * f[:, c, t]  # eq. 2, without
    weight, norm = model.attention_mechanism[0].weight[:, :, 0, 0, 0], model.attention_mechanism[1]
    mixed = torch.einsum("oc,bcthw->bothw", weight, joined)  # eq. 3
    shape = (1, -1, 1, 1, 1)
    mixed = (mixed - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    mixed = mixed * norm.weight.view(shape) + norm.bias.view(shape)
    top = model.perception_branch.layer4(mixed).mean((2, 3, 4))
    torch.testing.assert_close(output.logits, model.perception_branch.fc(top))
    torch.testing.assert_close(output.spatial_attention, own.spatial_attention, rtol=0, atol=0)
    torch.testing.assert_close(output.temporal_attention, own.temporal_attention, rtol=0, atol=0)
    torch.testing.assert_close(output.attention_logits, own.attention_logits, rtol=0, atol=0)
    if replacement or spatial_transform:
        assert not torch.allclose(output.logits, own.logits)


@pytest.mark.parametrize(("head", "kernel"), [("gap", "1x3x3"), ("linear", "3x3x3")])
def test_attention_branch_by_hand(head: str, kernel: str) -> None:
    """The branch's three outputs follow the table of the design, step by step, from the class maps A."""
    model = make(attention_head=head, temporal_kernel=kernel)
    branch = model.attention_branch
    with torch.no_grad():
        for parameter in (*branch.temporal_mix.parameters(), *branch.temporal.parameters()):
            parameter.copy_(torch.randn_like(parameter))
    output = model(videos())
    maps = branch.class_maps(branch.trunk(model.extract_features(videos())))
    assert maps.min() >= 0 and maps.shape[:3] == (2, 5, 4)
    scores = torch.einsum("oc,bcthw->bothw", branch.logits.weight[:, :, 0, 0, 0], maps)
    if head == "gap":
        logits = scores.mean((2, 3, 4))
    else:
        means = scores.mean((3, 4))
        flat = torch.stack([means[:, k, t] for k in range(5) for t in range(4)], dim=1)
        logits = flat @ branch.fc.weight.T + branch.fc.bias
    torch.testing.assert_close(output.attention_logits, logits)
    norm = branch.spatial[1]
    spatial = torch.einsum("c,bcthw->bthw", branch.spatial[0].weight[0, :, 0, 0, 0], maps)
    spatial = (spatial - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(output.spatial_attention[:, 0], spatial.sigmoid())
    padding = (int(kernel == "3x3x3"), 1, 1)
    temporal = nn.functional.conv3d(maps, branch.temporal_map[0].weight, padding=padding)
    norm = branch.temporal_map[1]
    temporal = (temporal - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    frames = temporal[:, 0].clamp(min=0)
    mixed = torch.einsum("ut,bthw->buhw", branch.temporal_mix[0].weight[:, :, 0, 0], frames).clamp(min=0).mean((2, 3))
    first, second = branch.temporal[0], branch.temporal[2]
    hidden = (mixed @ first.weight.T + first.bias).clamp(min=0)
    expected = (hidden @ second.weight.T + second.bias).sigmoid()
    torch.testing.assert_close(output.temporal_attention.flatten(1), expected)


def test_features_give_the_same_as_the_video() -> None:
    model, video = make(), videos()
    edit = torch.rand(2, 4, dtype=torch.float64)
    features = model.extract_features(video)
    before = features.clone()
    for options in ({}, {"temporal_attention": edit, "spatial_transform": invert}):
        for a, b in zip(model(video, **options), model(features=features, **options), strict=True):
            assert torch.equal(a, b)
    own = model(video)
    logits = model.perceive(features, own.spatial_attention, edit[:, None, :, None, None])
    assert torch.equal(logits, model(video, temporal_attention=edit).logits)
    assert torch.equal(features, before)


def test_the_attention_mechanism_is_linear_in_the_temporal_attention() -> None:
    model = make()
    for parameter in model.attention_mechanism[1].parameters():
        torch.nn.init.uniform_(parameter, 0.5, 2)
    model.attention_mechanism[1].running_mean.uniform_(-1, 1)
    features = model.extract_features(videos())
    spatial = model(features=features).spatial_attention
    constant, slope = model.attend_parts(features, spatial)
    for temporal in (torch.zeros(2, 4), torch.ones(2, 4), torch.rand(2, 4)):
        t = temporal.double()[:, None, :, None, None]
        torch.testing.assert_close(constant + t * slope, model.attend(features, spatial, t))
    with pytest.raises(ShapeError, match="eval"):
        model.train().attend_parts(features, spatial)


def test_wrong_shapes_are_named() -> None:
    model = make()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"video": torch.zeros(1, 3, 6, 32, 32).double()}, r"\(1, 3, 6, 32, 32\).*config.num_frames = 4"),
        ({"video": torch.zeros(1, 4, 3, 32, 32).double()}, r"\(1, 4, 3, 32, 32\)"),
        ({"video": torch.zeros(3, 4, 32, 32).double()}, r"\(3, 4, 32, 32\)"),
        ({"features": torch.zeros(1, 64, 3, 2, 2).double()}, r"C = 64 and S = 4"),
        ({"features": torch.zeros(1, 60, 4, 2, 2).double()}, r"\(1, 60, 4, 2, 2\)"),
        ({"video": videos(), "temporal_attention": torch.zeros(2, 6)}, r"\(2, 6\): expected \(B, S\) = \(2, 4\)"),
        ({"video": videos(), "temporal_attention": torch.zeros(1, 4)}, r"\(1, 4\): expected \(B, S\) = \(2, 4\)"),
        ({"video": videos(), "temporal_attention": torch.zeros(2, 1, 4, 1, 1)}, r"expected \(B, S\)"),
        ({"video": videos(), "spatial_transform": lambda a: a.mean()}, r"spatial_transform returned shape \(\)"),
        ({}, "either a video or its features"),
        ({"video": videos(), "features": videos()}, "either a video or its features"),
    ]
    for options, message in cases:
        with pytest.raises(ShapeError, match=message):
            model(**options)
    with pytest.raises(ShapeError, match="num_frames = 4"):
        Baseline(small(name="baseline"))(torch.zeros(1, 3, 8, 32, 32))


def test_frozen_feature_extractor_stays_bit_identical() -> None:
    torch.manual_seed(0)
    model = STABN(small()).double()
    model.freeze_feature_extractor()
    model.train()
    assert not model.feature_extractor.training and not model.feature_extractor.layer3[0].bn1.training
    assert model.attention_branch.training and model.perception_branch.layer4[0].bn1.training
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: pytest.fail("a graph is kept"), lambda tensor: tensor):
        watched = model.extract_features(videos().requires_grad_())
    assert not watched.requires_grad
    assert not any(p.requires_grad for p in model.feature_extractor_parameters())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    output = model(videos())
    (output.logits.sum() + output.attention_logits.sum() + output.temporal_attention.sum()).backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("feature_extractor.") for name in moved)
    rest = {name for name in before if not name.startswith("feature_extractor.")}
    assert moved == rest
    model.eval()
    model.train()
    assert not model.feature_extractor.training


def test_recognition_begins_anew_and_the_attention_stays() -> None:
    model, fresh = make(), STABN(small()).double()
    before, clips = copy.deepcopy(model.state_dict()), videos()
    attention = model(clips).temporal_attention
    model.reinitialize_recognition()
    torch.testing.assert_close(model(clips).temporal_attention, attention)
    for name, value in model.state_dict().items():
        follows = name.startswith(("attention_mechanism.", "perception_branch."))
        if not follows:
            assert torch.equal(value, before[name]), name
        elif value.dim() < 2:  # BatchNorm's, and the bias of the last layer, whose range depends on its inputs
            assert name.endswith("fc.bias") or torch.equal(value, fresh.state_dict()[name]), name
        else:
            assert not torch.equal(value, before[name]), name


def test_unfrozen_network_trains_everything() -> None:
    torch.manual_seed(0)
    model = STABN(small()).double().train()
    output = model(videos())
    (output.logits.square().sum() + output.attention_logits.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["st_abn", "baseline"])
def test_activation_checkpointing_changes_nothing(name: str) -> None:
    """Outputs, gradients and BatchNorm statistics: a block that is run twice counts its batch once."""
    torch.manual_seed(0)
    plain = build_model(small(name=name, block="bottleneck")).double().train()
    saving = copy.deepcopy(plain)
    saving.set_activation_checkpointing(True)
    outputs = []
    for model in (plain, saving):
        output: Output = model(videos())
        sum(part.square().sum() for part in output if part is not None).backward()
        outputs.append(output)
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12, msg=key)
    for (key, a), b in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert key == b[0] and torch.equal(a, b[1]), key
    assert int(saving.feature_extractor.layer1[0].bn1.num_batches_tracked) == 1


def test_activation_checkpointing_saves_memory() -> None:
    """Fewer bytes are kept for the backward pass."""
    sizes = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = STABN(small(num_blocks=(2, 2, 2, 2))).train()
        model.set_activation_checkpointing(enabled)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(videos().float())
        assert output.logits.requires_grad
        sizes.append(sum(kept.values()))
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize("frames", [2, 4, 8, 32])
def test_temporal_attention_is_alive_at_initialisation(frames: int) -> None:
    """Whatever the seed, Mt differs between videos and frames, and each frame's value follows that frame."""
    for seed in range(5):
        torch.manual_seed(seed)
        branch = STABN(small(num_frames=frames)).attention_branch.double().eval()
        maps = torch.randn(3, frames, 4, 4, dtype=torch.float64).relu().requires_grad_()  # as after BatchNorm and ReLU
        temporal = branch.temporal(branch.temporal_mix(maps).mean((2, 3)))
        assert 0.4 < temporal.mean() < 0.6 and temporal.min() > 0.05 and temporal.max() < 0.95
        assert temporal.std(0).mean() > 0.03
        assert temporal.flatten().unique().numel() == 3 * frames
        for frame in range(frames):
            (gradient,) = torch.autograd.grad(temporal[:, frame].sum(), maps, retain_graph=True)
            assert (gradient[:, frame].flatten(1).amax(1) > 1e-3).all()
        parameters = [*branch.temporal_mix.parameters(), *branch.temporal.parameters()]
        for gradient in torch.autograd.grad((temporal - torch.rand_like(temporal)).square().sum(), parameters):
            assert (gradient != 0).all()


def test_channels_last_gives_the_same() -> None:
    model = make().float()
    video = videos().float()
    expected = model(video)
    model = nn.utils.convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    output = model(video.contiguous(memory_format=torch.channels_last_3d))
    for a, b in zip(expected, output, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_only_in_training() -> None:
    model = make()
    changed = STABN(dataclasses.replace(model.config, dropout=0.9)).double()
    changed.load_state_dict(model.state_dict())
    assert torch.equal(changed.eval()(videos()).logits, model(videos()).logits)
    for branch in (changed.attention_branch, changed.perception_branch):
        assert branch.dropout.p == 0.9
    features = changed.extract_features(videos())
    changed.perception_branch.dropout.train()
    assert not torch.equal(changed(features=features).logits, changed(features=features).logits)


def test_settings_reach_the_layers() -> None:
    model = STABN(small(bn_momentum=0.3))
    assert {part.momentum for part in model.modules() if isinstance(part, nn.BatchNorm3d)} == {0.3}
    assert isinstance(build_model(small(name="baseline")), Baseline)


def test_invert_is_equation_7() -> None:
    attention = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(invert(attention), torch.tensor([1.0, 0.75, 0.0]))
