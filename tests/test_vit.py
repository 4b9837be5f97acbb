"""The video transformer against the numbers of the library transformers, in every layout of its public weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from reference_transformers import CLASSES, DEPTH, FRAMES, HEADS, HIDDEN, PATCH, SIZE, TUBELET, WIDTH, clips, formula
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from stabn.config import ConfigError, DataConfig, ModelConfig, spec_of
from stabn.models import STABN, build_model
from stabn.models.output import ShapeError
from stabn.models.vit import Attention, Blocks, rope_tables, sincos_table
from stabn.models.weights import WeightsError, load_initial_weights, read_weights
from stabn.training.flops import forward_flops

GOLDEN = Path(__file__).parent / "golden_models"
POSITIONS = {"videomae": "sincos", "vjepa2": "rope"}


def config_of(model: str, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "backbone": "vit",
        "width": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "mlp_ratio": HIDDEN / WIDTH,
        "tubelet": TUBELET,
        "patch": PATCH,
        "positions": POSITIONS[model],
        "pooling": "mean" if model == "videomae" else "attentive",
        "extractor_blocks": 2,
        "trunk_blocks": 1,
        "num_classes": CLASSES,
        "num_frames": FRAMES,
        "dropout": 0.0,
    }
    return ModelConfig(**{**values, **changes})


def golden(model: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the reference's weights, by its names, and what it computed with them."""
    with safetensors.safe_open(GOLDEN / f"{model}.safetensors", "pt") as file:
        shapes = json.loads(file.metadata()["weights"])
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return {name: formula(name, tuple(shape)) for name, shape in shapes.items()}, found


