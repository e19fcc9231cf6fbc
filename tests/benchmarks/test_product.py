"""Measurements of the product at small counts, on a tiny bundle: every figure is there and plausible."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from benchmarks import machine, probes, product


@pytest.fixture(scope="module")
def results(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("product")
    wheel = folder / "caplet-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("caplet/__init__.py", b"x" * 1000)
    output = folder / "product.json"
    arguments = ["--bundle", str(tiny_bundle), "--wheel", str(wheel), "--quick", "-o", str(output)]
    assert product.main(arguments) == 0
    loaded: dict[str, Any] = json.loads(output.read_text())
    return loaded


def test_each_start_is_repeated(results: dict[str, Any]) -> None:
    cold = results["cold_start"]
    assert {name: len(values) for name, values in cold["samples"].items()} == {"caption": 2, "imports": 2}


def test_a_start_is_the_median_of_those_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that processes move on: those with a caption by 90, 6, 1, 2 seconds, those with imports by a tenth."""
    now, taken = 0.0, {"caption": iter([90, 6, 1, 2]), "imports": iter([9, 0.6, 0.1, 0.2])}

    def run(command: list[str], **_: Any) -> None:
        nonlocal now
        now += next(taken["caption" if command[-1] == "cat.jpg" else "imports"])

    monkeypatch.setattr(product, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(product, "time", SimpleNamespace(perf_counter=lambda: now))
    cold = product.cold_start(Path("bundle"), "cat.jpg", 3)
    assert (cold["caption_seconds"], cold["imports_seconds"]) == (pytest.approx(2), pytest.approx(0.2))


def test_memory_is_that_of_a_process_with_onnxruntime(results: dict[str, Any]) -> None:
    assert 30 < results["memory"]["peak_mb"] < 1000
    few, many = results["growth"]
    assert many["photos"] == 4 * few["photos"]


def test_a_large_photo_gives_nearly_the_pixels_that_pillow_gives(results: dict[str, Any]) -> None:
    jpeg = results["large_jpeg"]
    assert jpeg["caplet_ms"] > 0 and jpeg["pillow_ms"] > 0
    assert jpeg["mean_difference"] < 3


def test_rates_and_idling_are_figures(results: dict[str, Any]) -> None:
    assert set(results["batch"]) == {"one_at_a_time", "batch_of_32", "usual_batches"}
    assert all(rate > 0 for rate in results["batch"].values())
    assert 0 <= results["idle"]["cpu_share"] < 0.5
    assert list(results["words"]["milliseconds"]) == ["6", "12", "24", "48"]


class Clock:
    """A clock that the work itself moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for a captioner that takes a second a photo, half in its usual batches, a quarter in a batch of 32."""
    clock = Clock()

    class Slow:
        def __init__(self, bundle: str) -> None:
            pass

        def caption(self, photo: str) -> None:
            clock.now += 1

        def caption_many(self, photos: list[str], batch_size: int = 8) -> list[str]:
            clock.now += len(photos) * {8: 1 / 2, 32: 1 / 4}[batch_size]
            return photos

    monkeypatch.setattr(probes, "time", clock)
    monkeypatch.setattr("caplet.Captioner", Slow)
    return clock


def test_rates_are_photos_a_second(clock: Clock) -> None:
    rates = {"one_at_a_time": 1.0, "batch_of_32": 4.0, "usual_batches": 2.0}
    assert probes.batch("bundle", "3", "cat.jpg") == rates
    assert clock.now == 4 * 32 * (1 + 1 / 4 + 1 / 2)  # once untimed, and three times


def test_a_large_photo_has_twelve_megapixels_and_takes_milliseconds(
    clock: Clock, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "perf_counter", itertools.count(0, 0.5).__next__)
    found = probes.large_jpeg(str(tmp_path), "1", str(photos / "cat.jpg"))
    assert (found["caplet_ms"], found["pillow_ms"]) == (500, 500)
    assert 0 < found["mean_difference"] < 1
    with Image.open(tmp_path / "twelve-megapixels.jpg") as image:
        assert image.size == (4000, 3000)


def test_installed_size_is_the_wheel_and_all_it_requires(results: dict[str, Any]) -> None:
    sizes = results["sizes"]
    assert sizes["unpacked_mb"] == pytest.approx(0.001)
    assert {"onnxruntime", "numpy", "pillow"} <= set(sizes["required"])
    assert sizes["installed_mb"] == pytest.approx(sizes["required_mb"] + 0.001)


def test_installed_size_is_what_the_files_weigh() -> None:
    """numpy requires nothing, so its size is that of its own folders."""
    import numpy

    package = Path(numpy.__file__).parent
    beside = [path for path in package.parent.glob("numpy*") if path != package]
    assert machine.installed_mb(["numpy"]) == pytest.approx(machine.disk_mb([package, *beside]), rel=0.05)
