"""A switch of the configuration: its default, the values it may have, and where it has an effect, all in one place."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from caplet_export.errors import ConfigurationError


@dataclass(frozen=True)
class Values:
    """The values that a switch may have: in words, which follow "expected", and as a condition."""

    words: str
    allow: Callable[[Any], bool]


def among(*choices: str, several: bool = False) -> Values:
    """One of these strings, or several of them, separated by spaces."""

    def allow(value: str) -> bool:
        return set(value.split() or [value] if several else [value]) <= set(choices)

    return Values(f"one of {', '.join(choices)}", allow)


def between(low: int, high: int) -> Values:
    """Numbers from `low` to `high`, both included."""
    return Values(f"{low} to {high}", lambda value: low <= value <= high)


# The upper limits are far above any useful value; beyond them, TensorFlow fails with many lines, or memory runs out.
FEW = between(1, 100)
SIZE = between(1, 8192)
COUNT = between(1, 1_000_000)
NOT_NEGATIVE = between(0, 1_000_000)
SHARE = between(0, 1)
BELOW_ONE = Values("0 or more and below 1", lambda value: 0 <= value < 1)
POSITIVE = Values("above 0 and at most 1000000", lambda value: 0 < value <= 1_000_000)
POSITIVE_SHARE = Values("above 0 and at most 1", lambda value: 0 < value <= 1)

Where = Mapping[str, tuple[str, ...]]
"""Verbs, and the objectives of each."""


@dataclass(frozen=True)
class Needs:
    """Another setting, in words and as a condition on the whole configuration, and the verbs that it matters to."""

    words: str
    hold: Callable[[Any], bool]
    verbs: tuple[str, ...] = ("train", "tune")


@dataclass(frozen=True)
class Switch:
    """What is known of a switch beside its type and default."""

    values: Values | None
    """None allows all of its type."""
    effect: Where | None
    """Where it has an effect: None for everywhere."""
    needs: Needs | None
    """What it has no effect without."""

    def missing(self, verb: str, objective: str, config: Any) -> str | None:
        """What the switch lacks to have an effect, in words that follow "no effect on `verb`"; None if nothing."""
        if self.effect is not None and objective not in self.effect.get(verb, ()):
            where = " and ".join(f"`{name}` by {' or '.join(objectives)}" for name, objectives in self.effect.items())
            return f"by {objective}, only on {where}"
        if self.needs is not None and verb in self.needs.verbs and not self.needs.hold(config):
            return f"without {self.needs.words}"
        return None


def switch(
    default: Any, values: Values | None = None, *, effect: Where | None = None, needs: Needs | None = None
) -> Any:
    """The field of a dataclass for a switch. Any other field allows all values of its type and has an effect always."""
    return dataclasses.field(default=default, metadata={"switch": Switch(values, effect, needs)})


class Switches:
    """A dataclass of switches, or of other such groups."""

    def conflict(self) -> str | None:
        """What is wrong with switches that are right by themselves, after the name of one: None if nothing is."""
        return None

    @classmethod
    def known(cls) -> dict[str, Switch]:
        """What is known of each switch that was made by `switch`, by name."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        return {field.name: field.metadata["switch"] for field in fields if "switch" in field.metadata}


_Group = TypeVar("_Group", bound=Switches)


def from_dict(kind: type[_Group], raw: Any, subject: str) -> _Group:
    """A group of switches made of plain values, all of which are checked.

    Raises:
        ConfigurationError: about `subject`, for an unknown switch, a value of the wrong type or out of range, or values
            that do not go together.
    """
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{subject}: expected an object, found {type(raw).__name__}")
    types, known = get_type_hints(kind), kind.known()
    unknown = set(raw) - set(types)
    if unknown:
        raise ConfigurationError(f"{subject}: unknown switch {', '.join(sorted(unknown))} (have: {', '.join(types)})")
    made = kind(
        **{name: _checked(value, types[name], known.get(name), f"{subject}: {name}") for name, value in raw.items()}
    )
    conflict = made.conflict()
    if conflict is not None:
        raise ConfigurationError(f"{subject}: {conflict}")
    return made


def _checked(value: Any, kind: type[Any], known: Switch | None, subject: str) -> Any:
    """The value of one field, as its type. Raises ConfigurationError."""
    if issubclass(kind, Switches):
        return from_dict(kind, value, subject)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ConfigurationError(f"{subject}: expected {kind.__name__}, found {reprlib.repr(value)}")
    if known is not None and known.values is not None and not known.values.allow(value):
        raise ConfigurationError(f"{subject}: expected {known.values.words}, found {reprlib.repr(value)}")
    return kind(value)
