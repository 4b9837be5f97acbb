"""The pipelines' forms, and the check of a whole form: what a later stage will refuse is refused before the first.

One function, `check_form`, for submitting, compiling, the local run and each pipeline's first step. A value alone is
checked by its own parameter (stages.py) or setting (config); here is what depends on several of them.
"""

from collections.abc import Mapping
from typing import Any

from stabn.config import ConfigError, RunConfig, spec_of
from stabn.presets import resolve
from stabn.stages import FORMS, REQUIRED, check_correction, check_shared_storage


def parse_form(pipeline: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return a form's values, checked as the first step will check them.

    Args:
        pipeline: baseline, finetune or full.
        texts: what was given, by name.

    Raises:
        ConfigError: an unknown or missing parameter, or values that some stage could not use.
    """
    known = {item.form_name: item for item in FORMS[pipeline]}
    values = {name: known[name].parse(text) if name in known else text for name, text in texts.items()}
    check_form(pipeline, values)
    return values


def check_form(pipeline: str, values: Mapping[str, Any]) -> RunConfig:
    """Return the settings that a form stands for, if every stage of its pipeline can use them.

    Args:
        pipeline: baseline, finetune or full.
        values: of the form, by the names there; what is missing has its default.

    Raises:
        ConfigError: names the parameter or the setting, its value, and what to give instead.
    """
    form = FORMS[pipeline]
    known = {item.form_name for item in form}
    if unknown := sorted(set(values) - known):
        meant = sorted(name for name in known if any(name.endswith(f"_{one}") for one in unknown))
        hint = f" (meant: {', '.join(meant)}?)" if meant else ""
        raise ConfigError(f"{pipeline}: no parameter {', '.join(unknown)}{hint}; it has {', '.join(sorted(known))}")
    whole = {item.form_name: values.get(item.form_name, item.default) for item in form}
    required = [item.form_name for item in form if item.default is REQUIRED]
    if missing := [name for name in required if whole[name] in (REQUIRED, "")]:
        raise ConfigError(f"{pipeline}: give --param {'=… --param '.join(missing)}=…")
    for item in form:
        item.check(whole[item.form_name])
    settings = {item.setting.replace(".", "__"): whole[item.form_name] for item in form if item.setting}
    config = resolve(whole["preset"], whole["overrides"], **settings)
    if "edit_source" in whole:
        check_correction(whole["edit_source"], whole["edit_segments_uri"])
    _check_places(whole)
    _check_training(pipeline, whole, config)
    return config


def offered(pipeline: str, name: str) -> tuple[Any, ...]:
    """Return the choices of a parameter for a form to offer: not those that the pipeline refuses with its defaults."""
    form = {item.form_name: item for item in FORMS[pipeline]}
    defaults = {key: item.default for key, item in form.items()}

    def is_usable(choice: Any) -> bool:
        values = {**defaults, name: choice}
        try:
            _check_training(pipeline, values, resolve(values["preset"], values["overrides"]))
        except ConfigError:
            return False
        return True

    return tuple(choice for choice in form[name].choices if is_usable(choice))


def _check_places(values: Mapping[str, Any]) -> None:
    if values["num_nodes"] > 1:
        check_shared_storage(values["data_storage_uri"])


def _check_training(pipeline: str, values: Mapping[str, Any], config: RunConfig) -> None:
    trains = pipeline != "finetune" or values["route"] == "retrain"
    if trains and not config.model.has_attention:
        raise ConfigError(
            f"preset = {values['preset']!r}: a {config.model.name} has no attention to correct; choose an st_abn "
            "preset, or train it alone with `stabn train`"
        )
    if trains and config.train.init_weights == "imagenet":
        spec_of(config.model).imagenet_url()
    if values.get("report_split") == "test":
        raise ConfigError("report_split = 'test': its videos have no labels to compare with; choose another split")
    processes = values["num_nodes"] * values["procs_per_node"]
    for section in ("train",) * trains + ("finetune",) * (pipeline != "baseline"):
        try:
            getattr(config, section).check_processes(processes)
        except ConfigError as error:
            raise ConfigError(f"{section}.{error}") from None
