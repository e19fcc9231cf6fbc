"""The scorer equals coco-caption's: its tokeniser, BLEU, ROUGE-L and CIDEr-D; and the papers' worked examples."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from at_hand import FLICKR8K_TOKENS, needs
from caplet_export.bigrams import Bigrams
from caplet_export.flickr8k import read_captions
from caplet_export.metrics import (
    METRICS,
    CiderD,
    ImageStatistics,
    bootstrap_interval,
    corpus_scores,
    human_scores,
    leave_one_out_scores,
    paired_bootstrap,
)
from caplet_export.text import END_TOKEN
from caplet_export.tokenizer import tokenize

pytest.importorskip("pycocoevalcap")

needs_flickr8k = needs(FLICKR8K_TOKENS)
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="coco-caption's tokeniser needs Java")

Corpus = tuple[dict[str, list[str]], dict[str, list[list[str]]]]


def words(text: str) -> list[str]:
    return text.split()


# Tokenisation -------------------------------------------------------------------------------------------------------

# Sentences made up for this test; the words are what pycocoevalcap's Java tokeniser made of them (see below).
TOKENIZED = {
    "Two dogs run, one barks!": "two dogs run one barks",
    "The dog's ball isn't the boys' ball .": "the dog 's ball is n't the boys ball",
    "A man who's tired can't stand; he cannot sit and won't lie.": (
        "a man who 's tired ca n't stand he can not sit and wo n't lie"
    ),
    'A sign reads "Don\'t Walk" ...': "a sign reads do n't walk",
    "A three-year-old in a T-shirt -- and a half-eaten cone - smiles": (
        "a three-year-old in a t-shirt and a half-eaten cone smiles"
    ),
    "a bus (red) turns [left]": "a bus -lrb- red -rrb- turns -lsb- left -rsb-",
    "Mr. Brown and Dr. Lee on 3rd St. in Washington D.C.": "mr. brown and dr. lee on 3rd st. in washington d.c.",
    "player # 7 , number 10,000 , at 10:30 a.m. pays $5.50": "player # 7 number 10,000 at 10:30 a.m. pays $ 5.50",
    "jan. 5 at 10:30pm, mr. No. 6 won't say I'M 6 ft. tall": "jan. 5 at 10:30 pm mr. no. 6 wo n't say i 'm 6 ft. tall",
    "foo.org/bar, a.b, 1/2 of 5'6\" in the '90s, 'til 'cause": "foo.org/bar a.b 1/2 of 5 6 in the '90s 'til 'cause",
    "rock 'n' roll at o'clock, y'all": "rock 'n' roll at o'clock y' all",
    "AT&T but at&t, salt & pepper, and/or": "at&t but at & t salt & pepper and/or",
    "someone is gonna jump and you gotta look": "someone is gon na jump and you got ta look",
    "Wait?! What... a \u201cquoted\u201d word\u2019s end \u2014 here": "wait ?! what a quoted word 's end here",
    "WE'LL pour ½ a {small} cup, 5€": "we 'll pour 1/2 a -lcb- small -rcb- cup 5 $",
    "an owl's-eye-view of a naïve café": "an owl 's eye-view of a naïve café",
    'the letter " Q. " on a wall': "the letter q. on a wall",
    "a red_panda_cub's b_c-d.jpg, IMG_12, é_b; a__b _ _c": "a red_panda_cub 's b_c-d jpg img_12 é_b a __ b _ _ c",
    "एक लड़का लाल गेंद के साथ, कुत्ते को देखता है": "एक लड़का लाल गेंद के साथ कुत्ते को देखता है",
    "เด็กชายกำลังวิ่ง บนชายหาด .": "เด็กชายกำลังวิ่ง บนชายหาด",
    "un cafe\u0301 a\u0300 l'ombre d'été .": "un cafe\u0301 a\u0300 l'ombre d'été",
    "a B.M.X bike, a U.S.A flag and U.S.A. caps on u.s.army trucks at 5 a.m.": (
        "a b.m.x bike a u.s.a flag and u.s.a. caps on u.s.army trucks at 5 a.m."
    ),
    "S'mores and a li'l s'more, c'mon cap'n; G'day N'Sync, y'know a'a or e'er": (
        "s'mores and a li'l s more c'mon cap'n g'day n'sync y' know a a or e'er"
    ),
    "C'est la mer qu'il n'a pas ; j'ai dell'acqua d'or": "c'est la mer qu'il n a pas j' ai dell acqua d'or",
    "a #d sign, #dad and @b by c'monboys": "a #d sign #dad and @b by c'mon boys",
    "a dog that don`t bark or can\u2018t": "a dog that do n`t bark or ca n`t",
    "B&amp;W &quot;dogs&quot;, the dog&apos;s ball &lt; 5 &ndash; &AMP; a&nbsp;cat": (
        "b&w dogs the dog 's ball < 5 & a cat"
    ),
    "a soft\u00adhyphen, zero\u200bwidth, a \ufeffmark, \u202da direction\u202c and a \u2764\ufe0f heart\u200d": (
        "a softhyphen zero width a mark a direction and a \u2764 heart"
    ),
    "": "",
    " .": "",
}


@pytest.mark.parametrize("caption", TOKENIZED)
def test_tokenize_gives_the_words_that_the_java_tokeniser_gave(caption: str) -> None:
    assert tokenize(caption) == TOKENIZED[caption].split()


@needs_java
def test_the_expected_words_are_the_java_tokenisers() -> None:
    captions = [caption for caption in TOKENIZED if caption]
    assert java_tokenize(captions) == [TOKENIZED[caption] for caption in captions]


@pytest.mark.parametrize("part", ["_.", "a_.", "a+", "a."])
def test_a_long_text_without_spaces_is_soon_tokenized(part: str) -> None:
    """As hosts and mailboxes begin, but never end."""
    text = part * (80_000 // len(part))
    start = time.thread_time()
    tokenize(text)
    assert time.thread_time() - start < 2


@needs_java
@needs_flickr8k
def test_tokenize_equals_the_java_tokeniser_on_every_flickr8k_caption() -> None:
    captions = [caption for many in read_captions(FLICKR8K_TOKENS)[0].values() for caption in many]
    assert len(captions) > 30_000
    expected = java_tokenize(captions)
    assert [" ".join(tokenize(caption)) for caption in captions] == expected


def java_tokenize(captions: list[str]) -> list[str]:
    """What pycocoevalcap's tokeniser makes of each caption (its jar is run directly: the wrapper writes into the
    installed package)."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    command = ["java", "-cp", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", "-encoding", "utf-8"],
        cwd=Path(ptbtokenizer.__file__).parent,
        input="\n".join(captions).encode(),
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().split("\n")[: len(captions)]
    dropped = ptbtokenizer.PUNCTUATIONS
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in lines]


