"""Graphs that a bundle may not have: wrong names, types or shapes, weights in other files, not ONNX at all."""

from __future__ import annotations

import inspect
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from caplet import BundleError, Captioner, InferenceError
from caplet.errors import ArgumentError
from caplet.graphfile import check_self_contained
from command_line import needs_links
from tiny_bundle import TinyModel, rehash, write_tiny_bundle


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change_graph(bundle: Path, file: str, change: Callable[[onnx.ModelProto], Any]) -> None:
    model = onnx.load(bundle / file)
    change(model)
    (bundle / file).write_bytes(model.SerializeToString())
    rehash(bundle)


def rename(value: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for entry in [*model.graph.input, *model.graph.output]:
            entry.name = new if entry.name == value else entry.name
        for node in model.graph.node:
            node.input[:] = [new if name == value else name for name in node.input]
            node.output[:] = [new if name == value else name for name in node.output]

    return change


def declare(value: str, kind: int, shape: list[int | str]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for entry in [*model.graph.input, *model.graph.output]:
            if entry.name == value:
                entry.CopyFrom(helper.make_tensor_value_info(value, kind, shape))

    return change


@pytest.mark.parametrize(
    ("file", "change", "cause"),
    [
        ("encoder.onnx", rename("pixels", "image"), r"inputs \['image'\] instead of \['pixels'\]"),
        ("encoder.onnx", rename("keys", "key_values"), "outputs"),
        ("decoder.onnx", rename("token", "word"), "inputs"),
        ("decoder.onnx", rename("attention", "alpha"), "outputs"),
        ("encoder.onnx", lambda m: m.graph.output.pop(), "outputs"),
        ("encoder.onnx", lambda m: m.graph.output.append(m.graph.value_info.add(name="mean")), "outputs|load"),
        ("encoder.onnx", declare("pixels", TensorProto.FLOAT, ["N", 299, 299, 3]), r"tensor\(float\)"),
        ("encoder.onnx", declare("pixels", TensorProto.UINT8, ["N", 3, 299, 299]), "size of 3 where 299"),
        ("encoder.onnx", declare("pixels", TensorProto.UINT8, ["N", 224, 224, 3]), "size of 224 where 299"),
        ("encoder.onnx", declare("pixels", TensorProto.UINT8, ["N", "H", "W", 3]), "has the shape"),
        ("encoder.onnx", declare("pixels", TensorProto.UINT8, [1, 299, 299, 3]), "has the shape"),
        ("decoder.onnx", declare("token", TensorProto.INT32, ["N"]), r"tensor\(int32\)|load"),
        ("decoder.onnx", declare("token", TensorProto.INT64, [1]), "has the shape"),
        ("decoder.onnx", declare("token", TensorProto.INT64, ["N", 1]), "has the shape|load"),
        ("decoder.onnx", declare("token", TensorProto.INT64, []), "has the shape|load"),
        ("decoder.onnx", declare("keys", TensorProto.FLOAT, ["N", 64, 9]), "load|size of 9"),
        ("decoder.onnx", declare("keys", TensorProto.FLOAT, ["N", 64, "A"]), r"'A'\] instead of \[N, 64, a number\]"),
    ],
)
def test_a_graph_off_the_contract_is_named(
    file: str, change: Callable[[onnx.ModelProto], Any], cause: str, bundle: Path
) -> None:
    change_graph(bundle, file, change)
    with pytest.raises(BundleError, match=cause) as caught:
        Captioner(bundle)
    assert caught.value.subject == str(bundle / file)


@pytest.mark.parametrize(
    "change",
    [rename("state", "Latin"), declare("pixels", TensorProto.UINT8, ["Latin", 299, 299, 3])],
    ids=["value", "size"],
)
def test_names_that_are_not_utf8(change: Callable[[onnx.ModelProto], Any], bundle: Path) -> None:
    """ONNX does not forbid them, and onnxruntime's binding decodes each name only when it is read."""
    file = bundle / "encoder.onnx"
    change_graph(bundle, file.name, change)
    file.write_bytes(file.read_bytes().replace(b"Latin", b"L\xe4tin"))
    rehash(bundle)
    with pytest.raises(BundleError, match=r"encoder\.onnx: has a name that is not UTF-8; export the bundle again$"):
        Captioner(bundle)


@pytest.mark.parametrize("size", ["feature_size", "attention_size", "state_size"])
def test_encoder_and_decoder_must_fit_together(size: str, bundle: Path) -> None:
    (bundle / "decoder.onnx").write_bytes(TinyModel.random(**{size: 9}).decoder_graph().SerializeToString())
    rehash(bundle)
    with pytest.raises(BundleError, match="size of 9 where"):
        Captioner(bundle)


def test_a_bundle_that_is_refused_can_be_deleted(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows deletes no file that is still being read."""
    session, decoders = onnxruntime.InferenceSession, []

    def slow_decoder(path: str, *arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        if path.endswith("encoder.onnx"):
            return session(path, *arguments, **options)
        time.sleep(0.2)
        decoders.append(session(path, *arguments, **options))
        return decoders[0]

    monkeypatch.setattr(onnxruntime, "InferenceSession", slow_decoder)
    change_graph(bundle, "encoder.onnx", lambda model: model.graph.node[0].input.__setitem__(0, "nothing"))
    with pytest.raises(BundleError, match=r"encoder\.onnx: onnxruntime cannot load it"):
        Captioner(bundle)
    assert decoders


def test_a_decoder_of_another_vocabulary_is_noticed_when_it_says_what_is_not_a_word(bundle: Path) -> None:
    words = (bundle / "vocabulary.txt").read_text().split()[:20]
    (bundle / "vocabulary.txt").write_text("".join(word + "\n" for word in words), newline="\n")
    rehash(bundle, lambda m: m["vocabulary"].update(size=20))
    captioner = Captioner(bundle)
    with pytest.raises(InferenceError, match="tokens that are not words"):
        captioner.caption(bundle / "golden" / "cat.png")


def test_a_decoder_that_gives_more_words_than_there_are(bundle: Path) -> None:
    (bundle / "vocabulary.txt").write_text("<pad>\n<start>\n<end>\n<unk>\na\n", newline="\n")
    rehash(bundle, lambda m: m["vocabulary"].update(size=5))
    with pytest.raises(BundleError, match=r"more than the vocabulary has; export the bundle again$"):
        Captioner(bundle)


@pytest.mark.parametrize(
    "sizes",
    [dict.fromkeys(("feature_size", "attention_size", "state_size"), 1), {"vocabulary_size": 16, "top_k": 16}],
    ids=["ones", "all words"],
)
def test_sizes_at_their_limits(sizes: dict[str, int], tmp_path: Path) -> None:
    captioner = Captioner(write_tiny_bundle(tmp_path, **sizes))
    for golden in captioner.bundle.manifest.golden:
        assert captioner.caption(tmp_path / golden.file, beam_size=golden.beam_size).text == golden.text


def test_a_default_beam_wider_than_the_decoder(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, top_k=4, edit_manifest=lambda m: m["decoding"].update(beam_size=5))
    with pytest.raises(BundleError, match=r"above the decoder's limit of 4; export the bundle again$"):
        Captioner(tmp_path)


@pytest.mark.parametrize("content", [b"x", b"\x3a\x05abc", b"not a protobuf at all", bytes(100), b"\x3a\x00"])
@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx"])
def test_a_file_that_is_not_a_graph(content: bytes, file: str, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (bundle / file).write_bytes(content)
    rehash(bundle)
    with pytest.raises(BundleError) as caught:
        Captioner(bundle)
    assert caught.value.subject == str(bundle / file)
    assert capfd.readouterr() == ("", "")  # onnxruntime has written nothing to the terminal


def test_a_graph_that_fails_while_running(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def break_at_run_time(model: onnx.ModelProto) -> None:
        rows = next(tensor for tensor in model.graph.initializer if tensor.name == "rows")
        rows.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 7, 64]), "rows"))
        del model.graph.value_info[:]
        for node in model.graph.node:
            node.input[:] = ["rows_hidden" if name == "rows" else name for name in node.input]
        model.graph.node.insert(0, helper.make_node("Mul", ["rows", "one_per_photo"], ["rows_hidden"]))
        model.graph.node.insert(0, helper.make_node("ReduceMin", ["shape"], ["one_per_photo"], keepdims=1))
        model.graph.node.insert(0, helper.make_node("Clip", ["batch", "low", "low"], ["shape"]))
        model.graph.node.insert(0, helper.make_node("Shape", ["pixels"], ["batch"]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "low"))

    change_graph(bundle, "encoder.onnx", break_at_run_time)
    captioner = Captioner(bundle)
    photo = bundle / "golden" / "cat.png"
    with pytest.raises(InferenceError, match="onnxruntime"):
        captioner.caption(photo)
    results = list(captioner.caption_many([photo] * 3, on_error="return"))
    assert all(isinstance(result, InferenceError) for result in results)
    assert len(results) == 3
    assert capfd.readouterr().err == ""


def give(output: str, operator: str) -> Callable[[onnx.ModelProto], None]:
    """Make `output` hold the batch twice, or none of it, without declaring so."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = [f"{output}_alone" if name == output else name for name in node.output]
            node.input[:] = [f"{output}_alone" if name == output else name for name in node.input]
        if operator == "double":
            model.graph.node.append(helper.make_node("Concat", [f"{output}_alone"] * 2, [output], axis=0))
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "zero"))
            model.graph.node.append(helper.make_node("Slice", [f"{output}_alone", "zero", "zero"], [output]))

    return change


@pytest.mark.parametrize("operator", ["double", "empty"])
@pytest.mark.parametrize("output", ["features", "keys", "state", "log_probs", "tokens", "next_state", "attention"])
def test_a_graph_that_gives_another_batch_than_it_got(output: str, operator: str, bundle: Path) -> None:
    graph = "encoder" if output in ("features", "keys", "state") else "decoder"
    change_graph(bundle, f"{graph}.onnx", give(output, operator))
    captioner = Captioner(bundle)
    for beam_size in (1, 3):
        with pytest.raises(InferenceError, match=f"{graph}: gives '{output}' the shape") as caught:
            captioner.caption(bundle / "golden" / "cat.png", beam_size=beam_size)
        assert f"[{2 if operator == 'double' else 0}, " in str(caught.value)


# Weights in other files.


def external(tensor: onnx.TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


@pytest.mark.parametrize("location", ["../secret", "secret", pytest.param("link", marks=needs_links), "/etc/passwd"])
@pytest.mark.parametrize("verify", [True, False])
def test_weights_outside_the_file_are_refused(location: str, verify: bool, bundle: Path, tmp_path: Path) -> None:
    weights = TinyModel.random().weights["encoder_w"].tobytes()
    (tmp_path / "secret").write_bytes(weights)
    (bundle / "secret").write_bytes(weights)
    if location == "link":
        (bundle / "link").symlink_to(tmp_path / "secret")
    tensor_of = lambda model: next(t for t in model.graph.initializer if t.name == "encoder_w")  # noqa: E731
    change_graph(bundle, "encoder.onnx", lambda model: external(tensor_of(model), location))
    with pytest.raises(BundleError, match="keeps weights outside of itself"):
        Captioner(bundle, verify=verify)


def test_no_graph_may_be_in_onnxruntimes_own_format(
    tiny_bundle: Path, session_options: Callable[[str], list[str | None]]
) -> None:
    """A file that claims to be has been looked into as if it were in ONNX."""
    Captioner(tiny_bundle)
    assert session_options("session.load_model_format") == ["ONNX", "ONNX"]


def tensor(name: str = "t") -> onnx.TensorProto:
    made = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
    external(made, "x")
    return made


def in_attribute(value: Any) -> onnx.ModelProto:
    node = helper.make_node("Op", ["a"], ["b"])
    node.attribute.append(helper.make_attribute("value", value))
    return helper.make_model(helper.make_graph([node], "g", [], []))


def hiding_places() -> dict[str, onnx.ModelProto]:
    """A model for every place where ONNX can hold a tensor."""
    graph = helper.make_graph([], "g", [], [], [tensor()])
    nested = helper.make_graph([], "outer", [], [])
    nested.node.append(in_attribute(graph).graph.node[0])
    sparse = onnx.SparseTensorProto(values=helper.make_tensor("v", 1, [1], [1.0]), indices=tensor(), dims=[2])
    values = onnx.SparseTensorProto(values=tensor(), indices=helper.make_tensor("i", 7, [1], [0]), dims=[2])
    with_sparse = helper.make_model(helper.make_graph([], "g", [], []))
    with_sparse.graph.sparse_initializer.append(sparse)
    training = helper.make_model(helper.make_graph([], "g", [], []))
    training.training_info.add().algorithm.CopyFrom(graph)
    before_training = helper.make_model(helper.make_graph([], "g", [], []))
    before_training.training_info.add().initialization.CopyFrom(graph)
    function = helper.make_model(helper.make_graph([], "g", [], []))
    function.functions.add(name="f").node.append(in_attribute(tensor()).graph.node[0])
    default = helper.make_model(helper.make_graph([], "g", [], []))
    default.functions.add(name="f").attribute_proto.append(helper.make_attribute("value", tensor()))
    return {
        "initializer": helper.make_model(graph),
        "sparse initializer": with_sparse,
        "attribute": in_attribute(tensor()),
        "attribute list": in_attribute([tensor(), tensor()]),
        "sparse attribute": in_attribute(sparse),
        "sparse attribute list": in_attribute([sparse]),
        "graph in an attribute": in_attribute(graph),
        "graphs in an attribute": in_attribute([graph]),
        "graph in a graph in an attribute": in_attribute(nested),
        "values of a sparse attribute": in_attribute(values),
        "training": training,
        "initialization of training": before_training,
        "function": function,
        "function's default": default,
    }


@pytest.mark.parametrize("place", hiding_places())
def test_no_place_hides_a_tensor(place: str) -> None:
    model = hiding_places()[place]
    with pytest.raises(BundleError, match="outside of itself"):
        check_self_contained(model.SerializeToString(), "x.onnx")


def test_location_alone_or_path_alone_is_enough_to_refuse() -> None:
    for field in ("data_location", "external_data"):
        hidden = tensor()
        hidden.ClearField(field)
        model = helper.make_model(helper.make_graph([], "g", [], [], [hidden]))
        with pytest.raises(BundleError, match="outside of itself"):
            check_self_contained(model.SerializeToString(), "x.onnx")


def test_ordinary_graphs_pass() -> None:
    model = TinyModel.random()
    check_self_contained(model.encoder_graph().SerializeToString(), "encoder.onnx")
    check_self_contained(model.decoder_graph().SerializeToString(), "decoder.onnx")
    explicit = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    explicit.data_location = TensorProto.DEFAULT
    check_self_contained(helper.make_model(helper.make_graph([], "g", [], [], [explicit])).SerializeToString(), "x")


def nest(levels: int) -> bytes:
    """Graphs in attributes of nodes of graphs, by hand: the onnx package itself refuses such depth."""
    message = b""
    for _ in range(levels):
        for field in (6, 5, 1):  # a graph in an attribute of a node of a graph
            message = bytes([field << 3 | 2]) + varint(len(message)) + message
    return b"\x3a" + varint(len(message)) + message


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"\x3a", "cut off"),
        (b"\x3a\x05ab", "cut off"),
        (b"\x3a\xff\xff\xff\xff\xff\x01", "too long"),
        (b"\xba\x80\x80\x80\x10\0", "too long"),  # the tag of a graph, if bits above 32 are dropped
        (b"\x08" + b"\xff" * 11, "too long"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "too long"),
        (b"\x0b", "unknown wire type"),
        (b"\x0d\x01", "cut off"),
        (b"\x38\x01", "wrong type"),
        (nest(5_000), "too deeply"),
    ],
)
def test_malformed_protobuf_is_refused(content: bytes, cause: str) -> None:
    with pytest.raises(BundleError, match=cause):
        check_self_contained(content, "x.onnx")


