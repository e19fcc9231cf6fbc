"""Training on stored features: dev CIDEr-D after each epoch, early stopping on it, and a run that resumes exactly.

There are three objectives: cross-entropy by teacher forcing; self-critical training (Rennie et al., CVPR 2017); and
distillation (Hinton et al., 2015), to say each word as probably as a larger captioner does. The self-critical reward is
CIDEr-D with the end token and, if asked for, ROUGE-L and a price on pairs of words that nobody says; its baseline is
the mean reward of an image's other samples (Luo, 2020). The first two objectives can train the upper Inception blocks
along, from their stored inputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from caplet_export.batches import Batches, not_learned, padded_length
from caplet_export.bigrams import Bigrams
from caplet_export.checkpoint import load_weights, require_features_of, require_shape
from caplet_export.config import Config, TrainConfig
from caplet_export.errors import ConfigurationError, DataError, in_one_line
from caplet_export.extractor_part import ExtractorPart
from caplet_export.features import StoredFeatures
from caplet_export.flickr8k import Dataset
from caplet_export.freerun import FreeRunner, sample
from caplet_export.inception import upper_blocks
from caplet_export.metrics import CiderD, references_of, rouge_l
from caplet_export.model import Captioner, build_model
from caplet_export.objectives import (
    cross_entropy,
    distillation_loss,
    log_probabilities,
    mean_over_words,
    self_critical_loss,
)
from caplet_export.runs import DEV_CAPTIONS, Epoch, Run, data_digest, dropped, early_decay, split_words, warmup_steps
from caplet_export.stages import require_encoder_weights
from caplet_export.text import END, END_TOKEN, PAD, START, Vocabulary

_EVALUATION_BATCH = 200
_CAPTIONS, _MIXUP = range(2)
"""Purposes of random numbers, see `Trainer._seed`."""


@dataclass(frozen=True)
class Stores:
    """Stored inputs: the training photos in each of `train.views`, and the plain view of all photos."""

    train: Sequence[StoredFeatures]
    plain: StoredFeatures


class Trainer(Run):
    """One run of `train`, from the last epoch that its folder holds.

    Args:
        folder: the run folder; made if it is not there. If it holds a run of the same configuration, that goes on.
        config: every hyper-parameter (`model.vocabulary_size` is filled in).
        dataset: captions and splits.
        stores: outputs of the blocks `config.stored_blocks`.
        start_from: the run with whose weights and vocabulary it begins; None for random weights.
        extractor: InceptionV3 up to `config.model.feature_block`, needed if its upper blocks are trained along.
        teacher: the run to learn from in distillation, which must have the same vocabulary and read the same blocks.

    Attributes:
        not_learned: what it leaves out of photos and captions, see `Batches.unread`, `dropped` and
            `batches.not_learned`.

    Raises:
        ConfigurationError: the folder holds a run of another configuration; or the configuration, the start, the
            teacher and the extractor do not fit each other.
        DataError: a split is missing or empty, or features are missing.
        ExportError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path | str,
        config: Config,
        dataset: Dataset,
        stores: Stores,
        *,
        start_from: Path | None = None,
        extractor: keras.Model | None = None,
        teacher: Path | None = None,
    ) -> None:
        if config.model.members > 1 and start_from is None:
            raise ConfigurationError("model.members: train them one by one, then go on --from what `join` made of them")
        if config.model.members > 1 and config.trains_extractor:
            raise ConfigurationError("model.members: only `tune` trains Inception blocks along with several captioners")
        words = split_words(dataset, config)
        vocabulary = (
            Vocabulary.load(start_from / "vocabulary.txt")
            if start_from
            else Vocabulary.build(chain.from_iterable(words["train"].values()), config.text.minimum_count)
        )
        source = stores.plain.source
        _require_features(config, stores.plain, start_from, teacher)
        super().__init__(Path(folder), config, vocabulary, source.weights, start_from, [teacher] if teacher else [])
        self._origin["--features"] = source.made_by

        settings = self.config.train
        keras.utils.set_random_seed(settings.seed)
        self.model = build_model(self.config.model, settings.precision)
        if start_from:
            load_weights(self.model, start_from)
        self.upper = self._upper_blocks(extractor, start_from)
        shape = extractor.output_shape[1:] if extractor else (source.locations, source.channels)
        require_shape(config.model, shape, self.folder)
        self._teacher = self._load_teacher(teacher)
        self._plain = stores.plain
        if len({store.source.made_by for store in (*stores.train, stores.plain)}) > 1:
            raise DataError(f"{stores.plain.folder.parent}: views stored with different Inception weights")

        batches = partial(Batches, vocabulary=self.vocabulary, max_length=config.text.max_length, seed=settings.seed)
        self._train = batches(
            words["train"],
            views=stores.train,
            group=settings.captions_per_image,
            batch_images=settings.batch_images,
        )
        self._dev = batches(
            words["dev"],
            views=[stores.plain],
            group=DEV_CAPTIONS,
            batch_images=_EVALUATION_BATCH,
        )
        self._origin["--data"] = data_digest(dataset, self._train.names, self._dev.names)
        group = settings.captions_per_image if settings.objective == "cross_entropy" else None
        said = words["train"].values()
        self.not_learned = [
            f"{len(data.unread)} of {len(words[split])} {split} photos could not be read when their features were "
            f"stored, first {data.unread[0]}; run `caplet-export features` again to retry them"
            for split, data in (("train", self._train), ("dev", self._dev))
            if data.unread
        ]
        self.not_learned += dropped(dataset, words)
        self.not_learned += not_learned(said, self.vocabulary, config.text.max_length, group)
        self._dev_scorer = CiderD(references_of(dataset, self._dev.names))
        self._reward: CiderD | None = None
        if settings.objective == "self_critical":
            self._train_references = references_of(dataset, list(words["train"]))
            self._reward = CiderD(self._train_references, with_end=True)
            self._bigrams = Bigrams(chain.from_iterable(said))
        self._prepare_steps()
        self._resume()

    def run_epoch(self, progress: Callable[[int, int, float], None] = lambda *_: None) -> Epoch:
        """Train one epoch, evaluate it, and save it; `progress(step, steps, mean loss)` is called after each batch.

        Raises:
            ConfigurationError: the loss is not a finite number, or the folder cannot be written.
        """
        number = len(self.history) + 1
        start = time.monotonic()
        total, steps = 0.0, len(self._train)
        for step, batch in enumerate(self._train.epoch(number), 1):
            total += self._finite(partial(self._step, *batch), f"epoch {number}, step {step}")
            progress(step, steps, total / step)
        with _averaged_weights(self._variables, self._average):
            dev_loss, dev_cider = self._evaluate()
            self._finite(lambda: dev_loss, f"epoch {number}, dev")
            seconds = time.monotonic() - start
            epoch = self._end_epoch(Epoch(number, total / steps, dev_loss, dev_cider, round(seconds, 1)))
        self._save_resume()
        return epoch

    @staticmethod
    def _finite(compute: Callable[[], Any], where: str) -> float:
        try:
            value = float(compute())
        except tf.errors.InvalidArgumentError as error:  # for example, no word can be drawn from logits that are NaN
            cause = f"{where}: the loss cannot be computed ({in_one_line(error.message)}); lower train.learning_rate"
            raise ConfigurationError(cause) from error
        if not math.isfinite(value):
            raise ConfigurationError(f"{where}: the loss is {value}; lower train.learning_rate")
        return value

    # -- one step -----------------------------------------------------------------------------------------------------

    def _prepare_steps(self) -> None:
        settings = self.config.train
        self._variables = list(self.model.trainable_variables)
        count = len(self._train) * settings.epochs
        self._optimizers = [(_optimizer(settings.learning_rate, count, settings), self._variables)]
        if self.upper is not None:
            upper = list(self.upper.trainable_variables)
            self._optimizers.append((_optimizer(settings.extractor_learning_rate, count, settings), upper))
            self._variables = self._variables + upper
        for optimizer, variables in self._optimizers:
            optimizer.build(variables)
        self._average = [tf.Variable(v.value) for v in self._variables] if settings.ema_decay else []
        self._runner = FreeRunner(self.model, self.config.text.max_length)
        steps: dict[str, Callable[..., Any]] = {
            "cross_entropy": tf.function(self._cross_entropy_step, autograph=False),
            "self_critical": self._self_critical_step,
            "distillation": self._distillation_step,
        }
        self._step = steps[settings.objective]

    def _seed(self, purpose: int) -> Any:
        """The seed int64 [2] of this step's random numbers for one purpose.

        It depends only on the configuration and the number of steps taken, which is saved with the optimizer, so that a
        resumed run draws the same numbers as an uninterrupted one. Dropout has a counter of its own among the model's
        variables, which are saved too.
        """
        step = tf.cast(self._optimizers[0][0].iterations, tf.int64)
        seed = tf.stack([tf.constant(self.config.train.seed, tf.int64), step])
        return tf.random.fold_in(seed, tf.constant(purpose, tf.int64))

    def _features(self, inputs: Any) -> Any:
        if self.upper is None:
            return inputs
        rows = self.upper.input_shape[1:]
        features = self.upper(tf.reshape(tf.cast(inputs, tf.float32), (-1, *rows)), training=False)
        return tf.reshape(features, (-1, self.config.model.locations, self.config.model.extractor_channels))

    def _cross_entropy_step(self, inputs: Any, tokens: Any, targets: Any, rows: Any) -> Any:
        """One optimizer step on the cross-entropy without paddings; returns the loss per word."""
        del rows
        settings = self.config.train
        with tf.GradientTape() as tape:
            encoded = self.model.encode(self._features(inputs), training=True)
            logits, attention = self.model.teacher_forced(*encoded, tokens, self._train.group, training=True)
            loss = mean_over_words(cross_entropy(logits, targets, settings.label_smoothing), targets)
            objective = loss
            if settings.attention_regularisation:
                words = tf.cast(targets != PAD, tf.float32)[..., None]
                looked = tf.reduce_sum(attention * words, axis=1)
                missed = tf.reduce_mean((1.0 - looked) ** 2, axis=1)
                said = tf.reduce_max(words[..., 0], axis=1)  # 0 for the rows that a photo with fewer captions leaves
                objective += settings.attention_regularisation * tf.reduce_sum(missed * said) / tf.reduce_sum(said)
        return loss + self._descend(tape, objective)

    def _self_critical_step(self, inputs: Any, tokens: Any, targets: Any, rows: Any) -> Any:
        """One optimizer step on the expected reward of sampled captions; returns minus their mean reward."""
        del tokens, targets  # not used: else the update would be traced for each of their widths
        return self._self_critical_update(inputs, rows)

    @tf.function(autograph=False)
    def _self_critical_update(self, inputs: Any, rows: Any) -> Any:
        group = self.config.train.captions_per_image
        with tf.GradientTape() as tape:
            features = self._features(inputs)
            length = self.config.text.max_length
            ids, logits = sample(self.model, features, length, group, self._seed(_CAPTIONS), training=True)
            rewards = tf.reshape(tf.numpy_function(self._rewards, [rows, ids], tf.float32), (-1, group))
            objective = self_critical_loss(log_probabilities(ids, logits), ids, rewards)
        return self._descend(tape, objective) - tf.reduce_mean(rewards)

    def _distillation_step(self, inputs: Any, tokens: Any, targets: Any, rows: Any) -> Any:
        """One optimizer step towards the teacher's next word, along captions that it draws; returns the mean divergence
        (Kullback-Leibler) of the model's next word from the teacher's.
        """
        del tokens, targets  # not used: the teacher has learned from people's captions
        shown = inputs
        if self.config.train.teacher_view == "plain":
            shown = self._plain.gather([self._train.names[row] for row in rows])
        if self.config.train.mixup:
            inputs, shown = self._mixup(inputs, shown)
        ids, logits = self._sample_teacher(shown)
        more = padded_length(ids.shape[1], self.config.text.max_length + 1) - ids.shape[1]
        ids, logits = tf.pad(ids, ((0, 0), (0, more))), tf.pad(logits, ((0, 0), (0, more), (0, 0)))
        return self._distillation_update(inputs, ids, logits)

    @tf.function(autograph=False)
    def _mixup(self, *views: Any) -> list[Any]:
        """Views [B,L,C] of a batch's photos, some mixed with up to half of another photo, the same in each view."""
        count = tf.shape(views[0])[0]
        which, how_much, order = tf.unstack(tf.random.split(self._seed(_MIXUP), 3))
        some = tf.random.stateless_uniform((count, 1, 1), which) < self.config.train.mixup
        own = tf.where(some, tf.random.stateless_uniform((count, 1, 1), how_much, 0.5, 1.0), 1.0)
        others = tf.random.experimental.stateless_shuffle(tf.range(count), order)
        photos = [tf.cast(view, tf.float32) for view in views]
        return [own * photo + (1.0 - own) * tf.gather(photo, others) for photo in photos]

    @tf.function(autograph=False)
    def _sample_teacher(self, inputs: Any) -> tuple[Any, Any]:
        assert self._teacher is not None
        length, group = self.config.text.max_length, self.config.train.captions_per_image
        return sample(self._teacher, inputs, length, group, self._seed(_CAPTIONS))

    @tf.function(autograph=False)
    def _distillation_update(self, inputs: Any, ids: Any, teacher_logits: Any) -> Any:
        tokens = tf.concat([tf.fill((ids.shape[0], 1), START), ids[:, :-1]], axis=1)
        with tf.GradientTape() as tape:
            encoded = self.model.encode(inputs, training=True)
            logits, _ = self.model.teacher_forced(*encoded, tokens, self.config.train.captions_per_image, training=True)
            objective = distillation_loss(logits, teacher_logits, ids)
        return objective + self._descend(tape, objective)

    def _rewards(self, rows: NDArray[np.int64], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Rewards float32 [N*G] of sampled captions, ids [N*G,T], of the training images at `rows` [N]."""
        assert self._reward is not None
        rouge_weight, penalty = self.config.train.reward_rouge, self.config.train.bigram_penalty
        keys = [self._train.names[row] for row in rows for _ in range(len(ids) // len(rows))]
        rewards = np.empty(len(ids), np.float32)
        for index, (key, row) in enumerate(zip(keys, ids.tolist(), strict=True)):
            words, ended = self.vocabulary.decode(row), END in row
            rewards[index] = self._reward.score(key, [*words, END_TOKEN] if ended else words)
            if rouge_weight:
                rewards[index] += rouge_weight * rouge_l(words, self._train_references[key])
            if penalty:
                rewards[index] -= penalty * len(self._bigrams.implausible(words, ended=ended))
        return rewards

    def _descend(self, tape: tf.GradientTape, objective: Any) -> Any:
        """One step of the optimizers and of the average. Returns 0, or NaN if the gradient is not finite."""
        settings = self.config.train
        # Dense, since an embedding's comes as one slice for each occurrence of a word, and Keras' Adam and the norm
        # square slices one by one: frequent words would take steps several times too large.
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(objective, self._variables)]
        gradients, norm = tf.clip_by_global_norm(gradients, settings.gradient_norm)
        first = 0
        for optimizer, variables in self._optimizers:
            optimizer.apply(gradients[first : first + len(variables)])
            first += len(variables)
        taken = tf.cast(self._optimizers[0][0].iterations, tf.float32)
        decay = tf.minimum(settings.ema_decay, early_decay(taken))
        for average, variable in zip(self._average, self._variables, strict=False):
            average.assign_sub((1 - decay) * (average - variable.value))
        return 0.0 * norm

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluate(self) -> tuple[float, float]:
        """Dev loss per word by teacher forcing, and dev CIDEr-D, in percent, of free-running greedy captions."""
        total = words = 0.0
        captions: list[list[str]] = []
        for inputs, tokens, targets, _ in self._dev.in_order():
            features = self._frozen_features(inputs)
            loss, count = self._dev_loss(features, tokens, targets)
            total, words = total + float(loss), words + float(count)
            ids = self._runner.greedy(features)
            captions += [self.vocabulary.decode(row, self.config.text.max_length) for row in ids.tolist()]
        self.example = self._dev.names[0], " ".join(captions[0])
        scores = self._dev_scorer.score_many(self._dev.names, captions)
        return total / words, 100.0 * float(scores.mean())

    @tf.function(reduce_retracing=True, autograph=False)
    def _frozen_features(self, inputs: Any) -> Any:
        return self._features(inputs)

    @tf.function(autograph=False)
    def _dev_loss(self, features: Any, tokens: Any, targets: Any) -> tuple[Any, Any]:
        logits, _ = self.model.teacher_forced(*self.model.encode(features), tokens, self._dev.group)
        words = tf.reduce_sum(tf.cast(targets != PAD, tf.float32))
        return mean_over_words(cross_entropy(logits, targets), targets) * words, words

    # -- resuming -----------------------------------------------------------------------------------------------------

    def _state(self) -> list[Any]:
        state = [*self.model.variables, *self._average]
        for optimizer, _ in self._optimizers:
            state += optimizer.variables
        return state + (list(self.upper.trainable_variables) if self.upper is not None else [])

    def _set_state(self, state: Sequence[Any]) -> None:
        for variable, value in zip(self._state(), state, strict=True):
            variable.assign(value)

    def _save_weights(self, decoder: Path, extractor: Path | None = None) -> None:
        self.model.save_weights(decoder)
        if self.upper is not None and extractor is not None:
            self._part.save(self.upper.trainable_variables, extractor)

    def _load_teacher(self, run: Path | None) -> Captioner | None:
        if run is None:
            return None
        if self.upper is not None:
            raise ConfigurationError("distillation: Inception blocks cannot be trained along")
        teacher = self._load_alike(run, self.config.train.precision)
        if teacher.config.model.blocks != self.config.model.blocks:
            blocks = " ".join(teacher.config.model.blocks)
            raise ConfigurationError(f"{run}: reads {blocks}, but its pupil reads {' '.join(self.config.model.blocks)}")
        return teacher.model

    def _upper_blocks(self, extractor: keras.Model | None, start_from: Path | None) -> keras.Model | None:
        layer = self.config.train.extractor_layer
        if not self.config.trains_extractor:
            return None
        if extractor is None:
            raise ConfigurationError(f"train.extractor_layer={layer} needs --encoder-weights")
        upper = upper_blocks(extractor, layer)
        self._part = ExtractorPart(extractor, upper.trainable_variables)
        if start_from:
            self._part.take_over(extractor, start_from)
        return upper


def _require_features(config: Config, store: StoredFeatures, start_from: Path | None, teacher: Path | None) -> None:
    """Raise a ConfigurationError if a run cannot be trained on these features, from `start_from` and by `teacher`."""
    if config.trains_extractor:
        if store.source.extractor:
            cause = "made with blocks that a run trained, which only `tune` can train further"
            raise ConfigurationError(f"{store.folder}: {cause}")
        if start_from:
            require_encoder_weights(start_from, store.source.weights, store.folder)
        return
    if store.source.extractor and start_from is None:
        raise ConfigurationError(f"{store.folder}: made with blocks that a run trained; give that run as --from")
    for run in filter(None, (start_from, teacher)):
        require_features_of(run, store)


@contextmanager
def _averaged_weights(variables: Sequence[Any], averages: Sequence[Any]) -> Iterator[None]:
    """Within it, variables hold their averages, if there are any; afterwards they hold their own values again."""
    pairs = list(zip(variables, averages, strict=True)) if averages else []
    own_values = [variable.numpy() for variable, _ in pairs]
    for variable, average in pairs:
        variable.assign(average)
    try:
        yield
    finally:
        for (variable, _), own in zip(pairs, own_values, strict=True):
            variable.assign(own)


def _optimizer(rate: float, steps: int, settings: TrainConfig) -> keras.optimizers.Optimizer:
    schedule: Any = rate
    if settings.decay == "cosine":
        warmup = warmup_steps(settings, steps)
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else rate,
            steps - warmup,
            warmup_target=rate if warmup else None,
            warmup_steps=warmup,
        )
    return keras.optimizers.Adam(schedule)
