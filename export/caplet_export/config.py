"""Every hyper-parameter, in one typed configuration that is saved beside the weights it led to."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from caplet.manifest import LONGEST_CAPTION, Decoding
from caplet_export.errors import ConfigurationError
from caplet_export.inputs import read_json
from caplet_export.outputs import write_whole


@dataclass(frozen=True)
class TextConfig:
    """How captions become words."""

    rules: str = "coco"
    """`coco`: the scorer's own tokens (keeps "a"); `tutorial`: no punctuation, digits or one-letter words."""
    minimum_count: int = 5
    """Words that occur less often in the training captions become `<unk>`."""
    max_length: int = 20
    """Words of a caption that are learned and produced, at most."""


DEFAULT_DECODING = Decoding(
    beam_size=3,
    max_length=TextConfig.max_length,
    length_penalty=1.0,
    block_repeated_trigrams=True,
)
"""The default search of a bundle, unless it is made with other settings."""


@dataclass(frozen=True)
class ModelConfig:
    """The captioner: Show, Attend and Tell (Xu et al., ICML 2015) with a GRU."""

    vocabulary_size: int = 0
    """Set from the vocabulary when training starts."""
    members: int = 1
    """Captioners in the ensemble (`caplet-export join`); the sizes below are those of each."""
    feature_block: str = "mixed10"
    """The Inception block whose output the captioner sees: `mixed10`, the last; `mixed9`, of the same shape; or
    `mixed8`, of 1280 channels. The later a block, the better it knows the photos that the extractor was trained on. An
    ensemble has one for all members, or one for each, separated by spaces."""
    locations: int = 64
    channels: int = 2048
    """Of `mixed9` and `mixed10`; `mixed8` has five eighths of them."""
    feature_size: int = 512
    """D: numbers that the linear encoder makes of each location."""
    attention_size: int = 256
    """A: width of the additive attention."""
    embedding_size: int = 256
    state_size: int = 512
    """H: width of the GRU."""
    initial_state: str = "mean"
    """`mean`: tanh of a linear layer of the mean feature; `zero`."""
    gated_context: bool = True
    """Scale the context by a gate read from the state (beta of Xu et al., section 4.2.1)."""
    deep_output: bool = True
    """Predict words from embedding, state and context together (eq. 7 of Xu et al.), else from the state through one
    hidden layer, as the tutorials do."""
    tied_embeddings: bool = True
    """The output layer shares the word embeddings (Press and Wolf, 2017)."""
    dropout: float = 0.5
    """Rate of dropout of words, states, outputs and encoded features."""
    channel_dropout: float = 0.0
    """Share of the feature extractor's channels that are dropped for a whole photo. An extractor that was trained on
    these very photos knows too much about them; this keeps the decoder from relying on it."""

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
class TrainConfig:
    """How the weights are learned."""

    objective: str = "cross_entropy"
    """`cross_entropy` by teacher forcing; `self_critical` with a CIDEr-D reward (from a trained run); or
    `distillation`, to say each word as probably as another run does (`--teacher`)."""
    seed: int = 1
    reward_rouge: float = 0.0
    """Reward of a sampled caption for a ROUGE-L of 1, beside its CIDEr-D of 0 to 10 (self-critical)."""
    bigram_penalty: float = 0.0
    """Price, in reward, of each pair of neighbouring words in a sampled caption that nobody says (self-critical)."""
    batch_images: int = 24
    captions_per_image: int = 5
    """Number of captions of an image in a batch: the first of its own, or samples (of the captioner in self-critical
    training, of the teacher in distillation)."""
    epochs: int = 14
    patience: int = 5
    """Stop after this many epochs without a better free-running dev CIDEr-D; 0 trains for a fixed number of epochs and
    keeps the last."""
    learning_rate: float = 1e-3
    decay: str = "cosine"
    """`cosine` to zero over `epochs`, or `constant`."""
    warmup_steps: int = 200
    gradient_norm: float = 5.0
    label_smoothing: float = 0.1
    cross_entropy_weight: float = 0.0
    """Weight of the cross-entropy of people's captions beside the expected reward (self-critical, `tune` only)."""
    attention_regularisation: float = 1.0
    """Lambda of doubly stochastic attention (eq. 14 of Xu et al.), with a mean over locations in place of the sum."""
    views: str = "plain flip"
    """Views of a training photo, separated by spaces, of which one is drawn each time (each needs its store)."""
    smallest_crop: float = 0.2
    """Smallest share of a photo that a random crop shows (`tune`)."""
    color_jitter: float = 0.4
    """By how much brightness, contrast and saturation of a crop change, at most (`tune`)."""
    random_erasing: float = 0.0
    """Share of crops in which a random rectangle is grey (`tune`; Zhong et al., AAAI 2020)."""
    mixup: float = 0.0
    """Share of the photos whose features (in `tune`: pixels) are mixed with up to half of another photo's, for teacher
    and captioner alike (distillation; mixup, Zhang et al., ICLR 2018)."""
    teacher_view: str = "same"
    """What the teacher sees: the `same` view of a photo as the captioner, or always the photo as it is, `plain`
    (distillation)."""
    ema_decay: float = 0.995
    """Decay per step of the exponential moving average of the weights, which is evaluated and kept; lower in
    the first steps; 0 for no average."""
    extractor_layer: str = "none"
    """Inception block, below `model.feature_block`; the blocks above it are trained along (`train` needs its store).
    `none` keeps Inception frozen."""
    extractor_learning_rate: float = 1e-4
    evaluate_every: int = 1
    """Epochs from one evaluation to the next; a run is saved only then (`tune`)."""
    precision: str = "float32"
    """`float32`, or `bfloat16` for matrix products on processors that have them."""


