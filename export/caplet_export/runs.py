"""Run folders, as every kind of training writes them: they record progress, resume exactly, and refuse other runs.

`train` and `tune` differ in what they compute. This module decides which epoch is kept, what is written then, and how a
second start of the same command goes on.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caplet.output import put_in_place
from caplet_export.checkpoint import DECODER, Checkpoint, is_half_saved, load_checkpoint, run_digest
from caplet_export.config import Config, TrainConfig, changed_switches, inherit, load_config, load_run_config
from caplet_export.errors import ConfigurationError, DataError, in_one_line
from caplet_export.extractor_part import EXTRACTOR, copy_extractor_part
from caplet_export.flickr8k import Dataset
from caplet_export.inputs import DAMAGED
from caplet_export.outputs import check_place, lock_path, require_space, whole_file, whole_files, write_whole
from caplet_export.stages import STAGES, Stage, of_all, read_stages, run_name, write_stages
from caplet_export.text import Vocabulary, clean, has_digit

RESUME = "resume.npz"
_ORIGIN_FORMAT = 2
DEV_CAPTIONS = 5
"""Most captions of a dev photo that count in the dev loss: as many as Flickr8k has of each."""


@dataclass(frozen=True)
class Epoch:
    """One entry of the history; `dev_cider` of greedy captions, in percent; `seconds` since the entry before."""

    epoch: int
    train_loss: float
    dev_loss: float
    dev_cider: float
    seconds: float


class Run(ABC):
    """A run that is being trained, with its folder.

    Args:
        folder: the run folder; made if it is not there.
        config: every hyper-parameter (`model.vocabulary_size` is filled in).
        vocabulary: the words of its captions.
        encoder_weights: digest of the Inception weights it is trained on, see `features.weights_digest`.
        start_from: the run with whose weights it begins, if any.
        teachers: the runs it learns from, if any.

    Attributes:
        example: the first dev photo, and its caption after the last epoch; None until this process has ended one.

    Raises:
        ConfigurationError: the folder holds a run of another configuration, or one that cannot go on; `start_from` is
            of another configuration; distillation has no teacher, or another objective has one.
        ExportError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        vocabulary: Vocabulary,
        encoder_weights: str,
        start_from: Path | None = None,
        teachers: Sequence[Path] = (),
    ) -> None:
        if (config.train.objective == "distillation") != bool(teachers):
            raise ConfigurationError("distillation needs --teacher, and nothing else takes it")
        check_place(folder)  # now, as it is made only after all checks, which can take minutes
        self.folder = folder
        self.config = replace(config, model=replace(config.model, vocabulary_size=len(vocabulary)))
        self.vocabulary = vocabulary
        self.history: list[Epoch] = []
        self.example: tuple[str, str] | None = None
        self._encoder_weights = encoder_weights
        if start_from and (theirs := _differences(inherit(config, load_run_config(start_from)), config)):
            raise ConfigurationError(f"{start_from}: a model of another configuration: {theirs}")
        self._check_folder()
        self._inherits_extractor = None if config.trains_extractor else start_from
        self._stages_before = read_stages(start_from) if start_from else []
        self._taught_by = {"teacher": " ".join(map(run_name, teachers))} if teachers else {}
        # Digests of all inputs that its configuration does not tell, by the option that gives them: a run goes on only
        # with the same ones. Subclasses add the data and features that they read.
        self._origin: dict[str, Any] = {
            "format": _ORIGIN_FORMAT,
            "--from": run_digest(start_from) if start_from else None,
            "--teacher": [run_digest(run) for run in teachers],
        }

    @property
    def kept(self) -> Epoch | None:
        """The epoch whose weights are kept; None before the first has ended."""
        if not self.history:
            return None
        if not self.config.train.patience:
            return self.history[-1]
        # The loss decides among equals: CIDEr-D is 0 before the first sentence, and always with a single dev photo.
        return max(self.history, key=lambda epoch: (epoch.dev_cider, -epoch.dev_loss))

    @property
    def start(self) -> Stage | None:
        """The last stage of the run that it began with; None if it began anew, with what was joined, or with a run
        that has no record.
        """
        last = self._stages_before[-1] if self._stages_before else None
        return last if last and last.member == of_all(self.config.model.members) else None

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or patience has run out."""
        settings, kept = self.config.train, self.kept
        if kept is None:
            return False
        done = self.history[-1].epoch
        return done >= settings.epochs or bool(settings.patience and done - kept.epoch >= settings.patience)

    @property
    def device(self) -> str | None:
        """The device that it runs on; None if that is not to be recorded."""
        return None

    @abstractmethod
    def _save_weights(self, decoder: Path, extractor: Path | None = None) -> None:
        """Write the weights to these paths, as `load_checkpoint` and `load_extractor` read them; `extractor` is given
        if Inception blocks are trained along.
        """

    @abstractmethod
    def _state(self) -> list[Any]:
        """All arrays, or values that NumPy converts to arrays, from which training goes on exactly."""

    @abstractmethod
    def _set_state(self, state: Sequence[Any]) -> None:
        """Take over the arrays that `_state` returned earlier."""

    def _load_alike(self, run: Path, dtype: str = "float32") -> Checkpoint:
        """Load a run to learn from. Raises a ConfigurationError if it cannot be read or has another vocabulary."""
        checkpoint = load_checkpoint(run, dtype)
        if checkpoint.vocabulary.words != self.vocabulary.words:
            raise ConfigurationError(f"{run}: its vocabulary is not that of {self.folder}")
        return checkpoint

    def _end_epoch(self, epoch: Epoch) -> Epoch:
        """Add an epoch to the history and write its weights if they are kept: those with which it has been scored.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        self.history.append(epoch)
        try:
            require_space(self.folder, 2 * sum(np.asarray(variable).nbytes for variable in self._state()))
            if not (self.folder / RESUME).exists():
                self.vocabulary.save(self.folder / "vocabulary.txt")
                self.config.save(self.folder / "config.json")
                if self._inherits_extractor:
                    copy_extractor_part(self._inherits_extractor, self.folder)
            if self.kept is epoch:
                names = [DECODER, EXTRACTOR] if self.config.trains_extractor else [DECODER]
                with whole_files(*(self.folder / name for name in names)) as temporaries:
                    self._save_weights(*temporaries)
        except OSError as error:
            raise self._unwritten(error) from error
        return epoch

    def _save_resume(self) -> None:
        arrays = {f"{index}": np.asarray(variable) for index, variable in enumerate(self._state())}
        strings = {"history": np.array(self._history()), "origin": np.array(json.dumps(self._origin))}
        try:
            with whole_file(self.folder / RESUME) as temporary:
                np.savez(temporary, **arrays, **strings)  # type: ignore[arg-type]
        except OSError as error:
            raise self._unwritten(error) from error
        self._write_records()

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock_path(self.folder)
        self._check_folder()  # again: another process may have written to it since
        path = self.folder / RESUME
        if not path.exists():
            return
        if is_half_saved(self.folder):
            put_in_place(self.folder / f".{EXTRACTOR}", self.folder / EXTRACTOR)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                origin = json.loads(str(arrays["origin"]))
                self._set_state([arrays[f"{index}"] for index in range(len(self._state()))])
                self.history = [Epoch(**epoch) for epoch in json.loads(str(arrays["history"]))]
        except DAMAGED as error:
            raise ConfigurationError(
                f"{path}: damaged ({in_one_line(error)}); delete {self.folder} to start again"
            ) from error
        if not isinstance(origin, dict) or origin.get("format") != _ORIGIN_FORMAT:
            raise ConfigurationError(f"{self.folder}: begun by an earlier release; use another folder, and --from")
        for option, value in self._origin.items():
            if origin.get(option) != value:
                raise ConfigurationError(f"{self.folder}: holds a run with another {option}; use another folder")
        path = self.folder / "history.json"
        if not (self.folder / STAGES).exists() or not path.exists() or path.read_bytes() != self._history().encode():
            self._write_records()  # a run that was killed had not come to this

    def _check_folder(self) -> None:
        """Refuse a folder that holds another run or other files, or a run without the state to go on from."""
        if not (self.folder / RESUME).exists():
            if (self.folder / STAGES).exists():
                raise ConfigurationError(
                    f"{self.folder}: holds a trained run but no {RESUME} to go on with; use another folder, and --from"
                )
            if self.folder.exists() and not self._is_beginning():
                raise ConfigurationError(f"{self.folder}: holds something other than this run; use another folder")
            return
        if theirs := _differences(load_config(self.folder / "config.json"), self.config):
            raise ConfigurationError(
                f"{self.folder}: holds a run of another configuration, {theirs}; use another folder"
            )
        if Vocabulary.load(self.folder / "vocabulary.txt").words != self.vocabulary.words:
            cause = "holds a run with another vocabulary, so of other captions or another --from"
            raise ConfigurationError(f"{self.folder}: {cause}; use another folder")

    def _is_beginning(self) -> bool:
        """Whether the folder is empty, or holds only files that this run writes before its first `resume.npz`."""
        written = {"vocabulary.txt", "config.json", DECODER, EXTRACTOR, RESUME}
        names = {path.name for path in self.folder.iterdir()}
        if not names <= written | {f".{name}" for name in written}:
            return False
        ours = {"vocabulary.txt": self.vocabulary.as_lines(), "config.json": self.config.as_json()}
        return all(ours[name].encode() == (self.folder / name).read_bytes() for name in names & ours.keys())

    def _stage(self) -> Stage:
        assert self.kept is not None
        return Stage(
            run=run_name(self.folder),
            member=of_all(self.config.model.members),
            epochs=self.history[-1].epoch,
            kept=self.kept.epoch,
            dev_cider=self.kept.dev_cider,
            seconds=round(sum(epoch.seconds for epoch in self.history), 1),
            switches=changed_switches(self.config) | self._taught_by,
            device=self.device,
            encoder_weights=self._encoder_weights,
        )

    def _write_records(self) -> None:
        write_stages(self.folder, [*self._stages_before, self._stage()])
        write_whole(self.folder / "history.json", self._history())

    def _history(self) -> str:
        return json.dumps([asdict(epoch) for epoch in self.history], indent=1)

    def _unwritten(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(f"{self.folder}: cannot be written: {error.strerror or error}")


def _differences(theirs: Config, ours: Config) -> str:
    """The switches of a run that differ from another's, as `--set` takes them, without the size of the vocabulary."""
    return ", ".join(
        f"{switch}={value if isinstance(value, str) else json.dumps(value)}"
        for switch, value in changed_switches(theirs, ours).items()
    )


def split_words(dataset: Dataset, config: Config) -> dict[str, dict[str, list[list[str]]]]:
    """Words of cleaned captions by split (`train` and `dev`) and by photo, of captions and photos that have any.

    Raises:
        DataError: one of the splits is missing or empty, has no caption with a word, or has too few photos for the
            reward of training.
    """
    words: dict[str, dict[str, list[list[str]]]] = {"train": {}, "dev": {}}
    for split, of_photos in words.items():
        for name in dataset.split(split):
            cleaned = [clean(caption, config.text.rules) for caption in dataset.captions[name]]
            if captions := list(filter(None, cleaned)):
                of_photos[name] = captions
    if not all(map(dataset.split, words)):
        raise DataError("training needs images in both the train and the dev split")
    for split, of_photos in words.items():
        if not of_photos:
            first = in_one_line(dataset.captions[dataset.split(split)[0]][0])
            rules = f"text.rules={config.text.rules}"
            raise DataError(f"cleaning ({rules}) leaves no word of the {split} captions; the first: {first}")
    settings = config.train
    other_rewards = settings.reward_rouge or settings.bigram_penalty
    if settings.objective == "self_critical" and len(words["train"]) == 1 and not other_rewards:
        raise DataError("self-critical training needs two training photos or more: with one, CIDEr-D is always 0")
    return words


def dropped(dataset: Dataset, words: Mapping[str, Mapping[str, Sequence[Sequence[str]]]]) -> list[str]:
    """Sentences on what cleaning took from the splits of `words`, as `split_words` gives them: captions of which no
    word is left, with the photos that have no other; and words with a digit, if these are more than a tenth.
    """
    told = []
    for split, of_photos in words.items():
        given = {name: len(dataset.captions[name]) for name in dataset.split(split)}
        lost = {name: more for name, count in given.items() if (more := count - len(of_photos.get(name, ())))}
        if lost:
            captions = f"{sum(lost.values())} of {sum(given.values())} {split} captions"
            photos = f"{len(given) - len(of_photos)} of {len(given)} photos"
            told.append(f"without a word after cleaning: {captions}, first of {next(iter(lost))}; left out: {photos}")
    written = " ".join(caption for name in dataset.split("train") for caption in dataset.captions[name]).split()
    with_digit = [word for word in written if has_digit(word)]
    if len(with_digit) > len(written) / 10:
        which = f"{len(with_digit)} of {len(written)} words of the training captions"
        told.append(f"{which} are dropped because they contain a digit, first {in_one_line(with_digit[0])}")
    return told


def warmup_steps(settings: TrainConfig, steps: int) -> int:
    """How many of all `steps` the learning rates rise in: as many as the switch says, but at most a tenth."""
    return min(settings.warmup_steps, steps // 10)


def early_decay(steps: Any) -> Any:
    """Decay of the average of the weights after `steps` steps, until it reaches `train.ema_decay`: the average forgets
    faster at first, lest a short run keep the weights that it began with.
    """
    return steps / (steps + 9.0)


def data_digest(dataset: Dataset, train: Sequence[str], dev: Sequence[str]) -> str:
    """sha256 of the raw captions of both splits and of the names of their readable photos, `train` and `dev`."""
    captions = [{name: dataset.captions[name] for name in dataset.split(split)} for split in ("train", "dev")]
    return hashlib.sha256(json.dumps([captions, train, dev]).encode()).hexdigest()
