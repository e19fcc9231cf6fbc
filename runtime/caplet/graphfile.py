"""A look into an ONNX file before onnxruntime gets it: its weights must be inside it.

ONNX lets a tensor live in another file, named by a path in the model. In a bundle from a stranger that is a way to read
any file of this machine, and onnxruntime refuses only some of these paths, depending on its version. Bundles need no
such tensors, so any is refused. The protobuf encoding is walked by hand (https://protobuf.dev/programming-guides/encoding)
because the wheel has no onnx package; field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from caplet.errors import BundleError

# Message type → field number → type of the message in that field. Only the fields that lead to a tensor.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a Tensor; location 0 is "in this file"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 100  # as protobuf itself


def check_self_contained(model: bytes, name: str) -> None:
    """Raise BundleError if `model`, the bytes of an ONNX file called `name`, is malformed or uses other files."""
    try:
        external = _uses_other_files(memoryview(model), "Model", _DEEPEST)
    except ValueError as error:
        raise BundleError(name, f"not an ONNX file ({error})", "get the bundle again") from None
    if external:
        raise BundleError(name, "keeps weights outside of itself", "export it with its weights inside")


def _uses_other_files(message: memoryview, kind: str, depth: int) -> bool:
    if depth == 0:
        raise ValueError("nested too deeply")
    for field, value in _fields(message):
        if kind == "Tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)):
            return True
        child = _CHILDREN[kind].get(field)
        if child is None:
            continue
        if not isinstance(value, memoryview):
            raise ValueError("a field of the wrong type")
        if _uses_other_files(value, child, depth - 1):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field's number and value: an int for varints and fixed-size numbers, the bytes for everything else."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position, 32)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position, 64)
            yield field, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position, 32)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError("an unknown wire type")
        if length > len(message) - position:
            raise ValueError("cut off")
        chunk = message[position : position + length]
        yield field, chunk if wire_type == _BYTES else int.from_bytes(chunk, "little")
        position += length


def _varint(message: memoryview, position: int, bits: int) -> tuple[int, int]:
    """A base-128 number, and the position after it. More than `bits` bits, which protobuf would drop, are refused."""
    value = 0
    for count in range(-(-bits // 7)):
        if position + count >= len(message):
            raise ValueError("cut off")
        byte = message[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80 and value >> bits == 0:
            return value, position + count + 1
    raise ValueError("a number that is too long")
