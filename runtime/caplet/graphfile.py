"""A look into an ONNX file before onnxruntime gets it: its weights must be inside it.

ONNX lets a tensor live in another file, named by a path in the model. In a bundle from a stranger that is a way to read
any file of this machine, and onnxruntime refuses only some of these paths, depending on its version. Bundles need no
such tensors, so any is refused. The protobuf encoding is walked by hand (https://protobuf.dev/programming-guides/encoding)
because the wheel has no onnx package; field numbers are those of onnx.proto.
"""

from __future__ import annotations

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
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a Tensor
_VARINT, _BYTES = 0, 2
_IN_THIS_FILE = (_VARINT, 0)  # as a data location
_FIXED = {1: 8, 5: 4}  # wire types of numbers of a fixed length, in bytes
_LONG = 0x80  # of a number's bytes, all but the last have this bit
_DEEPEST = 100  # as protobuf itself


def check_self_contained(model: bytes, name: str) -> None:
    """Raise BundleError if `model`, the bytes of an ONNX file called `name`, is malformed or uses other files."""
    try:
        external = _uses_other_files(model, 0, len(model), "Model", _DEEPEST)
    except ValueError as error:
        raise BundleError(name, f"not an ONNX file ({error})", "get the bundle again") from None
    if external:
        raise BundleError(name, "keeps weights outside of itself", "export it with its weights inside")


def _uses_other_files(model: bytes, position: int, end: int, kind: str, depth: int) -> bool:
    """Whether the message of this kind from `position` to `end` has a tensor in another file.

    Every start waits for this, so it makes no slices, and calls nothing for numbers below 128, which most are.
    """
    if depth == 0:
        raise ValueError("nested too deeply")
    children = _CHILDREN[kind]
    while position < end:
        tag = model[position]
        position += 1
        if tag >= _LONG:
            tag, position = _varint(model, position - 1, end, 32)
        field, wire_type = tag >> 3, tag & 7
        length = _FIXED.get(wire_type, 0)
        number = 0
        if wire_type in (_VARINT, _BYTES):
            number = model[position] if position < end else _LONG
            position += 1
            if number >= _LONG:
                number, position = _varint(model, position - 1, end, 64 if wire_type == _VARINT else 32)
            if wire_type == _BYTES:
                length = number
        elif not length:
            raise ValueError("an unknown wire type")
        if length > end - position:
            raise ValueError("cut off")
        child = children.get(field)
        if child is not None:
            if wire_type != _BYTES:
                raise ValueError("a field of the wrong type")
            if _uses_other_files(model, position, position + length, child, depth - 1):
                return True
        elif kind == "Tensor" and (
            field == _EXTERNAL_DATA or (field == _DATA_LOCATION and (wire_type, number) != _IN_THIS_FILE)
        ):
            return True
        position += length
    return False


def _varint(model: bytes, position: int, end: int, bits: int) -> tuple[int, int]:
    """A base-128 number, and the position after it. More than `bits` bits, which protobuf would drop, are refused."""
    value = 0
    for count in range(-(-bits // 7)):
        if position + count >= end:
            raise ValueError("cut off")
        byte = model[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < _LONG and value >> bits == 0:
            return value, position + count + 1
    raise ValueError("a number that is too long")