@dataclass(frozen=True)
class Config:
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


_DEFAULTS = Config()

_TUNE = Config(
    model=ModelConfig(dropout=0.1, channel_dropout=0.5),
    train=TrainConfig(
        objective="self_critical",
        reward_rouge=2.0,
        bigram_penalty=1.0,
        batch_images=96,
        epochs=40,
        patience=0,
        learning_rate=2e-4,
        warmup_steps=50,
        cross_entropy_weight=0.3,
        attention_regularisation=0.0,
        random_erasing=0.3,
        ema_decay=0.999,
        extractor_layer="mixed2",
        extractor_learning_rate=2e-4,
        evaluate_every=5,
        precision="bfloat16",
    ),
)

RECIPES = {
    "cross_entropy": _DEFAULTS,
    "refine": Config(
        model=ModelConfig(dropout=0.3, channel_dropout=0.5),
        train=TrainConfig(seed=3, epochs=5, learning_rate=6e-4, attention_regularisation=0.0, ema_decay=0.99),
    ),
    "self_critical": Config(
        model=ModelConfig(dropout=0.3, channel_dropout=0.5),
        train=TrainConfig(
            objective="self_critical",
            epochs=8,
            patience=3,
            learning_rate=1e-4,
            label_smoothing=0.0,
            attention_regularisation=0.0,
            ema_decay=0.99,
        ),
    ),
    "distillation": Config(
        model=ModelConfig(dropout=0.0),
        train=TrainConfig(
            objective="distillation",
            epochs=8,
            patience=0,
            learning_rate=5e-4,
            label_smoothing=0.0,
            attention_regularisation=0.0,
            ema_decay=0.99,
        ),
    ),
    "fine_tune": Config(
        train=TrainConfig(
            epochs=6,
            patience=2,
            learning_rate=3e-4,
            ema_decay=0.99,
            extractor_layer="mixed7",
        )
    ),
    "tune": _TUNE,
    "tune_distillation": replace(
        _TUNE,
        train=replace(
            _TUNE.train,
            objective="distillation",
            reward_rouge=0.0,
            bigram_penalty=0.0,
            epochs=34,
            learning_rate=3e-4,
            cross_entropy_weight=0.0,
            label_smoothing=0.0,
            random_erasing=0.2,
            mixup=0.3,
        ),
    ),
    "tutorial": Config(
        text=TextConfig(rules="tutorial", minimum_count=1),
        model=ModelConfig(
            feature_size=256,
            initial_state="zero",
            gated_context=False,
            deep_output=False,
            tied_embeddings=False,
            dropout=0.0,
            channel_dropout=0.0,
        ),
        train=TrainConfig(
            epochs=5,
            patience=0,
            decay="constant",
            label_smoothing=0.0,
            attention_regularisation=0.0,
            views="plain",
            ema_decay=0.0,
        ),
    ),
}
"""The stages of the released bundle, each of which begins with the one before; `fine_tune`, which trains the upper
Inception blocks along on stored activations, and gained nothing that could be measured; and the tutorials' recipe as
the baseline. Recipes of the verb `tune` begin with its name."""

_CHOICES = {
    "feature_block": ("mixed8", "mixed9", "mixed10"),
    "rules": ("coco", "tutorial"),
    "initial_state": ("mean", "zero"),
    "decay": ("cosine", "constant"),
    "teacher_view": ("same", "plain"),
    "extractor_layer": ("none", *(f"mixed{number}" for number in range(11))),
    "objective": ("cross_entropy", "self_critical", "distillation"),
    "precision": ("float32", "bfloat16"),
}

