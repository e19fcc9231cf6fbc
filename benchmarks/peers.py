"""Measure caplet and its peers side by side: `python -m benchmarks.peers FOLDER`.

Engines in one process disturb each other by spinning, and a machine changes within minutes. So each engine has its own
process, and all take turns in short bursts in a single run, with a rest before each burst, in which the threads of the
engine before fall asleep.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
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
from benchmarks.outputs import ROOT, add_output, now, output_file, write_results
from benchmarks.roster import PEERS, ROSTER, Peer
from caplet.arguments import count

TASKS = ("caption", "encode", "decode")
DECODED_WORDS = 12
REFERENCE = "caplet-int8"  # its captions set the length for engines with random weights
_USUAL_WORDS = 10
_ANSWER_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured."""

    threads: int
    rounds: int
    rest_seconds: float
    burst_milliseconds: float
    """Length of a burst, which has as many runs as fit, at least one."""
    most_runs: int
    """Limit on the runs of a burst."""


class WorkerError(Exception):
    """An engine could not be loaded, or failed."""


class Worker:
    """An engine's process."""

    def __init__(self, peer: Peer, folder: Path, threads: int) -> None:
        self.peer = peer
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2",
            **peer.environment,
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
        """The tasks that it can run."""
        return TASKS if self.loaded["stages"] else TASKS[:1]

    def run(self, task: str, photo: Path, words: int, times: int) -> list[float]:
        """Run a task `times` times; milliseconds of each run. Raises WorkerError."""
        command = {"task": task, "photo": str(photo), "words": words, "times": times}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._error_text()) from None
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
            raise WorkerError(self._error_text())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _error_text(self) -> str:
        """The last line that the process wrote on standard error before it ended, or else its exit status."""
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1][:300] if lines else f"ended with status {self._process.returncode}"


