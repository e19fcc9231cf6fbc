"""Measure caplet and its peers side by side: `python -m benchmarks.peers FOLDER`.

Engines that share a process disturb each other by spinning, and minutes apart a machine is another one. So each engine
has a process, and they take turns in short bursts, all in one run, with a rest between bursts in which the threads of
the one before come to sleep.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, disk_mb, distributions, installed_mb
from benchmarks.roster import PEERS, ROSTER, Peer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
TASKS = ("caption", "encode", "decode")
DECODED_WORDS = 12
REFERENCE = "caplet-int8"  # its captions set the length of those whose weights are random
_USUAL_WORDS = 10
_ANSWER_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured."""

    threads: int
    rounds: int
    rest_seconds: float
    burst_milliseconds: float
    """A burst is as many runs as fit, at least one."""
    most_runs: int
    """In one burst."""


class WorkerError(Exception):
    """An engine could not be loaded, or failed."""


class Worker:
    """An engine's process."""

    def __init__(self, peer: Peer, folder: Path, threads: int) -> None:
        self.peer = peer
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2",
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", peer.name, str(folder), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        try:
            self.loaded = self._answer()
        except WorkerError:
            self.close()
            raise
        self.memory: dict[str, float] = {}
        self.captions: dict[str, str] = {}

    @property
    def tasks(self) -> Sequence[str]:
        """What it can be asked for."""
        return TASKS if self.loaded["stages"] else TASKS[:1]

    def run(self, task: str, photo: Path, words: int, times: int) -> list[float]:
        """Run a task so many times; milliseconds of each."""
        command = {"task": task, "photo": str(photo), "words": words, "times": times}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        answer = self._answer()
        self.memory = answer["memory"]
        if answer["text"] is not None:
            self.captions[photo.name] = answer["text"]
        milliseconds: list[float] = answer["milliseconds"]
        return milliseconds

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _ANSWER_SECONDS)[0]:
            raise WorkerError(f"no answer for {_ANSWER_SECONDS} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1][:300] if lines else f"ended with status {self._process.returncode}"


def compare(
    peers: Iterable[Peer], folder: Path, photos: Sequence[Path], plan: Plan, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all peers that can be; the others are in the result with the reason why not."""
    machine = describe_machine()
    results: dict[str, dict[str, Any]] = {}
    workers: list[Worker] = []
    try:
        for peer in peers:
            say(f"load {peer.name}")
            results[peer.name] = {"label": peer.label, **_facts(peer, folder)}
            reason = _obstacle(peer, folder)
            if reason is None:
                try:
                    workers.append(Worker(peer, folder, plan.threads))
                except WorkerError as error:
                    reason = f"failed: {error}"
            results[peer.name]["status"] = reason or "measured"
        words = _caption_lengths(workers, photos)
        times = {}
        for worker in workers:
            say(f"warm up {worker.peer.name}")
            times[worker.peer.name] = _warm_up(worker, photos[0], words, plan)
        rounds: dict[str, dict[str, list[list[float]]]] = {
            worker.peer.name: {task: [] for task in worker.tasks} for worker in workers
        }
        for number in range(plan.rounds):
            say(f"round {number + 1} of {plan.rounds}")
            photo = photos[number % len(photos)]
            for task in TASKS:
                length = words[photo.name] if task == "caption" else DECODED_WORDS
                # Now from the front, now from the back, so that nobody always comes after the same neighbour.
                for worker in workers[:: -1 if number % 2 else 1]:
                    if task in worker.tasks:
                        time.sleep(plan.rest_seconds)
                        runs = worker.run(task, photo, length, times[worker.peer.name][task])
                        rounds[worker.peer.name][task].append(runs)
        for worker in workers:
            results[worker.peer.name] |= {
                "load_seconds": worker.loaded["load_seconds"],
                "memory_mb": worker.memory,
                "captions": worker.captions,
                "rounds": rounds[worker.peer.name],
            }
            if worker.loaded["model_bytes"]:
                results[worker.peer.name]["model_mb"] = worker.loaded["model_bytes"] / 1e6
    finally:
        for worker in workers:
            worker.close()
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "plan": dataclasses.asdict(plan),
        "decoded_words": DECODED_WORDS,
        "caption_words": words,
        "bundle": json.loads((folder / "int8/manifest.json").read_text())["name"],
        "peers": results,
    }


def _obstacle(peer: Peer, folder: Path) -> str | None:
    packages, files = peer.missing_packages(), peer.missing_files(folder)
    if packages:
        return f"not installed: {', '.join(packages)}"
    if files:
        return f"not prepared: {', '.join(files)}"
    return None


def _facts(peer: Peer, folder: Path) -> dict[str, Any]:
    """What is known without running: versions and sizes."""
    if peer.missing_packages():
        return {}
    found = distributions(peer.imports)
    facts: dict[str, Any] = {
        "versions": {name: distribution.version for name, distribution in sorted(found.items())},
        "installed_mb": installed_mb(peer.imports),
    }
    if peer.files and not peer.missing_files(folder):
        facts["model_mb"] = disk_mb(folder / name for name in peer.files)
    return facts


def _caption_lengths(workers: Sequence[Worker], photos: Sequence[Path]) -> dict[str, int]:
    """Words of the reference's caption for each photo."""
    reference = next((worker for worker in workers if worker.peer.name == REFERENCE), None)
    lengths = {}
    for photo in photos:
        if reference is not None:
            reference.run("caption", photo, _USUAL_WORDS, 1)
        lengths[photo.name] = (
            len(reference.captions.get(photo.name, "").split()) if reference is not None else 0
        ) or _USUAL_WORDS
    return lengths


def _warm_up(worker: Worker, photo: Path, words: dict[str, int], plan: Plan) -> dict[str, int]:
    """Run each task a few times, and say how often it goes into a burst."""
    times = {}
    for task in worker.tasks:
        length = words[photo.name] if task == "caption" else DECODED_WORDS
        quickest = min(worker.run(task, photo, length, 2))
        times[task] = max(1, min(plan.most_runs, int(plan.burst_milliseconds / quickest)))
    return times


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="written by `python -m benchmarks.prepare`")
    names = list(PEERS)
    parser.add_argument("--engines", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--threads", type=int, default=2, help="of every engine (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="bursts of each engine and task (default: %(default)s)")
    parser.add_argument("--rest", type=float, default=0.15, metavar="SECONDS", help="between bursts (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of one run: that it works, not how fast it is")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "peers.json", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    photos = sorted((arguments.folder / "photos").glob("*.jpg"))
    if not photos:
        parser.error(f"{arguments.folder}: no photos; run `python -m benchmarks.prepare` first")
    plan = Plan(arguments.threads, arguments.rounds, arguments.rest, burst_milliseconds=250, most_runs=10)
    if arguments.quick:
        plan = Plan(arguments.threads, rounds=2, rest_seconds=0.0, burst_milliseconds=0, most_runs=1)
    peers = [peer for peer in ROSTER if peer.name in arguments.engines]
    results = compare(peers, arguments.folder.resolve(), photos, plan, lambda line: print(line, file=sys.stderr))
    results["quick"] = arguments.quick
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    for name, result in results["peers"].items():
        print(f"{name:<20} {result['status']}")
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
