"""Train encoder and decoder as one, from pixels, with views drawn anew for every step, on a GPU if there is one.

`train` reads stored features, so two cores are enough for it; but it shows a photo only in the few views that were
stored, and leaves most of Inception as it was. Here every step computes Inception, forward and backward, for a batch of
new random views. Keras runs on JAX, which compiles a step to one program for any device. There are two objectives:
self-critical training with a CIDEr-D reward (Rennie et al., CVPR 2017; baseline: an image's other samples, Luo, 2020)
and some cross-entropy beside it; and distillation (Hinton et al., 2015) from one or several tuned captioners as an
ensemble, all of which see the same view (Beyer et al., CVPR 2022).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from numpy.typing import NDArray

from caplet.prefetch import in_order
from caplet_export.batches import caption_ids, not_learned
from caplet_export.bigrams import Bigrams
from caplet_export.checkpoint import empty_model, load_weights, model_to_load, require_shape
from caplet_export.config import Config
from caplet_export.errors import ConfigurationError
from caplet_export.extractor_part import ExtractorPart, checksum, load_extractor_part
from caplet_export.flickr8k import Dataset
from caplet_export.inception import lower_blocks, scale, upper_blocks
from caplet_export.metrics import CiderD, references_of
from caplet_export.model import Captioner, mask_special_tokens, members_of
from caplet_export.objectives import (
    cross_entropy,
    distillation_loss,
    log_probabilities,
    mean_over_words,
    self_critical_loss,
)
from caplet_export.photos import PhotoCache
from caplet_export.random_views import mixup, random_views
from caplet_export.rewards import CaptionReward, words_before
from caplet_export.runs import DEV_CAPTIONS, Epoch, Run, data_digest, dropped, early_decay, split_words, warmup_steps
from caplet_export.stages import require_encoder_weights
from caplet_export.text import END, PAD, START, Vocabulary

Array = Any
Values = dict[str, list[Array]]
"""The trained weights: the `extractor`'s upper variables and the `decoder`'s, in Keras' order."""

_EVALUATION_BATCH = 50
_AHEAD = 3
"""Batches that are decoded in advance, and steps for which the report of a loss does not wait."""
_ADAM_BETA_2 = 0.99
"""Decay of Adam's second moments: gradients of rewards change their size faster than the usual 0.999 can follow."""


