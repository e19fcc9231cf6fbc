"""Every hyper-parameter, in one typed configuration that is saved beside the weights it led to."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from caplet.manifest import LONGEST_CAPTION, Decoding
from caplet_export.errors import ConfigurationError, no_run
from caplet_export.inputs import read_json
from caplet_export.outputs import write_whole
from caplet_export.switches import (
    BELOW_ONE,
    COUNT,
    FEW,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    SIZE,
    Needs,
    Switches,
    Values,
    Where,
    among,
    between,
    from_dict,
    switch,
)

INCEPTION_BLOCKS = tuple(f"mixed{number}" for number in range(11))
_OBJECTIVES = ("cross_entropy", "self_critical", "distillation")
_BY_REWARD: Where = {"train": ("self_critical",), "tune": ("self_critical",)}
_TUNE: Where = {"tune": ("self_critical", "distillation")}


@dataclass(frozen=True)
class TextConfig(Switches):
    """How captions become words."""

    rules: str = switch("coco", among("coco", "tutorial"))
    """`coco`: the scorer's own tokens (keeps "a"); `tutorial`: no punctuation, digits or one-letter words."""
    minimum_count: int = switch(5, COUNT)
    """Words that occur less often in the training captions become `<unk>`."""
    max_length: int = switch(20, between(1, LONGEST_CAPTION))
    """Words of a caption that are learned and produced, at most."""


DEFAULT_DECODING = Decoding(
    beam_size=3,
    max_length=TextConfig.max_length,
    length_penalty=1.0,
    block_repeated_trigrams=True,
)
"""The default search of a bundle, unless it is made with other settings."""


