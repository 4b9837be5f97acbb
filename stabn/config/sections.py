"""Every setting of the product, once, by owner; composed in one RunConfig."""

import dataclasses
import ipaddress
import re
from dataclasses import dataclass

from stabn.config.backbones import spec_of
from stabn.config.model import ModelConfig
from stabn.config.settings import ConfigError, Settings, setting

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(Settings):
    """How videos become frames in object storage."""

    short_side: int = setting(256, "height or width, whichever is smaller, of the stored frames, in pixels", low=16)
    jpeg_quality: int = setting(90, "JPEG quality of the stored frames, 1 to 100", low=1, high=100)
    decoder: str = setting("pyav", "engine that decodes the videos", choices=("pyav", "ffmpeg"))
    max_rejects: float = setting(
        0.01, "share of videos that may be unusable before the stage fails, 0 to 1", low=0.0, high=1.0
    )
    fps: float = setting(12.0, "frames per second that every video must have, within 5%; 0: any", low=0.0)
    min_frames: int = setting(2, "frames that a video must have at least", low=1)
    max_frames: int = setting(3000, "frames that a video may have at most", low=1)
    max_pixels: int = setting(16_777_216, "width x height that a video may have at most", low=1)
    max_mb: int = setting(256, "size of a video file, at most, in MB", low=1)
    time_limit: float = setting(60.0, "seconds that decoding one video may take", low=0.001)
    workers: int = setting(0, "processes that decode; 0: one per core", low=0)
    held_out: float = setting(
        0.0,
        "share of the training videos that nothing looks at but the report and promotion: the split held_out; 0: none, "
        "as in the paper, which reports on validation",
        low=0.0,
        high=0.9,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_frames > self.max_frames:
            raise ConfigError(
                f"min_frames = {self.min_frames} with max_frames = {self.max_frames}: no video could be used; lower "
                "the first or raise the second"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Which frames the network sees, and how they are augmented (paper, section 4.1)."""

    num_frames: int = setting(32, "frames per clip, T", low=1)
    num_clips: int = setting(1, "clips per video whose scores are averaged: 1 is '32', 2 is '32x2'", low=1)
    crop_size: int = setting(224, "side of the square network input, in pixels", low=16)
    scales: tuple[float, ...] = setting(
        (1.0, 0.875, 0.75, 0.66), "sides of the training crop, as shares of the short side", low=0.05, high=1.0
    )
    evaluation_scale: float = setting(
        0.875, "side of the middle crop in evaluation, as a share of the short side", low=0.05, high=1.0
    )
    flip: bool = setting(True, "flip half of the training clips, swapping left and right in their label")
    color_jitter: float = setting(
        0.2, "largest relative change of brightness, contrast and saturation; 0: none", low=0.0, high=1.0
    )
    mean: tuple[float, ...] = setting((0.485, 0.456, 0.406), "mean of red, green and blue, in [0, 1]")
    std: tuple[float, ...] = setting((0.229, 0.224, 0.225), "standard deviation of red, green and blue", low=1e-6)
    test_clips: int = setting(
        1, "clips of other frames of each video whose probabilities evaluate averages", low=1, later=True
    )
    test_crops: int = setting(
        1,
        "squares of each clip whose probabilities evaluate averages: 1, the middle, or 3, along the longer side",
        choices=(1, 3),
        later=True,
    )
    cache_mb: int = setting(
        0, "memory for compressed frames, in MB, in training and again in validation; loading processes share it", low=0
    )
    cache_dir: str = setting("", "folder on a local disk that keeps frames for all processes of a node; empty: none")
    cache_gb: float = setting(50.0, "size of cache_dir, at most, in GB", low=0.001)
    workers: int = setting(
        -1,
        "processes that load clips for each training process; 0: it loads itself; -1: 0 on a processor, beside a GPU "
        "as many as cores, /dev/shm and memory allow",
        low=-1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, length in (("mean", 3), ("std", 3)):
            if len(getattr(self, name)) != length:
                raise ConfigError(f"{name} = {getattr(self, name)}: give three numbers, for red, green and blue")
        if not self.scales:
            raise ConfigError("scales is empty: give at least one share of the short side, such as 1.0")


@dataclass(frozen=True, kw_only=True)
class FitConfig(Settings):
    """What training and fine-tuning share: optimiser, schedule, arithmetic, processes, saved states."""

    epochs: int = setting(150, "passes over the training videos", low=1)
    batch_size: int = setting(64, "videos per optimiser step, over all processes", low=1)
    micro_batch_size: int = setting(
        8,
        "videos that go through the network at once in one process, and that BatchNorm sees together; the gradients of "
        "a process' share are added up; 0: the whole share at once",
        low=0,
    )
    optimizer: str = setting("sgd", "sgd as in the paper, or adamw", choices=("sgd", "adamw"))
    learning_rate: float = setting(
        0.01, "initial (one_cycle: highest) learning rate, for reference_batch_size videos per step", low=0.0
    )
    reference_batch_size: int = setting(
        64, "batch_size that learning_rate is for; with another the rate changes in proportion; 0: never", low=0
    )
    extractor_rate: float = setting(
        1.0, "the feature extractor's learning rate, as a multiple of learning_rate", low=0.0, later=True
    )
    attention_rate: float = setting(
        1.0, "the attention branch's learning rate, as a multiple of learning_rate", low=0.0, later=True
    )
    momentum: float = setting(0.9, "momentum of SGD", low=0.0, high=1.0)
    nesterov: bool = setting(True, "Nesterov momentum, as in the released settings")
    weight_decay: float = setting(5e-4, "weight decay", low=0.0)
    label_smoothing: float = setting(
        0.0, "share of each label that is spread evenly over all classes, 0 to 1", low=0.0, high=1.0, later=True
    )
    class_balance: float = setting(
        0.0,
        "how much more the videos of rare classes count in the losses: 0: all alike; 1: every class counts the same; "
        "between: by that power of its number of videos",
        low=0.0,
        high=1.0,
        later=True,
    )
    decay_norms: bool = setting(True, "weight decay of BatchNorm and biases too, as in the paper", later=True)
    clip_norm: float = setting(20.0, "largest norm of the gradient; 0: no clipping", low=0.0)
    schedule: str = setting(
        "plateau",
        "plateau: times plateau_factor when the validation loss saturates; cosine: from the rate after warm-up to 0",
        choices=("plateau", "one_cycle", "cosine"),
    )
    warmup_epochs: float = setting(0.0, "epochs in which the rate of plateau and cosine rises from 0", low=0.0)
    plateau_factor: float = setting(0.1, "what the learning rate is multiplied by on a plateau", low=0.0, high=1.0)
    plateau_patience: int = setting(5, "validations without a lower loss that make a plateau", low=0)
    min_learning_rate: float = setting(1e-6, "training stops when a plateau would lower the rate below this", low=0.0)
    early_stop: int = setting(0, "validations without a better top-1 after which training stops; 0: never", low=0)
    validate_every: int = setting(1, "epochs from one validation to the next; the last epoch always has one", low=1)
    ema_decay: float = setting(
        0.0, "decay per step of averaged weights, which are then validated and kept; 0: none", low=0.0, high=0.999999
    )
    sync_batch_norm: bool = setting(False, "BatchNorm sees the videos of all processes together")
    max_skipped_steps: int = setting(
        0, "steps of a run that may be left out because their gradient is not finite; 0: stop at the first", low=0
    )
    precision: str = setting(
        "auto", "auto: bf16 where the hardware multiplies it faster, else fp32", choices=("auto", "fp32", "bf16")
    )
    activation_checkpointing: bool = setting(False, "recompute activations in the backward pass to save memory")
    compile: bool = setting(False, "compile the network with torch.compile; for GPUs, takes minutes at the start")
    seed: int = setting(0, "seed of weights, order and augmentation", low=0)
    deterministic: bool = setting(False, "on GPUs, only kernels that repeat to the bit; slower", later=True)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    processes: int = setting(
        1, "processes on this machine, each with a GPU of its own; 0: one per GPU; torchrun's number goes before", low=0
    )
    restarts: int = setting(3, "times that processes which died are started again from the newest state", low=0)
    timeout_seconds: float = setting(600.0, "seconds that a process waits for the others before all end", low=1.0)
    log_steps: int = setting(50, "steps from one line of measurements to the next; 0: only epochs are logged", low=0)
    checkpoint_minutes: float = setting(
        10.0, "minutes from one saved state to the next inside an epoch; 0: only after epochs", low=0.0
    )
    keep_states: int = setting(2, "newest saved states to keep", low=1)
    keep: str = setting(
        "best",
        "epoch whose network is the one to use: best: of the highest validation top-1; last: no choice is made",
        choices=("best", "last"),
        later=True,
    )
    gamma: float = setting(
        10.0, "weight of the temporal attention loss (eq. 6) of edited videos; 0: the control run", low=0.0, later=True
    )
    attention_epochs: int = setting(
        0,
        "of the epochs, the first in which only the attention is learnt from the edits (eq. 6), so that the "
        "recognition is learnt under an attention that is right; at most half of the epochs. 0: both from the first "
        "step, as in the paper, and as without edits or with gamma = 0",
        low=0,
        later=True,
    )
    teacher_forcing: float = setting(
        0.0,
        "share of the edited clips in which the edit takes the place of Mt in the attention mechanism while learning, "
        "0 to 1; with 1 the network never meets its own attention of these videos",
        low=0.0,
        high=1.0,
        later=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not DEVICE.fullmatch(self.device):
            raise ConfigError(f"device = {self.device!r}: write auto, cpu, cuda or cuda:N")
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ConfigError("momentum = 0 with nesterov = true: set nesterov = false, or a momentum")
        if self.compile and self.teacher_forcing:
            raise ConfigError(f"compile with teacher_forcing = {self.teacher_forcing}: choose one of them")

    def check_processes(self, number: int) -> None:
        """Refuse more processes than a step has videos, and one GPU for several.

        Raises:
            ConfigError: names the setting.
        """
        if self.batch_size < number:
            raise ConfigError(
                f"batch_size = {self.batch_size} for {number} processes: each needs a video, raise batch_size"
            )
        check_device(self.device, number)


def check_device(name: str, processes: int) -> None:
    """Refuse one GPU for several processes.

    Raises:
        ConfigError: names the setting.
    """
    if processes > 1 and name.startswith("cuda:"):
        raise ConfigError(f"device = {name!r} with {processes} processes: set device = cuda, each takes its own")


# Of FitConfig: where and how fast it runs, what it saves and shows, never what is learnt.
RUNNING = (
    "activation_checkpointing",
    "compile",
    "device",
    "processes",
    "restarts",
    "timeout_seconds",
    "log_steps",
    "checkpoint_minutes",
    "keep_states",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig):
    """Training of the whole network (paper, section 4.1; the released settings where it is silent)."""

    init_weights: str = setting(
        "imagenet",
        "weights at the start: imagenet (torchvision's ResNet of this depth); torchvision:NAME, timm:NAME or "
        "hf:ORGANISATION/NAME, fetched and kept by that library; a path or URI, of PyTorch or safetensors; or random",
    )
    freeze: str = setting(
        "none",
        "what keeps its initial weights: none, or feature_extractor, so that only the branches are trained",
        choices=("none", "feature_extractor"),
        later=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze != "none" and self.init_weights in ("random", ""):
            raise ConfigError(
                f"freeze = {self.freeze} with init_weights = {self.init_weights!r}: random features would never learn; "
                "give weights, or set freeze = none"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FitConfig):
    """Fine-tuning with edited temporal attention (paper, equations 5 and 6); the feature extractor stays frozen."""

    epochs: int = setting(20, "passes over the fine-tuning videos", low=1)
    learning_rate: float = setting(1e-4, "initial learning rate, for reference_batch_size videos per step", low=0.0)
    gamma: float = setting(10.0, "weight of the temporal attention loss (eq. 6); 0: the control run", low=0.0)
    keep: str = setting(
        "last", "as in train; on the last epoch no choice was made", choices=("best", "last"), later=True
    )
    unedited_share: float = setting(
        1.0, "share of the training videos without an edit that is mixed in every epoch, 0 to 1", low=0.0, high=1.0
    )
    reinitialize: str = setting(
        "none",
        "what begins anew with random weights: none, as in the paper; recognition: the attention mechanism and the "
        "perception branch, which otherwise hold on to what they learnt under the attention before",
        choices=("none", "recognition"),
        later=True,
    )
    augment: bool = setting(True, "random frames, crop, flip and colour as in training; false: clips of evaluation")
    feature_cache_mb: int = setting(
        0,
        "memory per process for the frozen extractor's features, in bf16, in MB; 0: none; needs augment = false",
        low=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_cache_mb and self.augment:
            raise ConfigError(
                f"feature_cache_mb = {self.feature_cache_mb} with augment = true: every epoch sees other clips, whose "
                "features cannot be kept; set augment = false"
            )


@dataclass(frozen=True, kw_only=True)
class SelectConfig(Settings):
    """Which actions are corrected (paper, section 4.2)."""

    threshold: float = setting(0.5, "accuracy that an action must stay below, 0 to 1", low=0.0, high=1.0)
    splits: str = setting(
        "both",
        "where it must: both, training and validation, as in the paper; or validation alone, for networks that know "
        "their training videos by heart",
        choices=("both", "validation"),
    )
    videos: str = setting(
        "misclassified",
        "training videos of these actions to edit: misclassified, as in the paper; random, as many as are "
        "misclassified; or all",
        choices=("misclassified", "random", "all"),
    )
    max_classes: int = setting(8, "actions chosen at most, worst first", low=1)
    min_support: int = setting(1, "videos an action must have in each split", low=1)
    max_videos: int = setting(2400, "videos handed to editing at most, shared evenly by action", low=1)


@dataclass(frozen=True, kw_only=True)
class EditorConfig(Settings):
    """The web page where people correct a round. Secrets come from the environment, see docs/editor.md."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0: every interface")
    port: int = setting(8017, "port to listen on; 0: any free one", low=0, high=65535)
    public_url: str = setting("", "address that browsers use, such as https://edit.example.org; empty: HOST:PORT")
    auth: str = setting(
        "accounts",
        "accounts: its own accounts; proxy: the user that an authenticating proxy names; open: anybody on this "
        "machine, who just gives a name",
        choices=("accounts", "proxy", "open"),
    )
    accounts_uri: str = setting("", "with accounts: file of `stabn editor-accounts`, a path or s3:// URI")
    user_header: str = setting("X-Forwarded-User", "with proxy: header with the user's name")
    trusted_proxies: tuple[str, ...] = setting(
        (), "addresses of proxies, such as 10.0.0.0/8; headers from elsewhere are not believed"
    )
    leads: tuple[str, ...] = setting((), "with proxy: users who are leads")
    session_hours: float = setting(12.0, "hours until one has to sign in again", low=0.01, high=720)
    login_attempts: int = setting(5, "wrong passwords in 5 minutes before a name has to wait", low=1)
    lease_seconds: float = setting(120.0, "seconds after which a video whose page went silent is free again", low=1)
    refresh_seconds: float = setting(10.0, "seconds between looks at what other servers wrote", low=0.1)
    shared_share: float = setting(
        0.1, "share of the videos given to several people, until a lead sets it in the page", low=0.0, high=1.0
    )
    people_per_shared: int = setting(2, "people who correct each of these", low=2, high=9)
    frame_cache_mb: int = setting(256, "memory for compressed frames, in MB", low=1)
    feature_cache_mb: int = setting(1024, "memory for the network's features of videos being edited, in MB", low=1)
    what_if: bool = setting(True, "recognise a video again after each edit; needs PyTorch and the round's network")
    device: str = setting("auto", "where the network runs: auto, cpu, cuda or cuda:N")
    webhook_url: str = setting("", "address told, with a signature, when a lead finishes the round; empty: none")
    kfp_host: str = setting("", "KFP API where finishing the round starts the fine-tuning pipeline; empty: none")
    kfp_public_url: str = setting(
        "", "address of KFP's page that browsers use, for a link to that run; empty: the page shows the run's id only"
    )
    kfp_pipeline: str = setting("st-abn-finetune", "name of that pipeline in KFP")
    kfp_namespace: str = setting("", "profile of the run where KFP has several users; empty: it has one")
    kfp_experiment: str = setting("", "experiment of the run in KFP, made if absent; empty: KFP's default")
    kfp_parameters: str = setting("", "its parameters besides data_round_uri, name=value separated by spaces")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auth == "proxy" and not self.trusted_proxies:
            raise ConfigError("auth = proxy without trusted_proxies: name the proxy's address, or anybody is believed")
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError as error:
                raise ConfigError(f"trusted_proxies = {network!r}: {error}; write 10.1.2.3 or 10.0.0.0/8") from None
        for name in ("public_url", "kfp_public_url"):
            if (url := getattr(self, name)) and not url.startswith(("http://", "https://")):
                raise ConfigError(f"{name} = {url!r}: begin with http:// or https://")


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(Settings):
    """When the fine-tuned network takes the champion's place."""

    metric: str = setting("top1", "what must rise by more than noise", choices=("top1", "top5"))
    confidence: float = setting(
        0.95, "confidence of the paired bootstrap interval that must lie above zero", low=0.5, high=0.999
    )
    samples: int = setting(2000, "resamples of the videos that the interval is taken from", low=100)
    class_fdr: float = setting(
        0.05,
        "share of the classes called worse that may be so by chance; a class that is worse keeps the champion; 0: "
        "classes do not count",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of one pipeline run."""

    preset: str
    extract: ExtractConfig = ExtractConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen)
    train: TrainConfig = TrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    select: SelectConfig = SelectConfig()
    editor: EditorConfig = EditorConfig()
    promote: PromoteConfig = PromoteConfig()

    def __post_init__(self) -> None:
        if self.model.num_frames != self.data.num_frames:
            raise ConfigError(
                f"model.num_frames = {self.model.num_frames} but data.num_frames = {self.data.num_frames}: "
                "set data.num_frames; the model follows"
            )
        spec_of(self.model).check(self.data.crop_size)
        if self.extract.short_side < self.data.crop_size:
            raise ConfigError(
                f"extract.short_side = {self.extract.short_side} is smaller than data.crop_size = "
                f"{self.data.crop_size}: raise the first or lower the second"
            )


SECTIONS: dict[str, type[Settings]] = {
    "extract": ExtractConfig,
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "finetune": FinetuneConfig,
    "select": SelectConfig,
    "editor": EditorConfig,
    "promote": PromoteConfig,
}


TESTING = ("test_clips", "test_crops")  # of DataConfig: what evaluate looks at, never what is learnt
LOADING = ("workers", "cache_mb", "cache_dir", "cache_gb")  # of DataConfig: where and how fast, never what


def with_loading(data: DataConfig, here: DataConfig) -> DataConfig:
    """Return a network's own clip settings, to be loaded the way that suits this machine."""
    return dataclasses.replace(data, **{name: getattr(here, name) for name in LOADING})
