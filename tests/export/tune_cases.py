"""What test_tune.py asks of `caplet_export.tune`: functions for a process of its own, in which Keras runs on JAX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caplet_export.config import Config, ModelConfig, TextConfig, TrainConfig

SIZE = 32
CONFIG = Config(
    TextConfig(minimum_count=1, max_length=9),
    ModelConfig(
        members=2,
        feature_block="mixed10 mixed9",
        locations=16,
        channels=12,
        feature_size=16,
        attention_size=8,
        embedding_size=16,
        state_size=24,
        dropout=0.0,
        channel_dropout=0.0,
    ),
    TrainConfig(
        objective="self_critical",
        batch_images=8,
        captions_per_image=5,
        epochs=4,
        patience=0,
        learning_rate=0.01,
        extractor_learning_rate=0.003,
        decay="constant",
        warmup_steps=2,
        label_smoothing=0.0,
        cross_entropy_weight=1.0,
        attention_regularisation=0.0,
        smallest_crop=0.8,
        color_jitter=0.1,
        ema_decay=0.9,
        extractor_layer="mixed2",
        evaluate_every=2,
    ),
)


def tiny_extractor(blocks: Sequence[str], seed: int = 3) -> Any:
    """Pixels [N,32,32,3] to features [N,4,4,12] of each block: a convolution each, under Inception's names."""
    import keras
    from keras import layers

    from caplet_export.inception import JOINED
    from caplet_export.scopes import loaded_later

    pixels = keras.Input((SIZE, SIZE, 3))
    with loaded_later():
        low = layers.Conv2D(8, 4, strides=4, activation="relu", name="mixed2")(pixels)
        first = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="mixed9")(low)
        second = layers.Conv2D(12, 3, padding="same", activation="relu", name="mixed10")(first)
    outputs = {"mixed9": first, "mixed10": second}
    wanted = [outputs[block] for block in blocks]
    return drawn_weights(
        keras.Model(pixels, wanted[0] if len(wanted) == 1 else layers.Concatenate(name=JOINED)(wanted)), seed
    )


def drawn_weights(model: Any, seed: int) -> Any:
    """The model with random weights as Glorot uniform has them, from NumPy: JAX would compile every shape."""
    random = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if len(shape := variable.shape) > 1:
            limit = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
            variable.assign(random.uniform(-limit, limit, shape))
    return model


def start_run(folder: Path, data: Path, config: Config = CONFIG, seed: int = 5) -> Path:
    """A run folder with random weights and the vocabulary of the data set."""
    from caplet_export.checkpoint import empty_model, save_checkpoint
    from caplet_export.flickr8k import read_dataset
    from caplet_export.runs import split_words
    from caplet_export.text import Vocabulary

    words = split_words(read_dataset(data), config)["train"]
    vocabulary = Vocabulary.build((caption for captions in words.values() for caption in captions), 1)
    config = replace(config, model=replace(config.model, vocabulary_size=len(vocabulary)))
    folder.mkdir(parents=True)
    save_checkpoint(folder, config, vocabulary, drawn_weights(empty_model(config.model), seed))
    return folder


def tuner(
    folder: Path, data: Path, start: Path, teachers: Sequence[Path] = (), extractor_seed: int = 3, **switches: Any
) -> Any:
    from caplet_export.flickr8k import read_dataset
    from caplet_export.tune import Tuner

    config = replace(CONFIG, train=replace(CONFIG.train, **switches))
    build = partial(tiny_extractor, seed=extractor_seed)
    return Tuner(
        folder,
        config,
        read_dataset(data),
        start_from=start,
        build=build,
        encoder_weights=f"seed {extractor_seed}",
        teachers=teachers,
    )