_Where = dict[str, tuple[str, ...]]
_TUNES: _Where = {"tune": ("self_critical", "distillation")}
_REWARDS: _Where = {"train": ("self_critical",), "tune": ("self_critical",)}
_EFFECTIVE: dict[str, _Where] = {
    "train.reward_rouge": _REWARDS,
    "train.bigram_penalty": _REWARDS,
    "train.label_smoothing": {"train": ("cross_entropy",), "tune": ("self_critical",)},
    "train.cross_entropy_weight": {"tune": ("self_critical",)},
    "train.attention_regularisation": {"train": ("cross_entropy",)},
    "train.views": {"train": _CHOICES["objective"]},
    "train.smallest_crop": _TUNES,
    "train.color_jitter": _TUNES,
    "train.random_erasing": _TUNES,
    "train.mixup": {"train": ("distillation",), "tune": ("distillation",)},
    "train.teacher_view": {"train": ("distillation",)},
    "train.evaluate_every": _TUNES,
}
"""The verbs, and their objectives, in which a switch has an effect; one that is not listed has an effect in all."""

_NEEDED: dict[str, tuple[tuple[str, ...], str, Callable[[Config], bool]]] = {
    "train.extractor_learning_rate": (
        ("train", "tune"),
        "train.extractor_layer",
        lambda config: config.trains_extractor,
    ),
    "train.warmup_steps": (
        ("train",),
        "train.decay=cosine",
        lambda config: config.train.decay == "cosine",
    ),
    "train.label_smoothing": (
        ("tune",),
        "train.cross_entropy_weight above 0",
        lambda config: config.train.cross_entropy_weight > 0,
    ),
    "model.tied_embeddings": (
        ("train", "tune"),
        "model.deep_output",
        lambda config: config.model.deep_output or not config.model.tied_embeddings,
    ),
}
"""Switches that have an effect only with another setting: the verbs where that is so, and the setting, in words and as
a condition."""

_Range = tuple[str, Callable[[Any], bool]]
# The upper limits are far above any useful value; beyond them TensorFlow fails with many lines, or memory runs out.
_FEW: _Range = ("1 to 100", lambda value: 1 <= value <= 100)
_COUNT: _Range = ("1 to 1000000", lambda value: 1 <= value <= 1_000_000)
_NOT_NEGATIVE: _Range = ("0 to 1000000", lambda value: 0 <= value <= 1_000_000)
_SIZE: _Range = ("1 to 8192", lambda value: 1 <= value <= 8192)
_SHARE: _Range = ("0 to 1", lambda value: 0 <= value <= 1)
_BELOW_ONE: _Range = ("0 or more and below 1", lambda value: 0 <= value < 1)
_RANGES: dict[str, _Range] = {
    "minimum_count": _COUNT,
    "max_length": (f"1 to {LONGEST_CAPTION}", lambda value: 1 <= value <= LONGEST_CAPTION),
    "vocabulary_size": _NOT_NEGATIVE,
    "members": _FEW,
    "locations": _SIZE,
    "channels": _SIZE,
    "feature_size": _SIZE,
    "attention_size": _SIZE,
    "embedding_size": _SIZE,
    "state_size": _SIZE,
    "dropout": _BELOW_ONE,
    "channel_dropout": _BELOW_ONE,
    "seed": ("0 to 4294967295", lambda value: 0 <= value < 2**32),
    "reward_rouge": _NOT_NEGATIVE,
    "bigram_penalty": _NOT_NEGATIVE,
    "batch_images": _SIZE,
    "captions_per_image": _FEW,
    "epochs": _COUNT,
    "patience": _NOT_NEGATIVE,
    "learning_rate": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "gradient_norm": ("above 0 and at most 1000000", lambda value: 0 < value <= 1_000_000),
    "label_smoothing": _BELOW_ONE,
    "attention_regularisation": _NOT_NEGATIVE,
    "views": ("at least one view", lambda value: bool(value.split())),
    "cross_entropy_weight": _NOT_NEGATIVE,
    "smallest_crop": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "color_jitter": _SHARE,
    "random_erasing": _SHARE,
    "evaluate_every": _COUNT,
    "mixup": _SHARE,
    "ema_decay": _BELOW_ONE,
    "extractor_learning_rate": _NOT_NEGATIVE,
}
"""The values that a switch may have, in words and as a condition."""

_AnyConfig = TypeVar("_AnyConfig")


