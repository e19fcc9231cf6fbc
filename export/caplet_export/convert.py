"""Convert a trained captioner to two ONNX graphs, with tf2onnx.

The encoder takes uint8 pixels and computes once per image all that does not change from word to word; the decoder is
one step. The functions that are traced do the arithmetic of the training code in a form that suits processors: matrix
products that read the same operand are one product, whose slices are one split. `plain` traces the training code
itself, as anybody would export it. `caplet_export.parity` compares either with Keras.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx.optimizer
import tf2onnx.tf_loader
import tf2onnx.tfonnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from caplet_export.config import ModelConfig
from caplet_export.inception import scale, split_blocks
from caplet_export.model import Captioner, CaptionModel, members_of
from caplet_export.onnx_graph import shape_of
from caplet_export.text import NEVER_SAID

OPSET = 17
# The intermediate representation that came with opset 17; onnxruntime 1.17 reads it.
IR_VERSION = 8
TOP_K = 16

_OPTIMIZERS = {
    optimizer.__name__: optimizer
    for optimizer in (
        tf2onnx.optimizer.TransposeOptimizer,
        tf2onnx.optimizer.ConstFoldOptimizer,
        tf2onnx.optimizer.MergeDuplicatedNodesOptimizer,
        tf2onnx.optimizer.ReshapeOptimizer,
        tf2onnx.optimizer.IdentityOptimizer,
        tf2onnx.optimizer.BackToBackOptimizer,
    )
}
"""Those of tf2onnx's optimizers that find something in the graphs of captioners, in its order."""

Shape = Sequence[int | str]
_TYPES = {"pixels": tf.uint8, "token": tf.int64}
"""Types of the inputs that are not float32."""


