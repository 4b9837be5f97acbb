"""Checkpoints that the authors of ST-ABN released, from either of their code bases, converted to this product's names.

SpatioTemporalAttentionBranchNetwork keeps `model_state_dict` beside optimiser and scheduler; ST-ABN_PyTorch is built on
mmaction, with `backbone.`, `necks.` and `cls_head.`, and has a ReLU behind the attention mechanism.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stabn.config import ModelConfig
from stabn.models.load_report import LoadReport, WeightsError
from stabn.models.network import without_memory
from stabn.models.resnet3d import IMAGENET_PARTS, count_blocks
from stabn.models.st_abn import STABN

EXTRACTOR_PARTS = {name: f"feature_extractor.{own}" for name, own in IMAGENET_PARTS.items()}


@dataclass(frozen=True)
class Layout:
    """The names of one code base.

    Attributes:
        prefix: of the backbone.
        parts: our names of the parts, by theirs.
        mechanism: see ModelConfig.
        unused: beginnings of names that are made and saved, but never computed with.
    """

    prefix: str
    parts: Mapping[str, str]
    mechanism: str
    unused: tuple[str, ...] = ()

    def theirs(self, part: str) -> str:
        """Return their name of one of our parts."""
        return next(name for name, own in self.parts.items() if own == part)


PLAIN = Layout(
    prefix="",
    mechanism="linear",
    parts={
        **EXTRACTOR_PARTS,
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
    },
)
MMACTION = Layout(
    prefix="backbone.",
    mechanism="relu",
    parts={
        **{f"backbone.{name}": own for name, own in EXTRACTOR_PARTS.items()},
        "backbone.layer4": "perception_branch.layer4",
        "cls_head.fc_cls": "perception_branch.fc",
        "backbone.att_layer4": "attention_branch.trunk",
        "backbone.bn_att": "attention_branch.class_maps.0",
        "backbone.att_conv": "attention_branch.class_maps.1",
        "backbone.bn_att2": "attention_branch.class_maps.2",
        "backbone.att_conv2": "attention_branch.logits",
        "necks.att_head.fc": "attention_branch.fc",
        "backbone.att_conv3": "attention_branch.spatial.0",
        "backbone.bn_att3": "attention_branch.spatial.1",
        "backbone.t_att_conv": "attention_branch.temporal_map.0",
        "backbone.t_bn_att": "attention_branch.temporal_map.1",
        "backbone.t_att_conv2": "attention_branch.temporal_mix.0",
        "backbone.fc1": "attention_branch.temporal.0",
        "backbone.fc2": "attention_branch.temporal.2",
        "backbone.t_att_conv3": "attention_mechanism.0",
        "backbone.bn_att4": "attention_mechanism.1",
    },
    unused=(
        "necks.att_head.convs.",
        "necks.temporal_modulation_ops.",
        "necks.upsampling_ops.",
        "necks.downsampling_ops.",
        "necks.level_fusion_op.",
        "necks.level_fusion_op2.",
        "necks.spatial_modulation.",
        "necks.pyramid_fusion_op.",
    ),
)


class Converted(NamedTuple):
    """A converted checkpoint: its network, a state dict for STABN, and what became of the file's tensors."""

    config: ModelConfig
    weights: dict[str, Tensor]
    report: LoadReport


def convert_released(weights: Mapping[str, Tensor], source: str) -> Converted:
    """Map a checkpoint that the authors released to our names; all four outputs stay the same.

    K, T, depth and widths are inferred from the shapes. The linear layer of the attention logits has 174 outputs in the
    released code whatever K is; those beyond K are no classes and are left out.

    Args:
        weights: state dict with the names of either code base.
        source: its name, for messages.

    Raises:
        WeightsError: not such a checkpoint, a tensor whose place is not known, or a part without weights.
    """
    layout = MMACTION if any(name.startswith(MMACTION.prefix) for name in weights) else PLAIN
    config = _config(weights, layout, source)
    with without_memory():
        own = STABN(config).state_dict()
    report = LoadReport(source)
    mapped: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key.startswith(layout.unused):
            report.skipped[key] = "the released code never computes with it"
            continue
        part = next((p for p in layout.parts if key.startswith(f"{p}.")), "")
        name = layout.parts[part] + key[len(part) :] if part else ""
        if name not in own:
            raise WeightsError(f"{source}: {key} has no place in ST-ABN; is it another version of the network?")
        num_outputs = len(value) if value.ndim else 0
        if name.startswith("attention_branch.fc.") and num_outputs > config.num_classes:
            value = value[: config.num_classes]
            report.skipped[f"{key}[{config.num_classes}:]"] = (
                f"the released code has {num_outputs} outputs here whatever the number of classes, {config.num_classes}"
            )
        if own[name].shape != value.shape:
            raise WeightsError(
                f"{source}: {key} has shape {tuple(weights[key].shape)}, ST-ABN of {config.num_classes} classes and "
                f"{config.num_frames} frames has {tuple(own[name].shape)}"
            )
        mapped[name] = value.clone()
    report.loaded = list(mapped)
    absent = [n for n in own if n not in mapped and not n.endswith("num_batches_tracked")]
    if absent:
        raise WeightsError(f"{source}: nothing for {', '.join(absent[:5])}; the file is incomplete")
    return Converted(config, {name: mapped.get(name, torch.tensor(0)) for name in own}, report)


def _config(weights: Mapping[str, Tensor], layout: Layout, source: str) -> ModelConfig:
    """Return the network's settings from the shapes of its tensors."""
    stem, classifier, temporal, head = (
        f"{layout.theirs(part)}.weight"
        for part in (
            "feature_extractor.stem.conv1",
            "perception_branch.fc",
            "attention_branch.temporal_mix.0",
            "attention_branch.fc",
        )
    )
    firsts = [f"{layout.prefix}layer{layer}.0.conv1.weight" for layer in range(1, 5)]
    absent = [name for name in (stem, *firsts, classifier, head, temporal) if name not in weights]
    if absent:
        raise WeightsError(
            f"{source}: no released ST-ABN, {', '.join(absent)} missing; for a ResNet use train.init_weights"
        )
    if f"{layout.prefix}layer1.0.conv3.weight" not in weights:
        raise WeightsError(
            f"{source}: a released ST-ABN of basic blocks (ResNet-18, 34), whose temporal kernels are not this "
            "product's; only those of bottlenecks (ResNet-50, 101) can be converted"
        )
    return ModelConfig(
        block="bottleneck",
        num_blocks=count_blocks({name.removeprefix(layout.prefix): value for name, value in weights.items()}),
        width=weights[stem].shape[0],
        num_classes=weights[classifier].shape[0],
        num_frames=weights[temporal].shape[0],
        attention_head="linear",
        temporal_kernel="3x3x3",
        mechanism=layout.mechanism,
    )
