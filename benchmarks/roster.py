"""The engines that are compared, one entry each, in the order of the tables."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine import Engine


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those of these packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class Peer:
    """An engine that can be measured.

    Attributes:
        name: what the command line and the JSON call it.
        label: what tables call it.
        factory: module:class of its `Engine` in this package, made in its own process.
        imports: packages that have to be installed; its installed size is theirs, with all that they require.
        files: what it reads from the folder that `benchmarks.prepare` wrote; the size of its model is theirs.
        options: further arguments of the engine.
        environment: further environment variables of its process.
    """

    name: str
    label: str
    factory: str
    imports: tuple[str, ...]
    files: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def missing_packages(self) -> list[str]:
        """Packages that are not installed."""
        return missing_packages(self.imports)

    def missing_files(self, folder: Path) -> list[str]:
        """Files that `benchmarks.prepare` has not written."""
        return [name for name in self.files if not (folder / name).exists()]

    def build(self, folder: Path, threads: int) -> Engine:
        """The engine, loaded."""
        module, _, name = self.factory.partition(":")
        engine: Engine = getattr(importlib.import_module(f"benchmarks.{module}"), name)(folder, threads, **self.options)
        return engine


_RUNTIME, _OPENVINO = ("onnxruntime", "numpy", "PIL"), ("openvino", "PIL")
_LITERT, _KERAS = ("ai_edge_litert", "PIL"), ("tensorflow", "keras", "PIL")
_TRANSFORMERS = ("transformers", "torch", "PIL")
_CAPLET, _ORT, _OV = "engine_caplet:Caplet", "engine_onnx:OnnxRuntime", "engine_onnx:OpenVino"
_TF, _TORCH, _VIT_ORT = "engine_tensorflow", "engine_transformers", "engine_onnx:VitGpt2"
# OpenVINO uses matrix units (AMX), which most processors do not have.
_BYTES = "int8-ungrouped"
WITHOUT_AMX = "openvino-int8-vnni"
_VNNI = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
PLAIN_OPENVINO_INT8, PLAIN_OPENVINO_FP32 = "openvino-int8-plain", "openvino-fp32-plain"
# By default, the threads of the encoder's session spin after a run, on the cores that the decoder's threads want.
_QDQ, _FP32, _RESTING = "plain-qdq", "plain", {"spinning": False}
VIT_GPT2_INT8 = "vit-gpt2-int8"
VIT_GPT2_EXPORT = ("torch", "transformers", "onnxscript")
"""What its graphs are written by."""

ROSTER = (
    Peer("caplet-int8", "caplet int8, greedy", _CAPLET, _RUNTIME, ("int8",), {"bundle": "int8", "beam_size": 1}),
    Peer("caplet-int8-default", "caplet int8, default beam", _CAPLET, _RUNTIME, ("int8",), {"bundle": "int8"}),
    Peer("caplet-fp32", "caplet fp32, greedy", _CAPLET, _RUNTIME, ("fp32",), {"bundle": "fp32", "beam_size": 1}),
    Peer("caplet-fp32-default", "caplet fp32, default beam", _CAPLET, _RUNTIME, ("fp32",), {"bundle": "fp32"}),
    Peer("openvino-int8", "OpenVINO int8 (caplet's graphs)", _OV, _OPENVINO, (_BYTES,), {"graphs": _BYTES}),
    Peer(WITHOUT_AMX, "OpenVINO int8, not using AMX", _OV, _OPENVINO, (_BYTES,), {"graphs": _BYTES}, _VNNI),
    Peer(PLAIN_OPENVINO_INT8, "OpenVINO int8 (plain QDQ export)", _OV, _OPENVINO, (_QDQ,), {"graphs": _QDQ}),
    Peer("openvino-fp32", "OpenVINO fp32 (caplet's graphs)", _OV, _OPENVINO, ("fp32",), {"graphs": "fp32"}),
    Peer(PLAIN_OPENVINO_FP32, "OpenVINO fp32 (plain export)", _OV, _OPENVINO, (_FP32,), {"graphs": _FP32}),
    Peer("ort-qdq", "onnxruntime, plain static QDQ export", _ORT, _RUNTIME, (_QDQ,), {"graphs": _QDQ}),
    Peer("ort-qdq-resting", "plain QDQ export, not spinning", _ORT, _RUNTIME, (_QDQ,), {"graphs": _QDQ, **_RESTING}),
    Peer("ort-fp32", "onnxruntime, plain fp32 export", _ORT, _RUNTIME, (_FP32,), {"graphs": _FP32}),
    Peer(
        "ort-fp32-resting", "plain fp32 export, not spinning", _ORT, _RUNTIME, (_FP32,), {"graphs": _FP32, **_RESTING}
    ),
    Peer("litert", "LiteRT fp32", f"{_TF}:LiteRt", _LITERT, ("litert",)),
    Peer("tf-function", "TensorFlow, `tf.function`", f"{_TF}:Function", _KERAS, ("keras",)),
    Peer("keras-predict", "the tutorial's loop, `model.predict`", f"{_TF}:Predict", _KERAS, ("keras",)),
    Peer(VIT_GPT2_INT8, "ViT-GPT2 int8 (onnxruntime)", _VIT_ORT, _RUNTIME, (VIT_GPT2_INT8,), {"graphs": VIT_GPT2_INT8}),
    Peer("vit-gpt2", "ViT-GPT2 (transformers)", f"{_TORCH}:VitGpt2", _TRANSFORMERS),
    Peer("blip-base", "BLIP-base (transformers)", f"{_TORCH}:BlipBase", _TRANSFORMERS),
    Peer("florence-2-base", "Florence-2-base (transformers)", f"{_TORCH}:Florence2Base", _TRANSFORMERS),
    Peer("smolvlm-256m", "SmolVLM-256M (transformers)", f"{_TORCH}:SmolVlm256M", _TRANSFORMERS),
)
PEERS = {peer.name: peer for peer in ROSTER}