@dataclass(frozen=True)
class ModelConfig(Switches):
    """The captioner: Show, Attend and Tell (Xu et al., ICML 2015) with a GRU."""

    vocabulary_size: int = switch(0, NOT_NEGATIVE)
    """Set from the vocabulary when training starts."""
    members: int = switch(1, FEW)
    """Captioners in the ensemble (`caplet-export join`); the sizes below are those of each."""
    feature_block: str = switch("mixed10", among("mixed8", "mixed9", "mixed10", several=True))
    """The Inception block whose output the captioner sees: `mixed10`, the last; `mixed9`, of the same shape; or
    `mixed8`, of 1280 channels. The later a block, the better it knows the photos that the extractor was trained on. An
    ensemble has one for all members, or one for each, separated by spaces."""
    locations: int = switch(64, SIZE)
    channels: int = switch(2048, SIZE)
    """Of `mixed9` and `mixed10`; `mixed8` has five eighths of them."""
    feature_size: int = switch(512, SIZE)
    """D: numbers that the linear encoder makes of each location."""
    attention_size: int = switch(256, SIZE)
    """A: width of the additive attention."""
    embedding_size: int = switch(256, SIZE)
    state_size: int = switch(512, SIZE)
    """H: width of the GRU."""
    initial_state: str = switch("mean", among("mean", "zero"))
    """`mean`: tanh of a linear layer of the mean feature; `zero`."""
    gated_context: bool = True
    """Scale each number of the context by a gate read from the state (Xu et al., section 4.2.1: beta, one for all)."""
    deep_output: bool = True
    """Predict words from embedding, state and context together (eq. 7 of Xu et al.), else from the state through one
    hidden layer, as the tutorials do."""
    tied_embeddings: bool = switch(
        True,
        needs=Needs("model.deep_output", lambda config: config.model.deep_output or not config.model.tied_embeddings),
    )
    """The output layer shares the word embeddings (Press and Wolf, 2017)."""
    dropout: float = switch(0.5, BELOW_ONE)
    """Rate of dropout of words, states, outputs and encoded features."""
    channel_dropout: float = switch(0.0, BELOW_ONE)
    """Share of the feature extractor's channels that are dropped for a whole photo. An extractor that was trained on
    these very photos knows too much about them; this keeps the decoder from relying on it."""

    def conflict(self) -> str | None:
        """Blocks for another number of members."""
        if len(self.feature_block.split()) in (1, self.members):
            return None
        return f"feature_block: expected one block, or members={self.members} blocks"

    @property
    def member_blocks(self) -> tuple[str, ...]:
        """The block that each member reads, in their order."""
        blocks = tuple(self.feature_block.split())
        return blocks * self.members if len(blocks) == 1 else blocks

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that are read, each once; the extractor's output has their channels side by side, in order."""
        return tuple(dict.fromkeys(self.member_blocks))

    @property
    def block_channels(self) -> tuple[int, ...]:
        """Channels of each of `blocks`."""
        return tuple(self.channels * 5 // 8 if block == "mixed8" else self.channels for block in self.blocks)

    @property
    def extractor_channels(self) -> int:
        """Channels of the extractor's output."""
        return sum(self.block_channels)


@dataclass(frozen=True)
class TrainConfig(Switches):
    """How the weights are learned."""

    objective: str = switch("cross_entropy", among(*_OBJECTIVES))
    """`cross_entropy` by teacher forcing; `self_critical` with a CIDEr-D reward (from a trained run); or
    `distillation`, to say each word as probably as another run does (`--teacher`)."""
    seed: int = switch(1, between(0, 2**32 - 1))
    reward_rouge: float = switch(0.0, NOT_NEGATIVE, effect=_BY_REWARD)
    """Reward of a sampled caption for a ROUGE-L of 1, beside its CIDEr-D of 0 to 10."""
    bigram_penalty: float = switch(0.0, NOT_NEGATIVE, effect=_BY_REWARD)
    """Price, in reward, of each pair of neighbouring words in a sampled caption that nobody says."""
    batch_images: int = switch(24, SIZE)
    captions_per_image: int = switch(5, FEW)
    """Number of captions of an image in a batch: the first of its own, or samples (of the captioner in self-critical
    training, of the teacher in distillation)."""
    epochs: int = switch(14, COUNT)
    patience: int = switch(5, NOT_NEGATIVE)
    """Stop after this many epochs without a better free-running dev CIDEr-D; 0 trains for a fixed number of epochs and
    keeps the last."""
    learning_rate: float = switch(1e-3, NOT_NEGATIVE)
    decay: str = switch("cosine", among("cosine", "constant"))
    """`cosine` to zero over `epochs`, or `constant`."""
    warmup_steps: int = switch(
        200,
        NOT_NEGATIVE,
        needs=Needs("train.decay=cosine", lambda config: config.train.decay == "cosine", verbs=("train",)),
    )
    gradient_norm: float = switch(5.0, POSITIVE)
    label_smoothing: float = switch(
        0.1,
        BELOW_ONE,
        effect={"train": ("cross_entropy",), "tune": ("self_critical",)},
        needs=Needs(
            "train.cross_entropy_weight above 0", lambda config: config.train.cross_entropy_weight > 0, verbs=("tune",)
        ),
    )
    cross_entropy_weight: float = switch(0.0, NOT_NEGATIVE, effect={"tune": ("self_critical",)})
    """Weight of the cross-entropy of people's captions beside the expected reward."""
    attention_regularisation: float = switch(1.0, NOT_NEGATIVE, effect={"train": ("cross_entropy",)})
    """Lambda of doubly stochastic attention (eq. 14 of Xu et al.), with a mean over locations in place of the sum."""
    views: str = switch(
        "plain flip", Values("at least one view", lambda value: bool(value.split())), effect={"train": _OBJECTIVES}
    )
    """Views of a training photo, separated by spaces, of which one is drawn each time (each needs its store)."""
    smallest_crop: float = switch(0.2, POSITIVE_SHARE, effect=_TUNE)
    """Smallest share of a photo that a random crop shows."""
    color_jitter: float = switch(0.4, SHARE, effect=_TUNE)
    """By how much brightness, contrast and saturation of a crop change, at most."""
    random_erasing: float = switch(0.0, SHARE, effect=_TUNE)
    """Share of crops in which a random rectangle is grey (Zhong et al., AAAI 2020)."""
    mixup: float = switch(0.0, SHARE, effect={"train": ("distillation",), "tune": ("distillation",)})
    """Share of the photos whose features (in `tune`: pixels) are mixed with up to half of another photo's, for teacher
    and captioner alike (mixup, Zhang et al., ICLR 2018)."""
    teacher_view: str = switch("same", among("same", "plain"), effect={"train": ("distillation",)})
    """What the teacher sees: the `same` view of a photo as the captioner, or always the photo as it is, `plain`."""
    ema_decay: float = switch(0.995, BELOW_ONE)
    """Decay per step of the exponential moving average of the weights, which is evaluated and kept; lower in
    the first steps; 0 for no average."""
    extractor_layer: str = switch("none", among("none", *INCEPTION_BLOCKS))
    """Inception block, below `model.feature_block`; the blocks above it are trained along (`train` needs its store).
    `none` keeps Inception frozen."""
    extractor_learning_rate: float = switch(
        1e-4, NOT_NEGATIVE, needs=Needs("train.extractor_layer", lambda config: config.trains_extractor)
    )
    evaluate_every: int = switch(1, COUNT, effect=_TUNE)
    """Epochs from one evaluation to the next; a run is saved only then."""
    precision: str = switch("float32", among("float32", "bfloat16"))
    """`float32`, or `bfloat16`, on processors that have it, for everything but weights, attention and losses (in
    `tune`: in Inception alone)."""

    def conflict(self) -> str | None:
        """Too few samples: each is rewarded for what it scores more than the others."""
        if self.objective != "self_critical" or self.captions_per_image >= 2:
            return None
        return "captions_per_image: self-critical training needs 2 or more"


@dataclass(frozen=True)
class Config(Switches):
    """The whole configuration of a run."""

    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def trains_extractor(self) -> bool:
        """Whether Inception blocks are trained along."""
        return self.train.extractor_layer != "none"

    @property
    def stored_blocks(self) -> tuple[str, ...]:
        """The Inception blocks whose stored outputs training reads, side by side."""
        return (self.train.extractor_layer,) if self.trains_extractor else self.model.blocks

    def as_json(self) -> str:
        """What `save` writes."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Write as JSON; the old file stays until the new one is whole."""
        write_whole(path, self.as_json())


def load_config(path: Path) -> Config:
    """Read what `Config.save` wrote.

    Raises:
        ConfigurationError: no such file, not JSON, an unknown switch, or a value of the wrong type or out of range.
    """
    raw = read_json(path)
    if isinstance(raw, dict) and isinstance(raw.get("train"), dict):
        raw["train"] = {_RENAMED.get(name, name): value for name, value in raw["train"].items()}
    return from_dict(Config, raw, str(path))


def load_run_config(run: Path) -> Config:
    """The configuration of a run folder. Raises a ConfigurationError if there is no run, and as `load_config`."""
    path = run / "config.json"
    if not path.exists():
        raise no_run(run)
    return load_config(path)


_RENAMED = {"average_decay": "ema_decay", "mixing": "mixup", "erasing": "random_erasing", "tint": "color_jitter"}
"""Names of `train` switches in files of releases up to 0.8, and their names now."""


def changed_switches(now: Config, before: Config = Config()) -> dict[str, Any]:
    """The switches that differ from `before`, by `section.switch`, without the vocabulary's size, which nobody sets."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return {
        f"{section}.{name}": value
        for section, values in new.items()
        for name, value in values.items()
        if value != old[section][name] and name != "vocabulary_size"
    }


def inherit(config: Config, earlier: Config) -> Config:
    """`config` for a run that goes on from weights of `earlier`: with their text and model but its own dropout."""
    model = dataclasses.replace(
        earlier.model, dropout=config.model.dropout, channel_dropout=config.model.channel_dropout
    )
    return dataclasses.replace(config, text=earlier.text, model=model)


def require_effect(assignments: Sequence[str], verb: str, config: Config) -> None:
    """Raise a ConfigurationError if a switch given with `--set` would do nothing in this verb with this configuration.

    Files and recipes may hold such switches: a configuration always has all of them, and the next stage inherits it.
    """
    for assignment in assignments:
        section, _, name = assignment.partition("=")[0].partition(".")
        known = getattr(config, section).known().get(name)
        missing = known and known.missing(verb, config.train.objective, config)
        if missing:
            raise ConfigurationError(f"--set {assignment}: no effect on `{verb}` {missing}")


def override(config: Config, assignments: list[str]) -> Config:
    """Apply `section.switch=value` assignments, as given on the command line with `--set`.

    Raises:
        ConfigurationError: an unknown switch, or a value of the wrong type or out of range.
    """
    raw = dataclasses.asdict(config)
    for assignment in assignments:
        target, separator, text = assignment.partition("=")
        section, _, name = target.partition(".")
        if not separator or section not in raw or name not in raw[section]:
            switches = {each: f"{key}.{each}" for key, part in raw.items() for each in part}
            near = [switches[each] for each in get_close_matches(target.rpartition(".")[2].strip(), switches)]
            which = f", perhaps {' or '.join(near)}" if near else f" with one of {', '.join(switches.values())}"
            raise ConfigurationError(f"--set {assignment}: expected SECTION.SWITCH=VALUE{which}")
        current = raw[section][name]
        try:
            raw[section][name] = text if isinstance(current, str) else json.loads(text)
        except (ValueError, RecursionError) as error:
            cause = f"expected {type(current).__name__}, found {reprlib.repr(text)}"
            raise ConfigurationError(f"--set {target}: {cause}") from error
    return from_dict(Config, raw, "--set")
