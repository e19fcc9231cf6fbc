"""Exact 8-bit kernels are asked for on processors that need them, and on no other: they are three times slower."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from caplet import Captioner
from caplet import sessions as sessions_module
from caplet.machine import describe_cpu

OPTION = "session.x64quantprecision"


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("flags\t\t: fpu avx avx2 fma", True),
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
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Some CPU\n{line}\n")
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
    Captioner(tiny_bundle)
    assert seen == [asked, asked]