class StatelessCaptioner:
    """A captioner as functions that take its weights as arguments, so that they can be traced and differentiated.

    Shapes: N photos, G captions of each, T words, V vocabulary; `encoded` is the result of `CaptionModel.encode`.

    Args:
        model: the decoder.
        extractor: the feature extractor.
        frozen_up_to: the block up to which the extractor is not trained; None to train all of it.
    """

    def __init__(self, model: Captioner, extractor: keras.Model, frozen_up_to: str | None = None) -> None:
        self.model = model
        self.upper = upper_blocks(extractor, frozen_up_to) if frozen_up_to else extractor
        self._lower = lower_blocks(extractor, frozen_up_to) if frozen_up_to else None
        self.variables = list(model.trainable_variables)
        trained = {id(variable) for variable in self.variables}
        self._seeds = [variable for variable in model.variables if id(variable) not in trained]

    def values(self) -> Values:
        """Copies of the trained weights in the Keras models."""
        return {
            "extractor": [jnp.array(variable) for variable in self.upper.trainable_variables],
            "decoder": [jnp.array(variable) for variable in self.variables],
        }

    def frozen(self) -> list[list[Array]]:
        """The extractor's weights that are not trained: arguments of jitted functions, lest they become constants."""
        parts = [self.upper.non_trainable_variables]
        if self._lower is not None:
            parts += [self._lower.trainable_variables, self._lower.non_trainable_variables]
        return [[jnp.array(variable) for variable in part] for part in parts]

    def extract_features(self, frozen: Sequence[list[Array]], values: Values, photos: Array) -> Array:
        """Features float32 [N,L,C] of photos float32 [N,S,S,3] in [-1,1]."""
        if self._lower is not None:
            photos, _ = self._lower.stateless_call(frozen[1], frozen[2], photos, training=False)
            photos = jax.lax.stop_gradient(photos)
        features, _ = self.upper.stateless_call(values["extractor"], frozen[0], photos, training=False)
        return jnp.reshape(features, (features.shape[0], -1, features.shape[-1])).astype(jnp.float32)

    def encode(self, values: Values, features: Array, key: Array | None = None) -> tuple[Array, ...]:
        """`CaptionModel.encode`; with dropout if there is a `key`."""
        with self._scope(values, key):
            return tuple(self.model.encode(features, training=key is not None))

    def encode_photos(
        self, frozen: Sequence[list[Array]], values: Values, photos: Array, key: Array | None = None
    ) -> tuple[Array, ...]:
        """`encode` of the features of photos float32 [N,S,S,3] in [-1,1]."""
        return self.encode(values, self.extract_features(frozen, values, photos), key)

    def teacher_forced(
        self, values: Values, encoded: Sequence[Array], tokens: Array, key: Array | None = None
    ) -> Array:
        """`CaptionModel.teacher_forced` as a loop, compiled in a fraction of the time: logits float32 [N*G,T,V]."""
        group, training = tokens.shape[0] // encoded[0].shape[0], key is not None
        members = members_of(self.model)
        parts = zip(*(jnp.split(part, len(members), axis=-1) for part in encoded), strict=True)
        total = jnp.zeros(())
        with self._scope(values, key):
            for member, (features, keys, state) in zip(members, parts, strict=True):
                words = member.dropout(member.embedding(tokens), training=training)

                def next_state(
                    state: Array, gates: Array, member: Any = member, features: Array = features, keys: Array = keys
                ) -> tuple[Array, tuple[Array, Array]]:
                    state, context, _ = member.advance(gates, state, features, keys, group)
                    return state, (state, context)

                gates = jnp.swapaxes(member.from_word(words), 0, 1)
                _, said = jax.lax.scan(next_state, jnp.repeat(state, group, axis=0), gates)
                states, contexts = (jnp.swapaxes(part, 0, 1) for part in said)
                total += member.generate(words, states, contexts, training)
        return total / len(members)

    def step(
        self, values: Values, token: Array, state: Array, encoded: Sequence[Array], group: int
    ) -> tuple[Array, Array]:
        """Logits float32 [N*G,V] and next state, see `CaptionModel.step`."""
        with self._scope(values):
            logits, state, _ = self.model.step(token, state, encoded[0], encoded[1], group)
        return logits, state

    def _scope(self, values: Values, key: Array | None = None) -> keras.StatelessScope:
        """A scope in which the decoder's variables have these values, and dropout draws from `key`."""
        mapping = list(zip(self.variables, values["decoder"], strict=True))
        if key is not None:
            keys = jax.random.split(key, max(len(self._seeds), 1))
            mapping += [
                (seed, jax.random.bits(key, seed.shape, jnp.uint32))
                for key, seed in zip(keys, self._seeds, strict=False)
            ]
        return keras.StatelessScope(state_mapping=mapping)


