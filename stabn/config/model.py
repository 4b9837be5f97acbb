"""The settings of the network."""

from dataclasses import dataclass

from stabn.config.settings import ConfigError, Settings, setting

FORMER_BASELINE = "resnet3d"  # what the baseline was called when there was one backbone


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """The network; a checkpoint carries it, so that a checkpoint alone rebuilds its network."""

    name: str = setting(
        "st_abn", "st_abn, or baseline: the backbone with a classifier alone", choices=("st_abn", "baseline")
    )
    backbone: str = setting(
        "resnet3d",
        "what is cut into feature extractor and perception branch; a setting below that names one is for that one",
        choices=("resnet3d", "c3d", "vit"),
        later=True,
    )
    block: str = setting("bottleneck", "resnet3d: residual block", choices=("bottleneck", "basic"))
    num_blocks: tuple[int, ...] = setting(
        (3, 4, 6, 3), "resnet3d: residual blocks in layer1 to layer4", low=1, high=200
    )
    width: int = setting(
        64, "channels of the first layer, which resnet3d and c3d double in later ones; vit: of every token", low=1
    )
    depth: int = setting(12, "vit: transformer blocks", low=1, high=200, later=True)
    num_heads: int = setting(12, "vit: heads of the self-attention", low=1, later=True)
    mlp_ratio: float = setting(4.0, "vit: hidden over outer channels of a block's MLP", low=0.01, later=True)
    tubelet: int = setting(2, "vit: frames of a token, the temporal stride", low=1, later=True)
    patch: int = setting(16, "vit: side of a token's square, in pixels", low=1, later=True)
    positions: str = setting(
        "sincos",
        "vit: how tokens know their place: sincos as in VideoMAE, rope as in V-JEPA 2",
        choices=("sincos", "rope"),
        later=True,
    )
    extractor_blocks: int = setting(
        9, "vit: blocks of the feature extractor, before the attention; the others follow it", low=0, later=True
    )
    trunk_blocks: int = setting(
        3, "vit: blocks of the attention branch's trunk, a copy of the last ones", low=1, later=True
    )
    pooling: str = setting(
        "mean",
        "vit: what the classifier sees: mean over the tokens, or attentive, a query that attends to them",
        choices=("mean", "attentive"),
        later=True,
    )
    drop_path: float = setting(
        0.0, "vit: chance that a clip skips the last block, less in those before", low=0.0, high=0.99, later=True
    )
    num_classes: int = setting(174, "classes, K; taken from the manifest in training", low=1)
    num_frames: int = setting(32, "frames per clip, T; taken from data.num_frames in training", low=1)
    attention_head: str = setting(
        "gap", "gap: the paper's attention logits; linear: the released code's", choices=("gap", "linear")
    )
    temporal_kernel: str = setting(
        "1x3x3",
        "kernel of the first temporal convolution: 1x3x3 paper, 3x3x3 released code",
        choices=("1x3x3", "3x3x3"),
    )
    mechanism: str = setting(
        "linear",
        "behind the attention mechanism's BatchNorm: linear, nothing, as in the paper; relu, as in the first code",
        choices=("linear", "relu"),
    )
    dropout: float = setting(0.5, "dropout before the classifier of each branch", low=0.0, high=1.0)
    bn_momentum: float = setting(0.1, "momentum of the BatchNorm statistics", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        if self.name == FORMER_BASELINE:
            object.__setattr__(self, "name", "baseline")
        super().__post_init__()
        if len(self.num_blocks) != 4:
            raise ConfigError(f"num_blocks = {self.num_blocks}: give four numbers, for layer1 to layer4")

    @property
    def has_attention(self) -> bool:
        """Whether the network returns an attention that can be corrected."""
        return self.name == "st_abn"
