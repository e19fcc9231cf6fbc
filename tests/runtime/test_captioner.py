"""Captioner and Caption: the same words as the reference, from every input, in every way of asking."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import gc
import io
import itertools
import logging
import multiprocessing
import operator
import os
import pickle
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import typing
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import caplet
from caplet import (
    ArgumentError,
    BundleError,
    CapletError,
    Caption,
    Captioner,
    ImageError,
    ImageNotFoundError,
    InferenceError,
)
from caplet.captioner import join_words
from caplet.decode import search
from caplet.explain import plot_attention
from caplet.image import BinaryReader, load_pixels
from caplet.prefetch import in_order
from caplet.sessions import _after_fork
from tiny_bundle import END, TinyModel, reference_search, rehash, vocabulary, write_tiny_bundle

NAMES = ("astronaut", "cat", "coffee", "rocket")
LONG = os.environ.get("CAPLET_LONG") == "1"


@pytest.fixture(scope="module")
def captioner(tiny_bundle: Path) -> Captioner:
    return Captioner(tiny_bundle, threads=2)


@pytest.fixture(scope="module")
def paths(photos: Path) -> list[Path]:
    return [photos / f"{name}.jpg" for name in NAMES]


@pytest.fixture(scope="module")
def texts(captioner: Captioner, paths: list[Path]) -> list[str]:
    found = [captioner.caption(path).text for path in paths]
    assert len(set(found)) == len(found)  # a test that could not tell the photos apart would prove nothing
    return found


@pytest.mark.parametrize("beam_size", [1, 2, 3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_captions_are_those_of_the_same_model_in_numpy(
    name: str, beam_size: int, captioner: Captioner, photos: Path
) -> None:
    model, words = TinyModel.random(6), vocabulary(36)
    with Image.open(photos / f"{name}.jpg") as photo:
        pixels = np.asarray(photo.convert("RGB").resize((299, 299), Image.Resampling.BILINEAR))
    expected = reference_search(model, pixels, beam_size=beam_size, max_length=12)
    caption = captioner.caption(pixels, beam_size=beam_size)
    assert caption.words == tuple(words[token] for token in expected[0][0])
    assert caption.score == pytest.approx(expected[0][1], rel=1e-3)
    assert [a.score for a in caption.alternatives] == pytest.approx([score for _, score in expected], rel=1e-3)


def test_attention_and_scores_of_each_word_are_those_of_the_model_in_numpy(captioner: Captioner, photos: Path) -> None:
    model, words = TinyModel.random(6), vocabulary(36)
    pixels = np.asarray(Image.open(photos / "cat.jpg").convert("RGB").resize((299, 299)), np.uint8)
    caption = captioner.caption(pixels)
    features, keys, state = model.encode(pixels[None])
    last = np.array([1])
    for word, log_prob, attention in zip(caption.words, caption.word_scores, caption.attention, strict=True):
        log_probs, tokens, state, expected = model.step(last, state, features, keys)
        rank = tokens[0].tolist().index(words.index(word))
        assert log_prob == pytest.approx(float(log_probs[0, rank]), abs=1e-4)
        np.testing.assert_allclose(attention, expected.reshape(8, 8), atol=1e-5)
        last = tokens[:, rank]
    log_probs, tokens, *_ = model.step(last, state, features, keys)
    end = float(log_probs[0, tokens[0].tolist().index(END)])
    assert caption.score == pytest.approx((sum(caption.word_scores) + end) / (len(caption.words) + 1), abs=1e-4)


def test_a_caption_has_what_its_docstring_says(captioner: Captioner, photos: Path) -> None:
    caption = captioner.caption(photos / "cat.jpg")
    assert str(caption) == caption.text == " ".join(caption.words)
    assert caption.attention.shape == (len(caption.words), 8, 8)
    assert caption.attention.dtype == np.float32
    np.testing.assert_allclose(caption.attention.sum(axis=(1, 2)), 1, atol=1e-5)
    assert len(caption.word_scores) == len(caption.words)
    assert max(caption.word_scores) <= 0
    assert (caption.alternatives[0].text, caption.alternatives[0].score) == (caption.text, caption.score)
    assert len({alternative.text for alternative in caption.alternatives}) == 3
    assert 0 < caption.milliseconds < 60_000


def test_milliseconds_are_those_of_the_photo_and_a_share_of_the_search(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of its own: a photo is decoded in as many seconds as it says, encoded in 2; a search takes 8."""
    now = 0.0

    def taking(seconds: float, work: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            nonlocal now
            now += seconds
            return work(*arguments)

        return timed

    def load(source: Any, *, size: tuple[int, int], **_: Any) -> Any:
        if source == "bad":
            raise ImageError(source, "cannot be read")
        return taking(float(np.asarray(source).item()), np.zeros)((*size[::-1], 3), np.uint8)

    captioner = Captioner(tiny_bundle, threads=1)
    monkeypatch.setattr("caplet.captioner.time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr("caplet.captioner.load_pixels", load)
    monkeypatch.setattr("caplet.captioner.search", taking(8, search))
    monkeypatch.setattr(captioner.sessions, "encode", taking(2, captioner.sessions.encode))
    assert captioner.caption("1").milliseconds == 11_000
    photos = ["1", np.full((1, 1), 3, np.uint8), "bad", "5", "7"]  # an array is decoded before its turn
    found = captioner.caption_many(photos, on_error="return")
    assert [each.milliseconds for each in found if isinstance(each, Caption)] == [5_000, 7_000, 9_000, 11_000]


def test_a_caption_does_not_change(captioner: Captioner, photos: Path) -> None:
    caption = captioner.caption(photos / "cat.jpg")
    with pytest.raises(dataclasses.FrozenInstanceError):
        caption.text = "x"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        caption.attention[0] = 0
    again = captioner.caption(photos / "cat.jpg")
    assert caption == again
    assert hash(caption) == hash(again)
    assert caption != captioner.caption(photos / "rocket.jpg")
    assert pickle.loads(pickle.dumps(caption)) == copy.deepcopy(caption) == caption


def test_a_captioner_does_not_change(captioner: Captioner) -> None:
    for name in ("threads", "bundle", "sessions"):
        with pytest.raises(AttributeError):
            setattr(captioner, name, None)


def test_every_kind_of_source_gives_the_same_caption(captioner: Captioner, photos: Path, texts: list[str]) -> None:
    path = photos / "cat.jpg"
    picture = Image.open(path)
    content = path.read_bytes()
    sources: list[Any] = [str(path), path, content, bytearray(content), memoryview(content), io.BytesIO(content)]
    sources += [picture, np.asarray(picture)]
    assert {captioner.caption(source).text for source in sources} == {texts[NAMES.index("cat")]}


def test_red_and_blue_are_not_the_same(captioner: Captioner, photos: Path) -> None:
    pixels = np.asarray(Image.open(photos / "rocket.jpg"))
    assert captioner.caption(pixels).text != captioner.caption(pixels[:, :, ::-1]).text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], ""),
        (["dog"], "dog"),
        (["a", "dog", "'s", "ball"], "a dog's ball"),
        (["does", "n't"], "does n't"),
        (["'s"], "'s"),
    ],
)
def test_words_are_joined_by_the_rule_of_the_format(words: list[str], text: str) -> None:
    assert join_words(words) == text