def generate_captions(
    captioners: Sequence[StatelessCaptioner],
    values: Sequence[Values],
    encoded: Sequence[Sequence[Array]],
    max_length: int,
    group: int = 1,
    key: Array | None = None,
) -> tuple[Array, Array]:
    """Captions of several captioners as one, by the mean of their logits: drawn with a `key`, else greedy.

    Returns:
        ids int32 [N*G,T], padded after `<end>` (a caption cut at the limit has none), and logits float32 [N*G,T,V]; T
        is max_length+1.
    """
    states = [jnp.repeat(parts[2], group, axis=0) for parts in encoded]
    count = states[0].shape[0]

    def next_word(carry: tuple[Any, ...], t: Array) -> tuple[tuple[Any, ...], tuple[Array, Array]]:
        token, alive, states = carry
        steps = [
            captioner.step(own, token, state, parts, group)
            for captioner, own, state, parts in zip(captioners, values, states, encoded, strict=True)
        ]
        logits = sum(logits for logits, _ in steps) / len(steps)
        allowed = mask_special_tokens(logits)
        drawn = jnp.argmax(allowed, -1) if key is None else jax.random.categorical(jax.random.fold_in(key, t), allowed)
        said = jnp.where(alive & ((t < max_length) | (drawn == END)), drawn, PAD).astype(jnp.int32)
        return (said, alive & (said != END), [state for _, state in steps]), (said, logits)

    start = (jnp.full(count, START, jnp.int32), jnp.ones(count, bool), states)
    _, (ids, logits) = jax.lax.scan(next_word, start, jnp.arange(max_length + 1))
    return jnp.swapaxes(ids, 0, 1), jnp.swapaxes(logits, 0, 1)


