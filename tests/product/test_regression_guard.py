"""What makes the bundled model fast, counted and not timed, so that a regression shows and a busy machine does not.

Like the other tests of the product, these import only pytest, caplet and what caplet requires.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from caplet import BundleNotFoundError, Captioner
from caplet.bundle import Bundle, load_bundle
from caplet.decode import START

PHOTOS = Path(__file__).parent.parent / "photos"
CAT = PHOTOS / "cat.jpg"
ALLOWED_PACKAGES = {"caplet", "numpy", "onnxruntime", "PIL"}
BROUGHT_BY_ONNXRUNTIME = {"coloredlogs", "flatbuffers", "google", "humanfriendly", "mpmath", "packaging", "sympy"}
# Convolutions in float, and operators that an export leaves around unfused ones.
UNFUSED = ("Conv", "FusedConv", "BatchNormalization", "Relu", "Clip", "Transpose", "ReorderInput", "Cast")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    try:
        return load_bundle()
    except BundleNotFoundError as error:
        pytest.skip(f"no default bundle yet: {error}")


def executed(graph: Path, folder: Path) -> Counter[str]:
    """How often each kind of operator runs for one photo or word, after onnxruntime's own optimisation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / graph.stem)
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    dtypes = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}
    feeds: dict[str, Any] = {
        value.name: np.full([size if isinstance(size, int) else 1 for size in value.shape], START, dtypes[value.type])
        for value in session.get_inputs()
    }
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="onnxruntime fuses otherwise on other processors")
def test_the_encoder_runs_few_operators_and_all_convolutions_in_bytes(bundle: Bundle, tmp_path: Path) -> None:
    counts = executed(bundle.encoder, tmp_path)
    assert {kind: counts[kind] for kind in UNFUSED if counts[kind]} == {}
    assert 80 <= counts["QLinearConv"] <= 94
    assert counts["QuantizeLinear"] + counts["DequantizeLinear"] <= 6
    assert counts.total() <= 147


@pytest.mark.skipif(platform.machine() != "x86_64", reason="onnxruntime fuses otherwise on other processors")
def test_a_word_takes_few_operators_and_few_products(bundle: Bundle, tmp_path: Path) -> None:
    counts = executed(bundle.decoder, tmp_path)
    products = sum(count for kind, count in counts.items() if "MatMul" in kind or "Gemm" in kind)
    assert products <= 9
    assert counts.total() <= 64


def test_the_same_numbers_on_every_processor_without_slower_kernels(bundle: Bundle) -> None:
    assert not bundle.manifest.saturates


def test_the_model_is_small(bundle: Bundle) -> None:
    assert bundle.encoder.stat().st_size <= 24.5e6
    assert bundle.decoder.stat().st_size <= 4.5e6
    assert sum(file.bytes for file in bundle.manifest.files.values()) <= 29e6


def test_one_run_of_the_decoder_is_one_word_of_all_hypotheses(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = Captioner(threads=1)
    rows: list[int] = []
    step = captioner.sessions.step

    def counted(token: Any, state: Any, features: Any, keys: Any) -> Any:
        rows.append(len(token))
        return step(token, state, features, keys)

    monkeypatch.setattr(captioner.sessions, "step", counted)
    for beam_size in (1, 3):
        rows.clear()
        words = captioner.caption(CAT, beam_size=beam_size).words
        assert max(rows) <= beam_size
        assert len(words) <= len(rows) <= bundle.manifest.decoding.max_length
    rows.clear()
    words = captioner.caption(CAT, beam_size=1, max_length=1000).words
    assert len(rows) == min(len(words) + 1, 1000), "greedy search stops at the end of the sentence"


def test_nothing_as_large_as_the_vocabulary_leaves_the_decoder(bundle: Bundle) -> None:
    session = onnxruntime.InferenceSession(str(bundle.decoder), providers=["CPUExecutionProvider"])
    widths = {output.name: output.shape[1] for output in session.get_outputs()}
    assert widths["log_probs"] == widths["tokens"] <= 16


def test_memory_that_python_allocates_does_not_grow_with_photos(bundle: Bundle) -> None:
    captioner = Captioner(threads=1)

    def peak(photos: int) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in captioner.caption_many([CAT] * photos, batch_size=2, beam_size=1):
            pass
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        peak(4)
        few, many = peak(4), peak(16)
    finally:
        tracemalloc.stop()
    assert many <= 1.2 * few
    assert few <= 20e6


def test_a_caption_imports_caplet_and_its_three_requirements_only(bundle: Bundle) -> None:
    script = """
import json, sys
before = set(sys.modules)
import caplet
caplet.Captioner().caption(sys.argv[1])
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    run = subprocess.run([sys.executable, "-c", script, str(CAT)], capture_output=True, text=True, check=True)
    loaded = {name for name in json.loads(run.stdout) if name not in sys.stdlib_module_names}
    private = {name for name in loaded if name.startswith("_")}  # compiled helpers, such as Cython's
    assert loaded - private - BROUGHT_BY_ONNXRUNTIME == ALLOWED_PACKAGES