def test_an_empty_caption_is_a_caption(tmp_path: Path, photos: Path) -> None:
    captioner = Captioner(write_tiny_bundle(tmp_path, seed=2))
    caption = captioner.caption(photos / "rocket.jpg")
    assert (caption.text, caption.words, caption.attention.shape) == ("", (), (0, 8, 8))
    assert caption.plot(photos / "rocket.jpg").size > (100, 100)


def test_plot_is_the_drawing_of_the_captions_own_words_attention_and_probabilities(
    captioner: Captioner, photos: Path
) -> None:
    caption = captioner.caption(photos / "cat.jpg")
    caption = dataclasses.replace(caption, text="another text", word_scores=(0.001, *caption.word_scores[1:]))
    probabilities = [1.0, *np.exp(caption.word_scores[1:])]  # rounding may put a word above 1
    expected = plot_attention(
        photos / "cat.jpg", caption.words, caption.attention, probabilities, caption="another text"
    )
    assert caption.plot(photos / "cat.jpg").tobytes() == expected.tobytes()


def test_plot_is_told_how_likely_each_word_was(
    captioner: Captioner, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr("caplet.explain.plot_attention", lambda *arguments, **_: told.append(arguments[3]))
    caption = captioner.caption(photos / "cat.jpg")
    caption.plot(photos / "cat.jpg")
    assert told[0] == pytest.approx(np.exp(caption.word_scores))
    rounded = dataclasses.replace(
        caption, word_scores=(1e-7,) * len(caption.words)
    )  # log-softmax in float32 may give that
    rounded.plot(photos / "cat.jpg")
    assert told[1] == [1.0] * len(caption.words)


def test_a_smaller_photo_size_and_few_candidates_work(tmp_path: Path, photos: Path) -> None:
    captioner = Captioner(write_tiny_bundle(tmp_path, height=64, width=96, top_k=3))
    assert captioner.caption(photos / "cat.jpg").words
    with pytest.raises(ArgumentError, match="from 1 to 3"):
        captioner.caption(photos / "cat.jpg", beam_size=4)


# Options.


@pytest.mark.parametrize("option", ["beam_size", "max_length"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, 10**6])
def test_options_that_make_no_sense(option: str, value: Any, captioner: Captioner, photos: Path) -> None:
    with pytest.raises(ArgumentError, match=option) as caught:
        captioner.caption(photos / "cat.jpg", **{option: value})
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ArgumentError, match=option):
        captioner.caption_many([], **{option: value})  # at once, not at the first photo


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": "8"}, {"batch_size": 10**5000}, {"on_error": "ignore"}]
)
def test_options_of_a_batch_that_make_no_sense(options: Any, captioner: Captioner) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        captioner.caption_many([], **options)


