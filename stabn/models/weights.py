"""Initial weights: ImageNet 2D ResNets inflated in time, and the checkpoints that the authors of ST-ABN released."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stabn.config import ModelConfig
from stabn.errors import StabnError
from stabn.models.st_abn import STABN
from stabn.storage import read_uri

# Our names of the parts, by the names of torchvision's and the released modules.
IMAGENET_PARTS = {
    "conv1": "feature_extractor.stem.conv1",
    "bn1": "feature_extractor.stem.bn1",
    "layer1": "feature_extractor.layer1",
    "layer2": "feature_extractor.layer2",
    "layer3": "feature_extractor.layer3",
}
RELEASED_PARTS = {
    **IMAGENET_PARTS,
    "layer4": "perception_branch.layer4",
    "fc": "perception_branch.fc",
    "layer_att_common": "attention_branch.trunk",
    "conv_att_common.0": "attention_branch.class_maps.0",
    "conv_att_common.1": "attention_branch.class_maps.1",
    "conv_att_common.2": "attention_branch.class_maps.2",
    "conv_att_out.0": "attention_branch.logits",
    "fc_att_out": "attention_branch.fc",
    "conv_spatial_att.0": "attention_branch.spatial.0",
    "conv_spatial_att.1": "attention_branch.spatial.1",
    "conv_temp_att1.0": "attention_branch.temporal_map.0",
    "conv_temp_att1.1": "attention_branch.temporal_map.1",
    "conv_temp_att2.0": "attention_branch.temporal_mix.0",
    "conv_temp_att3.0": "attention_branch.temporal.0",
    "conv_temp_att3.2": "attention_branch.temporal.2",
    "conv_att_mechanism.0": "attention_mechanism.0",
    "conv_att_mechanism.1": "attention_mechanism.1",
}


class WeightsError(StabnError):
    """A file does not hold the weights that are asked for."""


@dataclass
class LoadReport:
    """What became of a file's weights.

    Attributes:
        source: the file.
        loaded: our names that were filled from it.
        missing: our names that the file does not have; they keep their random values.
        unused: the file's names that the network has no place for, with the reason.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = sorted({name.rsplit(".", 1)[0].split(".layer")[0] for name in self.missing})
        lines = [f"weights from {self.source}: {len(self.loaded)} tensors loaded, {len(self.missing)} start at random"]
        if parts:
            lines.append(f"  at random: {', '.join(parts)}")
        lines += [f"  not used: {name} ({reason})" for name, reason in self.unused.items()]
        return "\n".join(lines)