def rates(folder: Path, data: Path, start: Path, **switches: Any) -> list[tuple[float, ...]]:
    """The learning rates of decoder and extractor, and the decay of the average, at every step."""
    run = tuner(folder, data, start, **switches)
    steps = [run._rates(step) for step in range(run.config.train.epochs * run.steps_an_epoch)]
    return [tuple(float(step[name]) for name in ("decoder", "extractor", "average")) for step in steps]


def not_learned(folder: Path, data: Path, start: Path, teachers: Sequence[Path] = (), **switches: Any) -> list[str]:
    """What a run says that it leaves out."""
    return list(tuner(folder, data, start, teachers, **switches).not_learned)


def batch_losses(
    folder: Path,
    data: Path,
    start: Path,
    of: Sequence[dict[str, float]],
    teachers: Sequence[Path] = (),
    **switches: Any,
) -> list[float]:
    """The loss of one batch, on the same views and samples, with each of these switches."""
    import jax

    run = tuner(folder, data, start, teachers, **switches)
    rows, pixels = next(run._batches(range(1)))
    batch = pixels, rows, run._tokens[rows], run._targets[rows]
    assert (run._reward is None) == bool(teachers)  # nothing is looked up in its tables where nobody is rewarded
    if teachers:
        loss = partial(run._distillation_loss, teachers=run._teacher_values)
    else:
        loss = partial(run._self_critical_loss, tables=run._reward.tables)
    config, found = run.config, []
    for changes in of:
        run.config = replace(config, train=replace(config.train, **changes))
        key = jax.random.key(3)
        found.append(float(jax.jit(partial(loss, frozen=run._frozen, batch=batch, key=key))(run._values)))
    return found


def tune(folder: Path, data: Path, start: Path, teachers: Sequence[Path] = (), until: int = 0, **switches: Any) -> Any:
    """History, unreadable photos and mean losses told while it trained, up to an epoch or the end."""
    run, told = tuner(folder, data, start, teachers, **switches), []
    while not run.finished and not (until and run.history and run.history[-1].epoch >= until):
        run.run_epochs(lambda *said: told.append(said))
    return run.history, dict(run.unreadable), told


def example(folder: Path, data: Path, start: Path, **switches: Any) -> tuple[str, str]:
    """The dev photo that a run is followed by, with its caption."""
    run = tuner(folder, data, start, **switches)
    run._evaluate()
    return run.example


def refusal(folder: Path, data: Path, start: Path, teachers: Sequence[Path] = (), **switches: Any) -> str:
    """What a run says that cannot be."""
    from caplet_export.errors import ExportError

    try:
        tune(folder, data, start, teachers, **switches)
    except ExportError as error:
        return str(error)
    return ""


