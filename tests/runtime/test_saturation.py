"""Exact 8-bit kernels, which are slower, are asked for only where a processor and a bundle need them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from caplet import Captioner
from caplet import sessions as sessions_module
from caplet.machine import describe_cpu

OPTION = "session.x64quantprecision"


WITHOUT_VNNI = "flags\t\t: fpu avx avx2 fma"


@pytest.fixture
def asked_for(
    monkeypatch: pytest.MonkeyPatch, session_options: Callable[[str], list[str | None]]
) -> Callable[[Path, Path], list[bool]]:
    """Whether a Captioner asks for exact kernels on such a processor, for the encoder and for the decoder."""

    def asked(bundle: Path, cpuinfo: Path) -> list[bool]:
        monkeypatch.setattr(sessions_module, "describe_cpu", lambda: describe_cpu(cpuinfo))
        Captioner(bundle)
        return [value == "1" for value in session_options(OPTION)]

    return asked


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
        ("flags\t\t: fpu avx avx2 fma avx512f amx_int8", False),
        ("flags\t\t: fpu sse4_2 avx", False),
        ("Features\t: fp asimd asimddp", False),
        ("", False),
    ],
)
def test_asked_for_on_x86_without_vnni(
    line: str, asked: bool, tmp_path: Path, tiny_bundle: Path, asked_for: Callable[[Path, Path], list[bool]]
) -> None:
    """Of a bundle that does not say whether its weights saturate."""
    assert asked_for(tiny_bundle, write_cpuinfo(tmp_path, line)) == [asked, asked]


@pytest.mark.parametrize(
    ("encoder", "decoder", "asked"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_not_asked_for_by_a_bundle_that_does_not_saturate(
    encoder: bool,
    decoder: bool,
    asked: bool,
    tmp_path: Path,
    tiny_bundle: Path,
    asked_for: Callable[[Path, Path], list[bool]],
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["encoder"]["saturates"], manifest["graphs"]["decoder"]["saturates"] = encoder, decoder
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert asked_for(bundle, write_cpuinfo(tmp_path, WITHOUT_VNNI)) == [asked, asked]
