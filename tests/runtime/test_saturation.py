"""Exact 8-bit kernels, which are slower, are asked for where a processor and a bundle need them, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest

from caplet import Captioner
from caplet import sessions as sessions_module
from caplet.machine import describe_cpu

OPTION = "session.x64quantprecision"


WITHOUT_VNNI = "flags\t\t: fpu avx avx2 fma"


def asked_for(bundle: Path, cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a Captioner asks for exact kernels on such a processor, encoder and decoder."""
    seen: list[bool] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: onnxruntime.SessionOptions, **rest: object) -> onnxruntime.InferenceSession:
        try:
            seen.append(options.get_session_config_entry(OPTION) == "1")
        except Exception:  # onnxruntime's way to say that an option is not set
            seen.append(False)
        return real(path, options, **rest)

    monkeypatch.setattr(sessions_module, "describe_cpu", lambda: describe_cpu(cpuinfo))
    monkeypatch.setattr(sessions_module.onnxruntime, "InferenceSession", session)
    Captioner(bundle)
    return seen


def write_cpuinfo(folder: Path, line: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: Some CPU\n{line}\n")
    return path


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        (WITHOUT_VNNI, True),
        ("flags\t\t: fpu avx avx2 fma avx512f avx512bw", True),
        ("flags\t\t: fpu avx avx2 fma avx512f avx512bw avx512_vnni", False),
        ("flags\t\t: fpu avx avx2 fma avx_vnni", False),
        ("Features\t: fp asimd asimddp", False),
        ("", False),
    ],
)
def test_asked_for_on_x86_without_vnni(
    line: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    """The bundle says nothing of its weights."""
    assert asked_for(tiny_bundle, write_cpuinfo(tmp_path, line), monkeypatch) == [asked, asked]


@pytest.mark.parametrize(
    ("encoder", "decoder", "asked"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_not_asked_for_by_a_bundle_that_does_not_saturate(
    encoder: bool, decoder: bool, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["encoder"]["saturates"], manifest["graphs"]["decoder"]["saturates"] = encoder, decoder
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert asked_for(bundle, write_cpuinfo(tmp_path, WITHOUT_VNNI), monkeypatch) == [asked, asked]