# Equality with pycocoevalcap ----------------------------------------------------------------------------------------


def random_corpus(images: int, seed: int) -> Corpus:
    """Made-up captions over a small vocabulary, so that n-grams of every order match and repeat; lengths from 0."""
    generator = random.Random(seed)
    vocabulary = words("a the dog man runs in on grass red ball with and water jumps two 's")
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]

    def caption() -> list[str]:
        return generator.choices(vocabulary, weights, k=generator.randint(0, 16))

    references = {f"{i}.jpg": [caption() for _ in range(generator.randint(1, 5))] for i in range(images)}
    hypotheses = {
        name: generator.choice([caption(), captions[0], captions[-1][:3] * 2]) for name, captions in references.items()
    }
    return hypotheses, references


def flickr8k_corpus() -> Corpus:
    """One human caption of each fourth photo against its other four."""
    captions = read_captions(FLICKR8K_TOKENS)[0]
    tokenized = {name: [tokenize(caption) for caption in captions[name]] for name in list(captions)[::4]}
    return {name: many[0] for name, many in tokenized.items()}, {name: many[1:] for name, many in tokenized.items()}


CORPORA = [
    pytest.param(lambda: random_corpus(2000, 1), id="random"),
    pytest.param(lambda: random_corpus(3, 2), id="three images"),
    pytest.param(flickr8k_corpus, id="flickr8k", marks=needs_flickr8k),
]


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_score_equals_pycocoevalcap(corpus: Callable[[], Corpus]) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    hypotheses, references = corpus()
    given = {name: [" ".join(words) for words in captions] for name, captions in references.items()}
    said = {name: [" ".join(words)] for name, words in hypotheses.items()}
    bleu, _ = Bleu(4).compute_score(given, said, verbose=0)
    rouge, rouge_by_image = Rouge().compute_score(given, said)
    cider, cider_by_image = Cider().compute_score(given, said)

    statistics = ImageStatistics.of(hypotheses, references)
    expected = dict(zip(METRICS, [100 * value for value in [*bleu, rouge, cider]], strict=True))
    assert statistics.scores() == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(statistics.rouge_l, rouge_by_image, atol=1e-6, rtol=0)
    np.testing.assert_allclose(statistics.cider_d, cider_by_image, atol=1e-6, rtol=0)

    scores = dataclasses.asdict(corpus_scores(hypotheses, references))
    assert {name: scores[name] for name in METRICS} == pytest.approx(expected, abs=1e-6)


