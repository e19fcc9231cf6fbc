"""The history of a run: every training stage from random weights on, for the model card."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caplet_export.errors import ConfigurationError
from caplet_export.outputs import write_whole

STAGES = "stages.json"
ALL = 0
_KINDS: dict[str, tuple[type, ...]] = {
    "run": (str,),
    "member": (int, str),
    "epochs": (int,),
    "kept": (int,),
    "dev_cider": (int, float, type(None)),
    "seconds": (int, float, type(None)),
    "switches": (dict,),
    "device": (str, type(None)),
    "encoder_weights": (str, type(None)),
}
"""Types that the fields of a stage may have in the file."""
_RANGE = re.compile(r"\d+-\d+")


@dataclass(frozen=True)
class Stage:
    """One run's part in the training of a captioner.

    Attributes:
        run: name of its folder.
        member: which captioner of an ensemble it trained, counted from 1; `ALL` if it trained all as one; or the first
            and the last of those that it trained as one before others joined them, such as `1-2`.
        epochs: epochs trained.
        kept: the epoch whose weights were kept.
        dev_cider: CIDEr-D of its greedy captions on dev, in percent; None where it was not measured.
        seconds: wall time of all epochs; None where it was not recorded.
        switches: those of its configuration that differ from the defaults, by `section.switch`; and its `teacher`, if
            it had one.
        device: the device that it ran on; None where it was not recorded.
        encoder_weights: digest of the Inception weights that it was trained on, see `features.weights_digest`; None
            where it was not recorded.
    """

    run: str
    member: int | str
    epochs: int
    kept: int
    dev_cider: float | None
    seconds: float | None
    switches: Mapping[str, Any]
    device: str | None = None
    encoder_weights: str | None = None


def read_stages(folder: Path) -> list[Stage]:
    """The stages of a run folder, first to last; none if it has no `stages.json`.

    Raises:
        ConfigurationError: its `stages.json` is damaged.
    """
    path = folder / STAGES
    if not path.exists():
        return []
    try:
        return [_from_json(stage) for stage in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: damaged: {error}") from error


def _from_json(content: Mapping[str, Any]) -> Stage:
    """A stage from JSON. Raises a TypeError or ValueError if it is not one."""
    stage = Stage(**content)
    for name, kinds in _KINDS.items():
        value = getattr(stage, name)
        if not isinstance(value, kinds):
            raise TypeError(f"{name}: {value!r}")
    if isinstance(stage.member, str) and not _RANGE.fullmatch(stage.member):
        raise ValueError(f"member: {stage.member!r}")
    return stage


def encoder_weights(run: Path) -> str | None:
    """Digest of the Inception weights that a run was trained on; None if it is not recorded."""
    said = [stage.encoder_weights for stage in read_stages(run) if stage.encoder_weights]
    return said[-1] if said else None


def require_encoder_weights(run: Path, digest: str | None, given: Path | str) -> None:
    """Raise a ConfigurationError if a run was trained on other Inception weights than those of `given`, which have this
    digest (None: unknown), since features by other weights mean nothing to its decoder.
    """
    own = encoder_weights(run)
    if own and digest and own != digest:
        raise ConfigurationError(f"{run}: trained on other Inception weights than those of {given}")


def write_stages(folder: Path, stages: Sequence[Stage]) -> None:
    """Write `stages.json`; the old one stays until the new one is whole. Raises OSError."""
    write_whole(folder / STAGES, json.dumps([dataclasses.asdict(stage) for stage in stages], indent=1) + "\n")


def run_name(folder: Path) -> str:
    """The name of a run: that of its folder, even if the path is only `.`."""
    return os.path.basename(os.path.abspath(folder))  # noqa: PTH100, PTH119 - links keep their names


def of_all(members: int) -> int:
    """`Stage.member` of what is done with all captioners of a run that has so many."""
    return 1 if members == 1 else ALL


def _identity(stage: Stage) -> tuple[str, int | str, str]:
    """What identifies a stage, whatever its number of epochs; with its switches, as two runs may have the same name."""
    return stage.run, stage.member, json.dumps(stage.switches, sort_keys=True)


def require_one_beginning(runs: Sequence[Path]) -> None:
    """Raise a ConfigurationError if the runs whose history is recorded did not all begin with the same training."""
    begun = {run: _identity(stages[0]) for run in runs if (stages := read_stages(run))}
    for run, first in begun.items():
        if first != next(iter(begun.values())):
            raise ConfigurationError(
                f"{run}: shares no beginning with {next(iter(begun))}, so their mean is useless; leave out --average"
            )


def average_stages(runs: Sequence[Path], members: int) -> list[Stage]:
    """The stages of all runs, each of which has `members` captioners, and one more for the averaging. Of a stage that
    several runs share, at different epochs, only the last epoch is listed.
    """
    names = ", ".join(map(run_name, runs))
    before: dict[tuple[str, int | str, str], Stage] = {}
    for run in runs:
        for stage in read_stages(run):
            key = _identity(stage)
            if key not in before or before[key].epochs <= stage.epochs:
                before[key] = stage
    return [*before.values(), _untrained(f"mean of the weights of {names}", members)]


def cut_stages(run: Path, cut: str, members: int) -> list[Stage]:
    """The stages of a run with `members` captioners, and one more, called `cut`, in which nothing was trained."""
    return [*read_stages(run), _untrained(cut, members)]


def _untrained(name: str, members: int) -> Stage:
    """A stage of a run with `members` captioners in which nothing was trained."""
    return Stage(name, of_all(members), epochs=0, kept=0, dev_cider=None, seconds=0.0, switches={})


def join_stages(runs: Sequence[Path], members: Sequence[int]) -> list[Stage]:
    """The stages of several runs as those of one ensemble; `members` are the numbers of captioners of each run."""
    stages, first = [], 1
    for run, count in zip(runs, members, strict=True):
        for stage in read_stages(run):
            stages.append(dataclasses.replace(stage, member=_renumbered(stage.member, first, count)))
        first += count
    return stages


def _renumbered(member: int | str, first: int, count: int) -> int | str:
    """`Stage.member` of a run of `count` members in an ensemble, in which the first of them is the member `first`."""
    if isinstance(member, str):
        return "-".join(str(int(number) + first - 1) for number in member.split("-"))
    if member == ALL:
        return first if count == 1 else f"{first}-{first + count - 1}"
    return member + first - 1
