"""What people say twice in a caption, counted in captions made for it."""

from __future__ import annotations

from caplet_export.repeats import repeatable_ngrams
from caplet_export.text import SPECIALS, Vocabulary

VOCABULARY = Vocabulary([*SPECIALS, "a", "dog", "and", "cat", "sits"])
A, DOG, AND, CAT, SITS = range(4, 9)
ONCE = ("a", "dog", "sits")


def test_what_one_caption_in_twenty_repeats_may_be_repeated() -> None:
    captions = [("a", "dog", "and", "a", "cat")] * 10 + [ONCE] * 190
    assert repeatable_ngrams(captions, VOCABULARY) == ((A,),)
    assert repeatable_ngrams([*captions, ONCE], VOCABULARY) == ()


def test_pairs_of_words_in_a_row_count_by_themselves() -> None:
    captions = [("a", "dog", "and", "a", "dog")] * 10 + [ONCE] * 10
    assert repeatable_ngrams(captions, VOCABULARY) == ((A,), (DOG,), (A, DOG))


def test_the_most_frequent_come_first() -> None:
    captions = [("cat", "and", "cat")] * 10 + [("a", "dog", "sits", "a")] * 11
    assert repeatable_ngrams(captions, VOCABULARY) == ((A,), (CAT,))


def test_a_few_captions_are_no_evidence() -> None:
    assert repeatable_ngrams([("cat", "and", "cat")] * 9, VOCABULARY) == ()
    assert repeatable_ngrams([("cat", "and", "cat")] * 10, VOCABULARY) == ((CAT,),)


def test_a_word_three_times_in_a_caption_is_one_caption() -> None:
    assert repeatable_ngrams([("cat", "cat", "cat", "cat")] * 5, VOCABULARY) == ()


def test_unknown_words_are_passed_over() -> None:
    assert repeatable_ngrams([("a", "bird", "a", "bird", "a")] * 20, VOCABULARY) == ((A,),)
