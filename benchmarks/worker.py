"""One engine in a process of its own, which its standard input tells what to run; see `benchmarks.peers`.

A line in is a JSON command, a line out its JSON answer. Libraries that print do so to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.engine import Engine, StagedEngine, plain_pixels
from benchmarks.machine import memory_mb
from benchmarks.roster import PEERS


class Tasks:
    """What can be timed of an engine, by name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._encoded: tuple[str, Any] = ("", None)  # of the photo that was encoded last

    def prepare(self, task: str, photo: str, words: int) -> Callable[[], Any]:
        """The work of a task, ready to be timed: all that is not part of it has been done."""
        engine = self._engine
        if task == "caption":
            return lambda: engine.caption(Path(photo), words)
        if not isinstance(engine, StagedEngine):
            raise ValueError(f"no stage {task!r}")
        pixels = plain_pixels(Path(photo), engine.size)

        def encode() -> None:
            self._encoded = (photo, engine.encode(pixels))

        if task == "encode":
            return encode
        # Not encoded here if it can be helped: where the encoder's threads go on spinning, they would slow this burst.
        if self._encoded[0] != photo:
            encode()
        encoded = self._encoded[1]
        return lambda: engine.decode(encoded, words)


def burst(work: Callable[[], Any], times: int) -> tuple[list[float], Any]:
    """Milliseconds of each run, and the last one's result. One untimed run goes before, to refill the caches."""
    result = work()
    milliseconds = []
    for _ in range(times):
        started = time.perf_counter()
        result = work()
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds, result


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, folder, threads = sys.argv[1:]

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    started = time.perf_counter()
    engine = PEERS[name].build(Path(folder), int(threads))
    tasks = Tasks(engine)
    answer(
        load_seconds=time.perf_counter() - started,
        model_bytes=getattr(engine, "model_bytes", None),
        stages=isinstance(engine, StagedEngine),
    )
    for line in sys.stdin:
        command = json.loads(line)
        work = tasks.prepare(command["task"], command["photo"], command["words"])
        milliseconds, result = burst(work, command["times"])
        answer(milliseconds=milliseconds, text=result if isinstance(result, str) else None, memory=memory_mb())


if __name__ == "__main__":
    main()
