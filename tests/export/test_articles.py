"""Which words people put "an" before, counted in captions made for it."""

from __future__ import annotations

import pytest

from caplet_export.articles import article_forms
from caplet_export.text import SPECIALS, Vocabulary

VOCABULARY = Vocabulary([*SPECIALS, "a", "dog", "an", "orange", "atv"])
A, DOG, AN, ORANGE, ATV = range(4, 9)


def test_words_that_people_put_an_before_more_often_than_a() -> None:
    captions = [("an", "orange", "atv"), ("an", "orange", "dog"), ("a", "dog", "an", "atv"), ("a", "orange", "dog")]
    assert article_forms(captions, VOCABULARY) == ((A, AN, ORANGE),)
    assert article_forms([*captions, ("an", "atv")], VOCABULARY) == ((A, AN, ORANGE), (A, AN, ATV))
    assert article_forms([*captions, ("a", "orange")], VOCABULARY) == ()  # as often as "an"
    assert article_forms([*captions, ("a", "orange"), ("an", "orange")], VOCABULARY) == ((A, AN, ORANGE),)


def test_once_may_be_a_slip() -> None:
    assert article_forms([("an", "dog")], VOCABULARY) == ()
    assert article_forms([("an", "dog")] * 2, VOCABULARY) == ((A, AN, DOG),)


def test_words_that_the_captioner_does_not_know_are_passed_over() -> None:
    assert article_forms([("an", "owl")] * 9, VOCABULARY) == ()


@pytest.mark.parametrize("missing", ["a", "an"])
def test_without_both_articles_there_is_nothing_to_write(missing: str) -> None:
    vocabulary = Vocabulary([word for word in VOCABULARY.words if word != missing])
    assert article_forms([("an", "orange")] * 9, vocabulary) == ()
