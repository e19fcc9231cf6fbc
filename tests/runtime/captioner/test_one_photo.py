"""`Captioner.caption`: the same words as the reference, from every input, with every option."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from caplet import ArgumentError, Captioner, ImageError, ImageNotFoundError
from caplet.captioner import join_words
from caplet.explain import plot_attention
from sample_photos import IN_COLOUR as NAMES
from tiny_bundle import END, TinyModel, reference_search, vocabulary, write_tiny_bundle


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


def with_forms(folder: Path, seed: int, *forms: tuple[str, str, str]) -> Captioner:
    """A tiny bundle, in which words are written in other forms before other words."""
    ids = [[vocabulary(36).index(word) for word in form] for form in forms]
    return Captioner(write_tiny_bundle(folder, seed=seed, edit_manifest=lambda m: m["decoding"].update(forms=ids)))


def test_words_take_the_forms_that_they_have_before_the_next(
    captioner: Captioner, photos: Path, tmp_path: Path
) -> None:
    plain = captioner.caption(photos / "coffee.jpg")
    assert plain.words == ("bike", "cat", "bike", "jumps", "runs")
    # The first is still followed by a cat, whatever is written for that, and the last by nothing.
    forms = [("bike", "rock", "cat"), ("cat", "dog", "bike"), ("jumps", "sits", "dog"), ("runs", "sits", "bike")]
    written = with_forms(tmp_path, 6, *forms).caption(photos / "coffee.jpg")
    assert written.words == ("rock", "dog", "bike", "jumps", "runs")
    assert written.text == " ".join(written.words) == written.alternatives[0].text
    assert (written.score, written.word_scores) == (plain.score, plain.word_scores)
    np.testing.assert_array_equal(written.attention, plain.attention)


def test_sentences_that_differ_in_nothing_but_a_form_are_one_alternative(photos: Path, tmp_path: Path) -> None:
    plain, written = (
        with_forms(tmp_path / str(len(forms)), 4, *forms).caption(photos / "astronaut.jpg", beam_size=7).alternatives
        for forms in ([], [("boy", "snow", "runs")])
    )
    best: dict[str, float] = {}
    for alternative in plain:
        best.setdefault(alternative.text.replace("boy runs", "snow runs"), alternative.score)
    assert (len(plain), len(best)) == (7, 4)
    assert [(alternative.text, alternative.score) for alternative in written] == list(best.items())


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
        found = captioner.caption_many(paths, beam_size=beam_size, max_length=max_length)
        assert max(len(caption.words) for caption in found) == max_length


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
