"""The number of threads: what each limit allows, that the smallest wins, and that no more are started."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from caplet.errors import ArgumentError
from caplet.threads import ThreadCount, usable_threads
from made_up_machine import machine

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def test_an_explicit_number_wins(tmp_path: Path) -> None:
    machine(tmp_path, "0::/\n", {"cpu.max": "100000 100000"})
    assert usable_threads(7, environ={"OMP_NUM_THREADS": "2"}, root=tmp_path) == ThreadCount(7, "as asked")


@pytest.mark.parametrize("asked", [1, 1024])
def test_the_limits_of_an_explicit_number_may_be_asked_for(asked: int) -> None:
    assert usable_threads(asked, environ={}) == ThreadCount(asked, "as asked")


def test_a_number_of_numpy_is_a_number(tmp_path: Path) -> None:
    assert usable_threads(np.int64(2), environ={}, root=tmp_path) == ThreadCount(2, "as asked")


@pytest.mark.parametrize("asked", [0, -1, 1025, True, "2", 1.5, float("nan"), 10**30])
def test_a_number_that_makes_no_sense(asked: object) -> None:
    with pytest.raises(ArgumentError, match="threads"):
        usable_threads(asked)  # type: ignore[arg-type]


def test_affinity_is_the_first_limit(tmp_path: Path) -> None:
    assert usable_threads(environ={}, root=tmp_path) == ThreadCount(16, "CPUs this process may run on")


def test_without_affinity_the_cpus_of_the_machine_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_threads(environ={}, root=tmp_path) == ThreadCount(5, "CPUs of this machine")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_threads(environ={}, root=tmp_path).count == 1


def test_where_a_sandbox_forbids_to_ask_for_the_affinity_the_cpus_of_the_machine_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: int) -> set[int]:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "sched_getaffinity", forbidden, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_threads(environ={}, root=tmp_path) == ThreadCount(5, "CPUs of this machine")


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000", 16),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("400000 100000", 4),
        ("10000 100000", 1),
        ("9900000 100000", 16),
        ("", 16),
        ("100000", 16),
        ("100000 0", 16),
        ("0 100000", 16),
        ("x y", 16),
        ("²00000 100000", 16),
    ],
)
def test_quota_of_version_2_is_rounded_up(quota: str, count: int, tmp_path: Path) -> None:
    machine(tmp_path, "0::/app.slice\n", {"app.slice/cpu.max": quota + "\n"})
    found = usable_threads(environ={}, root=tmp_path)
    assert found.count == count
    assert ("quota" in found.reason) == (count < 16)


def test_a_group_around_this_one_may_be_the_narrow_one(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000", "cpu.max": "800000 100000"}
    machine(tmp_path, "0::/a/b\n", files)
    assert usable_threads(environ={}, root=tmp_path) == ThreadCount(3, "CPU quota of 2.5")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text on this system")
@pytest.mark.parametrize("group", ["jöb", "名前", "a\x85b", "\udcff\udcfe", "a b", "a:b"])
def test_a_group_may_have_any_name(group: str, tmp_path: Path) -> None:
    machine(tmp_path, f"0::/{group}\n", {f"{group}/cpu.max": "50000 100000"})
    assert usable_threads(environ={}, root=tmp_path) == ThreadCount(1, "CPU quota of 0.5")


def test_in_a_container_the_group_is_not_visible_but_its_limit_is(tmp_path: Path) -> None:
    files = {"cpu.max": "200000 100000", "../cpu.max": "100000 100000", "../../docker/123/cpu.max": "100000 100000"}
    machine(tmp_path, "0::/../../docker/123\n", files)
    assert usable_threads(environ={}, root=tmp_path).count == 2


def test_a_limit_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    machine(tmp_path, "0::/job\n", {"job/cpu.max/folder": "", "cpu.max": "200000 100000"})
    assert usable_threads(environ={}, root=tmp_path).count == 2


@pytest.mark.parametrize(
    ("controllers", "mount"), [("cpu", "cpu"), ("cpu,cpuacct", "cpu,cpuacct"), ("cpuacct,cpu", "cpu")]
)
def test_quota_of_version_1(controllers: str, mount: str, tmp_path: Path) -> None:
    files = {f"{mount}/job/cpu.cfs_quota_us": "350000\n", f"{mount}/job/cpu.cfs_period_us": "100000\n"}
    machine(tmp_path, f"5:memory:/x\n4:{controllers}:/job\n", files)
    assert usable_threads(environ={}, root=tmp_path) == ThreadCount(4, "CPU quota of 3.5")


def test_the_group_of_another_controller_of_version_1_limits_nothing(tmp_path: Path) -> None:
    files = {"cpu/x/cpu.cfs_quota_us": "100000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}
    machine(tmp_path, "6:memory:/x\n5:cpuset:/x\n4:cpu:/job\n", files)
    assert usable_threads(environ={}, root=tmp_path).count == 16


def test_no_quota_of_version_1(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    machine(tmp_path, "4:cpu:/\n", files)
    assert usable_threads(environ={}, root=tmp_path).count == 16


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    files = {
        "unified/g/cpu.max": "600000 100000",
        "cpu/g/cpu.cfs_quota_us": "500000",
        "cpu/g/cpu.cfs_period_us": "100000",
    }
    machine(tmp_path, "4:cpu:/g\n0::/g\nnonsense\n", files)
    assert usable_threads(environ={}, root=tmp_path).count == 5


@pytest.mark.parametrize(
    ("text", "count"),
    [("3", 3), ("3,2", 3), (" 3 ", 3), ("003", 3), ("99", 16), ("", 16)],
)
def test_omp_num_threads(text: str, count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = usable_threads(environ={"OMP_NUM_THREADS": text}, root=tmp_path)
    assert found.count == count
    assert ("OMP" in found.reason) == (count < 16)
    assert caplog.text == ""


@pytest.mark.parametrize("text", ["0", "x", "-3", "3.5", "²", "9" * 5000])
def test_omp_num_threads_that_makes_no_sense(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert usable_threads(environ={"OMP_NUM_THREADS": text}, root=tmp_path).count == 16
    assert "ignored" in caplog.text


COUNT_THREADS = """
import os, sys
affinity, threads, bundle, photo = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if affinity:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import caplet, onnxruntime
own = len(os.listdir("/proc/self/task")) - 1  # threads that onnxruntime starts when it is imported, and that sleep
captioner = caplet.Captioner(bundle, threads=threads or None)
captioner.caption(photo)
most = 0
for _ in captioner.caption_many([photo] * 20):
    most = max(most, len(os.listdir("/proc/self/task")))