def convert_encoder(extractor: keras.Model, model: Captioner, *, plain: bool = False) -> onnx.ModelProto:
    """The graph `pixels` uint8 [N,h,w,3] to `features` [N,L,D], `keys` [N,L,A] and `state` [N,H].

    Args:
        extractor: float [N,h,w,3] in [-1,1] to [N,rows,columns,C], with rows * columns = L, of the blocks the
            captioner reads.
        model: the captioner.
        plain: trace the model's own `encode`.
    """
    config = model.config
    height, width = extractor.input_shape[1:3]
    blocks = None if plain else split_blocks(extractor)

    def encoder(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        if blocks is None:
            grid = extractor(scale(pixels), training=False)
            outputs = model.encode(tf.reshape(grid, (-1, config.locations, config.extractor_channels)))
        else:
            grids = zip(blocks(scale(pixels)), config.block_channels, strict=True)
            outputs = _encode(model, [tf.reshape(grid, (-1, config.locations, size)) for grid, size in grids])
        return dict(zip(("features", "keys", "state"), outputs, strict=True))

    return _convert(encoder, {"pixels": ("N", height, width, 3)}, _shapes(config))


def convert_decoder(model: Captioner, *, plain: bool = False) -> onnx.ModelProto:
    """The graph of one step, with all log-probabilities; `take_top_k` makes the decoder of a bundle from it.

    In: `token` int64 [N], `state` [N,H], `features` [N,L,D], `keys` [N,L,A].
    Out: `log_probs` [N,V], `next_state` [N,H], `attention` [N,L]. All but `token` are float32.

    Args:
        model: the captioner.
        plain: trace the model's own `step`.
    """
    config = model.config
    step = model.step if plain else lambda *inputs: _step(model, *inputs)

    def decoder(token: tf.Tensor, state: tf.Tensor, features: tf.Tensor, keys: tf.Tensor) -> dict[str, tf.Tensor]:
        logits, next_state, attention = step(token, state, features, keys)
        return {"log_probs": tf.nn.log_softmax(logits), "next_state": next_state, "attention": attention}

    shapes = _shapes(config)
    inputs: dict[str, Shape] = {"token": ("N",), **{name: shapes[name] for name in ("state", "features", "keys")}}
    outputs: dict[str, Shape] = {
        "log_probs": ("N", config.vocabulary_size),
        "next_state": shapes["state"],
        "attention": ("N", config.locations),
    }
    return _convert(decoder, inputs, outputs)


def take_top_k(decoder: onnx.ModelProto, k: int = TOP_K) -> onnx.ModelProto:
    """The decoder that gives only the K likeliest words and their log-probabilities, best first.

    `log_probs` is float32 [N,K], `tokens` int64 [N,K]; K is the vocabulary size where that is less than `k`. Words that
    are never said are masked after the normalisation, so that log-probabilities are those of the full softmax and no
    vocabulary-sized array leaves the graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(decoder)
    graph = result.graph
    _, size = shape_of(next(output for output in graph.output if output.name == "log_probs"))
    k = min(k, size)
    for node in graph.node:
        for position, name in enumerate(node.output):
            if name == "log_probs":
                node.output[position] = "all_log_probs"
    mask = np.zeros(size, np.float32)
    mask[list(NEVER_SAID)] = -np.inf
    graph.initializer.append(numpy_helper.from_array(mask, "word_mask"))
    graph.initializer.append(numpy_helper.from_array(np.array([k], np.int64), "top_k"))
    graph.node.append(helper.make_node("Add", ["all_log_probs", "word_mask"], ["masked_log_probs"], "mask_words"))
    graph.node.append(helper.make_node("TopK", ["masked_log_probs", "top_k"], ["log_probs", "tokens"], "top_words"))
    others = [output for output in graph.output if output.name != "log_probs"]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ["N", k]))
    graph.output.append(helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", k]))
    graph.output.extend(others)
    onnx.checker.check_model(result)
    return result


def _encode(model: Captioner, grids: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`encode` at inference: each dense layer is a product of matrices without reshapes around it, and the first layers
    of members that read the same block are one product.

    Args:
        model: the captioner.
        grids: [N,L,C] of each of `model.config.blocks`.
    """
    members = members_of(model)
    projected: dict[int, tf.Tensor] = {}
    for block, grid in zip(model.config.blocks, grids, strict=True):
        readers = [member for member in members if member.config.feature_block == block]
        layers = [member.project_features for member in readers]
        kernel = tf.concat([layer.kernel for layer in layers], axis=1)
        product = tf.matmul(grid, kernel) + tf.concat([layer.bias for layer in layers], axis=0)
        projected.update(zip(map(id, readers), _split(product, readers), strict=True))
    own = [projected[id(member)] for member in members]
    features = product if len(grids) == 1 else _joined(own)
    keys = _joined([_dense(part, member.project_keys) for member, part in zip(members, own, strict=True)])
    if model.config.initial_state == "zero":
        state = tf.zeros((tf.shape(features)[0], len(members) * model.config.state_size))
    else:
        means = _split(tf.reduce_mean(features, axis=1), members)
        states = [_dense(mean, member.initial_state) for member, mean in zip(members, means, strict=True)]
        state = tf.tanh(_joined(states))
    return features, keys, state


def _step(
    model: Captioner, token: tf.Tensor, state: tf.Tensor, features: tf.Tensor, keys: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`step` of M members at inference, fused wherever they do the same: every operator has a fixed overhead, and the
    products of one word are small.

    What a word adds to the gates and to the deep output depends only on the word, so it is precomputed for every word
    and looked up. Each member has three products of its own: with its state, its context and its next state. The output
    layer is one product for all members: the mean of their products is one product of their operands side by side. All
    else is computed on [N,M,...], or on [N,M*...] where that needs no transposition.
    """
    members, config = members_of(model), model.config
    count, size = len(members), config.state_size

    def stacked(whole: tf.Tensor) -> tf.Tensor:
        return whole if count == 1 else tf.reshape(whole, (-1, count, whole.shape[-1] // count))

    def side_by_side(stack: tf.Tensor) -> tf.Tensor:
        return stack if count == 1 else tf.reshape(stack, (-1, count * stack.shape[-1]))

    from_state = [_dense(own, member.from_state) for own, member in zip(_split(state, members), members, strict=True)]
    gate_sizes = [members[0].gate_size] if config.gated_context else []
    query, *gate, recurrent, recurrent_candidate = tf.split(
        stacked(_joined(from_state)), [config.attention_size, *gate_sizes, 2 * size, size], axis=-1
    )

    context, attention = _attend(members, query, features, keys)
    if gate:
        context = context * tf.sigmoid(side_by_side(gate[0]))
    from_context = [
        tf.matmul(own, tf.concat([reader.kernel for reader in _context_readers(member)], axis=1))
        for own, member in zip(_split(context, members), members, strict=True)
    ]
    deep_sizes = [reader.units for reader in _context_readers(members[0])[1:]]
    gates, candidate, *deep = tf.split(
        stacked(_joined(from_context) + tf.gather(_word_table(members), token)), [2 * size, size, *deep_sizes], axis=-1
    )
    update, reset = tf.split(tf.sigmoid(gates + recurrent), 2, axis=-1)
    candidate = tf.tanh(candidate + reset * recurrent_candidate)
    # update * state + (1 - update) * candidate, with one product fewer.
    next_state = side_by_side(candidate + update * (stacked(state) - candidate))

    own_states = zip(_split(next_state, members), members, strict=True)
    hidden = _joined([_dense(own, member.output_state) for own, member in own_states])
    if deep:
        hidden = hidden + side_by_side(deep[0])
    tables = [_output_layer(member) for member in members]
    kernel = tf.concat([kernel for kernel, _ in tables], axis=0) / count
    bias = tf.add_n([bias for _, bias in tables]) / count
    return tf.matmul(hidden, kernel) + bias, next_state, attention


def _attend(
    members: Sequence[CaptionModel], query: tf.Tensor, features: tf.Tensor, keys: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The members' contexts side by side, [N,M*D], and their mean attention [N,L], from their queries [N,M,A]."""
    count = len(members)
    energies = tf.tanh(keys + tf.reshape(query, (-1, 1, keys.shape[-1])))
    # Every member's attention weighs all members' features; of the resulting blocks each member needs only its own.
    weights = tf.transpose(_block_diagonal([member.score.kernel for member in members]))
    attention = tf.nn.softmax(tf.matmul(weights, energies, transpose_b=True))
    contexts = tf.matmul(attention, features)
    if count == 1:
        return tf.squeeze(contexts, 1), tf.squeeze(attention, 1)
    own = _block_diagonal([tf.ones((1, features.shape[-1] // count))] * count)
    return tf.reduce_sum(contexts * own, axis=1), tf.reduce_mean(attention, axis=1)


def _block_diagonal(blocks: Sequence[tf.Tensor]) -> tf.Tensor:
    """Matrices [R,C] along the diagonal of one [len(blocks)*R, len(blocks)*C] that is zero elsewhere."""
    return tf.concat(
        [
            tf.pad(block, [[0, 0], [number * block.shape[1], (len(blocks) - 1 - number) * block.shape[1]]])
            for number, block in enumerate(map(tf.convert_to_tensor, blocks))
        ],
        axis=0,
    )


def _context_readers(model: CaptionModel) -> list[Any]:
    """The layers that read the context: for the GRU's gates, and for the deep output if there is one."""
    return [model.from_context] + ([model.output_context] if model.output_context is not None else [])


def _word_table(members: Sequence[CaptionModel]) -> NDArray[np.float32]:
    """What each word adds to what the `_context_readers` of all members make of the context, [V,M*S], as a constant."""
    with tf.init_scope():  # computed now, not in what is traced
        parts = []
        for member in members:
            embeddings = tf.convert_to_tensor(member.embedding.embeddings)
            deep = [] if member.output_context is None else [embeddings]
            parts += [_dense(embeddings, member.from_word), *deep]
        table: NDArray[np.float32] = _joined(parts).numpy()
    return table


def _output_layer(model: CaptionModel) -> tuple[tf.Tensor, tf.Tensor]:
    """Kernel [E or H,V] and bias [V] of the layer that makes logits."""
    if model.output_words is not None:
        return tf.convert_to_tensor(model.output_words.kernel), tf.convert_to_tensor(model.output_words.bias)
    return tf.transpose(model.embedding.embeddings), tf.convert_to_tensor(model.output_bias)


def _split(whole: tf.Tensor, members: Sequence[CaptionModel]) -> Sequence[tf.Tensor]:
    """Each member's part of a tensor."""
    return [whole] if len(members) == 1 else tf.split(whole, len(members), axis=-1)


def _joined(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)


def _dense(inputs: tf.Tensor, layer: Any) -> tf.Tensor:
    """A Keras dense layer without its activation."""
    return tf.matmul(inputs, tf.convert_to_tensor(layer.kernel)) + layer.bias


def _shapes(config: ModelConfig) -> dict[str, Shape]:
    members = config.members
    return {
        "features": ("N", config.locations, members * config.feature_size),
        "keys": ("N", config.locations, members * config.attention_size),
        "state": ("N", members * config.state_size),
    }


def _convert(function: Any, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape]) -> onnx.ModelProto:
    """The graph of a function, with its inputs and outputs in the contract's order and a batch dimension called N."""
    specs = [
        tf.TensorSpec((None, *shape[1:]), _TYPES.get(name, tf.float32), name=name) for name, shape in inputs.items()
    ]
    model = _to_onnx(tf.function(function, input_signature=specs, autograph=False).get_concrete_function())
    gc.collect()  # tf2onnx's own graph is made of reference cycles, and holds every weight a dozen times
    graph = model.graph
    for declared, wanted in ((graph.input, inputs), (graph.output, outputs)):
        types = {value.name: value.type.tensor_type.elem_type for value in declared}
        del declared[:]
        declared.extend(helper.make_tensor_value_info(name, types[name], shape) for name, shape in wanted.items())
    del graph.value_info[:]
    _number_by_use(graph)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def _to_onnx(function: Any) -> onnx.ModelProto:
    """What `tf2onnx.convert.from_function` makes of a traced function, in two thirds of the time and the memory.

    These are its steps, except that the frozen graph is not made a function once more, and that only optimizers run
    that find something: after each of them, tf2onnx copies every weight, and it runs all of them twice.
    """
    inputs = {f"{spec.name}:0": spec.name for spec in function.structured_input_signature[0]}
    outputs = {tensor.name: name for name, tensor in function.structured_outputs.items()}
    ends = list(inputs), list(outputs)
    frozen = tf2onnx.tf_loader.from_function(function, *ends, large_model=True)
    with tf.Graph().as_default() as traced:
        tf.import_graph_def(tf2onnx.tf_loader.tf_optimize(*ends, frozen), name="")
        graph = tf2onnx.tfonnx.process_tf_graph(
            traced, opset=OPSET, input_names=ends[0], output_names=ends[1], tensors_to_rename=inputs | outputs
        )
        graph = tf2onnx.optimizer.optimize_graph(graph, catch_errors=False, optimizers=_OPTIMIZERS)
        return graph.make_model("")


_NUMBERED = re.compile(r"(?P<base>.*__)(?P<number>\d+)(?P<end>(:\d+)?)")


def _number_by_use(graph: onnx.GraphProto) -> None:
    """Number names, and sort constants, in the order in which they are used.

    tf2onnx numbers them in the order of Python sets, which differs from run to run. Renumbered, the graph of one
    captioner is always the same file, byte for byte.
    """
    numbers: dict[str, str] = {}
    # Of equal constants tf2onnx keeps the first of a set, so the names of constants differ from run to run too.
    constants = {constant.name for constant in graph.initializer}

    def renamed(name: str) -> str:
        parts = _NUMBERED.fullmatch(name)
        if parts is None:
            return name
        base, end = parts["base"], parts["end"]
        shown = "constant__" if name in constants else base
        return numbers.setdefault(base + parts["number"], f"{shown}{len(numbers)}") + end

    order: dict[str, int] = {}
    for node in graph.node:
        node.name = renamed(node.name)
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
        for name in node.input:
            order.setdefault(name, len(order))
    for constant in graph.initializer:
        constant.name = renamed(constant.name)
    graph.initializer.sort(key=lambda constant: order[constant.name])
    graph.doc_string = ""