def load_config(path: Path) -> Config:
    """Read what `Config.save` wrote.

    Raises:
        ConfigurationError: no such file, not JSON, an unknown switch, or a value of the wrong type or out of range.
    """
    raw = read_json(path)
    if isinstance(raw, dict) and isinstance(raw.get("train"), dict):
        raw["train"] = {_RENAMED.get(switch, switch): value for switch, value in raw["train"].items()}
    return from_dict(Config, raw, str(path))


_RENAMED = {"average_decay": "ema_decay", "mixing": "mixup", "erasing": "random_erasing", "tint": "color_jitter"}
"""Names of `train` switches in files of releases up to 0.8, and their names now."""


def from_dict(kind: type[_AnyConfig], raw: Any, subject: str) -> _AnyConfig:
    """A configuration dataclass made of plain values, all of which are checked.

    Raises:
        ConfigurationError: about `subject`, for an unknown switch, or a value of the wrong type or out of range.
    """
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{subject}: expected an object, found {type(raw).__name__}")
    types = get_type_hints(kind)
    unknown = set(raw) - set(types)
    if unknown:
        raise ConfigurationError(f"{subject}: unknown switch {', '.join(sorted(unknown))} (have: {', '.join(types)})")
    values: dict[str, Any] = {}
    for name, value in raw.items():
        expected = types[name]
        where = f"{subject}: {name}"
        if dataclasses.is_dataclass(expected):
            values[name] = from_dict(expected, value, where)  # type: ignore[arg-type]
            continue
        found = reprlib.repr(value)
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise ConfigurationError(f"{where}: expected {expected.__name__}, found {found}")
        said = value.split() or [value] if name == "feature_block" else [value]
        if name in _CHOICES and not set(said) <= set(_CHOICES[name]):
            raise ConfigurationError(f"{where}: expected one of {', '.join(_CHOICES[name])}, found {found}")
        allowed, holds = _RANGES.get(name, ("anything", lambda _: True))
        if not holds(value):
            raise ConfigurationError(f"{where}: expected {allowed}, found {found}")
        values[name] = expected(value)
    made = kind(**values)
    if isinstance(made, TrainConfig) and made.objective == "self_critical" and made.captions_per_image < 2:
        # A sample is rewarded for what it scores more than the others.
        raise ConfigurationError(f"{subject}: captions_per_image: self-critical training needs 2 or more")
    if isinstance(made, ModelConfig) and len(made.feature_block.split()) not in (1, made.members):
        raise ConfigurationError(f"{subject}: feature_block: expected one block, or members={made.members} blocks")
    return made


def changed_switches(now: Config, before: Config = _DEFAULTS) -> dict[str, Any]:
    """The switches that differ from `before`, by `section.switch`, without the vocabulary's size, which nobody sets."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return {
        f"{section}.{name}": value
        for section, switches in new.items()
        for name, value in switches.items()
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
    objective = config.train.objective
    for assignment in assignments:
        switch = assignment.partition("=")[0]
        effective = _EFFECTIVE.get(switch)
        if effective is not None and objective not in effective.get(verb, ()):
            where = " and ".join(f"`{name}` by {' or '.join(objectives)}" for name, objectives in effective.items())
            raise ConfigurationError(f"--set {assignment}: no effect on `{verb}` by {objective}, only on {where}")
        verbs, needed, holds = _NEEDED.get(switch, ((), "", lambda _: True))
        if verb in verbs and not holds(config):
            raise ConfigurationError(f"--set {assignment}: no effect on `{verb}` without {needed}")


def override(config: Config, assignments: list[str]) -> Config:
    """Apply `section.switch=value` assignments, as given on the command line with `--set`.

    Raises:
        ConfigurationError: an unknown switch, or a value of the wrong type or out of range.
    """
    raw = dataclasses.asdict(config)
    for assignment in assignments:
        target, separator, text = assignment.partition("=")
        section, dot, name = target.partition(".")
        if not separator or not dot or section not in raw or name not in raw[section]:
            switches = ", ".join(f"{key}.{switch}" for key, part in raw.items() for switch in part)
            raise ConfigurationError(f"--set {assignment}: expected SECTION.SWITCH=VALUE with one of {switches}")
        current = raw[section][name]
        try:
            raw[section][name] = text if isinstance(current, str) else json.loads(text)
        except (ValueError, RecursionError) as error:
            cause = f"expected {type(current).__name__}, found {reprlib.repr(text)}"
            raise ConfigurationError(f"--set {target}: {cause}") from error
    return from_dict(Config, raw, "--set")
