"""Where the tensors of public video transformers belong: VideoMAE (v1, v2) and V-JEPA 2.

Both as their authors publish them and as the library transformers does. All have the same blocks under other names:
query, key and value apart or together, with a bias for all, or for query and value alone. What else a file holds, a
decoder, a predictor, a head of other classes, is left out and reported.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stabn.config import ModelConfig
from stabn.models.backbone import EXTRACTOR, PERCEPTION, TRUNK, Placed
from stabn.models.load_report import LoadReport, WeightsError

# Before a name, in any number: wrappers, and the models that the encoder is a part of.
WRAPPERS = re.compile(r"^(?:(?:module|backbone|model|videomae|vjepa2|encoder)\.)*")
BLOCK = re.compile(r"(?:blocks|layer)\.(\d+)\.(.+)\.(weight|bias)")
NORM = re.compile(r"(fc_norm|norm|layernorm)\.(weight|bias)")
BARE_BIAS = re.compile(r"(?:blocks|layer)\.(\d+)\.(?:attn|attention\.attention)\.([qv])_bias")
PATCH = re.compile(r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.proj(?:ection)?)\.(weight|bias)")
# Our names of a block's layers, by the names of all layouts; of query, key and value apart, their letter.
LAYERS = {
    **dict.fromkeys(("norm1", "layernorm_before"), "norm1"),
    **dict.fromkeys(("norm2", "layernorm_after"), "norm2"),
    **dict.fromkeys(("attn.proj", "attention.proj", "attention.output.dense"), "attn.proj"),
    **dict.fromkeys(("mlp.fc1", "intermediate.dense"), "mlp.fc1"),
    **dict.fromkeys(("mlp.fc2", "output.dense"), "mlp.fc2"),
    "attn.qkv": "attn.qkv",
    **dict.fromkeys(("attention.query", "attention.attention.query"), "q"),
    **dict.fromkeys(("attention.key", "attention.attention.key"), "k"),
    **dict.fromkeys(("attention.value", "attention.attention.value"), "v"),
}
ELSEWHERE = {  # beginnings of names behind the wrappers, and why they are left out
    "decoder": "of the pre-training's decoder",
    "encoder_to_decoder": "of the pre-training's decoder",
    "mask_token": "of the pre-training's decoder",
    "predictor": "of the pre-training's predictor",
    "head.": "the classifier is of other classes",
    "classifier.": "the classifier is of other classes",
    "pooler.": "of another classifier's pooling",
    "cls_token": "a class token has no place on the grid",
    "reg_token": "a register has no place on the grid",
    "register_tokens": "a register has no place on the grid",
    "pos_embed": "positions are computed",
    "position_embeddings": "positions are computed",
}


def place(weights: Mapping[str, Tensor], report: LoadReport, config: ModelConfig) -> Iterator[Placed]:
    """Say where an encoder's tensors belong, see `Backbone.place`.

    Raises:
        WeightsError: an encoder of another depth.
    """
    names = {WRAPPERS.sub("", key): key for key in weights}
    depth = 1 + max((int(m[1]) for name in names if (m := re.match(r"(?:blocks|layer)\.(\d+)\.", name))), default=-1)
    if depth and depth != config.depth:
        raise WeightsError(
            f"{report.source}: it has {depth} blocks, the network's {config.depth}; choose the preset of that size, "
            "other weights, or set model.depth"
        )
    split: dict[tuple[int, str], dict[str, tuple[str, Tensor]]] = {}
    norms = ("fc_norm",) if config.pooling == "mean" else ("norm", "layernorm")
    for name, key in names.items():
        value = weights[key]
        if found := PATCH.fullmatch(name):
            yield Placed(key, EXTRACTOR, f"patch_embed.proj.{found[1]}", value)
        elif found := BARE_BIAS.fullmatch(name):
            split.setdefault((int(found[1]), "bias"), {})[found[2]] = key, value
        elif (found := BLOCK.fullmatch(name)) and (layer := LAYERS.get(found[2])):
            number, kind = int(found[1]), found[3]
            if len(layer) == 1:
                split.setdefault((number, kind), {})[layer] = key, value
            else:
                yield from _block(key, number, f"{layer}.{kind}", value, config)
        elif (found := NORM.fullmatch(name)) and found[1] in norms:
            yield Placed(key, PERCEPTION, f"norm.{found[2]}", value)
        elif found:
            report.skipped[key] = f"with model.pooling = {config.pooling} another normalisation takes its place"
        elif reason := next((why for start, why in ELSEWHERE.items() if name.startswith(start)), ""):
            report.skipped[key] = reason
        else:
            report.unexpected.append(key)
    for (number, kind), parts in split.items():
        yield from _joined(number, kind, parts, report.source, config)


def _joined(
    number: int, kind: str, parts: Mapping[str, tuple[str, Tensor]], source: str, config: ModelConfig
) -> Iterator[Placed]:
    """Place query, key and value of a block as one tensor; a key without a bias has one of 0, which says the same."""
    given = {letter: value for letter, (_, value) in parts.items()}
    if kind == "bias" and "k" not in given and "q" in given:
        given["k"] = torch.zeros_like(given["q"])
    if absent := [letter for letter in "qkv" if letter not in given]:
        key = next(key for key, _ in parts.values())
        raise WeightsError(f"{source}: block {number} has {key} but no {', '.join(absent)} beside it; it is incomplete")
    keys = " + ".join(key for key, _ in parts.values())
    yield from _block(keys, number, f"attn.qkv.{kind}", torch.cat([given[letter] for letter in "qkv"]), config)


def _block(key: str, number: int, name: str, value: Tensor, config: ModelConfig) -> Iterator[Placed]:
    """Place a tensor of a block: before or behind the cut, and in the trunk if the block is one of the last."""
    if number < config.extractor_blocks:
        yield Placed(key, EXTRACTOR, f"blocks.{number}.{name}", value)
    else:
        yield Placed(key, PERCEPTION, f"blocks.{number - config.extractor_blocks}.{name}", value)
    first = config.depth - config.trunk_blocks
    if number >= first:
        yield Placed(key, TRUNK, f"{number - first}.{name}", value)
