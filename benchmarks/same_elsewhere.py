"""Whether caplet says on another system or processor what it says here; `arm64.sh` and `windows.sh` are its callers.

`python same_elsewhere.py run RESULT.npz PHOTO ...` in both places, then `... compare HERE.npz THERE.npz`.
"""

from __future__ import annotations

import sys

import numpy as np


def run(result: str, *photos: str) -> None:
    """Write what caplet makes of the photos: pixels, what the encoder gives, captions and scores."""
    from caplet import Captioner
    from caplet.image import load_pixels
    from caplet.machine import describe_cpu

    captioner = Captioner(threads=2)
    print(*describe_cpu()["features"], flush=True)
    captions = [captioner.caption(photo) for photo in photos]
    pixels = np.stack([load_pixels(photo, size=(299, 299)) for photo in photos])
    features, keys, state = captioner.sessions.encode(pixels)
    said = {"text": [caption.text for caption in captions], "score": [caption.score for caption in captions]}
    np.savez(result, **said, pixels=pixels, features=features, keys=keys, state=state)


def compare(*results: str) -> None:
    """Print how far two results are apart; an AssertionError if captions differ, or numbers by more than 1e-4."""
    here, there = (np.load(result) for result in results)
    for name in here:
        if name == "text":
            print("captions:", sum(here[name] == there[name]), "of", len(here[name]), "the same")
            assert (here[name] == there[name]).all(), (here[name], there[name])
        else:
            apart = np.abs(here[name].astype(float) - there[name]).max()
            print(f"{name}: at most {apart:.1g} apart" if apart else f"{name}: the same to the last bit")
            assert apart <= 1e-4


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    (run if verb == "run" else compare)(*arguments)
