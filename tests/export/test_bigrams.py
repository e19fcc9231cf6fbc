"""Which pairs of words people do not say."""

from __future__ import annotations

import pytest

from caplet_export.bigrams import Bigrams


@pytest.fixture(scope="module")
def bigrams() -> Bigrams:
    captions = ["a dog is in", "a dog is out", "the dogs is in", "the dogs is out"] * 150 + ["a zebra is out"] * 4
    return Bigrams([caption.split() for caption in captions])


@pytest.mark.parametrize(
    ("caption", "pairs"),
    [
        ("a dog is in", []),
        ("a dogs is in", [("a", "dogs")]),
        ("the dog is the dog", [("the", "dog"), ("is", "the"), ("the", "dog"), ("dog", "<end>")]),
        ("dog is in", [("<start>", "dog")]),
        ("the zebra is in", []),
        ("the unicorn is in", []),
    ],
)
def test_a_pair_is_implausible_that_chance_would_say_and_people_do_not(
    bigrams: Bigrams, caption: str, pairs: list[tuple[str, str]]
) -> None:
    """Chance would have "a dogs" 600 * 304 / 3020 times; of a word as rare as "zebra" nothing can be said."""
    assert bigrams.implausible(caption.split()) == pairs


def test_a_caption_that_was_cut_off_may_end_anywhere(bigrams: Bigrams) -> None:
    assert bigrams.implausible(["a", "dog", "is"]) == [("is", "<end>")]
    assert bigrams.implausible(["a", "dog", "is"], ended=False) == []


def test_what_is_said_now_and_then_is_plausible() -> None:
    """Of some 1005 expected, 20 occurrences are fewer than a fiftieth; 21 are not."""
    for found, implausible in ((20, True), (21, False)):
        captions = [["a", "b"]] * 6000 + [["c", "d"]] * 6000 + [["a", "d"]] * found
        assert bool(Bigrams(captions).implausible(["a", "d"])) == implausible


def test_what_chance_would_say_fewer_than_five_times_is_plausible() -> None:
    for count, implausible in ((30, True), (29, False)):  # of 3 pairs a caption, "a d" count² / 6 count times
        captions = [["a", "b"]] * count + [["c", "d"]] * count
        assert bool(Bigrams(captions).implausible(["a", "d"])) == implausible
        assert Bigrams(captions).table(["a", "d"])[0, 1] == implausible


def test_without_captions_nothing_is_implausible() -> None:
    assert Bigrams([]).implausible(["a", "a"]) == []
