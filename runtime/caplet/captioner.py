"""Captioner and Caption, what programs use of caplet: image, bundle, sessions and decode put together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from caplet.arguments import whole_number
from caplet.bundle import Bundle, load_bundle
from caplet.decode import Encoded, Hypothesis, search
from caplet.errors import NO_MEMORY, RUN_CHECK, ArgumentError, BundleError, CapletError, InferenceError, without_frames
from caplet.image import load_pixels
from caplet.image_limits import LARGEST_LIMIT, MAX_PIXELS
from caplet.image_source import ImageSource, is_source
from caplet.manifest import FIRST_WORD, LONGEST_CAPTION, Decoding
from caplet.prefetch import in_order, take
from caplet.sessions import Provider, Sessions
from caplet.threads import usable_threads

_log = logging.getLogger(__name__)
_GRID = 8  # the encoder's 64 locations are 8 rows of 8
_ROUNDING = 0.02  # by which a log-probability may exceed 0, or a weight 1, also in graphs of half precision or 8 bits
_LARGEST_BATCH = 1024
_MOST_PHOTO_WORKERS = 4
_SEARCHED_TOGETHER = 8
_Load: TypeAlias = Callable[[ImageSource], NDArray[np.uint8]]


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One of the best sentences the search found, with its score (see `Caption.score`)."""

    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class Caption:
    """A sentence for a photo.

    Attributes:
        text: the sentence, lower case, without a full stop.
        words: its words, as in the vocabulary, in the form that they have in the sentence.
        score: mean log-probability of the words and, unless it was cut at `max_length`, of the end of the sentence
            (so not the mean of `word_scores`), natural logarithm, at most 0 but for rounding; for a length penalty
            other than 1 see `caplet.decode.Hypothesis`. Compare it only between captions of one model.
        word_scores: log-probability of each word, given the photo and the words before it.
        attention: float32 [words,8,8], read-only: how much each word looked at each part of the photo, row by row
            from the top left; each word's weights sum to 1.
        alternatives: the best sentences the search found, best first; the first is this one.
        milliseconds: time spent on this photo: decoding and encoding it, and its share of its batch's search.
    """

    text: str
    words: tuple[str, ...]
    score: float
    word_scores: tuple[float, ...]
    attention: NDArray[np.float32] = dataclasses.field(compare=False, repr=False)
    alternatives: tuple[Alternative, ...] = dataclasses.field(repr=False)
    milliseconds: float = dataclasses.field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.text

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickled arrays come back writable."""
        self.__dict__.update(state)
        self.attention.setflags(write=False)

    def plot(self, image: ImageSource, *, allow_truncated: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Draw `image`, the photo of this caption, and for each word its probability and where the model looked.

        See `caplet.explain.plot_attention` for the drawing, `Captioner.caption` for the options. Raises ImageError if
        the photo cannot be read, ArgumentError if `max_pixels` makes no sense.
        """
        from caplet.explain import plot_attention

        likelihoods = [math.exp(min(log_prob, 0.0)) for log_prob in self.word_scores]
        return plot_attention(
            image,
            self.words,
            self.attention,
            likelihoods,
            caption=self.text,
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
        )


def _import_drawing() -> None:
    """Import what `plot` imports on its first use: another thread may be at it during the fork; see `image_formats`."""
    from caplet import explain  # noqa: F401


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_import_drawing)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A photo's pixels for the encoder, or what was wrong with it, and the seconds that took."""

    pixels: NDArray[np.uint8] | CapletError
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Photo:
    """What the encoder made of a photo, or what was wrong with it, and the seconds of decoding and encoding it."""

    encoded: Encoded | CapletError
    seconds: float