@pytest.mark.parametrize(
    "images",
    [
        3,
        None,
        "cat.jpg",
        Path("cat.jpg"),
        b"photo",
        io.BytesIO(b"photo"),
        Image.new("RGB", (4, 4)),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
    ],
    ids=lambda images: type(images).__name__,
)
def test_one_photo_is_not_several(images: Any, captioner: Captioner) -> None:
    with pytest.raises(ArgumentError, match=r"images: a \w+ is not several photos; give a list of them"):
        captioner.caption_many(images)  # text would come apart into letters, a file into lines, an array into rows


def test_a_stack_of_arrays_and_an_array_of_paths_are_several(captioner: Captioner, paths: list[Path]) -> None:
    stack = np.stack([np.asarray(Image.open(path).resize((99, 99))) for path in paths])
    found = [caption.text for caption in captioner.caption_many(stack)]
    assert found == [captioner.caption(picture).text for picture in stack]
    assert len(list(captioner.caption_many(np.array(list(map(str, paths)))))) == len(paths)


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", None])
def test_a_limit_that_makes_no_sense(value: Any, captioner: Captioner, photos: Path) -> None:
    with pytest.raises(ArgumentError, match="max_pixels"):
        captioner.caption(photos / "cat.jpg", max_pixels=value)
    with pytest.raises(ArgumentError, match="max_pixels"):
        captioner.caption_many([], max_pixels=value)


def test_the_limit_of_pixels_can_be_moved(captioner: Captioner, photos: Path) -> None:
    width, height = Image.open(photos / "cat.jpg").size
    caption = captioner.caption(photos / "cat.jpg", max_pixels=width * height)
    assert caption.plot(photos / "cat.jpg", max_pixels=width * height)
    for call in (captioner.caption, caption.plot):
        with pytest.raises(ImageError, match="raise max_pixels"):
            call(photos / "cat.jpg", max_pixels=width * height - 1)
    (error,) = captioner.caption_many([photos / "cat.jpg"], max_pixels=9, on_error="return")
    assert isinstance(error, ImageError)


def test_numbers_of_numpy_are_numbers(captioner: Captioner, photos: Path) -> None:
    assert len(captioner.caption(photos / "cat.jpg", beam_size=np.int64(2), max_length=np.int8(2)).words) <= 2


@pytest.mark.parametrize("max_length", [1, 3])
def test_max_length_is_a_number_of_words(max_length: int, captioner: Captioner, paths: list[Path]) -> None:
    for beam_size in (1, 3):
        for caption in captioner.caption_many(paths, beam_size=beam_size, max_length=max_length):
            assert len(caption.words) <= max_length


def test_a_truncated_photo_is_an_error_unless_accepted(captioner: Captioner, photos: Path) -> None:
    half = (photos / "cat.jpg").read_bytes()[:-4000]
    with pytest.raises(ImageError):
        captioner.caption(half)
    caption = captioner.caption(half, allow_truncated=True)
    assert caption.words
    assert next(captioner.caption_many([half], allow_truncated=True)) == caption
    assert caption.plot(half, allow_truncated=True)


def test_a_missing_photo_is_an_error(captioner: Captioner) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        captioner.caption("nowhere.jpg")
    assert isinstance(caught.value, FileNotFoundError)
    assert "nowhere.jpg" in str(caught.value)


# Many photos.


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8])
def test_many_photos_give_their_captions_in_order(
    batch_size: int, threads: int, tiny_bundle: Path, paths: list[Path], texts: list[str]
) -> None:
    captioner = Captioner(tiny_bundle, threads=threads)
    found = captioner.caption_many(paths * 3, batch_size=batch_size)
    assert [caption.text for caption in found] == texts * 3