class Tuner(Run):
    """One run of `tune`, from the last epoch that its folder holds.

    Args:
        folder: the run folder; made if it is not there. If it holds a run of the same configuration, that goes on.
        config: every hyper-parameter (`model.vocabulary_size` is filled in).
        dataset: photos, captions and splits.
        start_from: the run with whose weights and vocabulary it begins.
        build: function from names of blocks to the extractor up to these, with the Inception weights that all the runs
            began with.
        encoder_weights: digest of these weights, see `features.weights_digest`.
        teachers: the runs to learn from in distillation, as one ensemble.

    Attributes:
        not_learned: what it leaves out of the captions, see `dropped` and `batches.not_learned`.

    Raises:
        ConfigurationError: the folder holds a run of another configuration; the start or a teacher does not fit; a
            switch is not for `tune`.
        DataError: a split is missing or empty, or none of its photos can be read.
        ExportError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path | str,
        config: Config,
        dataset: Dataset,
        *,
        start_from: Path,
        build: Callable[[Sequence[str]], keras.Model],
        encoder_weights: str,
        teachers: Sequence[Path],
    ) -> None:
        settings = config.train
        if settings.objective == "cross_entropy":
            raise ConfigurationError("train.objective: `tune` trains by `self_critical` or `distillation`")
        if not config.trains_extractor:
            raise ConfigurationError("train.extractor_layer: `tune` trains Inception along; name a block")
        if settings.teacher_view != "same":
            raise ConfigurationError("train.teacher_view: in `tune`, teachers see the captioner's views; set `same`")
        words = split_words(dataset, config)
        vocabulary = Vocabulary.load(start_from / "vocabulary.txt")
        for run in (start_from, *teachers):
            require_encoder_weights(run, encoder_weights, "--encoder-weights")
        super().__init__(Path(folder), config, vocabulary, encoder_weights, start_from, teachers)

        model = model_to_load(self.config.model)
        load_weights(model, start_from)
        extractor = build(config.model.blocks)
        require_shape(config.model, extractor.output_shape[1:], start_from)
        self._origin["--encoder-weights"] = checksum(np.array(variable) for variable in extractor.variables)
        self._captioner = StatelessCaptioner(model, extractor, settings.extractor_layer)
        self._part = ExtractorPart(extractor, self._captioner.upper.trainable_variables)
        self._part.take_over(extractor, start_from)
        self._size = extractor.input_shape[1]
        self._teachers = [self._load_teacher(run, build) for run in teachers]
        self._teacher_values = [(teacher.values(), teacher.frozen()) for teacher in self._teachers]

        self._photos = PhotoCache(dataset, [*words["train"], *words["dev"]], self._size)
        self._train, self._dev = (self._photos.readable(list(words[split])) for split in ("train", "dev"))
        self._origin["--data"] = data_digest(dataset, self._train, self._dev)
        group = settings.captions_per_image
        ids = partial(caption_ids, vocabulary=vocabulary, max_length=config.text.max_length)
        self._tokens, self._targets = ids([words["train"][name] for name in self._train], group=group)
        self._dev_ids = ids([words["dev"][name] for name in self._dev], group=DEV_CAPTIONS)
        read = settings.objective == "self_critical" and settings.cross_entropy_weight
        said = words["train"].values()
        self.not_learned = dropped(dataset, words)
        self.not_learned += not_learned(said, vocabulary, config.text.max_length, group if read else None)
        self._scorer = CiderD(references_of(dataset, self._dev))
        self._reward: CaptionReward | None = None
        if settings.objective == "self_critical":
            self._reward = CaptionReward(
                vocabulary,
                references_of(dataset, self._train),
                Bigrams(chain.from_iterable(said)),
                rouge=settings.reward_rouge,
                penalty=settings.bigram_penalty,
            )
        self._batch = min(settings.batch_images, len(self._train))
        self._frozen = self._captioner.frozen()
        self._values = self._captioner.values()
        self._average = jax.tree.map(jnp.copy, self._values)
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(settings.gradient_norm), optax.scale_by_adam(b2=_ADAM_BETA_2)
        )
        self._moments = self._optimizer.init(self._values)
        self._key = jax.random.key(settings.seed)
        self._step = jax.jit(self._descend, donate_argnums=(0, 1, 2))
        self._evaluate_batch = jax.jit(self._dev_batch)
        self._resume()

    @property
    def device(self) -> str:
        """The kind of device that JAX computes on: the name of the GPU, or `cpu`."""
        return str(jax.devices()[0].device_kind)

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The reasons why photos are left out, by name."""
        return self._photos.unreadable

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches in an epoch. Photos that fill no batch are not seen in it; the next epoch is shuffled anew."""
        return len(self._train) // self._batch

    def run_epochs(self, progress: Callable[[int, int, float], None] = lambda *_: None) -> Epoch:
        """Train up to the next evaluation, and save the run.

        `progress(step, steps, loss)` is called after each batch but the first few, with the loss of an earlier one, for
        which it need not wait.

        Raises:
            ConfigurationError: the loss is not a finite number, the device fails, such as for want of memory, or the
                folder cannot be written.
        """
        try:
            return self._run_epochs(progress)
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).partition("\n")[0][:200]
            raise ConfigurationError(
                f"{self.device} failed ({reason}); if its memory ran out, lower train.batch_images"
            ) from error

    def _run_epochs(self, progress: Callable[[int, int, float], None]) -> Epoch:
        start = time.monotonic()
        done = self.history[-1].epoch if self.history else 0
        last = min(done + self.config.train.evaluate_every, self.config.train.epochs)
        first, steps = done * self.steps_an_epoch, (last - done) * self.steps_an_epoch
        tables = self._reward.tables if self._reward else {}
        losses: list[Array] = []
        for step, (rows, pixels) in enumerate(self._batches(range(done, last)), first):
            self._values, self._moments, self._average, loss = self._step(
                self._values, self._moments, self._average, self._frozen, self._teacher_values, tables,
                (pixels, jnp.asarray(rows), self._tokens[rows], self._targets[rows]),
                jax.random.fold_in(self._key, step), self._rates(step),
            )  # fmt: skip
            losses.append(loss)
            if len(losses) > _AHEAD:  # not the last loss, for whose computation this would wait
                progress(len(losses), steps, float(losses[-_AHEAD]))
        mean = float(np.mean([float(loss) for loss in losses]))
        dev_loss, dev_cider = self._evaluate()
        for where, value in ((f"epoch {last}", mean), (f"epoch {last}, dev", dev_loss)):
            if not math.isfinite(value):
                raise ConfigurationError(f"{where}: the loss is {value}; lower the learning rates")
        epoch = self._end_epoch(Epoch(last, mean, dev_loss, dev_cider, round(time.monotonic() - start, 1)))
        self._save_resume()
        return epoch

    # -- one step -----------------------------------------------------------------------------------------------------

    def _rates(self, step: int) -> dict[str, np.float32]:
        """Learning rates of this step, and the decay of the average."""
        settings = self.config.train
        steps = settings.epochs * self.steps_an_epoch
        factor = min(1.0, (step + 1) / max(warmup_steps(settings, steps), 1))
        if settings.decay == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * step / steps))
        return {
            "extractor": np.float32(settings.extractor_learning_rate * factor),
            "decoder": np.float32(settings.learning_rate * factor),
            "average": np.float32(min(settings.ema_decay, early_decay(step + 1))),
        }

    def _descend(
        self, values: Values, moments: Any, average: Values, frozen: Any, teachers: Any, tables: Any, batch: Any,
        key: Array, rates: Mapping[str, Array],
    ) -> tuple[Values, Any, Values, Array]:  # fmt: skip
        """One step of Adam; returns values, moments, average and loss."""
        if self._teachers:
            objective = partial(self._distillation_loss, frozen=frozen, teachers=teachers, batch=batch, key=key)
        else:
            objective = partial(self._self_critical_loss, frozen=frozen, tables=tables, batch=batch, key=key)
        loss, gradients = jax.value_and_grad(objective)(values)
        updates, moments = self._optimizer.update(gradients, moments)
        values = {
            part: [value - rates[part] * update for value, update in zip(values[part], updates[part], strict=True)]
            for part in values
        }
        decay = rates["average"]
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, values)
        return values, moments, average, loss

    def _self_critical_loss(self, values: Values, *, frozen: Any, tables: Any, batch: Any, key: Array) -> Array:
        """`self_critical_loss` of sampled captions, and some cross-entropy of people's captions.

        Captions are drawn without dropout in the steps of the decoder, and their gradients are taken with it.
        """
        assert self._reward is not None
        settings, (pixels, rows, tokens, targets) = self.config.train, batch
        group, count = settings.captions_per_image, pixels.shape[0]
        views, encoding, drawing, reading = jax.random.split(key, 4)
        photos = random_views(pixels, views, settings)
        encoded = self._captioner.encode_photos(frozen, values, photos, encoding)
        detached = jax.lax.stop_gradient((values, encoded))
        length = self.config.text.max_length
        ids, _ = generate_captions([self._captioner], [detached[0]], [detached[1]], length, group, drawing)
        rewards = self._reward.total(tables, rows, ids).reshape(count, group)

        # Samples and people's captions of a photo side by side, so that both take one pass.
        inputs = jnp.concatenate([words_before(ids).reshape(count, group, -1), tokens], axis=1)
        inputs = inputs.reshape(2 * group * count, -1)
        logits = self._captioner.teacher_forced(values, encoded, inputs, reading)
        logits = logits.reshape(count, 2, group, inputs.shape[1], -1)
        of_samples, of_people = logits[:, 0].reshape(*ids.shape, -1), logits[:, 1]
        loss = self_critical_loss(log_probabilities(ids, of_samples), ids, rewards)
        losses = cross_entropy(of_people, targets, settings.label_smoothing)
        return loss + settings.cross_entropy_weight * mean_over_words(losses, targets)

    def _distillation_loss(self, values: Values, *, frozen: Any, teachers: Any, batch: Any, key: Array) -> Array:
        """Mean Kullback-Leibler divergence of the next word from the teachers', along captions that they draw."""
        settings, (pixels, *_) = self.config.train, batch
        views, mixing, encoding, drawing, reading = jax.random.split(key, 5)
        photos = mixup(random_views(pixels, views, settings), mixing, settings.mixup)
        encoded = [
            teacher.encode_photos(own_frozen, own, photos)
            for teacher, (own, own_frozen) in zip(self._teachers, teachers, strict=True)
        ]
        length, group = self.config.text.max_length, settings.captions_per_image
        ids, teacher_logits = jax.lax.stop_gradient(
            generate_captions(self._teachers, [own for own, _ in teachers], encoded, length, group, drawing)
        )
        own_encoded = self._captioner.encode_photos(frozen, values, photos, encoding)
        logits = self._captioner.teacher_forced(values, own_encoded, words_before(ids), reading)
        return distillation_loss(logits, teacher_logits, ids)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _dev_batch(self, values: Values, frozen: Any, pixels: Array, tokens: Array, targets: Array) -> Any:
        encoded = self._captioner.encode_photos(frozen, values, scale(pixels))
        ids, _ = generate_captions([self._captioner], [values], [encoded], self.config.text.max_length)
        logits = self._captioner.teacher_forced(values, encoded, tokens.reshape(-1, tokens.shape[-1]))
        logits = logits.reshape(*tokens.shape, -1)
        return ids, mean_over_words(cross_entropy(logits, targets), targets) * jnp.sum(targets != PAD)

    def _evaluate(self) -> tuple[float, float]:
        """Dev loss per word, and dev CIDEr-D of greedy captions in percent, by the averaged weights."""
        total, captions, (tokens, targets) = 0.0, [], self._dev_ids
        size = min(_EVALUATION_BATCH, len(self._dev))
        for start in range(0, len(self._dev), size):
            # The last batch is filled up with the first photos, which are not counted again.
            rows = np.arange(start, start + size) % len(self._dev)
            new = (np.arange(start, start + size) < len(self._dev))[:, None, None]
            pixels = self._photos.load([self._dev[row] for row in rows])
            counted = np.where(new, targets[rows], PAD)
            ids, loss = self._evaluate_batch(self._average, self._frozen, pixels, tokens[rows], counted)
            total += float(loss)
            captions += [self.vocabulary.decode(row, self.config.text.max_length) for row in ids.tolist()]
        self.example = self._dev[0], " ".join(captions[0])
        scores = self._scorer.score_many(self._dev, captions[: len(self._dev)])
        return total / int(np.sum(targets != PAD)), 100.0 * float(scores.mean())

    def _batches(self, epochs: range) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Rows and pixels of the batches of these epochs; the next batches are decoded while one is computed."""
        plan = []
        for epoch in epochs:
            order = np.random.default_rng([self.config.train.seed, epoch]).permutation(len(self._train))
            plan += np.split(order[: self.steps_an_epoch * self._batch], self.steps_an_epoch)

        def load(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
            return rows, self._photos.load([self._train[row] for row in rows])

        return in_order(plan, load, workers=1, ahead=1 + _AHEAD)

    # -- the run folder -----------------------------------------------------------------------------------------------

    def _load_teacher(self, run: Path, build: Callable[[Sequence[str]], keras.Model]) -> StatelessCaptioner:
        checkpoint = self._load_alike(run)
        extractor = build(checkpoint.config.model.blocks)
        require_shape(checkpoint.config.model, extractor.output_shape[1:], run)
        load_extractor_part(extractor, run)
        return StatelessCaptioner(checkpoint.model, extractor)

    def _save_weights(self, decoder: Path, extractor: Path | None = None) -> None:
        assert extractor is not None
        model = empty_model(self.config.model)
        for variable, value in zip(model.trainable_variables, self._average["decoder"], strict=True):
            variable.assign(np.asarray(value).astype(variable.dtype))
        model.save_weights(decoder)
        self._part.save(self._average["extractor"], extractor)

    def _state(self) -> list[Any]:
        return list(jax.tree.leaves((self._values, self._moments, self._average)))

    def _set_state(self, state: Sequence[Any]) -> None:
        whole = (self._values, self._moments, self._average)
        for old, new in zip(jax.tree.leaves(whole), state, strict=True):
            if old.shape != new.shape:
                raise ValueError(f"an array is {new.shape}, not {old.shape}")
        arrays = [jnp.asarray(value) for value in state]
        self._values, self._moments, self._average = jax.tree.unflatten(jax.tree.structure(whole), arrays)
