"""What fails while photos are captioned: it costs no other photo its caption, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from caplet import BundleError, Caption, Captioner, ImageError, ImageNotFoundError, InferenceError
from caplet.image import load_pixels
from tiny_bundle import vocabulary

# Photos that fail.


def test_a_bad_photo_becomes_its_error_in_its_place(captioner: Captioner, photos: Path, texts: list[str]) -> None:
    sources = [photos / "cat.jpg", "nowhere.jpg", b"no photo", None, photos / "rocket.jpg", "nowhere.jpg"]
    for batch_size in (1, 2, 6, 100):
        results = list(captioner.caption_many(sources, batch_size=batch_size, on_error="return"))  # type: ignore[arg-type]
        assert [isinstance(result, Caption) for result in results] == [True, False, False, False, True, False]
        assert [str(results[0]), str(results[4])] == [texts[1], texts[3]]
        assert isinstance(results[1], ImageNotFoundError)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_bad_photo_raises_at_its_turn(
    batch_size: int, captioner: Captioner, paths: list[Path], texts: list[str]
) -> None:
    found = captioner.caption_many([*paths[:2], "nowhere.jpg", *paths[2:]], batch_size=batch_size)
    assert [next(found).text, next(found).text] == texts[:2]
    with pytest.raises(ImageNotFoundError):
        next(found)
    with pytest.raises(StopIteration):
        next(found)


def test_a_photo_that_fails_when_it_is_drawn_is_an_error_in_its_place(
    captioner: Captioner, paths: list[Path], texts: list[str]
) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError(5, "Input/output error")

    large = np.zeros((20_000, 20_000), np.uint8)
    results = list(captioner.caption_many([paths[0], Broken(), large, paths[1]], on_error="return"))
    assert [str(results[0]), str(results[3])] == texts[:2]
    assert "Input/output error" in str(results[1])
    assert "too large" in str(results[2])


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_the_iterable_comes_after_the_captions_before_it(
    threads: int, tiny_bundle: Path, paths: list[Path], texts: list[str]
) -> None:
    def broken() -> Iterator[Path]:
        yield from paths[:3]
        raise ConnectionError("the camera is gone")

    found = Captioner(tiny_bundle, threads=threads).caption_many(broken(), batch_size=8)
    assert [next(found).text for _ in range(3)] == texts[:3]
    with pytest.raises(ConnectionError):
        next(found)


def test_errors_that_are_kept_hold_no_photo(captioner: Captioner, photos: Path, tmp_path: Path) -> None:
    Image.open(photos / "cat.jpg").save(tmp_path / "cat.png")
    content = (tmp_path / "cat.png").read_bytes()
    kept = list(captioner.caption_many([content[: len(content) // 2], io.BytesIO(b"none")] * 3, on_error="return"))
    assert len(kept) == 6
    waiting: list[BaseException | None] = [result for result in kept if isinstance(result, ImageError)]
    assert len(waiting) == 6
    while waiting:
        error = waiting.pop()
        if error is not None:
            assert error.__traceback__ is None  # its frames would hold the pixels
            waiting += [error.__cause__, error.__context__]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("broken", ["photo", "iterator", "both"])
def test_what_failed_is_freed_without_the_garbage_collector(
    threads: int, broken: str, tiny_bundle: Path, paths: list[Path]
) -> None:
    """An iterator may hold files open, and an error keeps the frames alive that it came through."""

    class Photos:
        def __init__(self) -> None:
            self.left: list[Path | bytes] = [*paths, *[b"no photo"] * (broken != "iterator")]

        def __iter__(self) -> Photos:
            return self

        def __next__(self) -> Path | bytes:
            if not self.left:
                raise StopIteration if broken == "photo" else KeyError("x")
            return self.left.pop(0)

    captioner, photos = Captioner(tiny_bundle, threads=threads), Photos()
    alive = weakref.ref(photos)
    gc.disable()
    try:
        try:
            list(captioner.caption_many(photos))
        except (ImageError, KeyError) as error:  # not pytest.raises, which keeps it
            kind = type(error)
        del photos
        assert kind is (KeyError if broken == "iterator" else ImageError)
        assert alive() is None
    finally:
        gc.enable()


# Models that fail or say odd things.


def test_a_decoder_that_fails_is_an_error_for_every_photo_of_the_batch(
    tiny_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise InferenceError("decoder", "failed")

    captioner = Captioner(tiny_bundle)
    monkeypatch.setattr(captioner.sessions, "step", fail)
    results = list(captioner.caption_many([*paths, "nowhere.jpg"], on_error="return"))
    assert [type(result) for result in results] == [InferenceError] * len(paths) + [ImageNotFoundError]
    with pytest.raises(InferenceError):
        captioner.caption(paths[0])


@pytest.mark.parametrize(
    ("failure", "told"),
    [(InferenceError("decoder", "failed"), "decoder: failed"), (MemoryError(), "search: needs more memory than")],
    ids=["error", "no memory"],
)
def test_a_photo_whose_search_fails_costs_the_others_nothing(
    failure: Exception,
    told: str,
    tiny_bundle: Path,
    paths: list[Path],
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner = Captioner(tiny_bundle)
    bad = captioner.sessions.encode(load_pixels(paths[1])[None]).features[0]
    step = captioner.sessions.step

    def fail_for_one(token: Any, state: Any, features: Any, keys: Any) -> Any:
        if any(np.array_equal(each, bad) for each in features):
            raise failure
        return step(token, state, features, keys)

    monkeypatch.setattr(captioner.sessions, "step", fail_for_one)
    results = list(captioner.caption_many(paths, on_error="return"))
    assert isinstance(results[1], InferenceError) and str(results[1]).startswith(told)
    assert [str(result) for result in results[:1] + results[2:]] == texts[:1] + texts[2:]


class TimeLimitError(Exception):
    """Of a class of its own, like Celery's."""