def test_no_photos_give_no_captions(captioner: Captioner) -> None:
    assert list(captioner.caption_many([])) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_many_photos_are_drawn_lazily_and_only_a_few_ahead(threads: int, tiny_bundle: Path, photos: Path) -> None:
    drawn = 0

    def endless() -> Iterator[Path]:
        nonlocal drawn
        while True:
            drawn += 1
            yield photos / "cat.jpg"

    found = Captioner(tiny_bundle, threads=threads).caption_many(endless(), batch_size=4)
    assert drawn == 0
    for captions in range(1, 30):
        next(found)
        assert drawn <= captions + 3 + 4 + threads  # the rest of this batch, the next one, and one per worker
    found.close()


@pytest.mark.parametrize(
    ("threads", "batch_size", "expected"),
    [(1, 1, 1), (1, 8, 8), (1, 20, 8), (2, 1, 3), (2, 8, 17), (2, 20, 29), (6, 1, 5), (6, 8, 19)],
)
def test_as_many_photos_are_drawn_for_the_first_caption_as_the_documentation_says(
    threads: int, batch_size: int, expected: int, tiny_bundle: Path, photos: Path
) -> None:
    numbers = itertools.count(1)
    drawn = zip(numbers, itertools.repeat(photos / "cat.jpg"))
    found = Captioner(tiny_bundle, threads=threads).caption_many((path for _, path in drawn), batch_size=batch_size)
    next(found)
    assert next(numbers) - 1 == expected
    found.close()


def test_a_bad_photo_becomes_its_error_in_its_place(captioner: Captioner, photos: Path, texts: list[str]) -> None:
    sources = [photos / "cat.jpg", "nowhere.jpg", b"no photo", None, photos / "rocket.jpg", "nowhere.jpg"]
    for batch_size in (1, 2, 6, 100):
        results = list(captioner.caption_many(sources, batch_size=batch_size, on_error="return"))  # type: ignore[arg-type]
        assert [isinstance(result, Caption) for result in results] == [True, False, False, False, True, False]
        assert [str(results[0]), str(results[4])] == [texts[1], texts[3]]
        assert isinstance(results[1], ImageNotFoundError)


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


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"),
    RuntimeError("bfc_arena.cc:360 AllocateRawInternal Failed to allocate memory for requested buffer of size 9437184"),
]


@pytest.mark.parametrize("failure", NO_MEMORY, ids=lambda failure: str(failure)[:20])
@pytest.mark.parametrize("place", ["caplet.captioner.load_bundle", "onnxruntime.InferenceSession"])
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
    step = captioner.sessions.step

    def wrong(*feeds: Any) -> Any:
        result = step(*feeds)
        return result._replace(**{output: change(getattr(result, output))})

    monkeypatch.setattr(captioner.sessions, "step", wrong)
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
    step = captioner.sessions.step

    def rounded(*feeds: Any) -> Any:
        result = step(*feeds)
        return result._replace(**{output: change(getattr(result, output))})

    monkeypatch.setattr(captioner.sessions, "step", rounded)
    for path in paths:
        assert captioner.caption(path).plot(path).width > 0


@pytest.mark.parametrize("token", [4, 35])
def test_the_first_and_the_last_word_can_be_said(
    token: int, tiny_bundle: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = Captioner(tiny_bundle)
    say(captioner, token, monkeypatch)
    assert captioner.caption(paths[0], beam_size=1, max_length=1).words == (vocabulary(36)[token],)


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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["array", "buffer", "file", "picture"])
def test_what_is_drawn_may_be_used_again_or_closed(
    kind: str, threads: int, tiny_bundle: Path, paths: list[Path], texts: list[str]
) -> None:
    def drawn() -> Iterator[Any]:
        frame = np.zeros((300, 300, 3), np.uint8)
        for path in paths * 3:
            if kind == "array":
                frame[:] = np.asarray(Image.open(path).resize((300, 300)))
                yield frame
            elif kind == "buffer":
                content = bytearray(path.read_bytes())
                yield content
                content[:] = b"x" * len(content)
            elif kind == "file":
                with path.open("rb") as file:
                    yield file
            else:
                with Image.open(path) as picture:
                    yield picture
        frame[:] = 0

    captioner = Captioner(tiny_bundle, threads=threads)
    if kind == "array":
        texts = [str(captioner.caption(np.asarray(Image.open(path).resize((300, 300))))) for path in paths]
    assert [str(caption) for caption in captioner.caption_many(drawn())] == texts * 3


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