def as_authors(model: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same weights as the authors' own code names and joins them."""
    renamed: dict[str, Tensor] = {}
    names = {"attention.attention": "attn", "attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1"}
    names |= {"output.dense": "mlp.fc2", "layernorm_before": "norm1", "layernorm_after": "norm2", "attention": "attn"}
    for name, value in weights.items():
        for start in ("videomae.", "encoder."):
            name = name.removeprefix(start)
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("embeddings.patch_embeddings.proj", "patch_embed.proj").replace("layernorm.", "norm.")
        if name.startswith("layer."):
            _, number, rest = name.split(".", 2)
            start = next((s for s in names if rest.startswith(s)), "")
            name = f"blocks.{number}.{names[start] if start else ''}{rest[len(start) :]}"
        renamed[name.replace("classifier.", "head.")] = value
    for number in range(DEPTH):
        start = f"blocks.{number}.attn."
        q, k, v = (renamed.pop(f"{start}{part}.weight") for part in ("query", "key", "value"))
        renamed[f"{start}qkv.weight"] = torch.cat([q, k, v])
        biases = [renamed.pop(f"{start}{part}.bias", None) for part in ("query", "key", "value")]
        if model == "videomae":
            renamed[f"{start}q_bias"], renamed[f"{start}v_bias"] = biases[0], biases[2]
        else:
            renamed[f"{start}qkv.bias"] = torch.cat(biases)
    return renamed


def layouts(model: str) -> dict[str, dict[str, Tensor]]:
    weights, _ = golden(model)
    authors = as_authors(model, weights)
    own = {name: value for name, value in authors.items() if not name.startswith(("predictor.", "head."))}
    found = {"transformers": weights, "authors": authors}
    if model == "videomae":
        biases = {"query.bias": "q_bias", "value.bias": "v_bias"}  # as earlier versions of transformers had them
        found["hub"] = {
            next((k.replace(a, b) for a, b in biases.items() if k.endswith(a)), k): v for k, v in weights.items()
        }
        decoder = {"decoder.blocks.0.attn.qkv.weight": torch.zeros(3), "mask_token": torch.zeros(1, 1, 8)}
        kept = {name: value for name, value in own.items() if not name.startswith("fc_norm")}
        found["pre-training"] = {f"encoder.{name}": value for name, value in kept.items()} | decoder
        found["version 2 on the hub"] = {f"model.{name}": value for name, value in authors.items()}
    else:
        found["hub"] = {f"module.backbone.{name}": value for name, value in own.items()}
        found["with a probe"] = {f"vjepa2.{name}": value for name, value in weights.items()}
        found["with a probe"] |= {
            "pooler.query_tokens": torch.zeros(1, 1, WIDTH),
            "classifier.weight": torch.zeros(3, 3),
        }
    return found


CASES = [(model, layout) for model in POSITIONS for layout in layouts(model)]


@pytest.mark.parametrize(("model", "layout"), CASES)
@pytest.mark.parametrize("extractor_blocks", [0, 2, DEPTH])
def test_tokens_are_the_references(model: str, layout: str, extractor_blocks: int, tmp_path: Path) -> None:
    """In float64, wherever the blocks are cut, from a file in the layout."""
    weights = {name: value.contiguous() for name, value in layouts(model)[layout].items()}
    save_file(weights, tmp_path / "model.safetensors")
    network = build_model(config_of(model, name="baseline", extractor_blocks=extractor_blocks)).double().eval()
    report = load_initial_weights(network, str(tmp_path / "model.safetensors"))
    assert not report.unexpected, str(report)
    parts = {name.split(".")[1] for name in report.missing}
    assert parts <= {"fc", "pooling"} | ({"norm"} if layout == "pre-training" else set()), str(report)
    with torch.no_grad():
        tokens = network.classifier.blocks(network.extract_features(clips())).flatten(2).transpose(1, 2)
        if model == "vjepa2":
            tokens = network.classifier.norm(tokens)
    torch.testing.assert_close(tokens, golden(model)[1]["tokens"], rtol=1e-4 if model == "vjepa2" else 1e-6, atol=1e-5)


def test_the_classifier_is_the_references() -> None:
    """VideoMAE's fine-tuning: the mean over the tokens, normalised, and a linear layer."""
    weights, found = golden("videomae")
    network = build_model(config_of("videomae", name="baseline")).double().eval()
    report = load_initial_weights(network, "weights", weights)
    assert set(report.skipped) == {"classifier.weight", "classifier.bias"}
    network.classifier.norm.eps = 1e-5  # transformers has PyTorch's own here, the authors that of the blocks
    network.classifier.fc.load_state_dict({k: weights[f"classifier.{k}"] for k in ("weight", "bias")})
    torch.testing.assert_close(network(clips()).logits, found["logits"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("model", POSITIONS)
def test_the_trunk_is_a_copy_of_the_last_blocks(model: str) -> None:
    network = STABN(config_of(model, trunk_blocks=2)).double()
    report = load_initial_weights(network, "weights", golden(model)[0])
    own = network.state_dict()
    last = [network.feature_extractor.blocks[1], network.perception_branch.blocks[0]]
    for block, copy in zip(last, network.attention_branch.trunk, strict=True):
        for name, value in block.state_dict().items():
            assert torch.equal(copy.state_dict()[name], value), name
    attention = {name for name in own if name.startswith("attention_branch.") and ".trunk." not in name}
    assert attention <= {*report.missing, *(n for n in own if n.endswith("num_batches_tracked"))}


def test_the_mechanism_starts_with_the_channels_in_their_places() -> None:
    """The blocks behind it go on reading the residual stream: f' is BatchNorm of (1 + Ms + Mt) f at the start."""
    torch.manual_seed(0)
    network = STABN(config_of("vjepa2")).eval()
    features = network.extract_features(clips().float())
    spatial, temporal = torch.rand(2, 1, 2, 4, 4), torch.rand(2, 1, 2, 1, 1)
    expected = (1 + spatial + temporal) * features / (1 + network.attention_mechanism[1].eps) ** 0.5
    torch.testing.assert_close(network.attend(features, spatial, temporal), expected)
    network.reinitialize_recognition()
    torch.testing.assert_close(network.attend(features, spatial, temporal), expected)


def test_sincos_against_the_published_loop() -> None:
    table = sincos_table((2, 3, 3), 12, torch.device("cpu")).flatten(1).T
    for position in range(18):
        for channel in range(12):
            angle = torch.tensor(position / 10000 ** (2 * (channel // 2) / 12), dtype=torch.float64)
            expected = angle.sin() if channel % 2 == 0 else angle.cos()
            assert table[position, channel] == pytest.approx(float(expected), abs=1e-6)


def test_attention_against_a_loop() -> None:
    """Softmax of q k / sqrt(d), head by head, with rotated queries and keys; rotating keeps lengths."""
    torch.manual_seed(0)
    attention, x = Attention(32, 2).double(), torch.randn(2, 2 * 3 * 3, 32, dtype=torch.float64)
    cos, sin = rope_tables((2, 3, 3), 16, torch.device("cpu"))
    q, k, v = attention.qkv(x).chunk(3, dim=2)
    result = torch.zeros_like(x)
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        turned = []
        for values in (q[..., part], k[..., part]):
            swapped = torch.stack([-values[..., 1::2], values[..., ::2]], -1).flatten(-2)
            turned.append(values * cos + swapped * sin)
        weights = F.softmax(turned[0] @ turned[1].transpose(1, 2) / 4.0, dim=-1)
        result[..., part] = weights @ v[..., part]
    torch.testing.assert_close(attention(x, cos, sin), attention.proj(result))
    assert (cos[:, 12:] == 1).all() and (sin[:, 12:] == 0).all(), "16 channels are three thirds of 4 and a rest"


def test_a_clip_skips_blocks_in_training_alone_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    blocks = Blocks(config_of("videomae", drop_path=0.5, depth=1, extractor_blocks=1), 0, 1)
    assert blocks.random is True and blocks[0].drop_path == 0.0, "the first block is never skipped"
    blocks[0].drop_path = 0.5
    grid = torch.randn(1, WIDTH, 1, 2, 2).expand(2000, -1, -1, -1, -1)
    assert torch.equal(blocks.eval()(grid)[0], blocks(grid)[1])
    kept = blocks[0]._kept
    blocks.train()
    x = torch.ones(4000, 3, 2)
    values = kept(x)
    assert set(values.unique().tolist()) == {0.0, 2.0} and float(values.mean()) == pytest.approx(1, abs=0.1)
    assert (values == values[:, :1, :1]).all(), "a clip as a whole"


def test_recomputed_blocks_skip_the_same_clips() -> None:
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        network = STABN(config_of("videomae", drop_path=0.9)).double().train()
        network.set_activation_checkpointing(enabled)
        torch.manual_seed(1)
        network(clips()).logits.square().sum().backward()
        gradients.append(network.feature_extractor.patch_embed.proj.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


def test_weights_that_do_not_fit_are_named() -> None:
    weights, _ = golden("vjepa2")
    network = STABN(config_of("vjepa2", depth=4))
    with pytest.raises(WeightsError, match=r"net: it has 3 blocks, the network's 4; choose the preset of that size"):
        load_initial_weights(network, "net", weights)
    half = {name: value for name, value in weights.items() if name != "encoder.layer.1.attention.key.weight"}
    with pytest.raises(WeightsError, match=r"net: block 1 has .*query\.weight but no k beside it"):
        load_initial_weights(STABN(config_of("vjepa2")), "net", half)
    other = {**weights, "encoder.layer.0.mlp.fc1.weight": torch.zeros(7, 7)}
    with pytest.raises(WeightsError, match=r"fc1\.weight has shape \(7, 7\)"):
        load_initial_weights(STABN(config_of("vjepa2")), "net", other)
    more = {
        **weights,
        "cls_token": torch.zeros(1, 1, 32),
        "encoder.register_tokens": torch.zeros(1),
        "gate": torch.zeros(1),
    }
    report = load_initial_weights(STABN(config_of("vjepa2")), "net", more)
    assert report.unexpected == ["gate"] and {"cls_token", "encoder.register_tokens"} <= set(report.skipped)
    assert "no place on the grid" in str(report) and "predictor" in str(report)


def test_an_image_transformers_patches_are_inflated_in_time() -> None:
    """A still video gives the image's tokens, up to positions."""
    network = build_model(config_of("videomae", name="baseline"))
    flat = torch.randn(WIDTH, 3, PATCH, PATCH)
    load_initial_weights(network, "net", {"patch_embed.proj.weight": flat, "patch_embed.proj.bias": torch.zeros(WIDTH)})
    image = torch.randn(1, 3, SIZE, SIZE)
    tokens = network.feature_extractor.patch_embed(image[:, :, None].repeat(1, 1, FRAMES, 1, 1))
    torch.testing.assert_close(tokens[:, :, 1], F.conv2d(image, flat, stride=PATCH), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", ["encoder", "target_encoder", "model", "module"])
def test_where_training_code_keeps_the_encoder(key: str, tmp_path: Path) -> None:
    content = {"encoder": {"blocks.0.norm1.weight": torch.zeros(1)}, "epoch": 3}
    content[key] = {"module.backbone.blocks.0.norm1.weight": torch.ones(1)}
    torch.save(content, tmp_path / "net.pt")
    assert read_weights(str(tmp_path / "net.pt")) == {"backbone.blocks.0.norm1.weight": torch.ones(1)}


def test_a_damaged_safetensors_file_is_one_clear_error(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(100)}, tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    for name, cut in {"half": data[: len(data) // 2], "no-json": data[:9] + b"!" + data[10:]}.items():
        (tmp_path / name).write_bytes(cut)
        with pytest.raises(WeightsError, match=f"{name}: cannot be read as weights"):
            read_weights(str(tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "crop", "said"),
    [
        ({}, 36, r"data\.crop_size = 36 with model\.patch = 8"),
        ({"num_heads": 5}, 32, r"model\.width = 32 with model\.num_heads = 5"),
        ({"num_heads": 8}, 32, "rope needs 6 channels per head"),
        ({"extractor_blocks": 4}, 32, r"model\.extractor_blocks = 4 with model\.depth = 3"),
        ({"trunk_blocks": 4}, 32, r"model\.trunk_blocks = 4 with model\.depth = 3"),
        ({"num_frames": 5}, 32, r"data\.num_frames = 5: video ViT .* one attention value for 2 frames"),
    ],
)
def test_settings_that_contradict_are_refused(changes: dict[str, Any], crop: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec_of(config_of("vjepa2", **changes)).check(crop)


def test_the_arithmetic_of_every_part_is_counted() -> None:
    """By hand, 2 per multiplication and addition: the products of weights, and those of N x N tokens."""
    config, tokens = config_of("vjepa2"), 2 * (SIZE // PATCH) ** 2
    counts = forward_flops(config, DataConfig(num_frames=FRAMES, crop_size=SIZE))
    block = 2 * tokens * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN) + 4 * tokens**2 * WIDTH
    patches = 2 * tokens * WIDTH * 3 * TUBELET * PATCH**2
    assert counts["feature_extractor"] == 2 * block + patches
    assert counts["attention_mechanism"] == 2 * tokens * 2 * WIDTH**2
    assert block < counts["perception_branch"] < 1.5 * block, "the last block, and a query's attention"


def test_a_picture_that_does_not_divide_into_patches_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"multiples of \(2, 8, 8\)"):
        STABN(config_of("vjepa2"))(torch.zeros(1, 3, FRAMES, 36, 32))
