"""Reading, running and editing ONNX graphs (which node makes a value, which read it, constants as arrays)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from caplet.errors import CapletError
from caplet.graphfile import check_self_contained
from caplet_export.errors import ConfigurationError


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ConfigurationError: the file is missing or damaged.
        BundleError: it keeps weights in other files.
    """
    try:
        contents = path.read_bytes()
        model = onnx.load_from_string(contents)
        check_self_contained(contents, str(path))  # `onnx.load` reads files that it names, before 1.21 any file
        onnx.checker.check_model(model)
    except CapletError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; run `caplet-export convert` first") from error
    except Exception as error:  # protobuf's and the checker's errors share no base class
        raise ConfigurationError(f"{path}: not an ONNX file, or damaged") from error
    return model


def require_input(model: onnx.ModelProto, name: str, path: Path, rank: int | None = None) -> onnx.ValueInfoProto:
    """The graph's input of this name. Raises a ConfigurationError about `path` if there is none, or of another rank."""
    inputs = {value.name: value for value in model.graph.input}
    if name not in inputs:
        raise ConfigurationError(f"{path}: another graph: expected an input {name!r}, found {', '.join(inputs)}")
    if rank not in (None, found := len(shape_of(inputs[name]))):
        raise ConfigurationError(f"{path}: another graph: expected {name!r} to have {rank} dimensions, found {found}")
    return inputs[name]


def shape_of(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes of a value's dimensions, 0 for those that are open; empty if the shape is not known."""
    return [size.dim_value for size in value.type.tensor_type.shape.dim]


def value_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """`shape_of` every input, output and intermediate value, as far as it can be inferred."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: shape_of(value) for value in (*graph.input, *graph.value_info, *graph.output)}


class Session:
    """A graph in onnxruntime, on the CPU.

    A feed may hold more than the graph's inputs: not every decoder reads all of its encoder's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._inputs = {argument.name for argument in self._session.get_inputs()}
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        values = self._session.run(self._outputs, {name: feed[name] for name in self._inputs})
        return dict(zip(self._outputs, values, strict=True))


class Graph:
    """A copy of a model that can be edited; `finish` returns the edited model.

    `nodes` may be changed freely and in any order: `finish` sorts them and drops all that no output needs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self.nodes: list[onnx.NodeProto] = list(self._model.graph.node)
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self._model.graph.initializer
        }
        self.outputs = [value.name for value in self._model.graph.output]
        self.inputs = [value.name for value in self._model.graph.input]

    def producer(self, value: str, kind: str | None = None) -> onnx.NodeProto | None:
        """The node that makes a value; None for inputs and constants, or if it is not of this operator type."""
        node = next((node for node in self.nodes if value in node.output), None)
        return node if node is not None and kind in (None, node.op_type) else None

    def only_reader(self, value: str, kind: str | None = None) -> onnx.NodeProto | None:
        """The one node that reads a value; None if none or several do, if the value is an output of the graph, or if
        the node is not of this operator type.
        """
        readers = [node for node in self.nodes if value in node.input]
        alone = len(readers) == 1 and value not in self.outputs
        return readers[0] if alone and kind in (None, readers[0].op_type) else None

    def of_type(self, *kinds: str) -> list[onnx.NodeProto]:
        """Nodes of these operator types, in order."""
        return [node for node in self.nodes if node.op_type in kinds]

    def add_constant(self, array: NDArray[Any], name: str) -> str:
        """Add a constant under this name, with a number appended if it is taken, and return its name."""
        unique, number = name, 1
        while unique in self.constants:
            unique, number = f"{name}_{number}", number + 1
        self.constants[unique] = np.asarray(array)
        return unique

    def add_node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
        """Append a node, named after its first output, and return it."""
        node = helper.make_node(kind, inputs, outputs, name=f"{kind}:{outputs[0]}", domain="", **attributes)
        self.nodes.append(node)
        return node

    def finish(self) -> onnx.ModelProto:
        """The edited model: nodes in order of use, only what the outputs need, checked."""
        graph = self._model.graph
        ordered = needed_in_order(self.nodes, self.outputs)
        read = {value for node in ordered for value in node.input}
        del graph.node[:]
        graph.node.extend(ordered)
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            for name, array in self.constants.items()
            if name in read
        )
        del graph.value_info[:]
        onnx.checker.check_model(self._model)
        return self._model


def needed_in_order(nodes: Iterable[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Those of `nodes` that these values need, in order of use. Raises ValueError if one depends on itself."""
    producers = {value: node for node in nodes for value in node.output if value}
    ordered: list[onnx.NodeProto] = []
    begun: set[int] = set()
    done: set[int] = set()
    pending = [(producers[value], False) for value in reversed(outputs) if value in producers]
    while pending:
        node, inputs_done = pending.pop()
        if id(node) in done:
            continue
        if inputs_done:
            done.add(id(node))
            ordered.append(node)
            continue
        if id(node) in begun:
            raise ValueError(f"{node.op_type} {node.name} depends on its own output")
        begun.add(id(node))
        pending.append((node, True))
        pending += [(producers[value], False) for value in reversed(node.input) if value in producers]
    return ordered


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute; `default` if it has none."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)
