"""The recipes that runs start from: whole configurations by name."""

from __future__ import annotations

from dataclasses import replace

from caplet_export.config import Config, ModelConfig, TextConfig, TrainConfig

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
    "cross_entropy": Config(),
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
