"""What became of a file of weights."""

from dataclasses import dataclass, field

from stabn.errors import StabnError

SHOWN = 4  # names of a kind in a report


class WeightsError(StabnError):
    """A file does not hold the weights that are asked for."""


@dataclass
class LoadReport:
    """What became of a file's weights.

    Attributes:
        source: the file.
        loaded: our names that were filled from it.
        missing: our names that the file does not have; they keep their random values.
        skipped: the file's names that were left out on purpose, with the reason.
        unexpected: the file's names that the network has no place for.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = sorted({".".join(name.split(".")[:2]) for name in self.missing})
        lines = [f"weights from {self.source}: {len(self.loaded)} tensors loaded, {len(self.missing)} start at random"]
        if parts:
            lines.append(f"  at random: {', '.join(parts)}")
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"  not used: {', '.join(names[:SHOWN])}{more} ({reason})")
        lines += [f"  not used: {name} (no such part in the network)" for name in self.unexpected]
        return "\n".join(lines)
