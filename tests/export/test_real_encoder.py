"""The released feature extractor itself, where its weights are at hand: rewrites equal, every operator fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from at_hand import ENCODER_WEIGHTS, needs
from caplet.image import load_pixels
from caplet_export.calibrate import Feed
from caplet_export.config import ModelConfig
from caplet_export.convert import convert_encoder
from caplet_export.optimize import optimize_encoder, optimize_for_bytes
from caplet_export.quantize import quantize
from tiny_encoder import build_tiny_model

pytestmark = needs(ENCODER_WEIGHTS)


@pytest.fixture(scope="module")
def plain() -> onnx.ModelProto:
    from caplet_export.inception import build_extractor

    return convert_encoder(
        build_extractor(str(ENCODER_WEIGHTS)), build_tiny_model(ModelConfig(vocabulary_size=30), spread=0.02)
    )


@pytest.fixture(scope="module")
def pixels(photos: Path) -> NDArray[np.uint8]:
    return np.stack([load_pixels(photos / f"{name}.jpg") for name in ("cat", "coffee", "rocket")])


def run(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["features", "keys", "state"], {"pixels": pixels})


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_rewrites_change_nothing_and_quantisation_little(
    plain: onnx.ModelProto, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    optimized = optimize_encoder(plain)
    for_bytes = optimize_for_bytes(optimized)
    expected = run(plain, pixels)
    for model in (optimized, for_bytes):
        for before, after in zip(expected, run(model, pixels), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-5 * float(np.abs(before).max()))

    counts = kinds(optimized)
    assert counts["Conv"] == 94 and counts["AveragePool"] == 9 and counts["Transpose"] == 2
    counts = kinds(for_bytes)
    assert counts["Conv"] == 75 + 9 and counts["AveragePool"] == 0 and counts["Split"] == 10
    assert counts["Pad"] == counts["Slice"] == 1  # pixels by fours

    def calibration() -> Iterator[Feed]:
        yield {"pixels": pixels}

    small = quantize(for_bytes, calibration, method="minmax")
    assert len(small.SerializeToString()) < 25e6
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts = kinds(onnx.load(tmp_path / "fused.onnx"))
    assert counts["QLinearConv"] == 84 and counts["QLinearConcat"] == 11 and counts["QLinearMul"] == 9
    assert counts["NhwcMaxPool"] == 4 and counts["MatMulIntegerToFloat"] == 2 and counts["QGemm"] == 1
    assert not {"Conv", "MatMul", "Gemm", "QLinearAveragePool", "Transpose", "Relu"} & set(counts)
    assert counts["QuantizeLinear"] + counts["DequantizeLinear"] <= 3
    features, rough = expected[0], run(small, pixels)[0]
    assert 10 * np.log10((features**2).sum() / ((features - rough) ** 2).sum()) > 12