@pytest.mark.parametrize("failure", [TimeLimitError(), TimeoutError()], ids=lambda failure: type(failure).__name__)
def test_a_time_limit_is_raised_as_it_is(
    failure: Exception, tiny_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler raises it while a graph runs. With several photos, the search began again without it."""
    captioner = Captioner(tiny_bundle)
    run, raised = captioner.sessions._decoder.run, iter([failure])

    class Session:
        def run(self, *arguments: Any) -> Any:
            for error in raised:
                raise error
            return run(*arguments)

    monkeypatch.setattr(captioner.sessions, "_decoder", Session())
    with pytest.raises(type(failure)):
        list(captioner.caption_many(paths, on_error="return"))


def test_a_time_limit_is_not_blamed_on_the_bundle(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TimeLimitError

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(TimeLimitError):
        Captioner(tiny_bundle)


def say(captioner: Captioner, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the decoder propose nothing but this token."""
    step = captioner.sessions.step

    def insist(*feeds: Any) -> Any:
        result = step(*feeds)
        return result._replace(tokens=np.full_like(result.tokens, token))

    monkeypatch.setattr(captioner.sessions, "step", insist)


@pytest.mark.parametrize("token", [-1, 0, 1, 3, 36])
def test_a_decoder_that_says_what_is_not_a_word_is_an_error(
    token: int, tiny_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = Captioner(tiny_bundle)
    say(captioner, token, monkeypatch)
    with pytest.raises(InferenceError, match="tokens that are not words"):
        captioner.caption(paths[0], beam_size=1, max_length=1)


@pytest.mark.parametrize("token", [4, 35])
def test_the_first_and_the_last_word_can_be_said(
    token: int, tiny_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = Captioner(tiny_bundle)
    say(captioner, token, monkeypatch)
    assert captioner.caption(paths[0], beam_size=1, max_length=1).words == (vocabulary(36)[token],)


def change_steps(
    captioner: Captioner, output: str, change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have one output of every step of the decoder changed."""
    step = captioner.sessions.step

    def changed(*feeds: Any) -> Any:
        result = step(*feeds)
        return result._replace(**{output: change(getattr(result, output))})

    monkeypatch.setattr(captioner.sessions, "step", changed)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize(
    ("output", "change", "told"),
    [
        ("log_probs", lambda log_probs: np.exp(log_probs), "probabilities above 1"),
        ("log_probs", lambda log_probs: log_probs - log_probs[:, :1] + 0.05, "probabilities above 1"),
        ("attention", lambda weights: np.full_like(weights, np.nan), "attention that is not"),
        ("attention", lambda weights: np.where(weights == weights.max(), weights + 1.5, -0.5), "attention that is not"),
        ("attention", lambda weights: np.full_like(weights, 3e38), "attention that is not"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_decoder_that_gives_impossible_numbers_is_an_error(
    output: str,
    change: Callable[[Any], Any],
    told: str,
    beam_size: int,
    tiny_bundle: Path,
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner = Captioner(tiny_bundle)
    change_steps(captioner, output, change, monkeypatch)
    with pytest.raises(InferenceError, match=f"decoder: gives {told}"):
        captioner.caption(paths[0], beam_size=beam_size)


@pytest.mark.parametrize(
    ("output", "change"),
    [
        ("log_probs", lambda log_probs: log_probs - log_probs[:, :1] + 2.0**-6),
        ("attention", lambda weights: np.rint(weights * 255).astype(np.float32) / 255),
    ],
    ids=["half precision", "8 bits"],
)
def test_rounded_numbers_are_possible(
    output: str, change: Callable[[Any], Any], tiny_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = Captioner(tiny_bundle)
    change_steps(captioner, output, change, monkeypatch)
    for path in paths:
        assert captioner.caption(path).plot(path).width > 0


# Too little memory.


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"),
    RuntimeError("bfc_arena.cc:360 AllocateRawInternal Failed to allocate memory for requested buffer of size 9437184"),
]


@pytest.mark.parametrize("failure", NO_MEMORY, ids=lambda failure: str(failure)[:20])
@pytest.mark.parametrize("place", ["caplet.bundle.check_self_contained", "onnxruntime.InferenceSession"])
def test_too_little_memory_for_the_graphs_is_not_called_damage(
    place: str, failure: Exception, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure if "InferenceSession" in place else MemoryError

    monkeypatch.setattr(place, fail)
    with pytest.raises(BundleError, match=r"needs more memory than there is; free some$"):
        Captioner(tiny_bundle)


@pytest.mark.parametrize("failure", NO_MEMORY, ids=lambda failure: str(failure)[:20])
def test_too_little_memory_for_the_encoder_is_an_error_of_the_photo(
    failure: Exception, tiny_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def run(self, *_: Any) -> None:
            raise failure

    captioner = Captioner(tiny_bundle, threads=1)
    monkeypatch.setattr(captioner.sessions, "_encoder", Session())
    results = list(captioner.caption_many(paths, on_error="return"))
    assert len(results) == len(paths)
    assert all(isinstance(result, InferenceError) and "more memory than there is" in str(result) for result in results)


def test_too_little_memory_to_encode_is_an_error_of_the_photo(
    tiny_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    captioner = Captioner(tiny_bundle, threads=2)
    monkeypatch.setattr(captioner.sessions, "encode", fail)
    results = list(captioner.caption_many(paths, on_error="return"))
    assert [str(result) for result in results] == ["encoder: needs more memory than there is; free some"] * len(paths)


# Too few threads.


@pytest.mark.parametrize(
    ("allowed", "refusal", "opens"),
    [
        (0, "can't start new thread", False),
        (2, "can't start new thread", False),
        (3, "can't start new thread", True),
        (0, "can't create new thread at interpreter shutdown", True),  # then only Python may start none
    ],
)
def test_too_few_threads_for_the_encoder_are_an_error(
    allowed: int, refusal: str, opens: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime needs three beside the caller's; where it can start some but not all, it waits for ever."""
    start = threading.Thread.start
    running: list[threading.Thread] = []

    def start_a_few(thread: threading.Thread) -> None:
        if not thread.name.startswith("caplet-"):
            if sum(other.is_alive() for other in running) == allowed:
                raise RuntimeError(refusal)
            running.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_a_few)
    told = "encoder.onnx: needs 4 threads, more than the system lets this process start; set fewer threads, or raise"
    with contextlib.nullcontext() if opens else pytest.raises(BundleError, match=told):
        Captioner(tiny_bundle, threads=4)
    assert not any(thread.is_alive() for thread in running)