def test_cider_d_equals_the_papers_formulas() -> None:
    hypotheses, references = random_corpus(60, 3)
    expected = [plain_cider_d(name, hypotheses[name], references) for name in hypotheses]
    cider = CiderD(references)
    np.testing.assert_allclose(cider.score_many(list(hypotheses), list(hypotheses.values())), expected, atol=1e-9)


def plain_cider_d(name: str, words: list[str], references: dict[str, list[list[str]]]) -> float:
    """CIDEr-D straight from the paper's formulas, for one image and with nothing kept between calls."""

    def grams(caption: list[str], k: int) -> list[tuple[str, ...]]:
        return [tuple(caption[i : i + k]) for i in range(len(caption) - k + 1)]

    def vector(caption: list[str], k: int) -> dict[tuple[str, ...], float]:
        counted = grams(caption, k)
        weights = {}
        for gram in set(counted):
            frequency = sum(any(gram in grams(other, k) for other in many) for many in references.values())
            weights[gram] = counted.count(gram) * math.log(len(references) / max(1, frequency))
        return weights

    total = 0.0
    for k in range(1, 5):
        ours = vector(words, k)
        for reference in references[name]:
            theirs = vector(reference, k)
            product = sum(min(weight, theirs.get(gram, 0)) * theirs.get(gram, 0) for gram, weight in ours.items())
            norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
            difference = len(grams(words, 2)) - len(grams(reference, 2))
            total += 10 * product / norms * math.exp(-(difference**2) / (2 * 6.0**2)) if norms else 0
    return total / (4 * len(references[name]))


# Worked examples ----------------------------------------------------------------------------------------------------

# Papineni et al. 2002, examples 1 and 2.
PAPINENI_REFERENCES = [
    words("it is a guide to action that ensures that the military will forever heed party commands"),
    words(
        "it is the guiding principle which guarantees the military forces always being under the command of the party"
    ),
    words("it is the practical guide for the army always to heed the directions of the party"),
]


@pytest.mark.parametrize(
    ("candidate", "references", "unigrams", "bigrams"),
    [
        (
            "it is a guide to action which ensures that the military always obeys the commands of the party",
            PAPINENI_REFERENCES,
            (17, 18),
            (10, 17),
        ),
        (
            "it is to insure the troops forever hearing the activity guidebook that party direct",
            PAPINENI_REFERENCES,
            (8, 14),
            (1, 13),
        ),
        (
            "the the the the the the the",
            [words("the cat is on the mat"), words("there is a cat on the mat")],
            (2, 7),
            (0, 6),
        ),
    ],
)
def test_modified_precisions_of_the_bleu_paper(
    candidate: str, references: list[list[str]], unigrams: tuple[int, int], bigrams: tuple[int, int]
) -> None:
    statistics = ImageStatistics.of({"x": candidate.split()}, {"x": references})
    guessed, matched = statistics.bleu[0, 2:6], statistics.bleu[0, 6:10]
    assert (matched[0], guessed[0]) == unigrams
    assert (matched[1], guessed[1]) == bigrams


def test_brevity_penalty_is_that_of_the_corpus_and_of_the_closest_reference() -> None:
    # 4 + 4 words against closest lengths 6 and 4: BP = exp(1 - 10/8); every word matches.
    hypotheses = {"a": words("the cat is on"), "b": words("two dogs run fast")}
    references = {
        "a": [words("the cat is on the mat"), words("the cat is on the mat over there today")],
        "b": [words("two dogs run fast")],
    }
    scores = corpus_scores(hypotheses, references)
    assert scores.bleu_1 == pytest.approx(100 * math.exp(1 - 10 / 8))
    assert scores.bleu_4 == pytest.approx(100 * math.exp(1 - 10 / 8))