class Captioner:
    """A captioning model, loaded and ready.

    It does not change after construction and may be shared by any number of threads. For several processes, make one in
    each, or pass one on: pickled, it is the path of its bundle and its options; after a fork, it opens its graphs again
    on first use.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Sessions | None = None,
        *,
        threads: int | None = None,
        providers: Sequence[Provider] | None = None,
        verify: bool = True,
    ) -> None:
        """Load a bundle.

        Args:
            model: the bundle's directory; None for the environment variable CAPLET_MODEL, or the bundled model. Or its
                sessions, with the options that they were opened with.
            threads: threads that encode one photo, 1 to 1024; None for as many as this process may use (see
                `caplet.threads`). With 1, captions are made in the calling thread alone, except for the decoders of
                AVIF and HEIC, which have threads of their own. A larger number does not limit `caption_many`, which
                encodes up to 4 photos side by side while it searches: `threads + min(threads, 4)` threads may want a
                CPU at once there. To limit the CPUs that are used, set an affinity mask or a CPU quota.
            providers: onnxruntime execution providers, by name or as (name, options); None for the CPU.
            verify: compare every file of the bundle with its hash.

        Raises:
            BundleNotFoundError: there is no bundle there.
            BundleError: the bundle is damaged, incomplete or inconsistent, or memory or threads are too few for it.
            ArgumentError: `model`, `threads` or `providers` makes no sense.
        """
        started = time.perf_counter()
        if isinstance(model, Sessions):
            self._sessions, threads = model, model.threads
        else:
            count = usable_threads(threads).count
            self._sessions = Sessions(load_bundle(model, verify=verify), count, providers)
        bundle, widest = self.bundle, self._sessions.widest_beam
        self._asked = (threads, self._sessions.providers, bundle.verified)
        self._forms = {(word, following): form for word, form, following in bundle.manifest.decoding.forms}
        if bundle.manifest.decoding.beam_size > widest:
            cause = f"decoding.beam_size is above the decoder's limit of {widest}"
            raise BundleError(str(bundle.path), cause, "export the bundle again")
        milliseconds = 1000 * (time.perf_counter() - started)
        name, digest = bundle.manifest.name, bundle.digest[:12]
        _log.info("loaded %s (%s) with %d threads in %.0f ms", name, digest, self.threads, milliseconds)

    @property
    def bundle(self) -> Bundle:
        """The model, with its path, manifest and vocabulary."""
        return self._sessions.bundle

    @property
    def threads(self) -> int:
        """Threads that encode one photo; `caption_many` may have more at work (see `__init__`)."""
        return self._sessions.threads

    @property
    def sessions(self) -> Sessions:
        """The two graphs, for measuring them one by one."""
        return self._sessions

    def __repr__(self) -> str:
        return f"Captioner({str(self.bundle.path)!r}, threads={self.threads})"

    def __copy__(self) -> Captioner:
        """Itself, since it does not change; as pickle does it, the model would be loaded again, and kept for good."""
        return self

    def __deepcopy__(self, _: object) -> Captioner:
        """Itself, as `__copy__`; `dataclasses.asdict` comes here with whatever has a Captioner in a field."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), str(self.bundle.path), *self._asked, self.bundle.digest)

    def caption(
        self,
        image: ImageSource,
        *,
        beam_size: int | None = None,
        max_length: int | None = None,
        allow_truncated: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> Caption:
        """Write a caption for one photo.

        Args:
            image: path, bytes of an image file, binary file object, PIL image, or uint8 array [H,W,3], [H,W,4], [H,W],
                [H,W,1].
            beam_size: hypotheses kept per step, from 1 (greedy) to the number of words that the decoder gives in one;
                None for the bundle's.
            max_length: most words of the caption, 1 to 1000; None for the bundle's.
            allow_truncated: accept an image file that breaks off in the middle.
            max_pixels: most pixels (width x height) the photo may have; checked before anything is decoded.

        Raises:
            ImageError: the photo is missing or cannot be used.
            ArgumentError: an option makes no sense.
            InferenceError: the graphs failed.
            BundleError: in a forked child, the bundle is no longer what it was when it was loaded.
        """
        decoding, load = self.decoding(beam_size, max_length), self._loader(allow_truncated, max_pixels)
        result = self._caption_batch([self._encode(image, load)], decoding)[0]
        try:
            if isinstance(result, CapletError):
                raise result
            return result
        finally:
            del result  # otherwise the error and this frame would keep each other until garbage is collected

    @overload
    def caption_many(
        self,
        images: Iterable[ImageSource | Decoded],
        *,
        batch_size: int = ...,
        on_error: Literal["raise"] = ...,
        beam_size: int | None = ...,
        max_length: int | None = ...,
        allow_truncated: bool = ...,
        max_pixels: int = ...,
    ) -> Generator[Caption, None, None]: ...

    @overload
    def caption_many(
        self,
        images: Iterable[ImageSource | Decoded],
        *,
        batch_size: int = ...,
        on_error: Literal["return"],
        beam_size: int | None = ...,
        max_length: int | None = ...,
        allow_truncated: bool = ...,
        max_pixels: int = ...,
    ) -> Generator[Caption | CapletError, None, None]: ...

    def caption_many(
        self,
        images: Iterable[ImageSource | Decoded],
        *,
        batch_size: int = 8,
        on_error: Literal["raise", "return"] = "raise",
        beam_size: int | None = None,
        max_length: int | None = None,
        allow_truncated: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> Generator[Caption | CapletError, None, None]:
        """Write captions for many photos, lazily and in order.

        Photos are decoded and encoded side by side in threads while the sentences of earlier ones are searched (in
        turns, if there is only one thread to compute with). No more than two batches and a few photos are held at any
        time, so `images` may be endless. The captions are those of `caption`. Paths and bytes are decoded in the
        threads; everything else is decoded before the next photo is drawn, so that `images` may reuse one buffer, or
        close a file that it has yielded.

        Args:
            images: the photos; see `caption`. Or what `decode_photo` made of them, in the size that the model wants.
            batch_size: photos whose sentences are searched together, 8 at most; each is encoded by itself. From 9 to
                1024 it only sets how far photos are read ahead (with one thread, not even that).
            on_error: "raise" to stop at the first photo that fails, "return" to give its error in its place.
            beam_size, max_length, allow_truncated, max_pixels: see `caption`.

        Raises:
            ArgumentError: at once, if an option makes no sense or `images` is not several photos.
            CapletError: at the photo's turn, as `caption` does, unless errors are returned. What `images` itself raises
                is raised after the captions of the photos before.
        """
        decoding, load = self.decoding(beam_size, max_length), self._loader(allow_truncated, max_pixels)
        size = whole_number("batch_size", batch_size, _LARGEST_BATCH)
        if on_error not in ("raise", "return"):
            raise ArgumentError("on_error", f"{on_error!r} is neither 'raise' nor 'return'")
        return self._caption_many(_several(images), size, decoding, load, raises=on_error == "raise")

    def decoding(self, beam_size: int | None = None, max_length: int | None = None) -> Decoding:
        """The bundle's search options with these changed. Raises ArgumentError."""
        decoding = self.bundle.manifest.decoding
        if beam_size is not None:
            beam_size = whole_number("beam_size", beam_size, self._sessions.widest_beam)
            decoding = dataclasses.replace(decoding, beam_size=beam_size)
        if max_length is not None:
            max_length = whole_number("max_length", max_length, LONGEST_CAPTION)
            decoding = dataclasses.replace(decoding, max_length=max_length)
        return decoding

    def _caption_many(
        self, images: Iterable[ImageSource | Decoded], size: int, decoding: Decoding, load: _Load, *, raises: bool
    ) -> Generator[Caption | CapletError, None, None]:
        # Several photos side by side keep the processors busier than several threads on one photo, or on a batch: they
        # wait for each other at none of the encoder's operators, and decoding fills the gaps.
        workers = 0 if self.threads == 1 else min(self.threads, _MOST_PHOTO_WORKERS)
        settled = map(functools.partial(_settle, load=load), images)
        photos = in_order(settled, lambda image: self._encode(image, load), workers=workers, ahead=size + workers)
        # Searching more photos together gains nothing, and would keep the first waiting for the last.
        together = min(size, _SEARCHED_TOGETHER)
        with contextlib.closing(photos):
            while True:
                batch, failure = take(photos, together)
                for result in self._caption_batch(batch, decoding):
                    if raises and isinstance(result, CapletError):
                        try:
                            raise result
                        finally:
                            del result, batch, failure  # as in `caption`
                    yield result
                if failure is not None:
                    try:
                        raise failure
                    finally:
                        del failure, batch
                if len(batch) < together:
                    return

    def _loader(self, allow_truncated: bool, max_pixels: int) -> _Load:
        """A function from a photo to the encoder's pixels. Raises ArgumentError."""
        size = self.bundle.manifest.width, self.bundle.manifest.height
        most = whole_number("max_pixels", max_pixels, LARGEST_LIMIT)
        return functools.partial(load_pixels, size=size, max_pixels=most, allow_truncated=allow_truncated)

    def _encode(self, image: ImageSource | Decoded, load: _Load) -> _Photo:
        decoded = image if isinstance(image, Decoded) else decode_photo(image, load)
        if isinstance(decoded.pixels, CapletError):
            return _Photo(decoded.pixels, decoded.seconds)
        started = time.perf_counter()
        encoded: Encoded | CapletError
        try:
            encoded = self._sessions.encode(decoded.pixels[None])
        except CapletError as error:
            encoded = without_frames(error)
        except MemoryError:
            encoded = InferenceError("encoder", NO_MEMORY, "free some")
        return _Photo(encoded, decoded.seconds + time.perf_counter() - started)

    def _caption_batch(self, photos: Sequence[_Photo], decoding: Decoding) -> list[Caption | CapletError]:
        started = time.perf_counter()
        good = [photo.encoded for photo in photos if not isinstance(photo.encoded, CapletError)]
        found = iter(self._search(good, decoding))
        share = (time.perf_counter() - started) / max(len(good), 1)
        results: list[Caption | CapletError] = []
        for photo in photos:
            result = photo.encoded if isinstance(photo.encoded, CapletError) else next(found)
            if isinstance(result, CapletError):
                results.append(result)
            else:
                results.append(self._write(result, 1000 * (photo.seconds + share)))
        _log.debug("captioned %d of %d photos, their search %.1f ms each", len(good), len(photos), 1000 * share)
        return results

    def _search(self, photos: Sequence[Encoded], decoding: Decoding) -> Sequence[list[Hypothesis] | CapletError]:
        """The best sentences of each photo, searched together; each alone if that fails: one may be the cause."""
        if not photos:
            return []
        try:
            together = photos[0] if len(photos) == 1 else Encoded(*map(np.concatenate, zip(*photos, strict=True)))
            return search(self._sessions.step, together, decoding)
        except CapletError as error:
            if len(photos) == 1:
                return [without_frames(error)]
        except MemoryError:
            if len(photos) == 1:
                return [InferenceError("search", NO_MEMORY, "search with a smaller beam")]
        return [self._search([photo], decoding)[0] for photo in photos]

    def _write(self, hypotheses: Sequence[Hypothesis], milliseconds: float) -> Caption | CapletError:
        """The Caption for a photo's hypotheses, best first; an InferenceError if no decoder may give such."""
        impossible = _impossible(hypotheses, len(self.bundle.words))
        if impossible is not None:
            return InferenceError("decoder", f"gives {impossible}", RUN_CHECK)
        sentences = [self._spell(hypothesis.tokens) for hypothesis in hypotheses]
        scores: dict[str, float] = {}
        for words, hypothesis in zip(sentences, hypotheses, strict=True):
            scores.setdefault(join_words(words), hypothesis.score)  # two may differ in nothing but a form
        best = hypotheses[0]
        attention = best.attention.reshape(-1, _GRID, _GRID)
        attention.setflags(write=False)
        return Caption(
            text=join_words(sentences[0]),
            words=sentences[0],
            score=best.score,
            word_scores=best.log_probs,
            attention=attention,
            alternatives=tuple(Alternative(text, score) for text, score in scores.items()),
            milliseconds=milliseconds,
        )

    def _spell(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """The words of a sentence, each in the form that it has before the next."""
        written = [self._forms.get(pair, pair[0]) for pair in pairwise(tokens)]
        return tuple(self.bundle.words[token] for token in (*written, *tokens[-1:]))


def _impossible(hypotheses: Sequence[Hypothesis], words: int) -> str | None:
    """What a decoder gave, for the words of one photo, that none may give; None if all may be right.

    Looked at here, once for a photo, and not at each step: that costs nothing that can be measured.
    """
    if not all(FIRST_WORD <= token < words for hypothesis in hypotheses for token in hypothesis.tokens):
        return "tokens that are not words"
    if any(max((*hypothesis.log_probs, hypothesis.score)) > _ROUNDING for hypothesis in hypotheses):
        return "probabilities above 1"
    weights = hypotheses[0].attention
    if not ((weights >= 0) & (weights <= 1 + _ROUNDING)).all():
        return "attention that is not from 0 to 1"
    return None


def join_words(words: Iterable[str]) -> str:
    """Words to text: single spaces, but none before a word that starts with an apostrophe ("dog 's" is "dog's")."""
    return "".join(word if word.startswith("'") else f" {word}" for word in words).lstrip()


def _several(images: Iterable[ImageSource | Decoded]) -> Iterator[ImageSource | Decoded]:
    """An iterator over the photos. One photo is refused: text would come apart into letters, a file into lines."""
    stack = isinstance(images, np.ndarray) and (images.ndim > 3 or images.dtype != np.uint8)
    if stack or not is_source(images):
        with contextlib.suppress(TypeError):
            return iter(images)
    raise ArgumentError("images", f"a {type(images).__name__} is not several photos", "give a list of them")


def _settle(image: ImageSource | Decoded, load: _Load) -> ImageSource | Decoded:
    """Paths and bytes can be decoded later, by a worker; what the caller may change or close is decoded now.

    Decoded, not copied: copies of large arrays and whole files would take far more memory than the encoder's pixels.
    """
    return image if isinstance(image, (str, os.PathLike, bytes, Decoded)) else decode_photo(image, load)


def decode_photo(image: ImageSource, load: _Load) -> Decoded:
    """What `load` makes of a photo, or the CapletError that it raises, and how long that takes."""
    started = time.perf_counter()
    pixels: NDArray[np.uint8] | CapletError
    try:
        pixels = load(image)
    except CapletError as error:
        pixels = without_frames(error)
    return Decoded(pixels, time.perf_counter() - started)


_made_last: tuple[tuple[object, ...], Captioner] | None = None


def _made_again(
    kind: type[Captioner], path: str, threads: int | None, providers: Sequence[Provider], verify: bool, digest: str
) -> Captioner:
    """Unpickle a Captioner, or one of a subclass that takes the same arguments.

    The last is kept: a pool of processes pickles `captioner.caption` with every photo, and loading takes longer.
    """
    global _made_last
    asked = (kind, path, threads, providers, verify, digest)
    last = _made_last  # another thread may put its own there
    if last is None or last[0] != asked:
        last = _made_last = asked, kind(path, threads=threads, providers=providers, verify=verify)
    return last[1]
