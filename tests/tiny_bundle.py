"""A small captioner with random weights in the bundle format: seconds to build, a few kilobytes, no download.

`TinyModel` holds the weights and is also the reference in plain numpy that the ONNX graphs and the runtime are
compared with: `write_tiny_bundle` takes its golden captions from it, not from the runtime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

Floats = NDArray[np.float32]
PAD, START, END, UNKNOWN = range(4)
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "woman",
    "child",
    "runs",
    "jumps",
    "sits",
    "on",
    "in",
    "with",
    "red",
    "blue",
    "black",
    "white",
    "two",
    "ball",
    "grass",
    "water",
    "snow",
    "street",
    "bike",
    "shirt",
    "hat",
    "beach",
    "rock",
    "field",
    "horse",
    "girl",
    "boy",
    "through",
    "over",
    "near",
    "'s",
    "plays",
    "holds",
    "large",
    "small",
]
GRID = 8
LOCATIONS = GRID * GRID
PHOTOS = Path(__file__).parent / "photos"
GOLDEN_PHOTOS = ("cat.jpg", "coffee.jpg", "rocket.jpg")


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """Random weights of an attention captioner and what they compute, in numpy."""

    weights: Mapping[str, Floats]
    height: int
    width: int
    top_k: int

    @classmethod
    def random(
        cls,
        seed: int = 6,
        *,
        vocabulary_size: int = 36,
        feature_size: int = 6,
        attention_size: int = 5,
        embedding_size: int = 4,
        state_size: int = 7,
        height: int = 299,
        width: int = 299,
        top_k: int = 16,
    ) -> TinyModel:
        """Weights large enough that the words depend on the photo, on the state and on the word before.

        With the default seed the sentences for the sample photos differ and end by themselves.
        """
        random = np.random.default_rng(seed)
        inputs, joint = embedding_size + feature_size, state_size + feature_size
        shapes = {
            "encoder_w": (3, feature_size),
            "key_w": (feature_size, attention_size),
            "state_w": (feature_size, state_size),
            "embedding": (vocabulary_size, embedding_size),
            "query_w": (state_size, attention_size),
            "score_w": (attention_size, 1),
            "gates_w": (inputs, 2 * state_size),
            "gates_u": (state_size, 2 * state_size),
            "candidate_w": (inputs, state_size),
            "candidate_u": (state_size, state_size),
            "word_w": (joint, vocabulary_size),
        }
        weights = {name: (2.0 * random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
        bias = np.zeros(vocabulary_size, np.float32)
        bias[END] = 3.5  # makes sentences of a handful of words
        mask = np.zeros(vocabulary_size, np.float32)
        mask[[PAD, START, UNKNOWN]] = -np.inf
        return cls(weights | {"word_b": bias, "mask": mask}, height, width, top_k)

    def encode(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
        """[N,height,width,3] pixels to features [N,64,D], keys [N,64,A], state [N,H]."""
        w, (kernel_h, kernel_w) = self.weights, self.kernel
        used = pixels[:, : kernel_h * GRID, : kernel_w * GRID].astype(np.float32)
        cells = used.reshape(len(pixels), GRID, kernel_h, GRID, kernel_w, 3).mean(axis=(2, 4))
        scaled = cells.reshape(len(pixels), LOCATIONS, 3) / np.float32(127.5) - np.float32(1)
        features = np.tanh(scaled @ w["encoder_w"])
        return features, features @ w["key_w"], np.tanh(features.mean(axis=1) @ w["state_w"])

    def step(
        self, token: NDArray[np.int64], state: Floats, features: Floats, keys: Floats
    ) -> tuple[Floats, NDArray[np.int64], Floats, Floats]:
        """One decoder step: top log-probabilities [N,K], their tokens [N,K], next state [N,H], attention [N,64]."""
        w = self.weights
        energy = (np.tanh(keys + (state @ w["query_w"])[:, None]) @ w["score_w"])[:, :, 0]
        attention = np.exp(energy - energy.max(axis=1, keepdims=True))
        attention /= attention.sum(axis=1, keepdims=True)
        context = (attention[:, :, None] * features).sum(axis=1)
        x = np.concatenate([w["embedding"][token], context], axis=1)
        update, reset = np.split(1 / (1 + np.exp(-(x @ w["gates_w"] + state @ w["gates_u"]))), 2, axis=1)
        candidate = np.tanh(x @ w["candidate_w"] + (reset * state) @ w["candidate_u"])
        next_state = state + update * (candidate - state)
        logits = np.concatenate([next_state, context], axis=1) @ w["word_w"] + w["word_b"]
        top = logits.max(axis=1, keepdims=True)
        log_probs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + w["mask"]
        tokens = np.argsort(-log_probs, axis=1, kind="stable")[:, : self.top_k]
        return np.take_along_axis(log_probs, tokens, 1), tokens, next_state, attention

    @property
    def kernel(self) -> tuple[int, int]:
        """Pixels of one of the 8x8 cells."""
        return self.height // GRID, self.width // GRID

    def encoder_graph(self) -> onnx.ModelProto:
        """`encode` as an ONNX graph in the bundle's contract."""
        nodes = [
            helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("AveragePool", ["planes"], ["pooled"], kernel_shape=self.kernel, strides=self.kernel),
            helper.make_node("Reshape", ["pooled", "rows"], ["cells"]),
            helper.make_node("Transpose", ["cells"], ["locations"], perm=[0, 2, 1]),
            helper.make_node("Div", ["locations", "half"], ["divided"]),
            helper.make_node("Sub", ["divided", "one"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "encoder_w"], ["projected"]),
            helper.make_node("Tanh", ["projected"], ["features"]),
            helper.make_node("MatMul", ["features", "key_w"], ["keys"]),
            helper.make_node("ReduceMean", ["features"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "state_w"], ["state_projected"]),
            helper.make_node("Tanh", ["state_projected"], ["state"]),
        ]
        constants: dict[str, NDArray[Any]] = {
            "rows": np.array([0, 3, LOCATIONS]),
            "half": np.float32(127.5).reshape(1),
            "one": np.float32(1).reshape(1),
        }
        return self._model(
            "encoder",
            nodes,
            constants,
            [("pixels", TensorProto.UINT8, (self.height, self.width, 3))],
            [
                ("features", TensorProto.FLOAT, (LOCATIONS, self.sizes["D"])),
                ("keys", TensorProto.FLOAT, (LOCATIONS, self.sizes["A"])),
                ("state", TensorProto.FLOAT, (self.sizes["H"],)),
            ],
        )

    def decoder_graph(self) -> onnx.ModelProto:
        """`step` as an ONNX graph in the bundle's contract."""
        nodes = [
            helper.make_node("MatMul", ["state", "query_w"], ["query"]),
            helper.make_node("Unsqueeze", ["query", "axis_1"], ["query_row"]),
            helper.make_node("Add", ["keys", "query_row"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["energy"]),
            helper.make_node("MatMul", ["energy", "score_w"], ["scores_column"]),
            helper.make_node("Squeeze", ["scores_column", "axis_2"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["attention"], axis=1),
            helper.make_node("Unsqueeze", ["attention", "axis_2"], ["attention_column"]),
            helper.make_node("Mul", ["attention_column", "features"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "axis_1"], ["context"], keepdims=0),
            helper.make_node("Gather", ["embedding", "token"], ["embedded"]),
            helper.make_node("Concat", ["embedded", "context"], ["x"], axis=1),
            helper.make_node("MatMul", ["x", "gates_w"], ["gates_x"]),
            helper.make_node("MatMul", ["state", "gates_u"], ["gates_s"]),
            helper.make_node("Add", ["gates_x", "gates_s"], ["gates_sum"]),
            helper.make_node("Sigmoid", ["gates_sum"], ["gates"]),
            helper.make_node("Split", ["gates"], ["update", "reset"], axis=1),
            helper.make_node("MatMul", ["x", "candidate_w"], ["candidate_x"]),
            helper.make_node("Mul", ["reset", "state"], ["kept"]),
            helper.make_node("MatMul", ["kept", "candidate_u"], ["candidate_s"]),
            helper.make_node("Add", ["candidate_x", "candidate_s"], ["candidate_sum"]),
            helper.make_node("Tanh", ["candidate_sum"], ["candidate"]),
            helper.make_node("Sub", ["candidate", "state"], ["change"]),
            helper.make_node("Mul", ["update", "change"], ["updated"]),
            helper.make_node("Add", ["state", "updated"], ["next_state"]),
            helper.make_node("Concat", ["next_state", "context"], ["joint"], axis=1),
            helper.make_node("MatMul", ["joint", "word_w"], ["word_product"]),
            helper.make_node("Add", ["word_product", "word_b"], ["logits"]),
            helper.make_node("LogSoftmax", ["logits"], ["all_log_probs"], axis=1),
            helper.make_node("Add", ["all_log_probs", "mask"], ["masked"]),
            helper.make_node("TopK", ["masked", "k"], ["log_probs", "tokens"], axis=1),
        ]
        constants: dict[str, NDArray[Any]] = {
            "axis_1": np.array([1]),
            "axis_2": np.array([2]),
            "k": np.array([self.top_k]),
        }
        d, a, h = self.sizes["D"], self.sizes["A"], self.sizes["H"]
        return self._model(
            "decoder",
            nodes,
            constants,
            [
                ("token", TensorProto.INT64, ()),
                ("state", TensorProto.FLOAT, (h,)),
                ("features", TensorProto.FLOAT, (LOCATIONS, d)),
                ("keys", TensorProto.FLOAT, (LOCATIONS, a)),
            ],
            [
                ("log_probs", TensorProto.FLOAT, (self.top_k,)),
                ("tokens", TensorProto.INT64, (self.top_k,)),
                ("next_state", TensorProto.FLOAT, (h,)),
                ("attention", TensorProto.FLOAT, (LOCATIONS,)),
            ],
        )

    @property
    def sizes(self) -> dict[str, int]:
        """D, A, H and V of the contract."""
        features, state = self.weights["encoder_w"].shape[1], self.weights["state_w"].shape[1]
        return {"D": features, "A": self.weights["key_w"].shape[1], "H": state, "V": len(self.weights["mask"])}

    def _model(
        self,
        name: str,
        nodes: list[onnx.NodeProto],
        constants: Mapping[str, NDArray[Any]],
        inputs: list[tuple[str, int, tuple[int, ...]]],
        outputs: list[tuple[str, int, tuple[int, ...]]],
    ) -> onnx.ModelProto:
        used = {value for node in nodes for value in node.input}
        tensors = {key: value for key, value in {**self.weights, **constants}.items() if key in used}
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(key, kind, ["N", *shape]) for key, kind, shape in inputs],
            [helper.make_tensor_value_info(key, kind, ["N", *shape]) for key, kind, shape in outputs],
            [numpy_helper.from_array(np.asarray(value), key) for key, value in tensors.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def reference_search(
    model: TinyModel, pixels: NDArray[np.uint8], *, beam_size: int, max_length: int, length_penalty: float = 1.0
) -> list[tuple[list[int], float]]:
    """Beam search for one photo in the plainest form (lists and sorting), best first: (word ids, score).

    Of all continuations the `beam_size` likeliest stay; those that ended are set aside. No trigram is repeated.
    """
    features, keys, first = model.encode(pixels[None])
    live: list[tuple[list[int], float, Floats]] = [([], 0.0, first)]
    done: list[tuple[list[int], float]] = []
    for length in range(1, max_length + 1):
        candidates = []
        for words, score, state in live:
            last = np.array([words[-1] if words else START])
            log_probs, tokens, next_state, _ = model.step(last, state, features, keys)
            for log_prob, token in zip(log_probs[0].tolist(), tokens[0].tolist(), strict=True):
                seen = {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
                if np.isfinite(log_prob) and (*words[-2:], token) not in seen:
                    candidates.append(([*words, token], score + log_prob, next_state))
        best = sorted(candidates, key=lambda candidate: -candidate[1])[:beam_size]
        done += [(words[:-1], score / length**length_penalty) for words, score, _ in best if words[-1] == END]
        live = [candidate for candidate in best if candidate[0][-1] != END]
    done += [(words, score / max_length**length_penalty) for words, score, _ in live]
    return sorted(done, key=lambda hypothesis: -hypothesis[1])[:beam_size]


def join_words(words: list[str]) -> str:
    """The bundle format's rule: a word that starts with an apostrophe attaches to the word before it."""
    return "".join(word if word.startswith("'") else " " + word for word in words).strip()


def vocabulary(size: int) -> list[str]:
    """The first `size` of: special tokens, real words, numbered words."""
    words = [*SPECIALS, *WORDS]
    return (words + [f"word{number}" for number in range(size)])[:size]


def write_tiny_bundle(
    folder: Path,
    *,
    seed: int = 6,
    beam_size: int = 3,
    max_length: int = 12,
    edit_manifest: Callable[[dict[str, Any]], None] | None = None,
    **sizes: int,
) -> Path:
    """Write a whole bundle into `folder` (made if absent) and return it.

    `sizes` go to `TinyModel.random`; `edit_manifest` may change the manifest before it is written.
    """
    model = TinyModel.random(seed, **sizes)
    words = vocabulary(model.sizes["V"])
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    (folder / "encoder.onnx").write_bytes(model.encoder_graph().SerializeToString())
    (folder / "decoder.onnx").write_bytes(model.decoder_graph().SerializeToString())
    (folder / "vocabulary.txt").write_text("".join(word + "\n" for word in words), encoding="utf-8", newline="\n")
    (folder / "README.md").write_text("# A tiny bundle\n\nRandom weights, for tests.\n", encoding="utf-8")
    golden = []
    for number, name in enumerate(GOLDEN_PHOTOS):
        file = f"golden/{Path(name).stem}.png"
        with Image.open(PHOTOS / name) as photo:
            photo.convert("RGB").resize((96, 72)).save(folder / file)
        with Image.open(folder / file) as photo:
            pixels = np.asarray(photo.resize((model.width, model.height), Image.Resampling.BILINEAR))
        beam = 1 if number == 0 else beam_size
        best, score = reference_search(model, pixels, beam_size=beam, max_length=max_length)[0]
        text = join_words([words[token] for token in best])
        golden.append({"file": file, "source": f"tests/photos/{name}", "text": text, "score": score, "beam_size": beam})
    manifest = {
        "format_version": 3,
        "name": f"tiny-{seed}",
        "created_with": {"caplet": "0.1.0", "onnx": onnx.__version__},
        "files": {},
        "graphs": {name: {"file": f"{name}.onnx", "opset": 17} for name in ("encoder", "decoder")},
        "vocabulary": {"file": "vocabulary.txt", "size": len(words)},
        "preprocessing": {
            "height": model.height,
            "width": model.width,
            "color": "RGB",
            "dtype": "uint8",
            "resize": "squash",
            "resample": "bilinear",
        },
        "tokens": {"pad": "<pad>", "start": "<start>", "end": "<end>", "unknown": "<unk>"},
        "decoding": {
            "beam_size": beam_size,
            "max_length": max_length,
            "length_penalty": 1.0,
            "block_repeated_trigrams": True,
            "repeatable": None,
            "forms": [],
        },
        "license": {"weights": "CC0-1.0 (random numbers)", "data": "none"},
        "provenance": {"seed": seed},
        "metrics": {"split": "none", "scorer": "none", "results": {}},
        "golden": golden,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    rehash(folder, edit_manifest)
    return folder


def rehash(folder: Path, edit_manifest: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Make the manifest's sizes and hashes true again after a test has changed files, then edit it if asked."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = ["encoder.onnx", "decoder.onnx", "vocabulary.txt", "README.md"]
    names += [entry["file"] for entry in manifest["golden"]]
    contents = {name: (folder / name).read_bytes() for name in names}
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
    if edit_manifest is not None:
        edit_manifest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