@pytest.mark.parametrize(
    ("candidate", "expected"), [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)]
)
def test_rouge_l_of_the_rouge_papers_example(candidate: str, expected: float) -> None:
    # Lin 2004, section 3.1: equal lengths, so precision, recall and F are all LCS / 4.
    statistics = ImageStatistics.of({"x": candidate.split()}, {"x": [words("police killed the gunman")]})
    assert statistics.rouge_l[0] == pytest.approx(expected)


def test_cider_d_by_hand() -> None:
    # Two images, so idf = ln 2 for what one image has and 0 for what both have ("a").
    references = {"x": [["a", "dog"]], "y": [["a", "cat"]]}
    cider = CiderD(references)
    # Only 1- and 2-grams exist: both cosines are 1, the other two orders count 0: 10 * (1 + 1) / 4.
    assert cider.score("x", ["a", "dog"]) == pytest.approx(5.0)
    # "dog dog": the clipped unigram product is ln2 * ln2, its norms are 2 ln2 and ln2; no bigram matches.
    assert cider.score("x", ["dog", "dog"]) == pytest.approx(10 * 0.5 / 4)
    # One bigram fewer: a Gaussian of width 6 on the difference of 1.
    assert cider.score("x", ["dog"]) == pytest.approx(10 * math.exp(-1 / 72) / 4)
    assert cider.score("x", ["a"]) == 0.0
    assert cider.score("x", []) == 0.0


def test_the_end_token_is_a_word_when_asked() -> None:
    references = {"x": [["a", "dog", "runs"]], "y": [["a", "cat", "sits"]]}
    with_end = CiderD(references, with_end=True)
    spelled_out = CiderD({key: [[*w, END_TOKEN] for w in many] for key, many in references.items()})
    ended, cut_off = ["a", "dog", "runs", END_TOKEN], ["a", "dog", "runs"]
    assert with_end.score("x", ended) == spelled_out.score("x", ended) == pytest.approx(10.0)
    assert with_end.score("x", cut_off) < with_end.score("x", ended)


# Diversity, and what may be asked ------------------------------------------------------------------------------------


def test_diversity_by_hand() -> None:
    hypotheses = {
        "a": words("a dog runs and a dog runs"),  # "a dog runs" twice
        "b": words("a man stands on the"),  # dangling
        "c": words("a man stands"),
        "d": [],
    }
    scores = corpus_scores(hypotheses, {key: [["a", "dog"]] for key in hypotheses})
    assert scores.vocabulary_used == 8
    assert scores.distinct_1 == pytest.approx(100 * 8 / 15)
    assert scores.distinct_2 == pytest.approx(100 * 8 / 12)
    assert scores.mean_length == pytest.approx(15 / 4)
    assert scores.repeated_trigram_share == pytest.approx(25)
    assert scores.dangling_ending_share == pytest.approx(25)
    assert scores.implausible_bigram_share is None
    said = Bigrams([words("a dog runs and a man stands")] * 50)
    # "runs" ends no caption there, and no caption is empty.
    assert corpus_scores(hypotheses, {key: [["a", "dog"]] for key in hypotheses}, said).implausible_bigram_share == 50
    assert corpus_scores({"a": words("runs runs")}, {"a": [["a"]]}, said).implausible_bigram_share == 100
    assert corpus_scores({"a": []}, {"a": [["a"]]}).distinct_1 == 0


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ({"a": ["x"]}, {"b": [["x"]]}, "different images"),
        ({}, {}, "no image"),
        ({"a": ["x"]}, {"a": []}, "at least one reference"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    hypotheses: dict[str, list[str]], references: dict[str, list[list[str]]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        corpus_scores(hypotheses, references)


# Bootstrap ----------------------------------------------------------------------------------------------------------


def test_resampled_scores_equal_scoring_the_resampled_images() -> None:
    hypotheses, references = random_corpus(40, 4)
    statistics = ImageStatistics.of(hypotheses, references)
    samples = statistics.resampled(5, seed=7)
    weights = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), size=5)
    for sample, counts in zip(samples, weights, strict=True):
        drawn = np.repeat(np.arange(40), counts)
        again = ImageStatistics(
            tuple(map(str, drawn)), statistics.bleu[drawn], statistics.rouge_l[drawn], statistics.cider_d[drawn]
        )
        np.testing.assert_allclose(sample, list(again.scores().values()), rtol=1e-9)


