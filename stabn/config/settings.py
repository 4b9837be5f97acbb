"""What a setting is: a dataclass field with its default, help and allowed values."""

import dataclasses
import hashlib
import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stabn.errors import StabnError


class ConfigError(StabnError):
    """A setting is unknown, has the wrong type or contradicts another one."""


def setting(
    default: Any,
    help: str,
    *,
    choices: Iterable[Any] = (),
    low: float | None = None,
    high: float | None = None,
    later: bool = False,
) -> Any:
    """Declare a dataclass field with its help text and the values it may have.

    Args:
        default: the paper's value, or the most useful one where the paper is silent.
        help: one sentence with the unit and what special values mean; shown by `--help` and by KFP.
        choices: the only values allowed, if any.
        low: smallest value allowed, inclusive.
        high: largest value allowed, inclusive.
        later: the setting came after runs without it were saved: while it has its default, it is no part of a run's
            identity, so that those runs are gone on with.
    """
    metadata = {"help": help, "choices": tuple(choices), "low": low, "high": high, "later": later}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: checks each field against its declared choices and range."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            rules = {key: item.metadata[key] for key in ("choices", "low", "high") if key in item.metadata}
            check_value(item.name, getattr(self, item.name), **rules)


def check_value(
    name: str, value: Any, choices: tuple[Any, ...] = (), low: float | None = None, high: float | None = None
) -> None:
    """Check a value, or each of a tuple, against what was declared; arguments as for `setting`.

    Raises:
        ConfigError: names the value and what is allowed.
    """
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
        raise ConfigError(f"{name} = {value!r}: must be a finite number")
    if choices and value not in choices:
        raise ConfigError(f"{name} = {value!r}: choose one of {', '.join(map(str, choices))}")
    if low is not None and any(v < low for v in numbers):
        raise ConfigError(f"{name} = {value!r}: must be at least {low}")
    if high is not None and any(v > high for v in numbers):
        raise ConfigError(f"{name} = {value!r}: must be at most {high}")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a settings dataclass as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Rebuild a settings dataclass from `to_dict`'s values.

    Raises:
        ConfigError: a name that this version does not know, or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{kind.__name__}: settings are expected, not {reprlib.repr(values)}")
    defaults = {item.name: item.default for item in dataclasses.fields(kind)}
    unknown = set(values) - set(defaults)
    if unknown:
        raise ConfigError(
            f"{kind.__name__}: unknown settings {', '.join(sorted(unknown))}; was it written by a newer version?"
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in values.items():
        if not _is_like(value, defaults[key]):
            raise ConfigError(f"{kind.__name__}: {key} = {reprlib.repr(value)}: it must be like {defaults[key]!r}")
    return kind(**values)


def _is_like(value: Any, default: Any) -> bool:
    """Tell whether a value is of a default's type; a whole number serves as a float."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_is_like(item, default[0]) for item in value if default)
    types = (int, float) if isinstance(default, float) else type(default)
    return isinstance(value, types) and isinstance(value, bool) == isinstance(default, bool)


def fingerprint(*parts: Any) -> str:
    """Return 16 hexadecimal digits that name the content of settings, strings or JSON values."""
    plain = [to_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
