"""Initial weights: inflation against a 2D ResNet, released checkpoints against a network written from the table."""

import argparse
import dataclasses
import hashlib
import io
import json
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_other_servers import answering
from torch import Tensor, nn
from torch.nn import functional as F

from stabn.config import ConfigError, DataConfig, ModelConfig
from stabn.config.backbones import resnet3d
from stabn.data.ssv2 import LABELS_FILE, SPLIT_FILES
from stabn.errors import RetryableError, StabnError
from stabn.models import STABN, build_model, sources
from stabn.models.released import convert_released
from stabn.models.sources import fetch_initial_weights
from stabn.models.weights import WeightsError, load_initial_weights, read_weights
from stabn.presets import PRESETS, backbone, load
from stabn.training.checkpoint import CheckpointError, import_released, load_model

WIDTH = 4


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Make every network of these tests in float64: equality then means the same arithmetic."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomize(model: nn.Module, seed: int) -> None:
    """Give every tensor, BatchNorm statistics included, a value that no layer starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim > 1:
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5)
            elif name.endswith("weight"):
                tensor.copy_(0.8 + 0.6 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(0.4 * torch.rand(tensor.shape, generator=generator) - 0.2)


class Block2d(nn.Module):
    """A residual block with torchvision's names and strides."""

    def __init__(self, kind: str, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.last = 2 if kind == "basic" else 3
        kernels = {1: 3, 2: 3} if kind == "basic" else {1: 1, 2: 3, 3: 1}
        strided, out = (1, planes) if kind == "basic" else (2, 4 * planes)
        for i, kernel in kernels.items():
            before, after = inplanes if i == 1 else planes, out if i == self.last else planes
            step = stride if i == strided else 1
            setattr(self, f"conv{i}", nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
        if stride != 1 or inplanes != out:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.out_planes = out

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.last + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.last else y
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet2d(nn.Module):
    """A 2D ResNet with torchvision's names."""

    def __init__(self, kind: str, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        planes = WIDTH
        for layer, number in enumerate(blocks, 1):
            parts: list[nn.Module] = []
            for i in range(number):
                block = Block2d(kind, planes, WIDTH * 2 ** (layer - 1), 2 if layer > 1 and i == 0 else 1)
                planes = block.out_planes
                parts.append(block)
            setattr(self, f"layer{layer}", nn.Sequential(*parts))
        self.fc = nn.Linear(planes, 10)

    def features(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, 2, 1)
        return self.layer3(self.layer2(self.layer1(x)))


def image_net(kind: str, blocks: tuple[int, ...] = (1, 2, 2, 1)) -> ResNet2d:
    torch.manual_seed(0)
    model = ResNet2d(kind, blocks).eval()
    randomize(model, seed=1)
    return model


def config_of(kind: str, **settings: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "block": kind,
        "num_blocks": (1, 2, 2, 1),
        "width": WIDTH,
        "num_classes": 5,
        "num_frames": 7,
    }
    return ModelConfig(**{**values, **settings})


def save(folder: Path, content: Any, name: str = "weights.pth") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_inflated_network_sees_a_still_video_as_the_image(kind: str, tmp_path: Path) -> None:
    """Frames that no temporal zero padding reaches: one per temporal kernel from each end, two in layer 3."""
    flat = image_net(kind)
    model = build_model(config_of(kind)).eval()
    assert isinstance(model, STABN)
    load_initial_weights(model, save(tmp_path, flat.state_dict()))
    image = torch.randn(2, 3, 64, 64)
    expected = flat.features(image)
    features = model.extract_features(image[:, :, None].repeat(1, 1, 7, 1, 1))
    for frame in (2, 3, 4):
        torch.testing.assert_close(features[:, :, frame], expected)
    assert not torch.allclose(features[:, :, 0], expected)
    top = model.perception_branch.layer4(features[:, :, 2:5])
    torch.testing.assert_close(top[:, :, 1], flat.layer4(expected))


@pytest.mark.parametrize("name", ["st_abn", "baseline"])
def test_inflation_reports_what_it_did(name: str, tmp_path: Path) -> None:
    flat = image_net("basic")
    model = build_model(config_of("basic", name=name))
    report = load_initial_weights(model, save(tmp_path, {"state_dict": flat.state_dict()}))
    branch = "perception_branch" if name == "st_abn" else "classifier"
    own = model.state_dict()
    kernel = own[f"{branch}.layer4.0.conv1.weight"]
    assert kernel.shape[2] == 3
    torch.testing.assert_close(kernel.sum(2), flat.layer4[0].conv1.weight)
    assert torch.equal(own[f"{branch}.layer4.0.bn1.running_var"], flat.layer4[0].bn1.running_var)
    assert report.skipped == dict.fromkeys(("fc.weight", "fc.bias"), "the classifier is of other classes")
    assert not report.unexpected
    assert set(report.loaded).isdisjoint(report.missing)
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    assert {*report.loaded, *report.missing} | counters == set(own)
    random = {key.split(".")[0] + "." + key.split(".")[1] for key in report.missing}
    if name == "baseline":
        assert random == {"classifier.fc"}
        return
    assert random == {
        "perception_branch.fc",
        "attention_mechanism.0",
        "attention_mechanism.1",
        *(f"attention_branch.{part}" for part in ("class_maps", "logits", "spatial")),
        *(f"attention_branch.temporal{part}" for part in ("", "_map", "_mix")),
    }
    for key, value in model.perception_branch.layer4.state_dict().items():
        assert torch.equal(own[f"attention_branch.trunk.{key}"], value), key
    assert "attention_branch.spatial" in str(report) and "fc.weight" in str(report)


def test_weights_of_another_shape_are_named() -> None:
    flat = image_net("basic").state_dict()
    flat["layer3.1.conv2.weight"] = torch.zeros(8, 8, 3, 3)
    with pytest.raises(
        WeightsError, match=r"net\.pth: layer3\.1\.conv2\.weight has shape \(8, 8, 3, 3\), .* \(16, 16, 1, 3, 3\)"
    ):
        load_initial_weights(STABN(config_of("basic")), "net.pth", flat)
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight .*choose the preset"):
        load_initial_weights(STABN(config_of("bottleneck")), "net.pth", image_net("basic").state_dict())
    with pytest.raises(WeightsError, match=r"net\.pth: none of its tensors has a place"):
        load_initial_weights(STABN(config_of("basic")), "net.pth", {"encoder.weight": torch.zeros(2, 2)})
    deeper = image_net("basic", blocks=(1, 2, 3, 1)).state_dict()
    with pytest.raises(WeightsError, match=r"net\.pth: its layers have \(1, 2, 3, 1\) blocks, .* \(1, 2, 2, 1\)"):
        load_initial_weights(STABN(config_of("basic")), "net.pth", deeper)


def test_parts_that_the_network_does_not_have_are_reported() -> None:
    flat = {**image_net("basic").state_dict(), "head.weight": torch.zeros(1), "layer1.0.gate.bias": torch.zeros(1)}
    report = load_initial_weights(STABN(config_of("basic")), "net.pth", flat)
    assert sorted(report.unexpected) == ["head.weight", "layer1.0.gate.bias"]
    assert "head.weight" in str(report) and "layer1.0.gate.bias" in str(report)


def test_half_a_file_of_weights_is_reported_not_hidden() -> None:
    flat = image_net("basic").state_dict()
    del flat["layer2.0.bn1.running_mean"]
    report = load_initial_weights(STABN(config_of("basic")), "net.pth", flat)
    assert "feature_extractor.layer2.0.bn1.running_mean" in report.missing
    assert "feature_extractor.layer2" in str(report)


def test_a_refused_file_changes_nothing() -> None:
    model, flat = STABN(config_of("basic")), image_net("basic").state_dict()
    flat["layer4.0.bn2.bias"] = torch.zeros(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"layer4\.0\.bn2\.bias"):
        load_initial_weights(model, "net.pth", flat)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_weights_of_the_same_network_are_copied(tmp_path: Path) -> None:
    source, target = STABN(config_of("basic")), STABN(config_of("basic"))
    randomize(source, seed=4)
    report = load_initial_weights(target, save(tmp_path, {"model": source.state_dict()}))
    assert not report.missing and not report.skipped and not report.unexpected
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


class Released(nn.Module):
    """ST-ABN as released: its module names, the linear head, the 3x3x3 temporal convolution; bottlenecks."""

    def __init__(self, blocks: tuple[int, ...], classes: int, frames: int, width: int = WIDTH) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.layer1 = self.layer(width, width, blocks[0], 1, 1)
        self.layer2 = self.layer(4 * width, 2 * width, blocks[1], 2, 1)
        self.layer3 = self.layer(8 * width, 4 * width, blocks[2], 2, 3)
        self.layer_att_common = self.layer(16 * width, 8 * width, blocks[3], 1, 3)
        self.layer4 = self.layer(16 * width, 8 * width, blocks[3], 2, 3)
        channels = 32 * width
        pointwise = lambda before, after: nn.Conv3d(before, after, 1, bias=False)  # noqa: E731
        self.conv_att_common = nn.Sequential(
            nn.BatchNorm3d(channels), pointwise(channels, classes), nn.BatchNorm3d(classes), nn.ReLU()
        )
        self.conv_att_out = nn.Sequential(pointwise(classes, classes))
        self.fc_att_out = nn.Linear(classes * frames, classes)
        self.conv_spatial_att = nn.Sequential(pointwise(classes, 1), nn.BatchNorm3d(1), nn.Sigmoid())
        self.conv_temp_att1 = nn.Sequential(
            nn.Conv3d(classes, 1, 3, padding=1, bias=False), nn.BatchNorm3d(1), nn.ReLU()
        )
        self.conv_temp_att2 = nn.Sequential(nn.Conv2d(frames, frames, 1, bias=False), nn.ReLU())
        self.conv_temp_att3 = nn.Sequential(
            nn.Linear(frames, frames), nn.ReLU(), nn.Linear(frames, frames), nn.Sigmoid()
        )
        self.conv_att_mechanism = nn.Sequential(pointwise(32 * width, 16 * width), nn.BatchNorm3d(16 * width))
        self.fc = nn.Linear(channels, classes)

    @staticmethod
    def layer(channels: int, width: int, number: int, stride: int, temporal: int) -> nn.Sequential:
        blocks = []
        for i in range(number):
            step = (1, stride, stride) if i == 0 else (1, 1, 1)
            block = nn.Module()
            block.conv1 = nn.Conv3d(channels, width, (temporal, 1, 1), padding=(temporal // 2, 0, 0), bias=False)
            block.bn1 = nn.BatchNorm3d(width)
            block.conv2 = nn.Conv3d(width, width, (1, 3, 3), step, (0, 1, 1), bias=False)
            block.bn2 = nn.BatchNorm3d(width)
            block.conv3 = nn.Conv3d(width, 4 * width, 1, bias=False)
            block.bn3 = nn.BatchNorm3d(4 * width)
            if i == 0:
                block.downsample = nn.Sequential(
                    nn.Conv3d(channels, 4 * width, 1, step, bias=False), nn.BatchNorm3d(4 * width)
                )
            blocks.append(block)
            channels = 4 * width
        return nn.Sequential(*blocks)

    @staticmethod
    def through(layer: nn.Sequential, x: Tensor) -> Tensor:
        for b in layer:
            y = F.relu(b.bn1(b.conv1(x)))
            y = b.bn3(b.conv3(F.relu(b.bn2(b.conv2(y)))))
            x = F.relu(y + (b.downsample(x) if hasattr(b, "downsample") else x))
        return x

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(video))), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        f = self.through(self.layer3, self.through(self.layer2, self.through(self.layer1, x)))
        maps = self.conv_att_common(self.through(self.layer_att_common, f))
        pooled = F.adaptive_avg_pool3d(self.conv_att_out(maps), (maps.shape[2], 1, 1))
        attention_logits = self.fc_att_out(pooled.reshape(len(video), -1))
        spatial = self.conv_spatial_att(maps)
        curve = F.adaptive_avg_pool2d(self.conv_temp_att2(self.conv_temp_att1(maps)[:, 0]), 1)
        temporal = self.conv_temp_att3(curve.reshape(len(video), -1)).reshape(len(video), 1, -1, 1, 1)
        attended = self.conv_att_mechanism(torch.cat([f * spatial + f, f * temporal], dim=1))
        top = F.adaptive_avg_pool3d(self.through(self.layer4, attended), 1)
        return self.fc(top.flatten(1)), attention_logits, spatial, temporal


def released(blocks: tuple[int, ...] = (1, 1, 2, 1), classes: int = 5, frames: int = 4) -> Released:
    torch.manual_seed(0)
    model = Released(blocks, classes, frames).eval()
    randomize(model, seed=2)
    return model


@pytest.mark.parametrize(("blocks", "classes", "frames"), [((1, 1, 2, 1), 5, 4), ((2, 1, 1, 2), 3, 6)])
def test_released_checkpoint_gives_the_same_outputs(
    blocks: tuple[int, ...], classes: int, frames: int, tmp_path: Path
) -> None:
    reference = released(blocks, classes, frames)
    prefixed = {f"module.{name}": value for name, value in reference.state_dict().items()}
    uri = save(tmp_path, {"state_dict": prefixed, "epoch": 3})
    config, weights, report = convert_released(read_weights(uri), uri)
    assert not report.skipped and not report.missing and not report.unexpected
    assert config == ModelConfig(
        num_blocks=blocks,
        width=WIDTH,
        num_classes=classes,
        num_frames=frames,
        attention_head="linear",
        temporal_kernel="3x3x3",
    )
    model = build_model(config).eval()
    model.load_state_dict(weights)
    video = torch.randn(2, 3, frames, 64, 48)
    with torch.no_grad():
        expected, output = reference(video), model(video)
    for name, a, b in zip(output._fields, output, expected, strict=True):
        assert b.std() > 1e-3, f"{name} says nothing"
        torch.testing.assert_close(a, b)


class Parts(nn.Module):
    """Layers by their names."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class FirstCode(nn.Module):
    """ST-ABN as first released, on mmaction: other names, a ReLU behind the mechanism, layers that nothing uses."""

    def __init__(self, blocks: tuple[int, ...], classes: int, frames: int, width: int = WIDTH) -> None:
        super().__init__()
        layer, channels = Released.layer, 32 * width
        pointwise = lambda before, after: nn.Conv3d(before, after, 1, bias=False)  # noqa: E731
        self.backbone = Parts(
            conv1=nn.Conv3d(3, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            bn1=nn.BatchNorm3d(width),
            layer1=layer(width, width, blocks[0], 1, 1),
            layer2=layer(4 * width, 2 * width, blocks[1], 2, 1),
            layer3=layer(8 * width, 4 * width, blocks[2], 2, 3),
            layer4=layer(16 * width, 8 * width, blocks[3], 2, 3),
            att_layer4=layer(16 * width, 8 * width, blocks[3], 1, 3),
            bn_att=nn.BatchNorm3d(channels),
            att_conv=pointwise(channels, classes),
            bn_att2=nn.BatchNorm3d(classes),
            att_conv2=pointwise(classes, classes),
            att_conv3=pointwise(classes, 1),
            bn_att3=nn.BatchNorm3d(1),
            t_att_conv=nn.Conv3d(classes, 1, 3, padding=1, bias=False),
            t_bn_att=nn.BatchNorm3d(1),
            t_att_conv2=nn.Conv2d(frames, frames, 1, bias=False),
            fc1=nn.Linear(frames, frames),
            fc2=nn.Linear(frames, frames),
            t_att_conv3=pointwise(channels, channels // 2),
            bn_att4=nn.BatchNorm3d(channels // 2),
        )
        convs = Parts(conv=pointwise(3, 3), bn=nn.BatchNorm3d(3))
        self.necks = Parts(
            att_head=Parts(convs=convs, fc=nn.Linear(classes * frames, 174)),
            temporal_modulation_ops=nn.ModuleList([Parts(conv=pointwise(3, 3))]),
            level_fusion_op=Parts(fusion_conv=nn.Sequential(pointwise(3, 3))),
            level_fusion_op2=Parts(fusion_conv=nn.Sequential(pointwise(3, 3))),
            pyramid_fusion_op=nn.Sequential(pointwise(3, 3)),
        )
        self.cls_head = Parts(fc_cls=nn.Linear(channels, classes))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b, through = self.backbone, Released.through
        x = F.max_pool3d(F.relu(b.bn1(b.conv1(video))), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        f = through(b.layer3, through(b.layer2, through(b.layer1, x)))
        maps = F.relu(b.bn_att2(b.att_conv(b.bn_att(through(b.att_layer4, f)))))
        mixed = F.relu(b.t_att_conv2(F.relu(b.t_bn_att(b.t_att_conv(maps)))[:, 0]))
        temporal = torch.sigmoid(b.fc2(F.relu(b.fc1(mixed.mean((2, 3))))))[:, None, :, None, None]
        spatial = torch.sigmoid(b.bn_att3(b.att_conv3(maps)))
        attention_logits = self.necks.att_head.fc(b.att_conv2(maps).mean((3, 4)).flatten(1))
        attended = F.relu(b.bn_att4(b.t_att_conv3(torch.cat([f * spatial + f, f * temporal], dim=1))))
        return self.cls_head.fc_cls(through(b.layer4, attended).mean((2, 3, 4))), attention_logits, spatial, temporal


def test_a_checkpoint_of_the_first_code_gives_the_same_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = FirstCode((1, 1, 2, 1), 5, 4).eval()
    randomize(reference, seed=3)
    uri = save(tmp_path, {"meta": {"epoch": 150, "mmcv_version": "0.2.10"}, "state_dict": reference.state_dict()})
    config, weights, report = convert_released(read_weights(uri), uri)
    assert (config.mechanism, config.num_classes, config.num_frames) == ("relu", 5, 4)
    unused = [name for name in report.skipped if not name.startswith("necks.att_head.fc")]
    assert len(unused) == 10 and all(name.startswith("necks.") for name in unused)
    assert "never computes with it" in report.skipped["necks.att_head.convs.conv.weight"]
    assert len(str(report).splitlines()) == 3, "a reader sees reasons, not a hundred names"
    model = build_model(config).eval()
    model.load_state_dict(weights)
    assert isinstance(model, STABN)
    video = torch.randn(2, 3, 4, 64, 48)
    with torch.no_grad():
        expected, output = list(reference(video)), model(video)
        expected[1] = expected[1][:, :5]
        for name, a, b in zip(output._fields, output, expected, strict=True):
            assert b.std() > 1e-3, f"{name} says nothing"
            torch.testing.assert_close(a, b)
        constant, slope = model.attend_parts(model.extract_features(video), output.spatial_attention)
        torch.testing.assert_close(model.classify(constant + output.temporal_attention * slope), output.logits)
        plain = build_model(dataclasses.replace(config, mechanism="linear")).eval()
        plain.load_state_dict(weights)
        assert not torch.allclose(plain(video).logits, output.logits), "the ReLU makes a difference"


def test_a_checkpoint_beside_its_optimizer_and_with_174_outputs(tmp_path: Path) -> None:
    """As the released training code saves it, whose attention logits have 174 outputs whatever K is."""
    reference = released()
    torch.manual_seed(1)
    reference.fc_att_out = nn.Linear(20, 174)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [75, 125])
    reference.fc.weight.grad = torch.ones_like(reference.fc.weight)
    optimizer.step()
    scheduler.step()
    content = {
        "epoch": 3,
        "iteration": 100,
        "best_score": 0.5,
        "model_state_dict": reference.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
    }
    uri = save(tmp_path, content)
    config, weights, report = convert_released(read_weights(uri), uri)
    assert config.num_classes == 5
    reason = "the released code has 174 outputs here whatever the number of classes, 5"
    assert report.skipped == {"fc_att_out.weight[5:]": reason, "fc_att_out.bias[5:]": reason}
    model = build_model(config).eval()
    model.load_state_dict(weights)
    video = torch.randn(2, 3, 4, 64, 48)
    with torch.no_grad():
        logits, attention_logits, *_ = reference(video)
        torch.testing.assert_close(model(video).logits, logits)
        torch.testing.assert_close(model(video).attention_logits, attention_logits[:, :5])
    line = import_released(uri, write_labels(tmp_path / "labels", 5), str(tmp_path / "imported.pt"), DataConfig())
    assert f"not used: fc_att_out.weight[5:], fc_att_out.bias[5:] ({reason})" in line
    beside = "epoch, iteration, best_score, optimizer_state_dict, scheduler_state_dict"
    assert f"not used: {beside} (beside the weights)" in line and "0 start at random" in line


def test_a_plain_list_of_labels_does_not_name_the_outputs(tmp_path: Path) -> None:
    uri = save(tmp_path, released().state_dict())
    (tmp_path / "labels.csv").write_text("path,label,split\n1.mp4,a,val\n")
    with pytest.raises(CheckpointError, match=r"labels\.csv does not say which output is which class"):
        import_released(uri, str(tmp_path), str(tmp_path / "imported.pt"), DataConfig())


def test_a_tensor_with_and_without_a_prefix_is_ambiguous(tmp_path: Path) -> None:
    weights = {"conv1.weight": torch.zeros(1), "bn1.bias": torch.zeros(1), "module.conv1.weight": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"tensor 'conv1\.weight' comes twice, in rows 1 and 3; .*a prefix"):
        read_weights(save(tmp_path, weights))
    assert list(read_weights(save(tmp_path, {"module._orig_mod.fc.bias": torch.zeros(1)}))) == ["fc.bias"]


def test_released_checkpoints_that_do_not_fit_are_refused() -> None:
    good = released().state_dict()
    without = lambda part: {k: v for k, v in good.items() if not k.startswith(part)}  # noqa: E731
    cases: list[tuple[dict[str, Tensor], str]] = [
        (
            image_net("bottleneck").state_dict(),
            r"a\.pth: no released ST-ABN, fc_att_out\.weight, conv_temp_att2\.0\.weight missing; .*init_weights",
        ),
        ({**good, "layer4.0.bn3.bias": torch.zeros(3)}, r"layer4\.0\.bn3\.bias has shape \(3,\).* \(128,\)"),
        ({**good, "fc_att_out.weight": torch.zeros(5, 5)}, r"fc_att_out\.weight has shape \(5, 5\).*\(5, 20\)"),
        ({**good, "layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3, 3)}, r"layer1\.0\.conv1\.weight has shape"),
        ({**good, "layer2.0.conv9.weight": torch.zeros(1)}, r"layer2\.0\.conv9\.weight has no place in ST-ABN"),
        ({**good, "fast.conv1.weight": torch.zeros(1)}, r"fast\.conv1\.weight has no place in ST-ABN"),
        (without("layer3."), r"a\.pth: no released ST-ABN, layer3\.0\.conv1\.weight missing"),
        ({k: v for k, v in good.items() if ".conv3." not in k}, r"a\.pth: a released ST-ABN of basic blocks"),
        (without("conv_spatial_att.1.running_mean"), r"nothing for attention_branch\.spatial\.1\.running_mean"),
    ]
    for weights, message in cases:
        with pytest.raises(WeightsError, match=message):
            convert_released(weights, "a.pth")


def test_a_released_checkpoint_is_no_initial_weights(tmp_path: Path) -> None:
    for weights in (released().state_dict(), FirstCode((1, 1, 2, 1), 5, 4).state_dict()):
        uri = save(tmp_path, weights)
        with pytest.raises(WeightsError, match=r"weights\.pth: a released ST-ABN; .*import-checkpoint"):
            load_initial_weights(STABN(config_of("bottleneck", num_blocks=(1, 1, 2, 1), num_frames=4)), uri)


def test_files_that_are_not_weights_are_refused(tmp_path: Path) -> None:
    flat = image_net("basic").state_dict()
    path = Path(save(tmp_path, {"state_dict": flat, "args": argparse.Namespace(lr=0.1)}, "object.pth"))
    with pytest.raises(
        WeightsError, match=r"object\.pth: cannot be read as weights \(it holds argparse\.Namespace, and only"
    ):
        read_weights(str(path))
    whole = Path(save(tmp_path, flat, "whole.pth")).read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / f"first-{length}.pth"
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=rf"first-{length}\.pth: cannot be read as weights \(.+\)"):
            read_weights(str(path))
    for name, content in {"list": [flat["fc.bias"]], "numbers": {"epoch": 3}, "tensor": flat["fc.bias"]}.items():
        with pytest.raises(WeightsError, match=rf"{name}\.pth: not a state dict"):
            read_weights(save(tmp_path, content, f"{name}.pth"))


def test_a_pickled_object_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = save(tmp_path, {"state_dict": image_net("basic").state_dict(), "payload": Payload()}, "payload.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload of this test does nothing"


def write_labels(folder: Path, classes: int) -> str:
    names = [f"Moving something {i}" for i in range(classes)]
    rows = [{"id": str(i), "label": name, "template": name} for i, name in enumerate(names)]
    files = {LABELS_FILE: {name: str(i) for i, name in enumerate(names)}, SPLIT_FILES["train"]: rows}
    folder.mkdir()
    for name, content in {**files, SPLIT_FILES["validation"]: [], SPLIT_FILES["test"]: []}.items():
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def test_import_released_makes_a_checkpoint(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    reference = released()
    source = save(tmp_path, {"state_dict": {f"module.{k}": v for k, v in reference.state_dict().items()}})
    output_uri = str(tmp_path / "out" / "imported.pt")
    data = DataConfig(num_frames=32, num_clips=2, crop_size=64)
    line = import_released(source, write_labels(tmp_path / "labels", 5), output_uri, data)
    assert source in line and "5 classes, 4 frames" in line and output_uri in line
    model, checkpoint = load_model(output_uri)
    assert checkpoint.classes == tuple(f"Moving something {i}" for i in range(5))
    assert (checkpoint.stage, checkpoint.epoch, checkpoint.manifest_fingerprint) == ("import-checkpoint", 0, "")
    assert checkpoint.data_config == DataConfig(num_frames=4, num_clips=2, crop_size=64)
    assert checkpoint.model_config.attention_head == "linear"
    video = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        for a, b in zip(model(video), reference(video), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_import_released_wants_the_labels_of_its_dataset(tmp_path: Path) -> None:
    source = save(tmp_path, released().state_dict())
    output = tmp_path / "imported.pt"
    with pytest.raises(CheckpointError, match=r"knows 5 classes, .*labels names 6"):
        import_released(source, write_labels(tmp_path / "labels", 6), str(output), DataConfig())
    assert not output.exists()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let PyTorch keep what it fetches in a folder of the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_imagenet_weights_come_from_a_mirror_and_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = backbone(18, num_classes=3, num_frames=4)
    weights = {"conv1.weight": torch.full((64, 3, 7, 7), 0.5)}
    mirror, data = cache / "mirror", io.BytesIO()
    mirror.mkdir()
    torch.save(weights, data)
    name = f"resnet18-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}.pth"
    monkeypatch.setitem(resnet3d.TORCHVISION, 18, f"https://download.pytorch.org/models/{name}")
    (mirror / name).write_bytes(b"<html>Sign in</html>")
    monkeypatch.setenv("STABN_WEIGHTS_MIRROR", f"file://{mirror}/")
    with pytest.raises(WeightsError, match=r"cannot be had .*hash.*set STABN_WEIGHTS_MIRROR"):
        fetch_initial_weights("imagenet", config)
    (mirror / name).write_bytes(data.getvalue())
    found = fetch_initial_weights("imagenet", config)
    assert found is not None and torch.equal(found[0]["conv1.weight"], weights["conv1.weight"])
    (mirror / name).unlink()
    assert fetch_initial_weights("imagenet", config) is not None, "kept by PyTorch"


@pytest.mark.parametrize(
    ("status", "passes"), [(None, True), (503, True), (429, True), (404, False), (302, False)], ids=str
)
def test_a_mirror_that_fails_ends_soon_and_is_tried_again_if_it_may_pass(
    status: int | None, passes: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "QUIET_SECONDS", 0.2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    silent = threading.Event() if status is None else None
    with answering(status or 200, b"", silent, Location="/elsewhere") as address:
        monkeypatch.setenv("STABN_WEIGHTS_MIRROR", address)
        with pytest.raises(StabnError, match=r"resnet18-f37072fd\.pth cannot be had") as caught:
            fetch_initial_weights("imagenet", backbone(18, num_classes=3, num_frames=4))
    assert isinstance(caught.value, RetryableError) == passes and socket.getdefaulttimeout() is None


def test_the_hubs_weights_come_through_its_own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package huggingface_hub, which caches, mirrors and authenticates: what it is asked for."""
    asked: list[tuple[str, str, str | None]] = []

    class EntryNotFoundError(Exception):
        pass

    class LocalEntryNotFoundError(EntryNotFoundError):
        pass

    def download(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        if name == "no/connection":
            raise LocalEntryNotFoundError("cannot find the requested files in the disk cache")
        if not (tmp_path / file).exists():
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    errors = types.SimpleNamespace(
        EntryNotFoundError=EntryNotFoundError, LocalEntryNotFoundError=LocalEntryNotFoundError
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    config = backbone(18)
    with pytest.raises(WeightsError, match=r"hf:some/net: it has no model\.safetensors or pytorch_model\.bin; add"):
        fetch_initial_weights("hf:some/net", config)
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    found = fetch_initial_weights("hf:some/net", config)
    assert found is not None and torch.equal(found[0]["a"], torch.ones(2)) and found[1] == "hf:some/net"
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    found = fetch_initial_weights("hf:some/net@v2", config)
    assert found is not None and torch.equal(found[0]["a"], torch.zeros(2))
    assert asked[-1] == ("some/net", "model.safetensors", "v2")
    with pytest.raises(WeightsError, match=r"hf:no/connection cannot be had \(cannot find .*copy the file"):
        fetch_initial_weights("hf:no/connection", config)
    with pytest.raises(WeightsError, match=r"it has no vit_b\.pth"):
        fetch_initial_weights("hf:some/net:vit_b.pth", config)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "imagenet",
            {},
            r"resnet50-11ad3fa6\.pth cannot be had .*init_weights, or set STABN_WEIGHTS_MIRROR.*=random",
        ),
        ("imagenet", {"width": 16}, r"there is no such network of .* width 16; give the path or URI of other weights"),
        ("timm:resnet50", {}, r"the package timm is not installed; copy the file"),
        ("torchvision:resnet50", {}, r"the package torchvision is not installed; copy the file"),
        ("hf:some/net", {}, r"the package huggingface_hub is not installed; copy the file"),
        ("imagenet", {"backbone": "c3d"}, r"there are no such weights for C3D; give the path or URI of other weights"),
    ],
)
def test_weights_that_cannot_be_had_are_an_error_and_never_random(
    name: str, changes: dict[str, int], said: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABN_WEIGHTS_MIRROR", f"file://{cache}/nowhere")
    with pytest.raises((WeightsError, ConfigError), match=said):
        fetch_initial_weights(name, dataclasses.replace(load("ssv2_r50_32").model, **changes))


def test_random_weights_are_chosen_and_the_papers_runs_are_not_random() -> None:
    assert fetch_initial_weights("random", load("mini").model) is None
    for name in PRESETS:
        weights = load(name).train.init_weights
        if "_r" in name:
            assert weights == "imagenet"
        else:
            assert weights.startswith("hf:") if "_b_" in name or "vjepa2" in name else weights == "random"
