"""Every setting of the product, once: the CLI, the KFP forms, checkpoints and MLflow are made from these fields."""

from stabn.config.backbones import BackboneSpec, spec_of
from stabn.config.model import ModelConfig
from stabn.config.overrides import override, parse_overrides, parse_value
from stabn.config.sections import (
    LOADING,
    RUNNING,
    SECTIONS,
    TESTING,
    DataConfig,
    EditorConfig,
    ExtractConfig,
    FinetuneConfig,
    FitConfig,
    PromoteConfig,
    RunConfig,
    SelectConfig,
    TrainConfig,
    check_device,
    with_loading,
)
from stabn.config.settings import ConfigError, Settings, check_value, fingerprint, from_dict, setting, to_dict
