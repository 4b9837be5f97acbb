"""Settings from text: of a command line, a form, or a pipeline's one line of overrides."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from stabn.config.sections import SECTIONS, RunConfig
from stabn.config.settings import ConfigError


def parse_value(section: str, name: str, text: str) -> Any:
    """Convert text from a command line or a form to the type of the setting `section.name`.

    Raises:
        ConfigError: no such setting, or text that is not of its type.
    """
    types = typing.get_type_hints(SECTIONS[section]) if section in SECTIONS else {}
    known = {item.name for item in dataclasses.fields(SECTIONS[section])} if section in SECTIONS else set()
    if name not in known:
        where = f"settings of {section}: {', '.join(sorted(known))}" if known else f"sections: {', '.join(SECTIONS)}"
        raise ConfigError(f"{section}.{name}: no such setting; {where}")
    wanted = types[name]
    try:
        if wanted is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if typing.get_origin(wanted) is tuple:
            return tuple(typing.get_args(wanted)[0](part) for part in text.split(",") if part)
        return wanted(text)
    except (KeyError, ValueError):
        kind = "true or false" if wanted is bool else getattr(wanted, "__name__", str(wanted))
        raise ConfigError(f"{section}.{name} = {text!r}: expected {kind}") from None


def override(config: RunConfig, changes: Mapping[str, str]) -> RunConfig:
    """Return the config with settings replaced, `{"train.epochs": "20"}`.

    `model.num_frames` follows `data.num_frames`.

    Raises:
        ConfigError: an unknown setting, a value of the wrong type, or settings that contradict each other.
    """
    values: dict[str, dict[str, Any]] = {}
    for key, text in changes.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = parse_value(section, name, text)
    frames = {
        section: values[section]["num_frames"]
        for section in ("data", "model")
        if "num_frames" in values.get(section, {})
    }
    if len(set(frames.values())) > 1:
        raise ConfigError(
            f"model.num_frames = {frames['model']} but data.num_frames = {frames['data']}: set data.num_frames alone; "
            "the model follows"
        )
    if "data" in frames:
        values.setdefault("model", {})["num_frames"] = frames["data"]
    sections: dict[str, Any] = {}
    for section, changed in values.items():
        try:
            sections[section] = dataclasses.replace(getattr(config, section), **changed)
        except ConfigError as error:
            raise ConfigError(f"{section}.{error}") from None
    return dataclasses.replace(config, **sections)


def parse_overrides(text: str) -> dict[str, str]:
    """Read `train.epochs=20 finetune.gamma=5`, the form's one line for every setting that has no field of its own.

    Raises:
        ConfigError: a part without `=`, or a setting twice.
    """
    changes: dict[str, str] = {}
    for part in text.split():
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"overrides: {part!r}: write section.name=value, separated by spaces")
        if key in changes:
            raise ConfigError(f"overrides: {key} comes twice, as {changes[key]} and as {value}; leave one")
        changes[key] = value
    return changes