def test_bootstrap_interval_is_that_of_the_normal_approximation_for_a_mean() -> None:
    hypotheses, references = random_corpus(1000, 5)
    statistics = ImageStatistics.of(hypotheses, references)
    interval = bootstrap_interval(statistics, resamples=4000)["cider_d"]
    half_width = 100 * 1.96 * statistics.cider_d.std() / math.sqrt(1000)
    assert interval.value == pytest.approx(100 * statistics.cider_d.mean())
    assert interval.high - interval.value == pytest.approx(half_width, rel=0.1)
    assert interval.value - interval.low == pytest.approx(half_width, rel=0.1)


def test_paired_bootstrap_tells_a_gain_from_none() -> None:
    hypotheses, references = random_corpus(200, 6)
    worse = ImageStatistics.of(hypotheses, references)
    copied = {key: list(references[key][0]) for key in hypotheses}
    better = ImageStatistics.of(copied, references)
    gain = paired_bootstrap(worse, better)["cider_d"]
    assert gain.value == pytest.approx(better.scores()["cider_d"] - worse.scores()["cider_d"])
    assert 0 < gain.low < gain.value < gain.high
    none = paired_bootstrap(worse, worse)["bleu_4"]
    assert (none.low, none.value, none.high) == (0, 0, 0)


def test_intervals_hold_95_percent_of_2000_samples() -> None:
    """Of one set of captions and of the difference of two, exactly."""
    hypotheses, references = random_corpus(30, 9)
    first = ImageStatistics.of(hypotheses, references)
    second = ImageStatistics.of({key: list(references[key][0]) for key in hypotheses}, references)
    one, other = first.resampled(2000, 0), second.resampled(2000, 0)
    for intervals, samples in ((bootstrap_interval(first), one), (paired_bootstrap(first, second), other - one)):
        found = [(intervals[name].low, intervals[name].high) for name in METRICS]
        np.testing.assert_array_equal(found, np.quantile(samples, [0.025, 0.975], axis=0).T)


def test_paired_bootstrap_wants_the_same_images() -> None:
    hypotheses, references = random_corpus(5, 8)
    first = ImageStatistics.of(hypotheses, references)
    for others in (list(hypotheses)[1:], list(hypotheses)[::-1]):
        second = ImageStatistics.of({key: hypotheses[key] for key in others}, {key: references[key] for key in others})
        with pytest.raises(ValueError, match="same images in the same order"):
            paired_bootstrap(first, second)


def test_captions_are_scored_against_as_many_references_as_people_are() -> None:
    hypotheses, references = random_corpus(20, 12)
    three = {name: [*texts, ["a", "dog"], ["the", "man"]][:3] for name, texts in references.items()}
    found = leave_one_out_scores(hypotheses, three)
    assert found is not None
    rounds = [
        corpus_scores(hypotheses, {name: [*texts[:n], *texts[n + 1 :]] for name, texts in three.items()})
        for n in range(3)
    ]
    for metric in METRICS:
        assert found[metric] == pytest.approx(sum(getattr(scores, metric) for scores in rounds) / 3)
    assert found["rouge_l"] < corpus_scores(hypotheses, three).rouge_l
    assert leave_one_out_scores(hypotheses, {**three, "0.jpg": [["one"]]}) is None


def test_people_are_scored_against_one_another() -> None:
    same = {name: [tokenize(f"a {name} runs over the grass")] * 3 for name in ("dog", "cat", "horse")}
    agreed = human_scores(same)
    assert agreed is not None
    assert [agreed["bleu_4"], agreed["rouge_l"]] == pytest.approx([100.0, 100.0])
    odd = {name: [*texts[:2], ["nothing"]] for name, texts in same.items()}
    found = human_scores(odd)
    assert found is not None
    # Two of three agree with one of the others word for word, the third with nobody.
    assert found["rouge_l"] == pytest.approx(200 / 3)
    assert found["cider_d"] == pytest.approx(
        sum(
            corpus_scores(
                {name: texts[number] for name, texts in odd.items()},
                {name: [text for other, text in enumerate(texts) if other != number] for name, texts in odd.items()},
            ).cider_d
            for number in range(3)
        )
        / 3
    )
    pairs = human_scores({name: [texts[0], [*texts[1], "today"]] for name, texts in same.items()})
    assert pairs is not None and pairs["bleu_1"] == pytest.approx(50 * (math.exp(1 - 7 / 6) + 6 / 7))
    assert human_scores({**same, "alone": [["one"]]}) is None
