"""What each stage reads, takes and writes, and each pipeline's form: the one declaration of files and parameters.

Made from these: the command line's flags, the components, the pipelines' forms, the checks at submit and at a step's
start. A parameter that is a setting takes default, help and check from the setting's own field.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stabn import presets
from stabn.config import LOADING, SECTIONS, TESTING, ConfigError, check_value, parse_overrides
from stabn.errors import StabnError
from stabn.storage import check_object_uri, open_storage
from stabn.text import is_unicode
from stabn.tracking.names import check_model_name

REQUIRED: Any = "required"
RESOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?")
ATTENTION_MODES = (
    "as_is",
    "spatial_inverted",
    "temporal_inverted",
    "temporal_mean",
    "temporal_reversed",
    "temporal_other",
    "temporal_uniform",
    "temporal_segments",
)
FRAME_MODES = ("temporal_mean", "temporal_reversed", "temporal_other")  # they keep the level, or the shape, of Mt
EDIT_SOURCES = ("segments", "segments_shifted", "segments_other", "network")  # of corrections that nobody makes
SPLITS = ("train", "validation", "test", "held_out")  # nothing is chosen on held_out


@dataclass(frozen=True)
class Parameter:
    """A value that a stage takes: a text, or a number if its default is one.

    Attributes:
        name: in the component; the command line's flag for `segments_uri` is `--segments`.
        help: a phrase with the unit and what special values mean; shown by `--help` and by KFP.
        default: of flag and form; REQUIRED: there is none.
        choices: the only values allowed, if any.
        low: smallest value allowed, inclusive; high: the largest.
        form: its name in the pipelines' forms, where several stages meet; empty: the same.
        flag: whether the command line has it; else it has another means, or no use for it.
        setting: `section.field`, if it is one.
        why: why `high` is what it is; for the message to somebody who went beyond it.
        rule: raises for further values, but empty ones, that no stage can use; None: there are none.
    """

    name: str
    help: str
    default: Any = REQUIRED
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    form: str = ""
    flag: bool = True
    setting: str = ""
    why: str = ""
    rule: Callable[[Any], object] | None = None

    @property
    def kind(self) -> type:
        """The type of its values."""
        return str if self.default is REQUIRED else type(self.default)

    @property
    def form_name(self) -> str:
        """The name in the pipelines' forms."""
        return self.form or self.name

    def parse(self, text: str) -> Any:
        """Return the value of a form's text, for `check`.

        Raises:
            ConfigError: not of its type.
        """
        try:
            return self.kind(text)
        except ValueError:
            raise ConfigError(f"{self.form_name} = {text!r}: expected a number") from None

    def check(self, value: Any) -> None:
        """Refuse what the stage could not use.

        Raises:
            ConfigError: a value that is not allowed.
        """
        for text in value if isinstance(value, tuple | list) else (value,):
            if isinstance(text, str) and ("{{" in text or not is_unicode(text)):
                why = "{{ is where Argo and KFP fill in values of their own" if "{{" in text else "half a character"
                raise ConfigError(f"{self.form_name} = {text!r}: {why}; give it without")
        if self.kind in (str, int, float) and isinstance(value, str) != (self.kind is str):
            raise ConfigError(f"{self.form_name} = {value!r}: expected a {'text' if self.kind is str else 'number'}")
        try:
            check_value(self.form_name, value, self.choices, self.low, self.high)
        except ConfigError as error:
            is_beyond = self.why and self.high is not None and value > self.high
            raise ConfigError(f"{error}; {self.why}" if is_beyond else str(error)) from None
        if self.rule is not None and value not in (self.default, ""):
            try:
                self.rule(value)
            except StabnError as error:
                raise ConfigError(f"{self.form_name} = {value!r}: {error}") from None


def setting(name: str, path: str) -> Parameter:
    """Declare a parameter that is the setting `section.field`; the form calls it `section_field`."""
    section, _, key = path.partition(".")
    item = SECTIONS[section].__dataclass_fields__[key]
    rules = {rule: item.metadata[rule] for rule in ("choices", "low", "high")}
    return Parameter(
        name, item.metadata["help"], item.default, form=f"{section}_{key}", flag=False, setting=path, **rules
    )


