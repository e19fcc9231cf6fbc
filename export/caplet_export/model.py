"""The captioner in Keras: linear encoder, additive attention, GRU, sentence generator.

It runs on any backend (`keras.ops`). `encode` and `step` are converted to ONNX and called by free-running decoding;
`teacher_forced` unrolls the same layers over given captions, for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import keras
import numpy as np
from keras import ops

from caplet_export.config import ModelConfig
from caplet_export.errors import ConfigurationError
from caplet_export.scopes import computing_in
from caplet_export.text import NEVER_SAID

Tensor = Any


class Dense(keras.layers.Dense):
    """A dense layer that adds the product to the bias, not the bias to the product, for the gradient's sake.

    Of the latter, Keras makes TensorFlow's `BiasAdd`. In bfloat16, that adds up its gradient in bfloat16, which over
    the locations or words of a batch is off by a quarter or more. The gradient of a plain sum is not. Files of weights
    call each layer by its class, so the class is called as Keras' own.
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """`inputs` [...,I] times the kernel, plus the bias if there is one: [...,units]."""
        outputs = ops.matmul(inputs, self.kernel)
        if self.bias is not None:
            outputs = ops.add(self.bias, outputs)
        return self.activation(outputs)


class CaptionModel(keras.Model):
    """Show, Attend and Tell (Xu et al., ICML 2015) with a GRU in place of the LSTM.

    Shapes: N images or captions, L = 64 locations, C channels (2048 of most blocks), D feature size, A attention size,
    H state size, V vocabulary size, T steps.
    """

    def __init__(self, config: ModelConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        size = config.state_size
        self.project_features = Dense(config.feature_size, name="project_features")
        self.project_keys = Dense(config.attention_size, name="project_keys")
        self.initial_state = Dense(size, "tanh", name="initial_state") if config.initial_state == "mean" else None
        self.embedding = keras.layers.Embedding(
            config.vocabulary_size, config.embedding_size, keras.initializers.RandomNormal(stddev=0.1), name="embedding"
        )
        # One matrix product for all that a step reads from the state: attention query, gate, and the GRU's recurrent
        # part (update, reset, candidate).
        self.gate_size = config.feature_size if config.gated_context else 0
        self.from_state = Dense(config.attention_size + self.gate_size + 3 * size, name="from_state")
        self.score = Dense(1, use_bias=False, name="score")
        self.from_word = Dense(3 * size, name="from_word")
        self.from_context = Dense(3 * size, use_bias=False, name="from_context")
        hidden = config.embedding_size if config.deep_output else size
        self.output_state = Dense(hidden, name="output_state")
        self.output_context = Dense(hidden, use_bias=False, name="output_context") if config.deep_output else None
        self.dropout = keras.layers.Dropout(config.dropout, name="dropout")
        # Each channel of a photo is kept or dropped at all of its locations: dropped one by one, 64 locations would
        # still tell the mean.
        self.channel_dropout = keras.layers.SpatialDropout1D(config.channel_dropout, name="channel_dropout")
        tied = config.tied_embeddings and config.deep_output
        self.output_words = None if tied else Dense(config.vocabulary_size, name="output_words")
        self.output_bias = (
            self.add_weight(shape=(config.vocabulary_size,), initializer="zeros", name="output_bias") if tied else None
        )

    def build(self, input_shape: Any = None) -> None:
        """Make the variables; the configuration tells their shapes, which a first call would find far more slowly."""
        config = self.config
        features, state, hidden = config.feature_size, config.state_size, self.output_state.units
        for layer, size in (
            (self.project_features, config.extractor_channels),
            (self.project_keys, features),
            (self.initial_state, features),
            (self.from_state, state),
            (self.score, config.attention_size),
            (self.from_word, config.embedding_size),
            (self.from_context, features),
            (self.output_state, state),
            (self.output_context, features),
            (self.output_words, hidden),
        ):
            if layer is not None:
                layer.build((None, size))
        self.embedding.build()
        self.built = True

    def encode(self, features: Tensor, training: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images: compute all that does not change from word to word.

        Args:
            features: float [N,L,C].
            training: whether dropout is active.

        Returns:
            features [N,L,D], attention keys [N,L,A], initial state [N,H].
        """
        features = ops.cast(features, self.compute_dtype)
        features = self.project_features(self.channel_dropout(features, training=training))
        features = self.dropout(features, training=training)
        keys = self.project_keys(features)
        if self.initial_state is not None:
            state = self.initial_state(ops.mean(features, axis=1))
        else:
            state = ops.repeat(ops.zeros_like(features[:, 0, :1]), self.config.state_size, axis=1)
        return features, keys, state

    def step(
        self, token: Tensor, state: Tensor, features: Tensor, keys: Tensor, group: int = 1, training: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One decoding step.

        Args:
            token: int [N*G], the previous word.
            state: [N*G,H].
            features: [N,L,D] from `encode`.
            keys: [N,L,A] from `encode`.
            group: G, captions per image, as in `advance`.
            training: whether dropout is active.

        Returns:
            logits float32 [N*G,V], next state [N*G,H], attention [N*G,L] that sums to 1.
        """
        word = self.dropout(self.embedding(token), training=training)
        state, context, attention = self.advance(self.from_word(word), state, features, keys, group)
        return self.generate(word, state, context, training), state, attention

    def advance(
        self, word_gates: Tensor, state: Tensor, features: Tensor, keys: Tensor, group: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend, then update the GRU's state.

        Attention: softmax_l(v . tanh(k_l + U h)) (Bahdanau et al., ICLR 2015). GRU: Cho et al., EMNLP 2014, with the
        reset gate after the recurrent product, as in `keras.layers.GRU(reset_after=True)`.

        Args:
            word_gates: [N*G,3H], the word's part of the gates.
            state: [N*G,H].
            features: [N,L,D].
            keys: [N,L,A].
            group: G, captions per image; an image's captions are neighbours and share its features unrepeated.

        Returns:
            next state [N*G,H], (gated) context [N*G,D], attention float32 [N*G,L].
        """
        config, size = self.config, self.config.state_size
        first, second = config.attention_size, config.attention_size + self.gate_size
        from_state = self.from_state(state)
        query, gate, recurrent = from_state[:, :first], from_state[:, first:second], from_state[:, second:]
        query = ops.reshape(query, (-1, group, 1, config.attention_size))
        # In float32 whatever the precision: element by element, bfloat16 is slower even where there is hardware for it.
        energies = ops.tanh(ops.cast(keys, "float32")[:, None] + ops.cast(query, "float32"))
        # Not `matmul`, which before Keras 3.13 is TensorFlow's of batches: on some processors that crashes in a loop.
        scores = ops.tensordot(energies, ops.cast(self.score.kernel, "float32"), 1)
        attention = ops.softmax(ops.reshape(scores, (-1, group, config.locations)), axis=-1)
        context = ops.matmul(ops.cast(attention, features.dtype), features)
        context = ops.reshape(context, (-1, config.feature_size))
        if config.gated_context:
            context = context * ops.sigmoid(gate)
        gates = word_gates + self.from_context(context)
        update, reset = ops.split(ops.sigmoid(gates[:, : 2 * size] + recurrent[:, : 2 * size]), 2, axis=-1)
        candidate = ops.tanh(gates[:, 2 * size :] + reset * recurrent[:, 2 * size :])
        attention = ops.reshape(attention, (-1, config.locations))
        return update * state + (1 - update) * candidate, context, attention

    def generate(self, word: Tensor, state: Tensor, context: Tensor, training: bool = False) -> Tensor:
        """Logits float32 [...,V] of the next word from the previous word's embedding, the new state and the context."""
        hidden = self.output_state(self.dropout(state, training=training))
        if self.output_context is not None:
            hidden = self.dropout(word + hidden + self.output_context(context), training=training)
        if self.output_words is not None:
            return ops.cast(self.output_words(hidden), "float32")
        table = ops.transpose(ops.cast(self.embedding.embeddings, hidden.dtype))
        return ops.cast(ops.matmul(hidden, table), "float32") + ops.cast(self.output_bias, "float32")

    def teacher_forced(
        self, features: Tensor, keys: Tensor, state: Tensor, tokens: Tensor, group: int = 1, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing.

        Args:
            features: [N,L,D] from `encode`.
            keys: [N,L,A] from `encode`.
            state: [N,H] from `encode`.
            tokens: int [N*G,T], the words that are read (`<start>` first), an image's captions next to each other.
            group: G, captions per image.
            training: whether dropout is active.

        Returns:
            logits float32 [N*G,T,V] and attention float32 [N*G,T,L].
        """
        words = self.dropout(self.embedding(tokens), training=training)
        word_gates = self.from_word(words)
        if group > 1:
            state = ops.repeat(state, group, axis=0)
        states, contexts, attentions = [], [], []
        for t in range(tokens.shape[1]):
            state, context, attention = self.advance(word_gates[:, t], state, features, keys, group)
            states.append(state)
            contexts.append(context)
            attentions.append(attention)
        logits = self.generate(words, ops.stack(states, axis=1), ops.stack(contexts, axis=1), training)
        return logits, ops.stack(attentions, axis=1)


class CaptionEnsemble(keras.Model):
    """An ensemble of captioners: each keeps a state of its own, and the next word is chosen by the mean of
    their logits, which is the normalised geometric mean of their distributions (a product of experts; Hinton, 2002).

    `encode` and `step` are as in `CaptionModel`, but features, keys and states of all members stand side by side, in
    the members' order, so that D, A and H are sums of the members' sizes. The attention is the members' mean. Members
    are trained one by one, then joined, and can be trained further as one. They may read different Inception blocks: C
    is then the number of channels of all these blocks, side by side.

    Raises:
        ConfigurationError: `model.feature_block` names neither one block nor one for each member.
    """

    def __init__(self, config: ModelConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        blocks = config.member_blocks
        if len(blocks) != config.members:
            raise ConfigurationError(f"model.feature_block: {len(blocks)} blocks for {config.members} members")
        self.members = [
            CaptionModel(replace(config, members=1, feature_block=block), name=f"member{number}")
            for number, block in enumerate(blocks)
        ]

    def encode(self, features: Tensor, training: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Features [N,L,D], attention keys [N,L,A] and initial state [N,H] of images [N,L,C]."""
        config = self.config
        ends = list(accumulate(config.block_channels))[:-1]
        seen = dict(zip(config.blocks, ops.split(features, ends, axis=-1) if ends else [features], strict=True))
        encoded = [member.encode(seen[member.config.feature_block], training) for member in self.members]
        features, keys, state = zip(*encoded, strict=True)
        return ops.concatenate(features, -1), ops.concatenate(keys, -1), ops.concatenate(state, -1)

    def step(
        self, token: Tensor, state: Tensor, features: Tensor, keys: Tensor, group: int = 1, training: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits float32 [N*G,V], next state [N*G,H] and attention [N*G,L]; see `CaptionModel.step`."""
        steps = [member.step(token, *own, group, training) for member, *own in self._by_member(state, features, keys)]
        logits, states, attentions = zip(*steps, strict=True)
        return sum(logits) / len(steps), ops.concatenate(states, -1), sum(attentions) / len(steps)

    def teacher_forced(
        self, features: Tensor, keys: Tensor, state: Tensor, tokens: Tensor, group: int = 1, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Logits [N*G,T,V] and attention [N*G,T,L]; see `CaptionModel.teacher_forced`."""
        said = [
            member.teacher_forced(*own, tokens, group, training)
            for member, *own in self._by_member(features, keys, state)
        ]
        logits, attentions = zip(*said, strict=True)
        return sum(logits) / len(said), sum(attentions) / len(said)

    def _by_member(self, *wholes: Tensor) -> list[tuple[Any, ...]]:
        """Each member with its own part of each tensor, in which the parts of all members are side by side."""
        parts = [ops.split(whole, len(self.members), axis=-1) for whole in wholes]
        return list(zip(self.members, *parts, strict=True))

    def build(self, input_shape: Any = None) -> None:
        """Make the members' variables."""
        for member in self.members:
            member.build()
        self.built = True


Captioner = CaptionModel | CaptionEnsemble


def mask_special_tokens(logits: Tensor) -> Tensor:
    """Logits [...,V] in which `<pad>`, `<start>` and `<unk>` cannot win."""
    mask = np.zeros(logits.shape[-1], np.float32)
    mask[list(NEVER_SAID)] = -1e9
    return logits + mask


def members_of(model: Captioner) -> Sequence[CaptionModel]:
    """The captioners of an ensemble; of a single captioner, itself."""
    return [model] if isinstance(model, CaptionModel) else model.members


def build_model(config: ModelConfig, dtype: str = "float32") -> Captioner:
    """A model with random weights, in `dtype`; with `bfloat16` it computes in that and keeps float32 variables."""
    with computing_in(dtype):
        model = CaptionModel(config) if config.members == 1 else CaptionEnsemble(config)
        model.build()
    return model