@pytest.mark.parametrize("started", [0, 1])
def test_where_no_thread_can_be_started_the_caller_does_the_work(
    started: int, captioner: Captioner, paths: list[Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    left = iter(range(started))

    def refuse(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    found = captioner.caption_many([*paths, "nowhere.jpg", *paths], batch_size=3, on_error="return")
    assert [str(result) for result in found if not isinstance(result, CapletError)] == texts * 2


def test_where_threads_run_short_no_work_is_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool has queued an item when it finds that it cannot start a thread for it, and its other threads take it."""
    start, done, refused = threading.Thread.start, [], threading.Event()

    def start_the_first(thread: threading.Thread) -> None:
        if any(other.name.startswith("caplet-photo") for other in threading.enumerate()):
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    def work(item: int) -> int:
        assert refused.wait(60)  # busy until then, so that a second thread is asked for
        done.append(item)
        return item

    monkeypatch.setattr(threading.Thread, "start", start_the_first)
    assert list(in_order(range(9), work, workers=2, ahead=3)) == [*range(9)]
    assert sorted(done) == [*range(9)]


def photo_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("caplet-photo")}


@pytest.mark.parametrize("how", ["close", "let go", "exhaust", "fail"])
def test_threads_end_with_the_iterator(how: str, captioner: Captioner, paths: list[Path]) -> None:
    source: Any = itertools.cycle(paths) if how in ("close", "let go") else [*paths, "x"] if how == "fail" else paths
    others = photo_threads()  # of an iterator that an earlier test still holds
    found = captioner.caption_many(source, batch_size=2)
    next(found)
    assert photo_threads() - others
    if how == "close":
        found.close()
    elif how == "fail":
        with pytest.raises(ImageNotFoundError):
            list(found)
    elif how == "exhaust":
        list(found)
    del found
    deadline = time.monotonic() + 10
    while photo_threads() - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not photo_threads() - others


def test_closing_waits_for_no_work_and_begins_none() -> None:
    begun: queue.SimpleQueue[int] = queue.SimpleQueue()
    closed = threading.Event()

    def work(item: int) -> None:
        begun.put(item)
        if item > 0:
            closed.wait(10)

    others, items = photo_threads(), itertools.count()
    results = in_order(items, work, workers=2, ahead=6)
    next(results)
    assert next(items) == 6  # six were drawn: 0 to 5
    assert {begun.get() for _ in range(3)} == {0, 1, 2}
    threads = photo_threads() - others
    assert len(threads) == 2
    results.close()
    assert photo_threads() >= threads  # still busy with their items
    closed.set()
    for thread in threads:
        thread.join(10)
    assert begun.empty()


def test_photos_are_decoded_and_encoded_while_sentences_are_searched(
    captioner: Captioner, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[tuple[str, int]] = []
    encode = captioner.sessions.encode

    def watched(pixels: Any) -> Any:
        encoded.append((threading.current_thread().name, len(pixels)))
        return encode(pixels)

    monkeypatch.setattr(captioner.sessions, "encode", watched)
    found = captioner.caption_many(paths * 4, batch_size=2)
    next(found)
    deadline = time.monotonic() + 10
    while len(encoded) < 4 and time.monotonic() < deadline:  # the next batch is encoded before anybody asks
        time.sleep(0.01)
    assert len(encoded) >= 4
    # Each by itself, so that neither the result of encoding a photo nor its memory depends on the batch.
    assert all(name.startswith("caplet-photo") and photos == 1 for name, photos in encoded)
    found.close()


def test_photos_are_encoded_side_by_side(
    tiny_bundle: Path, paths: list[Path], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = Captioner(tiny_bundle, threads=2)
    both = threading.Barrier(2, timeout=10)
    encode = captioner.sessions.encode

    def watched(pixels: Any) -> Any:
        both.wait()  # breaks, which is an error, unless two photos get here at the same time
        return encode(pixels)

    monkeypatch.setattr(captioner.sessions, "encode", watched)
    assert [str(caption) for caption in captioner.caption_many(paths, batch_size=4)] == texts


def test_a_folder_with_broken_photos(captioner: Captioner, paths: list[Path], texts: list[str]) -> None:
    total, broken = (2000, 50) if LONG else (200, 5)
    contents = [path.read_bytes() for path in paths]
    step = total // broken
    sources = [contents[i % 4][:200] if i % step == 7 else contents[i % 4] for i in range(total)]
    results = list(captioner.caption_many(sources, on_error="return"))
    assert [isinstance(result, CapletError) for result in results] == [i % step == 7 for i in range(total)]
    for i, result in enumerate(results):
        assert isinstance(result, CapletError) or result.text == texts[i % 4]


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


# Threads, processes.


def test_one_captioner_shared_by_eight_threads(captioner: Captioner, paths: list[Path], texts: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda path: captioner.caption(path).text, paths * 25)) == texts * 25


def test_eight_threads_may_also_caption_many(captioner: Captioner, paths: list[Path], texts: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: [str(c) for c in captioner.caption_many(paths * 2, batch_size=3)], range(8)):
            assert found == texts * 2


@pytest.mark.parametrize("method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_a_captioner_can_be_handed_to_another_process(
    method: str, captioner: Captioner, paths: list[Path], texts: list[str]
) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        caption = pool.submit(operator.methodcaller("caption", paths[1]), captioner).result(timeout=60)
        assert caption.text == texts[1]
        error = pool.submit(operator.methodcaller("caption", "nowhere.jpg"), captioner).exception(timeout=60)
        assert isinstance(error, ImageNotFoundError)


FORK = """
import os, sys, time
from caplet import Captioner
captioner = Captioner(sys.argv[1], threads=3)
text = captioner.caption(sys.argv[2]).text
for used in (False, True):
    child = os.fork()
    if child == 0:
        if used:
            assert [c.text for c in captioner.caption_many([sys.argv[2]] * 3)] == [text] * 3
        sys.exit(7)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.02)
    print(os.waitstatus_to_exitcode(ended[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_exits_as_any_process_does(tiny_bundle: Path, photos: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tiny_bundle), str(photos / "cat.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "7\n7\n"


C_FORK = """
import ctypes, os, sys
from caplet import Captioner
captioner = Captioner(sys.argv[1], threads=3)
text = captioner.caption(sys.argv[2]).text
child = ctypes.PyDLL(None).fork()
if child == 0:
    assert captioner.caption(sys.argv[2]).text == text
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_that_was_forked_behind_pythons_back_may_caption(tiny_bundle: Path, photos: Path) -> None:
    """As uWSGI does by default: nothing that is registered to be done at a fork is done."""
    command = [sys.executable, "-c", C_FORK, str(tiny_bundle), str(photos / "cat.jpg")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.communicate(timeout=60)[0] == "7\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


KEPT_ERROR = """
import os, sys
from caplet import BundleError, Captioner
try:
    Captioner(sys.argv[1], threads=3)
except BundleError as error:
    kept = error
    child = os.fork()
    if child == 0:
        sys.exit(7)
    print(kept.cause[:11], os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(("decoder", "cause"), [("another graph", "has the inp"), ("no graph", "onnxruntime")])
def test_a_forked_child_may_have_the_error_of_a_captioner_that_failed(decoder: str, cause: str, tmp_path: Path) -> None:
    """The error holds the frames that it came through, and these the encoder's session, which was loaded."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    graph = (bundle / "encoder.onnx").read_bytes()
    (bundle / "decoder.onnx").write_bytes(graph if decoder == "another graph" else graph.replace(b"Tanh", b"Tan!"))
    rehash(bundle)
    command = [sys.executable, "-c", KEPT_ERROR, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{cause} 7\n"


PLOT_AT_A_FORK = """
import os, sys, threading
from caplet import Captioner
import caplet.image_file

caption = Captioner(sys.argv[1], threads=1).caption(sys.argv[2])
caplet.image_file._import_all()  # so that little else is imported at the fork

class Slow:  # comes before the usual finders of modules
    def find_spec(self, name, path, target=None):
        if name == "caplet.explain":
            importing.set()
            forking.wait(1)  # ends early only if the fork does not wait for this import

importing, forking = threading.Event(), threading.Event()
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=caption.plot, args=sys.argv[2:])
thread.start()
importing.wait()
child = os.fork()
forking.set()
if child == 0:
    import signal
    signal.alarm(20)
    caption.plot(sys.argv[2])
    os._exit(7)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_draw_whatever_its_parents_threads_do(tiny_bundle: Path, photos: Path) -> None:
    command = [sys.executable, "-c", PLOT_AT_A_FORK, str(tiny_bundle), str(photos / "cat.jpg")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "7\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_caption_drop_and_end(
    tiny_bundle: Path, photos: Path, texts: list[str], tmp_path: Path
) -> None:
    captioner = Captioner(tiny_bundle, threads=3)
    captioner.caption(photos / "cat.jpg")
    child = os.fork()
    if child == 0:
        # Nothing may leave this block: the child is a copy of the whole test run.
        try:
            with ThreadPoolExecutor(2) as pool:
                found = set(pool.map(lambda _: captioner.caption(photos / "cat.jpg").text, range(4)))
            del captioner  # onnxruntime would wait here for threads that exist in the parent only
            (tmp_path / "out").write_text("\n".join(found))
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.02)
    assert (tmp_path / "out").read_text() == texts[1]
    assert captioner.caption(photos / "cat.jpg").text == texts[1]  # the parent can go on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_cannot_go_on_with_what_its_parent_began(
    captioner: Captioner, paths: list[Path], texts: list[str]
) -> None:
    found = captioner.caption_many(paths * 4, batch_size=1)
    assert next(found).text == texts[0]
    child = os.fork()
    if child == 0:
        # Nothing may leave this block: the child is a copy of the whole test run.
        status = 1
        try:
            signal.alarm(60)  # it would wait for the parent's threads for ever
            next(found)
        except InferenceError as error:
            status = 0 if "call it in each process" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert [caption.text for caption in found] == (texts * 4)[1:]


def test_in_another_process_the_graphs_are_opened_once(
    tiny_bundle: Path, photos: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a forked child, but in this process: all threads wait for one of them to open the graphs."""
    captioner = Captioner(tiny_bundle, threads=1)
    _after_fork()  # as at the fork
    opened = 0
    open_graphs = captioner.sessions._open

    def counted() -> None:
        nonlocal opened
        opened += 1
        open_graphs()

    monkeypatch.setattr(captioner.sessions, "_open", counted)
    monkeypatch.setattr("caplet.sessions.os.getpid", lambda: 1)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: captioner.caption(photos / "cat.jpg").text, range(8))) == {texts[1]}
    assert opened == 1


@pytest.mark.parametrize("whole", [False, True], ids=["one graph", "the whole bundle"])
def test_another_process_opens_no_other_graphs(
    whole: bool, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the fork and the child's first photo the files may be replaced, as by an update."""
    captioner = Captioner(write_tiny_bundle(tmp_path / "bundle"), threads=1)
    other = write_tiny_bundle(tmp_path / "other", seed=7)
    for file in other.glob("*.*") if whole else [other / "decoder.onnx"]:
        shutil.copy(file, tmp_path / "bundle" / file.name)
    assert captioner.caption(photos / "cat.jpg")
    _after_fork()  # as at the fork
    monkeypatch.setattr("caplet.sessions.os.getpid", lambda: 1)
    with pytest.raises(BundleError, match="is not the model that was loaded" if whole else "has been altered"):
        captioner.caption(photos / "cat.jpg")


def test_pickled_it_comes_back_the_same(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    captioner = Captioner(tiny_bundle.name, threads=1, verify=False)
    data = pickle.dumps(captioner)
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again.threads == 1
    assert not again.bundle.verified
    assert again.bundle.digest == captioner.bundle.digest
    assert again.caption(photos / "cat.jpg") == captioner.caption(photos / "cat.jpg")
    assert str(tiny_bundle) in repr(again)


def test_pickled_it_has_the_providers_that_it_was_made_with(tiny_bundle: Path) -> None:
    options: dict[str, Any] = {}
    providers = [("CPUExecutionProvider", options)]
    captioner = Captioner(tiny_bundle, threads=1, providers=providers)
    providers.clear()
    options["device_id"] = lambda: 0  # which cannot be pickled
    pickle.loads(pickle.dumps(captioner))


def test_handed_over_with_every_photo_it_is_loaded_once(tiny_bundle: Path, tmp_path: Path) -> None:
    """As by `executor.map(captioner.caption, photos)`, for which a pool pickles the method again and again."""
    captioner = Captioner(tiny_bundle, threads=1)
    again = pickle.loads(pickle.dumps(captioner))
    assert pickle.loads(pickle.dumps(captioner.caption)).__self__ is again
    for other in (
        Captioner(tiny_bundle, threads=2),
        Captioner(tiny_bundle, threads=1, verify=False),
        Captioner(tiny_bundle, threads=1, providers=[("CPUExecutionProvider", {"a": "b"})]),
        Captioner(write_tiny_bundle(tmp_path / "bundle", seed=1), threads=1),
    ):
        different = pickle.loads(pickle.dumps(other))
        assert different is not again and different.bundle == other.bundle and different.threads == other.threads


def test_after_its_files_have_changed_it_is_loaded_again(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    before = pickle.loads(pickle.dumps(Captioner(folder, threads=1)))
    shutil.rmtree(folder)
    write_tiny_bundle(folder, seed=1)
    after = pickle.loads(pickle.dumps(Captioner(folder, threads=1)))
    assert before.bundle.digest != after.bundle.digest


class Shouting(Captioner):
    def caption(self, *arguments: Any, **options: Any) -> Any:
        return super().caption(*arguments, **options).text.upper()


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda captioner: pickle.loads(pickle.dumps(captioner))])
def test_a_subclass_comes_back_as_one(way: Any, tiny_bundle: Path, photos: Path, texts: list[str]) -> None:
    again = way(Shouting(tiny_bundle, threads=1))
    assert type(again) is Shouting and again.threads == 1
    assert again.caption(photos / "cat.jpg") == texts[1].upper()


def test_a_copy_is_itself_and_loads_no_model(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caplet.captioner.load_bundle", None)
    assert copy.copy(captioner) is captioner
    assert copy.deepcopy({"describe": captioner})["describe"] is captioner


@pytest.mark.parametrize("way", ["pickle", "tblib"])
@pytest.mark.parametrize("kind", [getattr(caplet, name) for name in caplet.__all__ if name.endswith("Error")])
def test_an_error_comes_back_as_it_was(kind: type[CapletError], way: str) -> None:
    error = kind("cat.jpg", "is a cat", "bring a dog")
    if way == "pickle":
        again = pickle.loads(pickle.dumps(error))
    else:  # which Dask and others use; it makes an empty one and fills it
        again = kind.__new__(kind)
        again.args = error.args
        again.__dict__.update(vars(error))
    assert type(again) is kind and again.args == error.args
    assert str(again) == str(error) == "cat.jpg: is a cat; bring a dog"
    if isinstance(error, OSError):
        assert (error.errno, error.strerror, error.filename) == (errno.ENOENT, "is a cat", "cat.jpg")


def test_type_checkers_know_the_names_and_errors(tmp_path: Path) -> None:
    """Only these two modules: NumPy's types would take long."""
    pytest.importorskip("mypy")
    (tmp_path / "caplet").mkdir()
    for module in ("__init__", "errors"):
        shutil.copy(Path(caplet.__file__).with_name(f"{module}.py"), tmp_path / "caplet")
    program = tmp_path / "program.py"
    lines = ["import caplet", *(f"caplet.{name}" for name in caplet.__all__), "caplet.Captoner"]
    errors = [name for name in caplet.__all__ if name.endswith("Error")]
    lines += [f"try:\n    print()\nexcept caplet.{name} as error:\n    reveal_type(error)" for name in errors]
    program.write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", program]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert re.findall(r'type is "caplet\.errors\.(.*)"', told) == errors
    assert re.findall(r'error: Module has no attribute "(\w+)"|error:', told) == ["Captoner"]


def test_a_caption_comes_back_read_only(captioner: Captioner, photos: Path) -> None:
    caption = captioner.caption(photos / "cat.jpg")
    for again in (pickle.loads(pickle.dumps(caption)), copy.deepcopy(caption)):
        assert again == caption and np.array_equal(again.attention, caption.attention)
        assert not again.attention.flags.writeable


# What it does to the process around it.


def test_silent_until_asked(
    tiny_bundle: Path, photos: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Captioner(tiny_bundle).caption(photos / "cat.jpg")
    assert capfd.readouterr() == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("caplet").handlers)
    with caplog.at_level(logging.DEBUG, logger="caplet"):
        Captioner(tiny_bundle).caption(photos / "cat.jpg")
    assert "loaded tiny-6" in caplog.text
    assert "captioned 1 of 1" in caplog.text


def test_idle_means_idle(captioner: Captioner, photos: Path) -> None:
    captioner.caption(photos / "cat.jpg")
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.02  # spinning threads would have taken 0.5


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(captioner: Captioner, photos: Path) -> None:
    content = (photos / "cat.jpg").read_bytes()
    for _ in captioner.caption_many(itertools.repeat(content, 200)):
        pass
    before = resident_bytes()
    for _ in captioner.caption_many(itertools.repeat(content, 20_000 if LONG else 1_000)):
        pass
    assert resident_bytes() - before < 10 * 2**20


def test_types_allow_what_works() -> None:
    result = typing.get_type_hints(Captioner.caption_many)["return"]
    assert typing.get_origin(result) is Generator  # which `contextlib.closing` needs
    assert typing.get_type_hints(BinaryReader.read)["return"] is bytes  # as files and mmaps have it
    assert BinaryReader in typing.get_args(caplet.ImageSource)
    assert typing.get_type_hints(Caption.plot)["return"] is Image.Image  # for tools that read signatures


def test_the_package_has_the_names_it_lists_and_no_others() -> None:
    assert set(dir(caplet)) == set(caplet.__all__)
    assert all(getattr(caplet, name) is not None for name in caplet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = caplet.nothing