print(captioner.threads, most - own)
"""


def count_threads(affinity: int, threads: int, bundle: Path) -> tuple[int, int]:
    """Threads of a captioner, and the most threads that its process had at any time."""
    photo = str(bundle / "golden" / "cat.png")
    command = [sys.executable, "-c", COUNT_THREADS, str(affinity), str(threads), str(bundle), photo]
    used, most = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    return int(used), int(most)


@needs_affinity
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_on_one_cpu_there_is_one_thread(tiny_bundle: Path) -> None:
    assert count_threads(1, 0, tiny_bundle) == (1, 1)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.parametrize(("threads", "at_most"), [(1, 1), (2, 4), (3, 6), (6, 10)])
def test_there_are_no_more_threads_than_the_documentation_says(threads: int, at_most: int, tiny_bundle: Path) -> None:
    """The encoder's, including the caller's own, and one for each of up to four photos."""
    used, most = count_threads(0, threads, tiny_bundle)
    assert used == threads
    assert threads <= most <= at_most  # so small photos may be done before all threads have started


SHARED_THREADS = """
import sys
import caplet, onnxruntime
before = caplet.Captioner(sys.argv[1], threads=3)
onnxruntime.set_global_thread_pool_sizes(2, 1)
after = caplet.Captioner(sys.argv[1], threads=3)
texts = {captioner.caption(sys.argv[2]).text for captioner in (before, after)}
print(len(texts), after.threads)
"""


@pytest.mark.skipif(
    not hasattr(onnxruntime, "set_global_thread_pool_sizes"), reason="this onnxruntime shares no threads in Python"
)
def test_a_program_may_have_all_of_onnxruntimes_sessions_share_threads(tiny_bundle: Path) -> None:
    """From then on onnxruntime refuses sessions that want threads of their own, and warns of numbers of them."""
    command = [sys.executable, "-c", SHARED_THREADS, str(tiny_bundle), str(tiny_bundle / "golden" / "cat.png")]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 3\n", "")