@dataclass(frozen=True)
class File:
    """A file that a stage reads or writes.

    Attributes:
        name: in the component; the command line's flag for `train_predictions` is `--train-predictions`.
        kind: KFP's type: Dataset, Model, Metrics, ClassificationMetrics, HTML, Markdown or Artifact.
        help: what it is.
        optional: whether the command line may leave it out.
    """

    name: str
    kind: str
    help: str
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage, or a step of one.

    Attributes:
        reads: its input files.
        takes: its parameters.
        settings: the settings that its command has as flags, `section` or `section.field`.
        writes: its output files; a command names them in its own way.
        returns: types of a component's output values by name; "" for a single one without a name.
    """

    reads: tuple[File, ...] = ()
    takes: tuple[Parameter, ...] = ()
    settings: tuple[str, ...] = ()
    writes: tuple[File, ...] = ()
    returns: dict[str, Any] = field(default_factory=dict)


def check_accelerator(name: str) -> None:
    """Refuse what is not the whole name of a resource.

    Raises:
        ConfigError: says how to write it.
    """
    if not RESOURCE.fullmatch(name):
        raise ConfigError("write the resource's whole name, such as nvidia.com/gpu")


def check_correction(source: str, segments_uri: str) -> None:
    """Refuse an unknown source of corrections, and known segments without their file or for people.

    Raises:
        ConfigError: names the parameter.
    """
    check_value("edit_source", source, ("people", *EDIT_SOURCES))
    if source in EDIT_SOURCES and not segments_uri:
        raise ConfigError(f"edit_source = {source!r} without edit_segments_uri: give the file of known action segments")
    if source == "people" and segments_uri:
        raise ConfigError(
            f"edit_segments_uri = {segments_uri!r} with edit_source = 'people', who do not read it: leave it empty, or "
            "set edit_source = 'segments'"
        )


def check_shared_storage(uri: str) -> None:
    """Refuse a folder for what several machines read and write.

    Raises:
        ConfigError: says what to give.
    """
    if not uri.startswith("s3://"):
        raise ConfigError(
            f"{STORAGE_URI.form_name} = {uri!r}: the nodes of a job cannot read it; give s3://bucket/prefix"
        )


# What has no default is named data_… in the forms: KFP's page sorts by name, so what has to be filled in comes first.
VIDEOS_URI = Parameter(
    "videos_uri",
    "folder or s3:// prefix with the videos, or with the dataset's archive",
    form="data_videos_uri",
    rule=open_storage,
)
LABELS_URI = Parameter(
    "labels_uri",
    "folder or s3:// prefix with Something-Something v2's label files, or labels.csv",
    form="data_labels_uri",
    rule=open_storage,
)
STORAGE_URI = Parameter(
    "storage_uri",
    "s3:// prefix that keeps frames, checkpoints and editing rounds; or a folder",
    form="data_storage_uri",
    rule=open_storage,
)
DATASET_VERSION = Parameter(
    "dataset_version",
    "part of the dataset's fingerprint, which otherwise is that of its files; usually empty",
    "",
    flag=False,
)
NUM_PARTS = Parameter(
    "num_parts",
    "pods that extract frames at the same time, each with its share of the videos; at most 100",
    1,
    low=1,
    high=100,
    why="Argo keeps the state of a run, with every step in it, in less than 1 MB",
    form="extract_parts",
)
PART = Parameter("part", "do only this share of the work, i/n; then `stabn merge-frames`", "")
PARTS = Parameter("parts", "what came of each part", (), flag=False)
PRESET = Parameter(
    "preset", f"named settings: {', '.join(presets.PRESETS)}", "ssv2_r50_32", tuple(presets.PRESETS), flag=False
)
OVERRIDES = Parameter(
    "overrides",
    "settings that differ from the preset, such as: train.epochs=20 data.workers=8",
    "",
    flag=False,
    rule=parse_overrides,
)
SETTINGS = (PRESET, OVERRIDES)
NODES = (
    Parameter(
        "num_nodes",
        "nodes that train and evaluate together; 1: the step itself, or with an accelerator one TrainJob",
        1,
        low=1,
        flag=False,
    ),
    Parameter("procs_per_node", "processes of each node, one per accelerator", 1, low=1, flag=False),
    Parameter(
        "accelerator",
        "resource that each process gets one of, such as nvidia.com/gpu; empty: none",
        "",
        form="node_accelerator",
        flag=False,
        rule=check_accelerator,
    ),
)
# What a stage on nodes takes besides; on the command line its output is named instead of the storage.
ON_NODES = (dataclasses.replace(STORAGE_URI, flag=False), *SETTINGS, *NODES)
ROUND_URI = Parameter(
    "round_uri",
    "editing round that people have corrected; it holds its network and its manifest",
    form="data_round_uri",
    rule=open_storage,
)
CHOICE = (setting("threshold", "select.threshold"), setting("max_classes", "select.max_classes"))
CORRECTION = (
    Parameter(
        "source",
        "people: wait for corrections in the editor; segments: write them from known action segments; or, to compare "
        "with, segments_shifted: the same shifted by a random time, segments_other: another video's, network: its own "
        "attention",
        "people",
        ("people", *EDIT_SOURCES),
        form="edit_source",
    ),
    Parameter(
        "segments_uri",
        "without people: JSON file of video id to [first, last) frame of the action",
        "",
        form="edit_segments_uri",
        rule=check_object_uri,
    ),
    Parameter(
        "min_share",
        "with people: share of the round's videos to be edited or skipped before going on, 0 to 1",
        1.0,
        low=0.0,
        high=1.0,
        form="edit_min_share",
    ),
    Parameter("timeout_hours", "with people: hours to wait at most", 168.0, low=0.0, form="edit_timeout_hours"),
)
SPLIT = Parameter(
    "split",
    "videos to recognise; auto: held_out, on which nothing was chosen, if there are any, else validation, on which "
    "actions are chosen too, as in the paper",
    "auto",
    (*SPLITS, "auto"),
    form="report_split",
)
GAMMA = setting("gamma", "finetune.gamma")
ROUTE = Parameter(
    "route",
    "finetune: the trained network's branches, as in the paper; retrain: a new network that learns the corrections "
    "from the first step on, with the settings of train and the same random weights",
    "finetune",
    ("finetune", "retrain"),
    flag=False,
)
TRUTH = Parameter(
    "truth_uri",
    "frames that are known to matter in videos that are not learnt from, to compare the attention with: JSON of video "
    "id to [first, last) frame, or an edit table of their corrections; empty: nothing is compared",
    "",
    rule=check_object_uri,
)
TRAIN_BASELINE = Parameter(
    "train_baseline",
    "yes: also train the 3D ResNet of the same depth and settings, which takes a training of its own, evaluate it, and "
    "put it beside ST-ABN in table 1",
    "no",
    ("no", "yes"),
    flag=False,
)
BASELINE_URI = Parameter(
    "baseline_uri",
    "predictions of the 3D ResNet on the same videos, for table 1; empty: none",
    "",
    form="report_baseline_uri",
    rule=check_object_uri,
)
WINNING = (setting("metric", "promote.metric"), setting("class_fdr", "promote.class_fdr"))
MODEL_NAME = Parameter(
    "model_name",
    "name in MLflow's model registry whose alias champion may move; empty: register nothing",
    "st-abn",
    rule=check_model_name,
)
PROMOTION = (MODEL_NAME, *WINNING)
APPROVAL = Parameter(
    "approval_hours",
    "hours to wait until a person approves of a better network (`stabn approve`, or the version's tag stabn.approval), "
    "before it becomes the champion; 0: nobody is asked",
    0.0,
    low=0.0,
    high=40.0,
    form="promote_approval_hours",
    why="the step ends after 48",
)

MANIFEST = File("manifest", "Dataset", "manifest of extract-frames")
CHECKPOINT = File("checkpoint", "Model", "checkpoint of train, finetune or import-checkpoint")
SELECTION = File("selection", "Dataset", "selection of select-classes: the chosen actions and videos")
EDITS = File("edits", "Dataset", "edit table of import-edits")
METRICS = File("metrics", "Metrics", "its numbers")
PREDICTIONS = File("predictions", "Dataset", "true class, five best classes with scores, both branches, by video")

DATASET = (VIDEOS_URI, LABELS_URI)
EXTRACTION = (*DATASET, STORAGE_URI, *SETTINGS, DATASET_VERSION)
COMPUTING = ("train.device", "train.precision")
LOADING_SETTINGS = tuple(f"data.{name}" for name in LOADING)
TESTING_SETTINGS = tuple(f"data.{name}" for name in TESTING)

_DATA = (*DATASET, STORAGE_URI, *SETTINGS, DATASET_VERSION, NUM_PARTS, *CHOICE)
_COMPARISON = (ROUTE, GAMMA, SPLIT, *PROMOTION, APPROVAL)
FORMS: dict[str, tuple[Parameter, ...]] = {
    "baseline": (*_DATA, TRAIN_BASELINE, SPLIT, TRUTH, *NODES),
    "finetune": (ROUND_URI, STORAGE_URI, *SETTINGS, TRUTH, *_COMPARISON, BASELINE_URI, *NODES),
    "full": (*_DATA, TRAIN_BASELINE, *CORRECTION, TRUTH, *_COMPARISON, *NODES),
}

STAGES = {
    **{f"check-{pipeline}": Stage(takes=form) for pipeline, form in FORMS.items()},
    "look-at-dataset": Stage(takes=(*DATASET, DATASET_VERSION), returns={"": str}),
    "plan-parts": Stage(takes=(NUM_PARTS,), returns={"": list[str]}),
    "extract-frames": Stage(takes=(*EXTRACTION, PART), settings=("extract",), returns={"": str}),
    "merge-frames": Stage(
        takes=(*EXTRACTION, PARTS),
        settings=("extract",),
        writes=(
            File("manifest", "Dataset", "manifest to write"),
            File("rejects", "Dataset", "list of unusable videos to write"),
        ),
    ),
    "train": Stage(
        reads=(MANIFEST,), takes=(TRUTH, *ON_NODES), settings=("data", "model", "train"), writes=(CHECKPOINT, METRICS)
    ),
    "train-baseline": Stage(reads=(MANIFEST,), takes=(TRAIN_BASELINE, SPLIT, *ON_NODES), returns={"": str}),
    "evaluate": Stage(
        reads=(CHECKPOINT, MANIFEST),
        takes=(
            SPLIT,
            Parameter(
                "attention",
                "as_is: the network's own; spatial_inverted: 1 - Ms (eq. 7); temporal_…: Mt inverted, its mean over "
                "the video, reversed in time, another video's, 0.5 on every frame, or that of known segments",
                "as_is",
                ATTENTION_MODES,
            ),
            Parameter("segments_uri", "for temporal_segments: JSON of video id to [first, last) frame", ""),
            Parameter("name", "which network this is, in MLflow, such as before or after", "baseline"),
            *ON_NODES,
        ),
        settings=(
            *LOADING_SETTINGS,
            *TESTING_SETTINGS,
            *COMPUTING,
            "train.batch_size",
            "train.micro_batch_size",
            "train.processes",
        ),
        writes=(PREDICTIONS, METRICS, File("confusion", "ClassificationMetrics", "confusion matrix")),
    ),
    "select-classes": Stage(
        reads=(
            File("train_predictions", "Dataset", "predictions of evaluate on the training split"),
            File("validation_predictions", "Dataset", "predictions of evaluate on the validation split"),
        ),
        takes=(*SETTINGS, *CHOICE),
        settings=("select",),
        writes=(SELECTION,),
        returns={"": str},
    ),
    "export-attention": Stage(
        reads=(CHECKPOINT, MANIFEST, SELECTION),
        takes=(STORAGE_URI, *SETTINGS),
        settings=COMPUTING,
        returns={"round_uri": str},
    ),
    "edits": Stage(takes=(ROUND_URI, *CORRECTION), returns={"edited_round_uri": str, "edits_fingerprint": str}),
    "import-edits": Stage(
        takes=(
            ROUND_URI,
            Parameter("edits_fingerprint", "names the corrections' content, for KFP's cache", "", flag=False),
        ),
        writes=(EDITS, MANIFEST, CHECKPOINT, SELECTION, File("summary", "Metrics", "videos edited, skipped, missing")),
    ),
    "finetune": Stage(
        reads=(CHECKPOINT, MANIFEST, EDITS),
        takes=(GAMMA, ROUTE, Parameter("name", "name of the run in MLflow", "finetune"), TRUTH, *ON_NODES),
        settings=(*LOADING_SETTINGS, "finetune"),
        writes=(File("finetuned", "Model", "the fine-tuned network"), METRICS),
    ),
    "report": Stage(
        reads=(
            File("before", "Dataset", "predictions before fine-tuning"),
            File("before_inverted", "Dataset", "predictions before, spatial attention inverted"),
            File("after", "Dataset", "predictions after fine-tuning"),
            File("after_inverted", "Dataset", "predictions after, spatial attention inverted"),
            File("control", "Dataset", "predictions after fine-tuning with gamma 0"),
            File("control_inverted", "Dataset", "predictions after that, spatial attention inverted", optional=True),
            File("before_checkpoint", "Model", "the network before"),
            File("after_checkpoint", "Model", "the network after"),
            File("control_checkpoint", "Model", "the network of the control run"),
            MANIFEST,
            SELECTION,
            EDITS,
        ),
        takes=(TRUTH, BASELINE_URI, *SETTINGS, *PROMOTION),
        settings=("promote",),
        writes=(
            File("page", "HTML", "the page, one file"),
            File("tables", "Markdown", "tables 2 and 3 alone"),
            File("figures", "Artifact", "the page's pictures as PNG files"),
            METRICS,
        ),
    ),
    "promote": Stage(
        reads=(
            File("before", "Dataset", "predictions before fine-tuning"),
            File("after", "Dataset", "predictions after fine-tuning"),
            File("checkpoint", "Model", "the fine-tuned network"),
            File("manifest", "Dataset", "the videos, to evaluate a champion on that never was", optional=True),
        ),
        takes=(*PROMOTION, APPROVAL, *ON_NODES),
        settings=("promote",),
        writes=(File("decision", "Markdown", "whether the alias moved, why, and the numbers"),),
        returns={"promoted": bool, "reason": str},
    ),
    "end-run": Stage(),
}