def read_weights(uri: str) -> dict[str, Tensor]:
    """Read a state dict, plain or under `state_dict` or `model`, with any `module.` prefix removed.

    Raises:
        WeightsError: not a file of weights, or one that holds more than weights.
    """
    try:
        content: Any = torch.load(io.BytesIO(read_uri(uri)), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are not its own, or that hold code
        if isinstance(error, StabnError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{uri}: cannot be read as weights ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{uri}: not a state dict; give a PyTorch file of a ResNet or of ST-ABN")
    return {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}


def load_initial_weights(model: nn.Module, uri: str) -> LoadReport:
    """Fill a network from an ImageNet 2D ResNet, or from a checkpoint of the same network.

    Raises:
        WeightsError: a shape does not fit; names the key.
    """
    weights = read_weights(uri)
    if any(name.startswith("feature_extractor.") for name in weights):
        return _copy(model, weights, uri)
    return inflate(model, weights, uri)


def inflate(model: nn.Module, weights: Mapping[str, Tensor], source: str, attention_trunk: bool = True) -> LoadReport:
    """Fill a network from a torchvision-format 2D ResNet (section 4.1: initialised from ImageNet, inflated in time).

    A 2D kernel is repeated kt times and divided by kt, so that a still video gives the 2D network's features; the
    rest is copied. The attention branch's trunk starts as a copy of layer 4.

    Args:
        model: STABN or ResNet3D.
        weights: 2D state dict.
        source: its name, for messages.
        attention_trunk: whether the trunk of the attention branch is filled too.

    Raises:
        WeightsError: a shape does not fit; names the key and both shapes.
    """
    last = "perception_branch.layer4" if isinstance(model, STABN) else "classifier.layer4"
    mapped: dict[str, Tensor] = {}
    unused: dict[str, str] = {}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        if part == "fc":
            unused[name] = "the classifier is of other classes"
        elif part in IMAGENET_PARTS:
            mapped[f"{IMAGENET_PARTS[part]}.{rest}"] = value
        elif part == "layer4":
            mapped[f"{last}.{rest}"] = value
            if attention_trunk and isinstance(model, STABN):
                mapped[f"attention_branch.trunk.{rest}"] = value
        else:
            unused[name] = "no such part in the network"
    own = model.state_dict()
    for name, value in mapped.items():
        if value.ndim == 4 and name in own and own[name].ndim == 5:
            length = own[name].shape[2]
            mapped[name] = value[:, :, None].repeat(1, 1, length, 1, 1) / length
    return _copy(model, mapped, source, unused)


def _copy(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, unused: dict[str, str] | None = None
) -> LoadReport:
    report = LoadReport(source, unused=dict(unused or {}))
    own = model.state_dict()
    for name, value in weights.items():
        if name not in own:
            report.unused[name] = "no such tensor in the network"
        elif own[name].shape != value.shape:
            raise WeightsError(
                f"{source}: {name} has shape {tuple(value.shape)}, the network {tuple(own[name].shape)}; "
                "choose the preset or depth that the weights are of"
            )
        else:
            own[name] = value
            report.loaded.append(name)
    if not report.loaded:
        raise WeightsError(f"{source}: none of its {len(weights)} tensors fits the network; is it a ResNet?")
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    report.missing = [name for name in own if name not in set(report.loaded) | counters]
    model.load_state_dict(own)
    return report


def convert_released(weights: Mapping[str, Tensor], source: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Map a checkpoint that the authors released to our names; all four outputs stay the same.

    K, T, depth and widths are inferred from the shapes.

    Args:
        weights: state dict with the released module names, see RELEASED_PARTS.
        source: its name, for messages.

    Returns:
        The network's config (`linear` head, `3x3x3` temporal kernel) and a state dict for STABN.

    Raises:
        WeightsError: not such a checkpoint, or a tensor whose place is not known.
    """
    needed = ("conv1.weight", "fc.weight", "conv_temp_att2.0.weight", "layer1.0.conv1.weight", "fc_att_out.weight")
    absent = [name for name in needed if name not in weights]
    if absent:
        raise WeightsError(
            f"{source}: no released ST-ABN, {', '.join(absent)} missing; for a ResNet use train.init_weights"
        )
    numbers = []
    for layer in range(1, 5):
        found = {int(m[1]) for name in weights if (m := re.match(rf"layer{layer}\.(\d+)\.", name))}
        numbers.append(len(found))
    config = ModelConfig(
        block="bottleneck" if "layer1.0.conv3.weight" in weights else "basic",
        num_blocks=tuple(numbers),
        width=weights["conv1.weight"].shape[0],
        num_classes=weights["fc.weight"].shape[0],
        num_frames=weights["conv_temp_att2.0.weight"].shape[0],
        attention_head="linear",
        temporal_kernel="3x3x3",
    )
    mapped = {}
    for name, value in weights.items():
        part = next((p for p in RELEASED_PARTS if name.startswith(f"{p}.")), None)
        if part is None:
            raise WeightsError(f"{source}: {name} has no place in ST-ABN; is it another version of the network?")
        mapped[RELEASED_PARTS[part] + name[len(part) :]] = value
    with torch.device("meta"):
        own = STABN(config).state_dict()
    for name, value in mapped.items():
        if name not in own or own[name].shape != value.shape:
            wanted = tuple(own[name].shape) if name in own else "nothing of that name"
            raise WeightsError(f"{source}: {name} has shape {tuple(value.shape)}, the network has {wanted}")
    absent = [n for n in own if n not in mapped and not n.endswith("num_batches_tracked")]
    if absent:
        raise WeightsError(f"{source}: nothing for {', '.join(absent[:5])}; the file is incomplete")
    return config, {name: mapped.get(name, torch.tensor(0)) for name in own}
