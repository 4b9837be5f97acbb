"""Spatio-Temporal Attention Branch Network (paper, section 3.1).

                                 ┌─────────────── attention branch ────────────────┐
                                 │ trunk (last layers again) ─ class maps A        │
                 ┌───── f ──────►│   ├─ attention logits                           │──► CE (eq. 4)
video ─► feature │               │   ├─ spatial attention  Ms (B, 1, S, h, w)      │
        extractor┤               │   └─ temporal attention Mt (B, 1, S, 1, 1)      │◄── edits M't (eq. 6)
                 │               └────────────────────────┬────────────────────────┘
                 │   attention mechanism:  Ms, Mt         ▼          perception branch
                 └───── f ──────► [(1 + Ms) f , Mt f] ─ 1x1x1 ─► f' ─► the rest ─ logits ─► CE (eq. 4)

Each slot of S is one frame where the backbone leaves time alone, else as many as its temporal stride.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stabn.config import ModelConfig
from stabn.models.backbone import PERCEPTION, TRUNK, Backbone
from stabn.models.network import Network, initialize
from stabn.models.output import Output, ShapeError
from stabn.models.perceiver import Perceiver

# Of the last layer before Mt's sigmoid at the start: a normalised map after ReLU has mean 0.4, which becomes 0.5.
TEMPORAL_GAIN, TEMPORAL_BIAS = 4.0, -1.6


def conv(channels: int, out_channels: int, kernel: tuple[int, int, int]) -> nn.Conv3d:
    """Return a convolution without bias whose output keeps T, H and W."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(channels, out_channels, kernel, padding=padding, bias=False)


def invert(attention: Tensor) -> Tensor:
    """Return 1 - attention (eq. 7)."""
    return 1 - attention