class Contest:
    """The engines that still run, and the results of all; an engine that fails leaves, and the others go on."""

    def __init__(self, peers: Iterable[Peer], folder: Path, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan, self._say = plan, say
        self.results: dict[str, dict[str, Any]] = {}
        self.workers: list[Worker] = []
        for peer in peers:
            say(f"load {peer.name}")
            status = _obstacle(peer, folder)
            if status is None:
                try:
                    self.workers.append(Worker(peer, folder, plan.threads))
                except WorkerError as error:
                    status = f"failed: {error}"
            self.results[peer.name] = {"label": peer.label, "status": status or "measured", **_facts(peer, folder)}

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.close()

    def caption_lengths(self, photos: Sequence[Path]) -> dict[str, int]:
        """Number of words of the reference's caption for each photo, by name; a usual number where it has none."""
        captions: dict[str, str] = {}
        for worker in [worker for worker in self.workers if worker.peer.name == REFERENCE]:
            for photo in photos:
                self._run(worker, "caption", photo, _USUAL_WORDS, 1)
            captions = worker.captions
        return {photo.name: len(captions.get(photo.name, "").split()) or _USUAL_WORDS for photo in photos}

    def warm_up(self, photo: Path, words: int) -> dict[tuple[str, str], int]:
        """Run each task a few times; how many runs of each (engine, task) a burst has."""
        times = {}
        for worker in list(self.workers):
            self._say(f"warm up {worker.peer.name}")
            for task in worker.tasks:
                quickest = min(self._run(worker, task, photo, words, 2), default=1.0)
                runs = int(self._plan.burst_milliseconds / quickest)
                times[worker.peer.name, task] = max(1, min(self._plan.most_runs, runs))
        return times

    def round(self, number: int, photo: Path, words: int, times: dict[tuple[str, str], int]) -> None:
        """A burst of each task by each engine, in every other round from the back, so that no engine always runs after
        the same one.
        """
        for task in TASKS:
            for worker in self.workers[:: -1 if number % 2 else 1]:
                if task in worker.tasks:
                    time.sleep(self._plan.rest_seconds)
                    runs = self._run(worker, task, photo, words, times[worker.peer.name, task])
                    if runs:
                        rounds = self.results[worker.peer.name].setdefault("rounds", {}).setdefault(task, [])
                        rounds.append([round(milliseconds, 4) for milliseconds in runs])

    def finish(self) -> dict[str, dict[str, Any]]:
        """The results, with what the engines that did not fail tell of themselves."""
        for worker in self.workers:
            result = self.results[worker.peer.name]
            result |= {
                "load_seconds": worker.loaded["load_seconds"],
                "memory_mb": worker.memory,
                "captions": worker.captions,
            }
            if worker.loaded["model_bytes"]:
                result["model_mb"] = worker.loaded["model_bytes"] / 1e6
        return self.results

    def _run(self, worker: Worker, task: str, photo: Path, words: int, times: int) -> list[float]:
        if worker not in self.workers:
            return []
        try:
            return worker.run(task, photo, words if task == "caption" else DECODED_WORDS, times)
        except WorkerError as error:
            self.results[worker.peer.name]["status"] = f"failed: {error}"
            self.results[worker.peer.name].pop("rounds", None)
            self.workers.remove(worker)
            worker.close()
            return []


def compare(
    peers: Iterable[Peer], folder: Path, photos: Sequence[Path], plan: Plan, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all peers that can be measured; the result says why the others cannot."""
    bundle = bundle_identity(folder / "int8")
    machine = describe_machine()
    contest = Contest(peers, folder, plan, say)
    try:
        words = contest.caption_lengths(photos)
        times = contest.warm_up(photos[0], words[photos[0].name])
        for number in range(plan.rounds):
            say(f"round {number + 1} of {plan.rounds}")
            photo = photos[number % len(photos)]
            contest.round(number, photo, words[photo.name], times)
        results = contest.finish()
    finally:
        contest.close()
    return {
        "created": now(),
        "machine": machine,
        "plan": dataclasses.asdict(plan),
        "decoded_words": DECODED_WORDS,
        "caption_words": words,
        **bundle,
        "peers": results,
    }


def bundle_identity(folder: Path) -> dict[str, str]:
    """Which bundle is measured: its name, and the sha256 of its manifest, which lists the hashes of all its files."""
    content = (folder / "manifest.json").read_bytes()
    return {"bundle": json.loads(content)["name"], "manifest_sha256": hashlib.sha256(content).hexdigest()}


def _obstacle(peer: Peer, folder: Path) -> str | None:
    packages, files = peer.missing_packages(), peer.missing_files(folder)
    if packages:
        return f"not installed: {', '.join(packages)}"
    if files:
        return f"not prepared: {', '.join(files)}"
    return None


def _facts(peer: Peer, folder: Path) -> dict[str, Any]:
    """Versions and sizes, which are known without running the engine."""
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="written by `python -m benchmarks.prepare`")
    names = list(PEERS)
    parser.add_argument("--engines", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--threads", type=count, default=2, help="of every engine (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=count, default=40, help="bursts of each engine and task (default: %(default)s)"
    )
    parser.add_argument("--rest", type=float, default=0.15, metavar="SECONDS", help="between bursts (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of one run: that it works, not how fast it is")
    add_output(parser, "peers.json")
    arguments = parser.parse_args(argv)
    photos = sorted((arguments.folder / "photos").glob("*.jpg"))
    if not photos or not (arguments.folder / "int8/manifest.json").exists():
        parser.error(f"{arguments.folder}: no photos or no bundle; run `python -m benchmarks.prepare` first")
    if not 0 <= arguments.rest < math.inf:
        parser.error(f"--rest: {arguments.rest} is not a number of seconds")
    whole = not arguments.quick and len(set(arguments.engines)) == len(names)
    output = output_file(parser, arguments.output, "peers.json", whole=whole)
    plan = Plan(arguments.threads, arguments.rounds, arguments.rest, burst_milliseconds=250, most_runs=10)
    if arguments.quick:
        plan = Plan(arguments.threads, rounds=2, rest_seconds=0.0, burst_milliseconds=0, most_runs=1)
    peers = [peer for peer in ROSTER if peer.name in arguments.engines]
    results = compare(peers, arguments.folder.resolve(), photos, plan, lambda line: print(line, file=sys.stderr))
    results["quick"] = arguments.quick
    write_results(output, results)
    for name, result in results["peers"].items():
        print(f"{name:<20} {result['status']}")
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
