"""A video transformer: a ViT whose tokens are tubelets, with the layouts of VideoMAE and V-JEPA 2.

    patch embedding (tubelet x patch x patch) ─ blocks ... │ ... blocks ─ norm, pooling, classifier
                        feature extractor                  │          perception branch

Cut in the residual stream: f is the grid of tokens (B, D, T/tubelet, H/patch, W/patch), and on that grid Ms, Mt and
eq. 1 to 3 are those of the 3D ResNet. The trunk of the attention branch is a copy of the last blocks. There is no class
token and no register: they have no place on the grid.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stabn.config import ModelConfig
from stabn.models.backbone import Backbone, Placed
from stabn.models.checkpointing import Layer
from stabn.models.load_report import LoadReport
from stabn.models.output import ShapeError
from stabn.models.vit_weights import place

EPSILON = 1e-6  # of the normalisations, as in both code bases
STD = 0.02  # of random weights
BASE = 10000.0  # of the positions' wavelengths


class PatchEmbed(nn.Module):
    """Tubelets to tokens: (B, 3, T, H, W) to (B, D, T/tubelet, H/patch, W/patch)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kernel = (config.tubelet, config.patch, config.patch)
        self.proj = nn.Conv3d(3, config.width, kernel, kernel)

    def forward(self, video: Tensor) -> Tensor:
        sides = zip(video.shape[2:], self.proj.kernel_size, strict=True)
        if any(side % step for side, step in sides):
            raise ShapeError(
                f"video of shape {tuple(video.shape)}: T, H and W must be multiples of {self.proj.kernel_size}; set "
                "data.num_frames and data.crop_size so"
            )
        return self.proj(video)


class Attention(nn.Module):
    """Self-attention of all tokens of a clip, scaled dot product."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *rotation: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = round(width * ratio)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Normalised self-attention and MLP, each added to the residual stream.

    Attributes:
        drop_path: chance in training that a clip skips either of them.
    """

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.width, EPSILON)
        self.attn = Attention(config.width, config.num_heads)
        self.norm2 = nn.LayerNorm(config.width, EPSILON)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(self, x: Tensor, *rotation: Tensor) -> Tensor:
        x = x + self._kept(self.attn(self.norm1(x), *rotation))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * (kept / (1 - self.drop_path)).to(x.dtype)


class Blocks(Layer):
    """Some of the blocks in a row, on the grid of tokens (B, D, S, h, w)."""

    def __init__(self, config: ModelConfig, first: int, last: int) -> None:
        """Take blocks first <= block < last of the network."""
        rate = config.drop_path / max(1, config.depth - 1)
        super().__init__(*(Block(config, number * rate) for number in range(first, last)))
        self.rope, self.head_width = config.positions == "rope", config.width // config.num_heads
        self.random = config.drop_path > 0

    def forward(self, grid: Tensor, *more: Tensor) -> Tensor:
        shape = grid.shape[2:]
        rotation = rope_tables(shape, self.head_width, grid.device) if self.rope else ()
        tokens = super().forward(grid.flatten(2).transpose(1, 2), *rotation)
        return tokens.transpose(1, 2).unflatten(2, shape)


class FeatureExtractor(nn.Module):
    """Patch embedding and the first blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sincos = config.positions == "sincos"
        self.patch_embed = PatchEmbed(config)
        self.blocks = Blocks(config, 0, config.extractor_blocks)

    def forward(self, video: Tensor) -> Tensor:
        grid = self.patch_embed(video)
        if self.sincos:
            grid = grid + sincos_table(grid.shape[2:], grid.shape[1], grid.device).to(grid.dtype)
        return self.blocks(grid)


class AttentivePooling(nn.Module):
    """A learned query attends to the tokens (the last block of V-JEPA's attentive probe): (B, N, D) to (B, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Parameter(torch.zeros(1, 1, config.width))
        self.norm1 = nn.LayerNorm(config.width, EPSILON)
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.norm2 = nn.LayerNorm(config.width, EPSILON)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(len(tokens), -1, -1)
        q = self.q(query).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm1(tokens)).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = query + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (x + self.mlp(self.norm2(x))).squeeze(1)


class PerceptionBranch(nn.Module):
    """The other blocks, pooling, dropout, linear: tokens to (B, K) logits.

    The mean is normalised, as VideoMAE is fine-tuned; for the query the tokens are, as V-JEPA 2 is probed.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = Blocks(config, config.extractor_blocks, config.depth)
        self.norm = nn.LayerNorm(config.width, EPSILON)
        self.pooling = AttentivePooling(config) if config.pooling == "attentive" else None
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(config.width, config.num_classes)

    def forward(self, grid: Tensor) -> Tensor:
        tokens = self.blocks(grid).flatten(2).transpose(1, 2)
        pooled = self.norm(tokens.mean(1)) if self.pooling is None else self.pooling(self.norm(tokens))
        return self.fc(self.dropout(pooled))


def sincos_table(shape: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """Return float32 (D, S, h, w): sine and cosine of a token's number, time first, as VideoMAE counts."""
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device=device)
    channel = torch.arange(width, dtype=torch.float64, device=device)
    angle = number / BASE ** (2 * (channel // 2) / width)[:, None]
    table = torch.where(channel[:, None] % 2 == 0, angle.sin(), angle.cos())
    return table.float().unflatten(1, shape)


def rope_tables(shape: tuple[int, ...], head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, float32 (N, head_width) each, of V-JEPA 2's rotary positions.

    A third of a head's channels turns with time, one with height, one with width; what is left over does not turn.
    Within a third the angles repeat as a whole instead of pair by pair: the published weights were trained so.
    """
    third = 2 * (head_width // 3 // 2)
    omega = BASE ** (-torch.arange(third // 2, dtype=torch.float32, device=device) / (third / 2))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=device) for n in shape), indexing="ij")
    angles = [(axis.flatten()[:, None] * omega).repeat(1, 2) for axis in axes]
    rest = torch.zeros(len(angles[0]), head_width - 3 * third, device=device)
    angle = torch.cat([*angles, rest], 1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of channels of queries or keys (B, heads, N, head_width) by their token's angles."""
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-other, one), -1).flatten(-2)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


class VideoTransformer(Backbone):
    """See the head of this file."""

    reads_channels = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.channels = self.trunk_channels = config.width

    def feature_extractor(self) -> nn.Module:
        return FeatureExtractor(self.config)

    def trunk(self) -> nn.Module:
        return Blocks(self.config, self.config.depth - self.config.trunk_blocks, self.config.depth)

    def perception_branch(self) -> nn.Module:
        return PerceptionBranch(self.config)

    def initialize(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            if isinstance(module, PatchEmbed):
                nn.init.normal_(module.proj.weight, std=STD)
            elif isinstance(module, AttentivePooling):
                nn.init.normal_(module.query, std=STD)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=STD)
                nn.init.zeros_(module.bias)

    def place(self, weights: Mapping[str, Tensor], report: LoadReport) -> Iterator[Placed]:
        """Place an encoder in one of the layouts of `vit_weights`; the trunk starts as a copy of its last blocks."""
        return place(weights, report, self.config)
