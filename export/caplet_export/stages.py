"""How a run came about: every training stage from random weights on, as it is told in the model card."""

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
"""Of what types the fields of a stage are in the file."""
_RANGE = re.compile(r"\d+-\d+")


@dataclass(frozen=True)
class Stage:
    """One run's share in a captioner.

    Attributes:
        run: name of its folder.
        member: which captioner of an ensemble it trained, from 1, or `ALL`, as one; or, as `1-2`, the first and the
            last of those that it trained as one, before others joined them.
        epochs: epochs trained.
        kept: the epoch whose weights were kept.
        dev_cider: free-running greedy CIDEr-D of those on dev, percent; None where they were not scored.
        seconds: wall time of all epochs; None where it was not recorded.
        switches: what its configuration changed from the defaults, by `section.switch`; and its `teacher`, if any.
        device: what it ran on, where that is known.
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
    """The stages of a run folder, first to last; none if it does not say.

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
    """Raises TypeError or ValueError if it is no stage."""
    stage = Stage(**content)
    for name, kinds in _KINDS.items():
        value = getattr(stage, name)
        if not isinstance(value, kinds):
            raise TypeError(f"{name}: {value!r}")
    if isinstance(stage.member, str) and not _RANGE.fullmatch(stage.member):
        raise ValueError(f"member: {stage.member!r}")
    return stage


def encoder_weights(run: Path) -> str | None:
    """Digest of the Inception weights that a run was trained on; None if it does not say."""
    said = [stage.encoder_weights for stage in read_stages(run) if stage.encoder_weights]
    return said[-1] if said else None


def require_encoder_weights(run: Path, digest: str | None, given: Path | str) -> None:
    """Raise a ConfigurationError if a run was trained on other Inception weights than those with this digest, which
    belong to what is `given` beside it: its decoder would read features that mean nothing to it. None is unknown.
    """
    own = encoder_weights(run)
    if own and digest and own != digest:
        raise ConfigurationError(f"{run}: trained on other Inception weights than those of {given}")


def write_stages(folder: Path, stages: Sequence[Stage]) -> None:
    """Write `stages.json`; the old one stays until the new one is whole."""
    write_whole(folder / STAGES, json.dumps([dataclasses.asdict(stage) for stage in stages], indent=1) + "\n")


def run_name(folder: Path) -> str:
    """What a run is called: its folder's name, also where the path says only `.`."""
    return os.path.basename(os.path.abspath(folder))  # noqa: PTH100, PTH119 - links keep their names


def average_stages(runs: Sequence[Path]) -> list[Stage]:
    """The stages of all the runs, and one more: that they were averaged. Of a run at several epochs the last counts."""
    names = ", ".join(map(run_name, runs))
    # Two runs may have one name, but then hardly the same switches.
    before = list(
        {
            (stage.run, stage.member, json.dumps(stage.switches, sort_keys=True)): stage
            for run in runs
            for stage in read_stages(run)
        }.values()
    )
    member = before[-1].member if before else 1
    return [*before, Stage(f"mean of the weights of {names}", member, 0, 0, None, 0.0, {})]


def cut_stages(run: Path, left: str) -> list[Stage]:
    """The stages of a run, and one more, without training, that says what was `left` of it."""
    return [*read_stages(run), Stage(left, ALL, 0, 0, None, 0.0, {})]


def join_stages(runs: Sequence[Path], members: Sequence[int]) -> list[Stage]:
    """The stages of several runs, of so many members each, as those of one ensemble's members."""
    stages, first = [], 1
    for run, count in zip(runs, members, strict=True):
        for stage in read_stages(run):
            stages.append(dataclasses.replace(stage, member=_renumbered(stage.member, first, count)))
        first += count
    return stages


def _renumbered(member: int | str, first: int, count: int) -> int | str:
    """Where a member stands in an ensemble in which `count` begin with the `first`."""
    if isinstance(member, str):
        return "-".join(str(int(number) + first - 1) for number in member.split("-"))
    if member == ALL:
        return first if count == 1 else f"{first}-{first + count - 1}"
    return member + first - 1
