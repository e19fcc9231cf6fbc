"""Mutated bundles: each is refused with a BundleError or works; no other exception, no hang, no growth.

CAPLET_FUZZ=2000 makes the long run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caplet import BundleError, Captioner
from tiny_bundle import rehash

ROUNDS = int(os.environ.get("CAPLET_FUZZ", "150"))
FILES = ("manifest.json", "encoder.onnx", "decoder.onnx", "vocabulary.txt", "README.md", "golden/cat.png")
VALUES = (
    None,
    True,
    -1,
    0,
    1.5,
    1e300,
    2**64,
    "",
    "x",
    "../x",
    "\0",
    "a" * 99_999,
    [],
    [[]],
    {},
    {"file": "/etc/passwd"},
)


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """Flip bits, cut, repeat, splice, insert."""
    kind = chance.randrange(5)
    at, length = chance.randrange(len(content)), chance.randrange(1, 64)
    if kind == 0:
        changed = bytearray(content)
        for _ in range(chance.choice([1, 3, 30])):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + content[max(0, at - length) :]
    if kind == 3:
        other = chance.randrange(len(content))
        return content[:at] + content[other : other + length] + content[at + length :]
    return content[:at] + chance.randbytes(length) + content[at:]


def mutate_json(manifest: Any, chance: random.Random) -> None:
    """Replace, remove or move one value somewhere in the tree."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(manifest)
    node, key = chance.choice(places)
    kind = chance.randrange(3)
    if kind == 0:
        node[key] = chance.choice(VALUES)
    elif kind == 1:
        del node[key]
    else:
        other, other_key = chance.choice(places)
        node[key] = json.loads(json.dumps(other.get(other_key) if isinstance(other, dict) else None))


def damage(bundle: Path, chance: random.Random) -> bool:
    """Change something in the bundle; returns whether hashes should be compared when it is loaded."""
    kind = chance.randrange(4)
    if kind == 0:  # any file, damaged without its sender noticing
        path = bundle / chance.choice(FILES)
        path.write_bytes(mutate_bytes(path.read_bytes(), chance))
        return True
    if kind == 1:  # a file gone, or something else in its place
        path = bundle / chance.choice(FILES)
        path.unlink()
        special = [lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")] if sys.platform != "win32" else []
        action: Callable[[], Any] = chance.choice([lambda: None, path.mkdir, *special, path.touch])
        action()
        return True
    if kind == 2:  # a manifest that is still JSON
        manifest = json.loads((bundle / "manifest.json").read_text())
        for _ in range(chance.choice([1, 1, 3])):
            mutate_json(manifest, chance)
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return chance.random() < 0.5
    path = bundle / "vocabulary.txt"  # a forged vocabulary, with a matching hash
    path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    rehash(bundle)
    return True


@pytest.mark.parametrize("block", range(5))
def test_a_damaged_bundle_is_refused_or_works(block: int, tiny_bundle: Path, tmp_path: Path, photos: Path) -> None:
    refused = 0
    for number in range(ROUNDS // 5):
        chance = random.Random(1000 * block + number)
        bundle = Path(shutil.copytree(tiny_bundle, tmp_path / f"{number}"))
        verify = damage(bundle, chance)
        started = time.process_time()
        try:
            Captioner(bundle, threads=1, verify=verify).caption(photos / "cat.jpg")
        except BundleError:
            refused += 1
        assert time.process_time() - started < 5
        shutil.rmtree(bundle)
    assert refused > ROUNDS // 5 // 2


FORGED_GRAPHS = """
import random, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_fuzz_bundles import mutate_bytes
from tiny_bundle import rehash
from caplet import Captioner, CapletError
tiny, work, photo, first, count = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
for number in range(first, first + count):
    chance = random.Random(number)
    bundle = Path(shutil.copytree(tiny, work / str(number)))
    path = bundle / chance.choice(["encoder.onnx", "decoder.onnx"])
    path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    rehash(bundle)
    print(number, flush=True)
    try:
        Captioner(bundle, threads=1).caption(photo)
    except CapletError:
        pass
    shutil.rmtree(bundle)
print("done", flush=True)
"""


def test_forged_graphs_are_refused_or_work(tiny_bundle: Path, tmp_path: Path, photos: Path) -> None:
    """Damaged graphs with matching hashes, in a process of their own in case onnxruntime crashes."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", FORGED_GRAPHS, str(here), str(tiny_bundle), str(tmp_path), str(photos / "cat.jpg")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    process = subprocess.run(
        [*command, "0", str(ROUNDS)], capture_output=True, text=True, check=False, env=environment, timeout=5 * ROUNDS
    )
    assert process.stdout.split()[-1:] == ["done"], process.stderr[-2000:]
    assert process.returncode == 0
