"""Initial weights: files of weights, and ImageNet 2D ResNets inflated in time."""

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stabn.errors import StabnError
from stabn.identity import check_unique
from stabn.models.resnet3d import ResNet3D
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
# A tensor of one of these is in no ResNet: a checkpoint of the authors, see models/released.py.
RELEASED_MARKS = ("layer_att_common.", "backbone.att_layer4.")
SHOWN = 4  # names of a kind in a report
STATE_DICTS = ("model_state_dict", "state_dict", "model")  # where training code keeps its weights
PREFIXES = re.compile(r"(module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile


class WeightsError(StabnError):
    """A file does not hold the weights that are asked for."""


@dataclass
class LoadReport:
    """What became of a file's weights.

    Attributes:
        source: the file.
        loaded: our names that were filled from it.
        missing: our names that the file does not have; they keep their random values.
        skipped: the file's names that were left out on purpose, with the reason.
        unexpected: the file's names that the network has no place for.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = sorted({".".join(name.split(".")[:2]) for name in self.missing})
        lines = [f"weights from {self.source}: {len(self.loaded)} tensors loaded, {len(self.missing)} start at random"]
        if parts:
            lines.append(f"  at random: {', '.join(parts)}")
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"  not used: {', '.join(names[:SHOWN])}{more} ({reason})")
        lines += [f"  not used: {name} (no such part in the network)" for name in self.unexpected]
        return "\n".join(lines)


def read_weights(uri: str) -> dict[str, Tensor]:
    """Read a state dict, see `read_weights_file`."""
    return read_weights_file(uri)[0]


def read_weights_file(uri: str) -> tuple[dict[str, Tensor], list[str]]:
    """Read a state dict, plain or as training code keeps it beside its optimiser, and the names of what else is there.

    The state dict may lie under one of STATE_DICTS; prefixes as `module.` are removed from its names.

    Raises:
        WeightsError: not a file of weights, one that holds objects which are not loaded, or one name twice.
    """
    try:
        content: Any = torch.load(io.BytesIO(read_uri(uri)), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are not its own, or that hold code
        if isinstance(error, StabnError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            reason = (
                f"it holds {found[1]}, and only tensors are loaded; where its code may be run, save its weights alone, "
                "such as torch.save(content['model_state_dict'], path)"
            )
        raise WeightsError(f"{uri}: cannot be read as weights ({reason})") from None
    beside: list[str] = []
    for key in STATE_DICTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            beside += [str(name) for name in content if name != key]
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{uri}: not a state dict; give a PyTorch file of a ResNet or of ST-ABN")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    names = [PREFIXES.sub("", name, count=1) if PREFIXES.match(name) else name for name in tensors]
    check_unique(names, "tensor", uri, "it has one with and one without a prefix; keep one of them", WeightsError)
    return dict(zip(names, tensors.values(), strict=True)), beside


def load_initial_weights(model: STABN | ResNet3D, uri: str, weights: Mapping[str, Tensor] | None = None) -> LoadReport:
    """Fill a network from an ImageNet 2D ResNet, or from a checkpoint of the same network.

    Args:
        model: STABN or ResNet3D.
        uri: path or URI of a torchvision-format state dict, or of a checkpoint of this product.
        weights: what is there, if it was read before; `uri` then names it in messages.

    Raises:
        WeightsError: a shape does not fit; names the key and both shapes.
    """
    weights = read_weights(uri) if weights is None else weights
    if any(name.startswith("feature_extractor.") for name in weights):
        return _copy(model, [(name, name, value) for name, value in weights.items()], LoadReport(uri))
    if any(name.startswith(RELEASED_MARKS) for name in weights):
        raise WeightsError(f"{uri}: a released ST-ABN; convert it with `stabn import-checkpoint`, then give the result")
    return inflate(model, weights, uri)


def inflate(
    model: STABN | ResNet3D, weights: Mapping[str, Tensor], source: str, attention_trunk: bool = True
) -> LoadReport:
    """Fill a network from a torchvision-format 2D ResNet (section 4.1: initialised from ImageNet, inflated in time).

    A 2D kernel is repeated kt times and divided by kt, so that a still video gives the 2D network's features (but in
    the first and last frames, where layers 3 and 4 see zeros beyond the ends); the rest is copied. The attention
    branch's trunk starts as a copy of layer 4.

    Args:
        model: STABN or ResNet3D.
        weights: 2D state dict.
        source: its name, for messages.
        attention_trunk: whether the trunk of the attention branch is filled too.

    Raises:
        WeightsError: another depth, or a shape that does not fit; names the key and both shapes.
    """
    depth = count_blocks(weights)
    if any(depth) and depth != model.config.num_blocks:
        raise WeightsError(
            f"{source}: its layers have {depth} blocks, the network's {model.config.num_blocks}; choose the preset of "
            "that depth or other weights"
        )
    last = "perception_branch.layer4" if isinstance(model, STABN) else "classifier.layer4"
    mapped: list[tuple[str, str, Tensor]] = []
    report = LoadReport(source)
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        if part == "fc":
            report.skipped[name] = "the classifier is of other classes"
        elif part in IMAGENET_PARTS:
            mapped.append((name, f"{IMAGENET_PARTS[part]}.{rest}", value))
        elif part == "layer4":
            mapped.append((name, f"{last}.{rest}", value))
            if attention_trunk and isinstance(model, STABN):
                mapped.append((name, f"attention_branch.trunk.{rest}", value))
        else:
            report.unexpected.append(name)
    return _copy(model, mapped, report)


def _copy(model: nn.Module, weights: Iterable[tuple[str, str, Tensor]], report: LoadReport) -> LoadReport:
    """Copy tensors into a network, 2D kernels inflated, and complete the report.

    Args:
        model: the network.
        weights: the file's name, our name and the value of each tensor.
        report: of the file, with what was left out.
    """
    source = report.source
    own = model.state_dict()
    for key, name, value in weights:
        if name not in own:
            report.unexpected.append(key)
            continue
        shape = tuple(value.shape)
        if value.ndim == 4 and own[name].ndim == 5:
            length = own[name].shape[2]
            value = value[:, :, None].repeat(1, 1, length, 1, 1) / length
        if own[name].shape != value.shape:
            raise WeightsError(
                f"{source}: {key} has shape {shape}, the network's {name} {tuple(own[name].shape)}; "
                "choose the preset that the weights are of"
            )
        own[name] = value
        report.loaded.append(name)
    if not report.loaded:
        raise WeightsError(f"{source}: none of its tensors has a place in the network; give a ResNet's state dict")
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    report.missing = [name for name in own if name not in set(report.loaded) | counters]
    model.load_state_dict(own)
    return report


def count_blocks(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return how many blocks layer1 to layer4 of a state dict have."""
    found = {m.groups() for name in weights if (m := re.match(r"layer([1-4])\.(\d+)\.", name))}
    return tuple(sum(layer == number for layer, _ in found) for number in "1234")
