"""Batches of captions and stored features, read ahead in a thread, in an order fixed by seed and epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caplet.prefetch import in_order
from caplet_export.errors import DataError, in_one_line
from caplet_export.features import StoredFeatures
from caplet_export.text import END, PAD, START, Vocabulary

_AHEAD = 2
"""Batches that are read while one is computed."""
_POOL = 16
"""Number of batches whose images are sorted by caption length together, so that little of a batch is padding."""
_NAMED = 5
"""Words that are named of those not in the vocabulary."""
_STEP = 3
"""Batches are padded to 1 + a multiple of this, or to the greatest length: few shapes, few compiled functions."""


_Rows = tuple[NDArray[np.int64], NDArray[np.int64]]
"""The images of a batch, and the view of each."""


def caption_ids(
    captions: Sequence[Sequence[Sequence[str]]], vocabulary: Vocabulary, max_length: int, group: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Captions by image as ids: the tokens that are read at each step, and the targets to be said there.

    Both are int32 [images,group,T+1], padded with 0, where T is the length limit: tokens `<start> w1 … wn`, targets
    `w1 … wn <end>`. A caption longer than T words is cut, and has no `<end>` to learn. Rows without a caption are
    padding, which weighs nothing.
    """
    tokens = np.zeros((len(captions), group, max_length + 1), np.int32)
    targets = np.zeros_like(tokens)
    for image, of_image in enumerate(captions):
        for row, words in enumerate(of_image[:group]):
            ids = vocabulary.encode(words)[:max_length]
            said = ids if len(words) > max_length else [*ids, END]
            targets[image, row, : len(said)] = said
            tokens[image, row, : len(said)] = [START, *ids][: len(said)]
    return tokens, targets


def not_learned(
    captions: Iterable[Sequence[Sequence[str]]], vocabulary: Vocabulary, max_length: int, group: int | None
) -> list[str]:
    """A sentence for each way in which `caption_ids` leaves out more than a tenth of these images' captions, or of
    their words. `group` is None if the captions are not trained on, but only tell which words people use.
    """
    of_images = list(captions)
    lengths = [len(words) for of_image in of_images for words in of_image]
    beyond = 0 if group is None else sum(max(len(of_image) - group, 0) for of_image in of_images)
    cut = sum(length > max_length for length in lengths)
    words = sum(lengths)
    unknown = Counter(
        word for of_image in of_images for caption in of_image for word in caption if word not in vocabulary
    )
    told = []
    if beyond > len(lengths) / 10:
        told.append(
            f"{beyond} of {len(lengths)} training captions are not read: of each image only the first {group} are "
            "(train.captions_per_image)"
        )
    if cut > len(lengths) / 10:
        told.append(f"{cut} of {len(lengths)} training captions are cut after {max_length} words (text.max_length)")
    if (count := unknown.total()) > words / 10:
        often = in_one_line(", ".join(word for word, _ in unknown.most_common(_NAMED)))
        told.append(
            f"{count} of {words} words of the training captions are not in the vocabulary, so never said; most often: "
            f"{often}"
        )
    return told


def padded_length(length: int, longest: int) -> int:
    """The smallest of the few lengths of batches that is at least `length`; `longest` is the greatest of them."""
    return min(1 + -(-max(length - 1, 1) // _STEP) * _STEP, longest)


class Batch(NamedTuple):
    """Of B images and G captions of each: the length T differs from batch to batch, and B of the last."""

    features: NDArray[np.float16]
    """[B,L,C]"""
    tokens: NDArray[np.int32]
    """[B*G,T], what is read at each step."""
    targets: NDArray[np.int32]
    """[B*G,T], what is to be said there."""
    rows: NDArray[np.int64]
    """[B], the images' indices in `Batches.names`."""


class Batches:
    """Batches over a split; `epoch(n)` is the same sequence every time it is asked for.

    Each image has as many rows as the image with the most captions has captions, `group` at most.

    Attributes:
        names: the images that it holds.
        group: G, the rows of each image; fewer than asked for where no image has so many captions.
        unread: those that could not be read when the features of a view were made, and are left out.

    Raises:
        DataError: a view has no features of an image, or no image of the split could be read for all views.
    """

    def __init__(
        self,
        captions: Mapping[str, Sequence[Sequence[str]]],
        views: Sequence[StoredFeatures],
        vocabulary: Vocabulary,
        *,
        max_length: int,
        group: int,
        batch_images: int,
        seed: int,
    ) -> None:
        names = list(captions)
        for view in views:
            names = view.readable(names)
        for view in views:
            missing = [name for name in names if name not in view]
            if missing:
                raise DataError(
                    f"{view.folder}: no features of {len(missing)} images, first {missing[0]}; "
                    "run `caplet-export features` again"
                )
        if not names:
            told = f"none of {len(captions)} images could be read when their features were extracted"
            raise DataError(f"{told}; the first: {next(iter(captions))}")
        self.names = names
        self.unread = [name for name in captions if any(name in view.skipped for view in views)]
        self.group = min(group, max(len(captions[name]) for name in names))
        self._views = views
        self._seed = seed
        self._size = min(batch_images, len(names))
        of_names = [captions[name] for name in names]
        self._tokens, self._targets = caption_ids(of_names, vocabulary, max_length, self.group)
        self._lengths = (self._targets != PAD).sum(axis=2).max(axis=1)  # of the longest captions, `<end>` included

    def __len__(self) -> int:
        return -(-len(self.names) // self._size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`, shuffled, of a random view of each image."""
        return self._read(self._plan(np.random.default_rng([self._seed, number])))

    def in_order(self) -> Iterator[Batch]:
        """The batches in the order of `names`, by the first view only."""
        rows = np.arange(len(self.names))
        batches = np.split(rows, range(self._size, len(rows), self._size))
        return self._read((batch, np.zeros_like(batch)) for batch in batches)

    def _plan(self, random: np.random.Generator) -> Iterator[_Rows]:
        order = random.permutation(len(self.names))
        batches = []
        for pool in np.split(order, range(_POOL * self._size, len(order), _POOL * self._size)):
            by_length = pool[np.argsort(self._lengths[pool], kind="stable")]
            batches += np.split(by_length, range(self._size, len(pool), self._size))
        for index in random.permutation(len(batches)):
            yield batches[index], random.integers(len(self._views), size=len(batches[index]))

    def _read(self, plan: Iterator[_Rows]) -> Iterator[Batch]:
        # Not by tf.data: once that has run in a process, a step takes TensorFlow 2.21 nearly twice as long on a CPU.
        return in_order(plan, self._batch, workers=1, ahead=1 + _AHEAD)

    def _batch(self, planned: _Rows) -> Batch:
        rows, views = planned
        features = np.stack([self._views[view][self.names[row]] for row, view in zip(rows, views, strict=True)])
        length = padded_length(self._lengths[rows].max(), self._tokens.shape[2])
        tokens, targets = (ids[rows, :, :length].reshape(-1, length) for ids in (self._tokens, self._targets))
        return Batch(features, tokens, targets, rows)