class AttentionBranch(nn.Module):
    """From features to class maps A, and from these to logits, Ms and Mt."""

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        classes, slots, momentum = config.num_classes, backbone.spec.num_slots, config.bn_momentum
        channels = backbone.trunk_channels
        self.head = config.attention_head
        self.trunk = backbone.trunk()
        self.class_maps = nn.Sequential(
            nn.BatchNorm3d(channels, momentum=momentum),
            conv(channels, classes, (1, 1, 1)),
            nn.BatchNorm3d(classes, momentum=momentum),
            nn.ReLU(),
        )
        self.logits = conv(classes, classes, (1, 1, 1))
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(classes * slots, classes) if self.head == "linear" else None
        self.spatial = nn.Sequential(conv(classes, 1, (1, 1, 1)), nn.BatchNorm3d(1, momentum=momentum), nn.Sigmoid())
        kernel = (3, 3, 3) if config.temporal_kernel == "3x3x3" else (1, 3, 3)
        self.temporal_map = nn.Sequential(conv(classes, 1, kernel), nn.BatchNorm3d(1, momentum=momentum), nn.ReLU())
        self.temporal_mix = nn.Sequential(nn.Conv2d(slots, slots, 1, bias=False), nn.ReLU())
        self.temporal = nn.Sequential(nn.Linear(slots, slots), nn.ReLU(), nn.Linear(slots, slots), nn.Sigmoid())

    def initialize_temporal(self) -> None:
        """Start the layers from frame to frame as identities: Mt of a frame rises with that frame's own activity.

        The paper is silent on this. Random weights would leave each ReLU dead for every video with probability 1/2,
        in short clips now and then all of them: Mt would be constant and L_temp could only move its bias.
        """
        for module in (*self.temporal_mix, *self.temporal):
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
                module.weight.data.fill_diagonal_(1)  # init.eye_ imports the compiler where there is no memory (meta)
                nn.init.zeros_(module.bias)
        last = self.temporal[2]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(TEMPORAL_GAIN)
            last.bias.fill_(TEMPORAL_BIAS)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, K), Ms (B, 1, S, h, w), Mt (B, 1, S, 1, 1)."""
        maps = self.class_maps(self.trunk(features))
        if self.fc is None:  # dropped before the K->K maps: of the K logits none may be missing from the loss
            logits = self.logits(self.dropout(maps)).mean((2, 3, 4))
        else:
            logits = self.fc(self.dropout(self.logits(maps).mean((3, 4)).flatten(1)))
        mixed = self.temporal_mix(self.temporal_map(maps).squeeze(1))
        temporal = self.temporal(mixed.mean((2, 3)))
        return logits, self.spatial(maps), temporal[:, None, :, None, None]


class STABN(Network):
    """ST-ABN: its attention is an output and an input of the recognition.

    Attributes:
        num_slots: S, values of the temporal attention of a clip.
    """

    parts = {**Network.parts, TRUNK: "attention_branch.trunk", PERCEPTION: "perception_branch"}  # noqa: RUF012

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        channels = self.backbone.channels
        self.num_slots = self.backbone.spec.num_slots
        self.feature_extractor = self.backbone.feature_extractor()
        self.attention_branch = AttentionBranch(config, self.backbone)
        self.attention_mechanism = nn.Sequential(
            conv(2 * channels, channels, (1, 1, 1)), nn.BatchNorm3d(channels, momentum=config.bn_momentum)
        )
        self.activation = nn.ReLU() if config.mechanism == "relu" else nn.Identity()
        self.perception_branch = self.backbone.perception_branch()
        initialize(self.modules())
        self.backbone.initialize(self.modules())
        self._initialize_mechanism()
        self.attention_branch.initialize_temporal()

    def _initialize_mechanism(self) -> None:
        if self.backbone.reads_channels:
            mix = self.attention_mechanism[0]
            assert isinstance(mix, nn.Conv3d)
            for half in mix.weight.data.chunk(2, dim=1):
                nn.init.dirac_(half)

    def reinitialize_recognition(self) -> None:
        """Give random weights to all that follows the attention: the attention mechanism and the perception branch."""
        for part in (self.attention_mechanism, self.perception_branch):
            for module in part.modules():
                if isinstance(module, nn.BatchNorm3d | nn.LayerNorm | nn.Linear):
                    module.reset_parameters()
            initialize(part.modules())
            self.backbone.initialize(part.modules())
        self._initialize_mechanism()

    def attend(self, features: Tensor, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Return f' of the attention mechanism (eq. 1 to 3), before `config.mechanism`'s ReLU if it has one.

        Args:
            features: f, (B, C, S, h, w).
            spatial: Ms, (B, 1, S, h, w), applied with a residual: (1 + Ms) f.
            temporal: Mt, (B, 1, S, 1, 1), applied without: Mt f.
        """
        return self.attention_mechanism(torch.cat([(1 + spatial) * features, temporal * features], dim=1))

    def attend_parts(self, features: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b, both (B, C, S, h, w), with which `attend` of any Mt is a + Mt b. In evaluation only.

        The mechanism is linear in Mt: W [(1 + Ms) f, Mt f] = W1 (1 + Ms) f + Mt W2 f. Who tries one Mt after the other
        on the same video keeps a and b, and what is left is the perception branch.
        """
        if self.training:
            raise ShapeError("attend_parts: BatchNorm is no fixed scale in training; call eval() first")
        mix, norm = self.attention_mechanism
        assert isinstance(mix, nn.Conv3d)
        for_spatial, for_temporal = mix.weight.chunk(2, dim=1)
        constant = norm(F.conv3d((1 + spatial) * features, for_spatial))
        slope = norm(F.conv3d(features, for_temporal))
        return constant, slope - norm(torch.zeros_like(slope[:1, :, :1, :1, :1]))

    def perceiver(self, dtype: torch.dtype, storage: torch.dtype = torch.float16) -> Perceiver:
        """Return what recognises clips from their `attend_parts`, for one Mt after the other."""
        return self.backbone.perceiver(self.perception_branch, self.activation, dtype, storage)

    def classify(self, attended: Tensor) -> Tensor:
        """Return logits (B, K) of the perception branch from what `attend` returns."""
        return self.perception_branch(self.activation(attended))

    def perceive(self, features: Tensor, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Return logits (B, K) of the perception branch; arguments as in `attend`.

        With the features and the attention of a former forward this is all that an edit changes.
        """
        return self.classify(self.attend(features, spatial, temporal))

    def forward(
        self,
        video: Tensor | None = None,
        *,
        features: Tensor | None = None,
        temporal_attention: Tensor | None = None,
        spatial_transform: Callable[[Tensor], Tensor] | None = None,
        temporal_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> Output:
        """Recognise clips, as they are or as if the attention were another.

        Args:
            video: float (B, 3, T, H, W), normalised; or None with `features`.
            features: f of `extract_features`, to run again only what follows it.
            temporal_attention: (B, S) in [0, 1], replaces Mt in the attention mechanism: a person's edit.
            spatial_transform: applied to Ms before the attention mechanism: `invert` for eq. 7.
            temporal_transform: applied to Mt as (B, S) before the attention mechanism, if nothing replaces it.

        Returns:
            Logits under the changed attention; the attention returned is the network's own.

        Raises:
            ShapeError: both or neither of video and features, or a shape that does not fit.
        """
        if (video is None) == (features is None):
            raise ShapeError("give either a video or its features")
        if features is None:
            assert video is not None
            features = self.extract_features(video)
        self._check_features(features)
        attention_logits, spatial, temporal = self.attention_branch(features)
        used_spatial = spatial if spatial_transform is None else spatial_transform(spatial)
        if used_spatial.shape != spatial.shape:
            raise ShapeError(
                f"spatial_transform returned shape {tuple(used_spatial.shape)}: expected that of Ms, "
                f"(B, 1, S, h, w) = {tuple(spatial.shape)}"
            )
        used_temporal = temporal
        if temporal_attention is None and temporal_transform is not None:
            temporal_attention = temporal_transform(temporal.flatten(1))
        if temporal_attention is not None:
            expected = (features.shape[0], self.num_slots)
            if temporal_attention.shape != expected:
                raise ShapeError(
                    f"temporal_attention of shape {tuple(temporal_attention.shape)}: expected (B, S) = {expected}, "
                    f"with one value for each of {self.num_slots} slots of {self.config.num_frames} frames"
                )
            used_temporal = temporal_attention.to(features)[:, None, :, None, None]
        return Output(self.perceive(features, used_spatial, used_temporal), attention_logits, spatial, temporal)

    def _check_features(self, features: Tensor) -> None:
        channels = self.backbone.channels
        if features.ndim != 5 or features.shape[1:3] != (channels, self.num_slots):
            raise ShapeError(
                f"features of shape {tuple(features.shape)}: expected (B, C, S, h, w) with C = {channels} and "
                f"S = {self.num_slots}, as extract_features of this network returns them"
            )