def trained_values(run: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The extractor's and the decoder's variables of a run, as `convert` reads them."""
    from caplet_export.checkpoint import load_checkpoint
    from caplet_export.extractor_part import load_extractor_part

    extractor = tiny_extractor(CONFIG.model.blocks)
    load_extractor_part(extractor, run)
    decoder = load_checkpoint(run).model.trainable_variables
    return [np.array(value) for value in extractor.variables], [np.array(value, np.float32) for value in decoder]


def averages(run: Path, data: Path, start: Path) -> list[np.ndarray]:
    """The averaged weights of the extractor's upper blocks that a run goes on with, in full precision."""
    return [np.array(value) for value in tuner(run, data, start)._average["extractor"]]


def said(weights: Sequence[Path], config: ModelConfig, features: np.ndarray, tokens: np.ndarray) -> Any:
    """Of captioners as one: greedy ids and their logits. Of the first: logits by teacher forcing read as a loop and as
    Keras does it, and the logits under a dropout key.
    """
    import jax
    import jax.numpy as jnp

    from caplet_export.checkpoint import model_to_load
    from caplet_export.tune import StatelessCaptioner, generate_captions

    models = [model_to_load(config) for _ in weights]
    for model, path in zip(models, weights, strict=True):
        model.load_weights(path)
    extractor = tiny_extractor(["mixed10"])
    captioners = [StatelessCaptioner(model, extractor) for model in models]
    all_values = [captioner.values() for captioner in captioners]
    all_encoded = [
        jax.jit(captioner.encode)(values, jnp.asarray(features))
        for captioner, values in zip(captioners, all_values, strict=True)
    ]
    ids, logits = jax.jit(lambda values, encoded: generate_captions(captioners, values, encoded, 9))(
        all_values, all_encoded
    )
    model, captioner, values = models[0], captioners[0], all_values[0]
    read = jax.jit(captioner.teacher_forced)(values, all_encoded[0], tokens)
    keras_read = model.teacher_forced(*model.encode(features), tokens, tokens.shape[0] // features.shape[0])[0]

    @jax.jit
    def under_dropout(values: Any, key: Any) -> Any:
        return captioner.teacher_forced(values, captioner.encode(values, jnp.asarray(features), key), tokens, key)

    dropped = [under_dropout(values, jax.random.key(0)) for _ in range(2)]
    return [np.asarray(part) for part in (ids, logits, read, keras_read, *dropped)]


def drawn(weights: Path, config: ModelConfig, features: np.ndarray, count: int) -> np.ndarray:
    """First words that a captioner draws of each photo, int [N,count]."""
    import jax
    import jax.numpy as jnp

    from caplet_export.checkpoint import model_to_load
    from caplet_export.tune import StatelessCaptioner, generate_captions

    model = model_to_load(config)
    model.load_weights(weights)
    captioner = StatelessCaptioner(model, tiny_extractor(["mixed10"]))
    values = captioner.values()
    encoded = captioner.encode(values, jnp.asarray(features))
    ids, _ = generate_captions([captioner], [values], [encoded], 9, count, jax.random.key(1))
    return np.asarray(ids)[:, 0].reshape(len(features), count)


def losses(logits: np.ndarray, teachers: np.ndarray, ids: np.ndarray, rewards: np.ndarray) -> list[np.ndarray]:
    """Every objective, and the gradients of the self-critical one and of distillation."""
    import jax

    from caplet_export import objectives

    def self_critical(logits: Any) -> Any:
        return objectives.self_critical_loss(objectives.log_probabilities(ids, logits), ids, rewards)

    def distillation(logits: Any) -> Any:
        return objectives.distillation_loss(logits, teachers, ids)

    found = [objectives.cross_entropy(logits, ids, 0.1), objectives.log_probabilities(ids, logits)]
    for loss in (self_critical, distillation):
        found += jax.jit(jax.value_and_grad(loss))(logits)
    return [np.asarray(part) for part in found]


def greedy(run: Path, data: Path) -> np.ndarray:
    """Greedy ids of the dev photos, int [N,T]."""
    from caplet_export.checkpoint import load_checkpoint
    from caplet_export.extractor_part import load_extractor_part
    from caplet_export.flickr8k import read_dataset
    from caplet_export.inception import scale
    from caplet_export.photos import PhotoCache
    from caplet_export.tune import StatelessCaptioner, generate_captions

    extractor = tiny_extractor(CONFIG.model.blocks)
    load_extractor_part(extractor, run)
    captioner = StatelessCaptioner(load_checkpoint(run).model, extractor)
    dataset, values = read_dataset(data), captioner.values()
    names = list(dataset.split("dev"))
    photos = scale(PhotoCache(dataset, names, SIZE).load(names))
    encoded = captioner.encode_photos(captioner.frozen(), values, photos)
    return np.asarray(generate_captions([captioner], [values], [encoded], CONFIG.text.max_length)[0])


def out_of_memory(folder: Path, data: Path, start: Path) -> str:
    """What a run says whose accelerator has no memory for a batch."""
    import jax

    from caplet_export.errors import ExportError

    def step(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED\nhundreds of lines")

    run = tuner(folder, data, start)
    run._step = step
    try:
        run.run_epochs()
    except ExportError as error:
        return str(error)
    return ""