def test_numbers_of_every_wire_type_are_passed_over() -> None:
    check_self_contained(b"\x08\x08" + b"\x0d\0\0\0\0" + b"\x09" + bytes(8) + b"\x12\x03abc", "x.onnx")
    longest = b"\x92\x80\x80\x80\0" + b"\x83\x80\x80\x80\0abc"  # tag and length in the most bytes allowed
    check_self_contained(longest + b"\x08" + b"\xff" * 9 + b"\x01", "x.onnx")  # minus one as a varint


# Execution providers.


@pytest.mark.parametrize(
    "providers",
    [
        ["NoSuchProvider"],
        [],
        [3],
        [()],
        3,
        [("CPUExecutionProvider", 3)],
        [("CPUExecutionProvider",)],
        ["CPUExecutionProvider"] * 2,
        [np.zeros(2)],
    ],
    ids=repr,
)
def test_unknown_execution_providers(providers: Any, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArgumentError, match="CPUExecutionProvider"):
        Captioner(tiny_bundle, providers=providers)
    assert capfd.readouterr() == ("", "")


def test_what_onnxruntime_fails_at_is_an_error_and_no_output(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("pthread_create failed")

    sessions = Captioner(tiny_bundle).sessions
    assert not any(session._enable_fallback for session in (sessions._encoder, sessions._decoder))
    if '"enable_fallback"' not in inspect.getsource(onnxruntime.InferenceSession.__init__):
        pytest.skip("this onnxruntime cannot be told before it makes a session")
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(BundleError, match="pthread_create failed"):
        Captioner(tiny_bundle)
    assert capfd.readouterr() == ("", "")


def test_an_execution_provider_that_cannot_be_started(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, CUDA where its libraries are not installed."""
    known = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*known, "CUDAExecutionProvider"])
    create = onnxruntime.InferenceSession

    def create_by_the_cpu(model: object, options: object, *, providers: list[Any], **rest: Any) -> Any:
        assert providers[0] == ("CUDAExecutionProvider", {"device_id": 0})
        return create(model, options, providers=["CPUExecutionProvider"], **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", create_by_the_cpu)
    with pytest.raises(ArgumentError, match="providers: onnxruntime cannot start CUDAExecutionProvider"):
        Captioner(tiny_bundle, providers=[("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"])


def test_an_execution_provider_that_fails(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, TensorRT with graphs that it does not support: another bundle would not help."""

    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("engine build failed")

    known = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*known, "TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    for providers, remedy in ((["TensorrtExecutionProvider"], "use other providers"), (None, "get the bundle again")):
        with pytest.raises(BundleError, match=f"engine build failed.*; {remedy}"):
            Captioner(tiny_bundle, providers=providers)


@pytest.mark.parametrize(
    "providers", [["CPUExecutionProvider"], [("CPUExecutionProvider", {})], "CPUExecutionProvider"]
)
def test_named_execution_providers(providers: Any, tiny_bundle: Path) -> None:
    assert Captioner(tiny_bundle, providers=providers).caption(tiny_bundle / "golden" / "cat.png").text
