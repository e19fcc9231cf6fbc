"""Evaluating a bundle: the runtime's captions, scored, kept while they are made, and never lost to one bad photo."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from caplet import Captioner
from caplet.bundle import load_bundle
from caplet.cli import main as caption_main
from caplet.machine import describe_cpu, versions
from caplet_export.bigrams import Bigrams
from caplet_export.cli import main
from caplet_export.errors import ConfigurationError, ExportError
from caplet_export.evaluate import BeamResult, CaptionJournal, CaptionRecord, Evaluation, evaluate, format_table
from caplet_export.flickr8k import read_dataset
from caplet_export.metrics import (
    Interval,
    Scores,
    corpus_scores,
    human_scores,
    leave_one_out_scores,
    references_of,
)
from caplet_export.tokenizer import tokenize
from tiny_bundle import PHOTOS, TinyModel, join_words, reference_search, rehash, vocabulary, write_tiny_bundle

DEV, TRAIN = 11, 2


@pytest.fixture(scope="session")
def made_up_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the Flickr8k layout: random blobs of colour, and sentences in the tiny bundle's words."""
    root = tmp_path_factory.mktemp("made-up")
    (root / "Flicker8k_Dataset").mkdir()
    generator, words = random.Random(0), vocabulary(36)[4:]
    names = [f"{number:03}.jpg" for number in range(DEV + TRAIN)]
    lines = []
    for seed, name in enumerate(names):
        blobs = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
        Image.fromarray(blobs).resize((80, 64), Image.Resampling.BICUBIC).save(root / "Flicker8k_Dataset" / name)
        lines += [f"{name}#{n}\t{' '.join(generator.choices(words, k=generator.randint(3, 9)))} ." for n in range(5)]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (root / "Flickr_8k.trainImages.txt").write_text("\n".join(names[DEV:]) + "\n")
    (root / "Flickr_8k.devImages.txt").write_text("\n".join(names[:DEV]) + "\n")
    return root


def expected_text(path: Path, beam_size: int) -> str:
    """What the tiny bundle says by its own reference in numpy."""
    model = TinyModel.random()
    with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((299, 299), Image.Resampling.BILINEAR))
    ids, _ = reference_search(model, pixels, beam_size=beam_size, max_length=12)[0]
    words = vocabulary(model.sizes["V"])
    return join_words([words[token] for token in ids])


def texts(evaluation: Evaluation, beam_size: int) -> dict[str, str]:
    return {name: record.text for name, record in evaluation.results[beam_size].captions.items()}


def test_every_photo_of_the_split_gets_the_models_caption_for_every_beam(tiny_bundle: Path, made_up_data: Path) -> None:
    dataset = read_dataset(made_up_data)
    evaluation = evaluate(tiny_bundle, dataset, "dev", beam_sizes=[1, 3])
    for beam_size in (1, 3):
        expected = {name: expected_text(dataset.path(name), beam_size) for name in dataset.split("dev")}
        assert texts(evaluation, beam_size) == expected
        hypotheses = {name: tokenize(text) for name, text in expected.items()}
        bigrams = Bigrams(chain.from_iterable(references_of(dataset, dataset.split("train")).values()))
        references = references_of(dataset, list(expected))
        assert evaluation.results[beam_size].scores == corpus_scores(hypotheses, references, bigrams)
        assert evaluation.results[beam_size].leave_one_out == leave_one_out_scores(hypotheses, references)
        assert evaluation.results[beam_size].milliseconds > 0
    assert texts(evaluation, 1) != texts(evaluation, 3)


def test_beams_take_turns_so_that_a_machine_that_slows_down_slows_them_all(
    tiny_bundle: Path, made_up_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caplet_export.evaluate._TURN", 2)
    journal = tmp_path / "captions.jsonl"
    dataset = read_dataset(made_up_data)
    evaluation = evaluate(tiny_bundle, dataset, "dev", limit=5, beam_sizes=[1, 3], journal_path=journal)
    made = [json.loads(line)["beam"] for line in journal.read_text().splitlines()[1:]]
    assert made == [1, 1, 3, 3, 1, 1, 3, 3, 1, 3]
    assert [list(result.captions) for result in evaluation.results.values()] == 2 * [list(dataset.split("dev")[:5])]


def test_what_people_say_is_not_learned_from_the_captions_that_are_scored_against(
    tiny_bundle: Path, made_up_data: Path
) -> None:
    shares = [
        evaluate(tiny_bundle, read_dataset(made_up_data), split, limit=1, beam_sizes=[1]).results[1].scores
        for split in ("dev", "train")
    ]
    assert [scores.implausible_bigram_share is None for scores in shares] == [False, True]


def test_the_bundles_own_beam_is_the_default(made_up_data: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    rehash(bundle, lambda manifest: manifest["decoding"].update(beam_size=2))
    evaluation = evaluate(bundle, read_dataset(made_up_data), "dev", limit=2)
    assert list(evaluation.results) == [2]
    assert evaluation.data["images"] == len(texts(evaluation, 2)) == 2


def test_an_evaluation_says_what_it_is_of(tiny_bundle: Path, made_up_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(made_up_data, tmp_path / "data")
    dataset = read_dataset(data)
    first, second, broken = dataset.split("dev")[:3]
    dataset.path(broken).write_bytes(b"no photo")
    evaluation = evaluate(tiny_bundle, dataset, "dev", limit=3, beam_sizes=[1])
    bundle = load_bundle(tiny_bundle)
    files = {"encoder": "encoder.onnx", "decoder": "decoder.onnx", "vocabulary": "vocabulary.txt"}
    assert evaluation.bundle == {
        "name": "tiny-6",
        "path": str(tiny_bundle),
        "digest": bundle.digest,
        "sha256": {role: hashlib.sha256((tiny_bundle / name).read_bytes()).hexdigest() for role, name in files.items()},
    }
    assert list(evaluation.data.pop("unreadable")) == [broken]  # type: ignore[attr-defined]
    human = human_scores(references_of(dataset, [first, second]))
    assert evaluation.data == {"root": str(data.resolve()), "split": "dev", "images": 2, "human": human}
    decoding = json.loads((tiny_bundle / "manifest.json").read_text())["decoding"]
    assert evaluation.settings == {"limit": 3, "threads": Captioner(tiny_bundle).threads, **decoding}
    assert evaluation.machine == {"cpu": describe_cpu(), "packages": versions()}


def test_figures_stand_in_their_columns() -> None:
    scores = Scores(61.2, 42.3, 29.4, 20.5, 46.6, 55.7, 1.0, 2.0, 10.4, 321, 3.1, 1.2)
    intervals = {"bleu_4": Interval(20.5, 18.1, 22.9), "cider_d": Interval(55.7, 52.8, 58.6)}
    results = {
        beam: BeamResult({}, dataclasses.replace(scores, implausible_bigram_share=odd), intervals, [], None, 23.6)
        for beam, odd in ((1, 5.5), (3, None))
    }
    table = format_table(Evaluation({"name": "tiny"}, {"images": 7, "split": "dev"}, {"limit": None}, {}, results))
    figures = "61.2 42.3 29.4 20.5 18.1-22.9 46.6 55.7 52.8-58.6 10.4 321 3.1% 1.2%"
    assert [" ".join(line.split()) for line in table.splitlines()] == [
        "tiny on 7 dev photos",
        "beam BLEU-1 BLEU-2 BLEU-3 BLEU-4 95% ROUGE-L CIDEr-D 95% "
        "length vocabulary rep. 3-grams dangling odd pairs ms/photo",
        f"1 {figures} 5.5% 24",
        f"3 {figures} - 24",
    ]


def test_a_part_of_a_split_is_called_one(tiny_bundle: Path, made_up_data: Path) -> None:
    titles = [
        format_table(
            evaluate(tiny_bundle, read_dataset(made_up_data), "dev", limit=limit, beam_sizes=[1])
        ).splitlines()[0]
        for limit in (None, DEV, DEV + 1, 2)
    ]
    assert set(titles[:3]) == {f"tiny-6 on {DEV} dev photos"}
    assert titles[3] == "tiny-6 on 2 dev photos (of the first 2; CIDEr-D not comparable with that of the whole split)"


def test_the_command_prints_a_row_a_beam_and_writes_what_it_measured(
    tiny_bundle: Path, made_up_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "dev.json"
    command = ["evaluate", str(tiny_bundle), "--data", str(made_up_data), "--json", str(output), "--beam", "1", "2"]
    assert main([*command, "--threads", "3"]) == 0
    printed = capsys.readouterr()
    evaluation = Evaluation.load(output)
    assert printed.out == format_table(evaluation) + "\n"
    assert printed.err == ""
    assert [row.split()[0] for row in printed.out.splitlines()[2:]] == ["1", "2"]
    assert f"{evaluation.results[2].scores.cider_d:.1f}" in printed.out.splitlines()[3].split()
    assert [path.name for path in output.parent.iterdir()] == ["dev.json"]
    content = json.loads(output.read_text())
    assert content["bundle"]["name"] == "tiny-6"
    assert content["settings"]["length_penalty"] == 1.0 and content["settings"]["threads"] == 3
    assert "onnxruntime" in content["machine"]["packages"]
    low, high = (content["results"]["1"]["intervals"]["rouge_l"][end] for end in ("low", "high"))
    assert low < content["results"]["1"]["scores"]["rouge_l"] < high


def test_a_saved_evaluation_reads_back_equal(tiny_bundle: Path, made_up_data: Path, tmp_path: Path) -> None:
    evaluation = evaluate(tiny_bundle, read_dataset(made_up_data), "dev", beam_sizes=[2])
    evaluation.save(tmp_path / "dev.json")
    assert Evaluation.load(tmp_path / "dev.json") == evaluation


def test_captions_are_those_of_the_captioner(tiny_bundle: Path, made_up_data: Path) -> None:
    dataset = read_dataset(made_up_data)
    paths = [dataset.path(name) for name in dataset.split("dev")]
    records = evaluate(tiny_bundle, dataset, "dev", beam_sizes=[1, 3]).results
    for beam_size in (1, 3):
        captions = Captioner(tiny_bundle).caption_many(paths, beam_size=beam_size)
        expected = [(caption.text, caption.score) for caption in captions]
        assert [(record.text, record.score) for record in records[beam_size].captions.values()] == expected


class WatchedJournal:
    """Counts the captions that are made by beam size, and presses Ctrl-C in front of one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: Counter[int] = Counter()
        self.interrupt_at: int | None = None
        add = CaptionJournal.add

        def watched(journal: CaptionJournal, beam_size: int, name: str, record: CaptionRecord) -> None:
            if self.made.total() == self.interrupt_at:
                raise KeyboardInterrupt
            self.made[beam_size] += 1
            add(journal, beam_size, name, record)

        monkeypatch.setattr(CaptionJournal, "add", watched)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    tiny_bundle: Path, made_up_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", str(tiny_bundle), "--data", str(made_up_data), "--beam", "1", "3", "--json"]
    assert main([*command, str(tmp_path / "whole.json")]) == 0
    watched = WatchedJournal(monkeypatch)
    watched.interrupt_at = DEV + 4
    assert main([*command, str(tmp_path / "dev.json")]) == 130
    assert watched.made == {1: DEV, 3: 4}
    assert not (tmp_path / "dev.json").exists()

    # The last line is cut short, as a power failure may leave it.
    journal = tmp_path / "dev.json.captions.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])

    watched.made.clear()
    watched.interrupt_at = None
    assert main([*command, str(tmp_path / "dev.json")]) == 0
    assert watched.made == {3: DEV - 3}
    assert not journal.exists()
    whole, resumed = (Evaluation.load(tmp_path / name) for name in ("whole.json", "dev.json"))
    for beam_size in (1, 3):
        assert texts(whole, beam_size) == texts(resumed, beam_size)
        assert whole.results[beam_size].scores == resumed.results[beam_size].scores


@pytest.mark.parametrize("file", ["dev.json", "dev.json.captions.jsonl"])
def test_a_file_of_somebody_elses_is_neither_replaced_nor_deleted(
    file: str,
    tiny_bundle: Path,
    made_up_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("caplet_export.evaluate.evaluate", lambda *_, **__: pytest.fail("captioned"))
    (tmp_path / file).write_text('{"my": "notes"}\n')
    command = ["evaluate", str(tiny_bundle), "--data", str(made_up_data), "--json", str(tmp_path / "dev.json")]
    assert main(command) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and f"{file}: not a file that caplet-export writes here" in errors[0]
    assert (tmp_path / file).read_text() == '{"my": "notes"}\n'


def test_an_evaluation_is_replaced_by_a_new_one(tiny_bundle: Path, made_up_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "dev.json"
    for limit in (2, 3):
        command = ["evaluate", str(tiny_bundle), "--data", str(made_up_data), "--json", str(output)]
        assert main([*command, "--limit", str(limit), "--beam", "1"]) == 0
    assert Evaluation.load(output).data["images"] == 3


@pytest.mark.parametrize("value", [{"text": 3}, {"score": [0.5]}, {"milliseconds": None}, {"image": []}], ids=str)
def test_captions_that_are_none_are_refused(
    value: dict[str, Any], tiny_bundle: Path, made_up_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, journal = read_dataset(made_up_data), tmp_path / "dev.json.captions.jsonl"
    evaluate(tiny_bundle, dataset, "dev", beam_sizes=[1], journal_path=journal)
    header, first, *others = journal.read_text().splitlines()
    journal.write_text("\n".join([header, json.dumps({**json.loads(first), **value}), *others, ""]))
    command = ["evaluate", str(tiny_bundle), "--data", str(made_up_data), "--beam", "1"]
    assert main([*command, "--json", str(tmp_path / "dev.json")]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"caplet-export evaluate: {journal}: damaged (")


def test_a_full_disk_is_said_of_the_journal(tmp_path: Path) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with CaptionJournal(tmp_path / "dev.jsonl", {"bundle": "one"}) as journal:
            journal._file = io.BufferedWriter(Full())  # type: ignore[assignment]
            journal.add(1, "a.jpg", CaptionRecord("a dog", -1.0, 5.0))

    with pytest.raises(ConfigurationError, match=r"dev\.jsonl: cannot be written \(No space left on device\)"):
        write()


def test_killed_as_it_begins_a_journal_anew_it_keeps_no_caption_of_the_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers of two bundles are of one length, so that lines of the one would be read as the other's."""
    path = tmp_path / "dev.captions.jsonl"
    with CaptionJournal(path, {"bundle": "one"}) as journal:
        journal.add(1, "a.jpg", CaptionRecord("a dog", -1.0, 5.0))

    class Killed(io.FileIO):
        def truncate(self, size: int | None = None) -> int:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda self, mode: Killed(self, mode.replace("b", "")))
        with pytest.raises(KeyboardInterrupt):
            CaptionJournal(path, {"bundle": "two"})
    with CaptionJournal(path, {"bundle": "two"}) as journal:
        assert journal.captions == {}


def test_graphs_that_fail_are_one_line(tmp_path: Path, made_up_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def forget_words(manifest: dict[str, Any]) -> None:
        manifest["vocabulary"]["size"] = 16

    bundle = write_tiny_bundle(tmp_path / "bundle")
    (bundle / "vocabulary.txt").write_text("".join(f"{word}\n" for word in vocabulary(36)[:16]))
    rehash(bundle, forget_words)
    assert main(["evaluate", str(bundle), "--data", str(made_up_data)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == ["caplet-export evaluate: decoder: gives tokens that are not words; run `caplet check`"]


def test_captions_of_another_run_are_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with CaptionJournal(path, {"bundle": "one"}) as journal:
        journal.add(1, "a.jpg", CaptionRecord("a dog", -0.5, 30.0))
    with CaptionJournal(path, {"bundle": "one"}) as journal:
        assert journal.captions == {(1, "a.jpg"): CaptionRecord("a dog", -0.5, 30.0)}
    with CaptionJournal(path, {"bundle": "two"}) as journal:
        assert journal.captions == {}
    assert path.read_text() == '{"bundle": "two"}\n'


@pytest.mark.skipif(sys.platform == "win32", reason="files cannot be locked there")
def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    """Of another run or of the same one, the second would write its captions over those of the first."""
    import fcntl

    path = tmp_path / "journal.jsonl"
    with CaptionJournal(path, {"bundle": "one"}) as journal:
        journal.add(1, "a.jpg", CaptionRecord("a dog", -0.5, 30.0))
        with path.open() as other, pytest.raises(BlockingIOError):  # locks are of descriptors, as if of another process
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    before = path.read_text()
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in ("one", "two"):
            with pytest.raises(ExportError, match="another caplet-export is writing to it"):
                CaptionJournal(path, {"bundle": name})
    assert path.read_text() == before


def test_captions_of_other_photos_of_the_same_names_are_not_taken_up(
    tiny_bundle: Path, made_up_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, journal = WatchedJournal(monkeypatch), tmp_path / "journal.jsonl"
    for folder in ("one", "other"):
        shutil.copytree(made_up_data, tmp_path / folder / "data")
        monkeypatch.chdir(tmp_path / folder)
        evaluate(tiny_bundle, read_dataset(Path("data")), "dev", limit=2, beam_sizes=[1], journal_path=journal)
    assert watched.made == {1: 4}


def test_captions_of_another_bundle_of_the_same_name_are_not_taken_up(
    tiny_bundle: Path, made_up_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, journal = WatchedJournal(monkeypatch), tmp_path / "journal.jsonl"
    other = write_tiny_bundle(tmp_path / "other")
    rehash(other, lambda manifest: manifest["decoding"].update(max_length=2))
    for bundle in (tiny_bundle, other):
        evaluate(bundle, read_dataset(made_up_data), "dev", limit=2, beam_sizes=[1], journal_path=journal)
    assert watched.made == {1: 4}


def test_fifths_are_those_of_the_captions_scores_lowest_first() -> None:
    references = {name: [["a", name, "runs", "fast"]] for name in "abcdefghij"}
    captions = {
        name: CaptionRecord(f"a {name} runs fast" if number % 2 else "what", number % 2 - 1.5, 10.0 + number)
        for number, name in enumerate(references)
    }
    result = BeamResult.of(captions, references)
    assert result.cider_d_by_score == pytest.approx([0, 0, 500, 1000, 1000])
    assert result.milliseconds == 14.5
    few = BeamResult.of({name: captions[name] for name in "abcd"}, {name: references[name] for name in "abcd"})
    assert few.cider_d_by_score == pytest.approx([0, 0, 1000, 1000])


@pytest.mark.parametrize("version", [2, 4])
def test_an_evaluation_of_another_version_is_to_be_made_again(version: int, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"format": version}))
    with pytest.raises(ConfigurationError, match=r"old\.json: written by another version .*; evaluate again$"):
        Evaluation.load(tmp_path / "old.json")


@pytest.mark.parametrize("count", [1, 2, 21, 22])
def test_defects_of_the_data_are_told_and_several_are_counted(
    count: int, tiny_bundle: Path, made_up_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If there are many, the first of each file."""
    data = shutil.copytree(made_up_data, tmp_path / "data")
    with (data / "Flickr8k.token.txt").open("a") as tokens:
        line = len((data / "Flickr8k.token.txt").read_text().splitlines()) + 1
        tokens.write("no caption\n")
    with (data / "Flickr_8k.devImages.txt").open("a") as file:
        file.write("gone.jpg\n" * (count - 1))
    assert main(["evaluate", str(tiny_bundle), "--data", str(data), "--limit", "1", "--beam", "1"]) == 0
    expected = [f"Flickr8k.token.txt:{line}: not '<file>#<n>TAB<caption>': 'no caption'"]
    expected += [
        f"Flickr_8k.devImages.txt:{line}: image is not in Flicker8k_Dataset: 'gone.jpg'"
        for line in range(DEV + 1, DEV + min(count, 21))
    ]
    if count > 1:
        named = "the first 20 of each file named above" if count > 21 else "named above"
        expected.append(f"{data}: {count} defects in all, {named}")
    assert capsys.readouterr().err == "".join(f"caplet-export evaluate: {line}\n" for line in expected)


def test_unreadable_photos_are_named_and_left_out(
    tiny_bundle: Path, made_up_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made_up_data, data)
    broken = data / "Flicker8k_Dataset" / "003.jpg"
    broken.write_bytes((PHOTOS / "cat.jpg").read_bytes()[:9000])
    output = tmp_path / "dev.json"
    assert main(["evaluate", str(tiny_bundle), "--data", str(data), "--json", str(output), "--beam", "1"]) == 0
    told = f"left out: 003.jpg: {broken}: the JPEG file is truncated; get a complete copy"
    assert capsys.readouterr().err == f"caplet-export evaluate: {told}\n"
    evaluation = Evaluation.load(output)
    assert list(evaluation.data["unreadable"]) == ["003.jpg"]
    whole = evaluate(tiny_bundle, read_dataset(made_up_data), "dev", beam_sizes=[1])
    assert texts(evaluation, 1) == {name: text for name, text in texts(whole, 1).items() if name != "003.jpg"}
    assert evaluation.images == whole.images


def test_the_pages_lines_write_what_pycocoevalcap_reads_and_score_captions_of_any_origin(
    tiny_bundle: Path, made_up_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores of their two files are those of the evaluation; Java's tokeniser is compared in test_metrics."""
    bleu, rouge, cider = (pytest.importorskip(f"pycocoevalcap.{name}.{name}") for name in ("bleu", "rouge", "cider"))
    from pycocotools.coco import COCO

    monkeypatch.chdir(tmp_path)
    shutil.copytree(made_up_data, "flickr8k")
    Path("flickr8k/Flicker8k_Dataset/003.jpg").write_bytes(b"no photo")
    tokens = Path("flickr8k/Flickr8k.token.txt")  # of which Java makes two captions, and so shifts all that follow
    tokens.write_text(tokens.read_text().replace(" .", "\u2028 .", 1), encoding="utf-8")
    command = ["evaluate", str(tiny_bundle), "--data", "flickr8k", "--json", "int8.json", "--beam", "1", "3"]
    assert main(command) == 0
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    for_others, scoring = re.findall(r"```python\n(.*?)```", page.partition("\n## 11. ")[2].partition("\n## ")[0], re.S)
    exec(for_others, {})

    truth = COCO("annotations.json")
    said = truth.loadRes("results.json")
    assert [photo["file_name"] for photo in truth.loadImgs(truth.getImgIds())] == [
        f"{number:03}.jpg" for number in range(DEV) if number != 3
    ]
    assert all(len(one["caption"].splitlines()) == 1 for one in truth.anns.values())
    assert len(truth.anns) == 5 * (DEV - 1) and truth.imgToAnns.keys() == said.imgToAnns.keys()
    references, hypotheses = (
        {photo: [" ".join(tokenize(one["caption"])) for one in captions] for photo, captions in read.imgToAnns.items()}
        for read in (truth, said)
    )
    scorers = (bleu.Bleu(4), rouge.Rouge(), cider.Cider())
    scores = [score for scorer in scorers for score in np.ravel(scorer.compute_score(references, hypotheses)[0])]
    ours = Evaluation.load(Path("int8.json")).results[3].scores
    assert [100 * score for score in scores] == pytest.approx(dataclasses.astuple(ours)[:6], rel=1e-9)

    photos = [f"flickr8k/Flicker8k_Dataset/{number:03}.jpg" for number in range(DEV)]
    options = ["--beam", "3", "--model", str(tiny_bundle), "--format", "jsonl", "-o", "captions.jsonl", "-q"]
    assert caption_main([*photos, *options]) == 1
    found: dict[str, Any] = {}
    exec(scoring, found)
    assert found["scores"] == dataclasses.replace(ours, implausible_bigram_share=None)


def test_photos_whose_storage_fails_are_not_left_out(
    tiny_bundle: Path,
    made_up_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same command goes on where it stopped."""
    opened: list[str] = []

    def fail(path: str, *mode: str) -> io.BufferedReader:
        opened.append(path)
        if len(opened) > 4:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return open(path, "rb")

    monkeypatch.setattr("caplet.image_source.open", fail, raising=False)
    output = tmp_path / "dev.json"
    command = ["evaluate", str(tiny_bundle), "--data", str(made_up_data), "--json", str(output), "--beam", "1"]
    assert main([*command, "--threads", "1"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    cause = f"cannot be read ({os.strerror(errno.ENOTCONN)})"
    assert error.startswith(f"caplet-export evaluate: {opened[4]}: {cause}: the disk or the network failed; ")
    assert not output.exists()
    assert len((tmp_path / "dev.json.captions.jsonl").read_text().splitlines()) == 1 + 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}/nothing", "--data", "{data}"], "no such"),
        (["{altered}", "--data", "{data}"], "decoder.onnx"),
        (["{bundle}", "--data", "{data}", "--beam", "400"], "beam"),
        (["{bundle}", "--data", "{data}", "--split", "test"], "no 'test' split"),
        (["{bundle}", "--data", "{data}/nothing"], "no such folder"),
        (["{bundle}", "--data", "{data}", "--report", "/tmp/x"], "--report needs --compare"),
        (["{bundle}", "--data", "{data}", "--compare", "a", "b"], "--compare takes two"),
        (["--data", "{data}", "--compare", "{data}/nothing", "{bundle}"], "cannot be read"),
        (["--data", "{data}", "--compare", "{bundle}", "{data}/nothing"], "cannot be read"),
        (["--data", "{data}", "--compare", "{bundle}", "{bundle}", "--beam", "1", "2", "3"], "or two, not 3"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    arguments: list[str],
    message: str,
    tiny_bundle: Path,
    made_up_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    altered = write_tiny_bundle(tmp_path / "altered")
    with (altered / "decoder.onnx").open("ab") as file:
        file.write(b"x")
    filled = [word.format(bundle=tiny_bundle, data=made_up_data, altered=altered) for word in arguments]
    assert main(["evaluate", *filled]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]


def test_no_readable_photo_at_all_is_an_error(
    tiny_bundle: Path, made_up_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(made_up_data, data)
    for photo in (data / "Flicker8k_Dataset").iterdir():
        photo.write_bytes(b"no photo")
    assert main(["evaluate", str(tiny_bundle), "--data", str(data)]) == 1
    assert "none of 11 photos can be read" in capsys.readouterr().err
    (data / "Flickr_8k.devImages.txt").write_text("")
    assert main(["evaluate", str(tiny_bundle), "--data", str(data)]) == 1
    assert "no image of the 'dev' split can be used" in capsys.readouterr().err


def test_a_file_that_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    for content in ("", "[]", "[" * 200_000):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ConfigurationError, match=r"x\.json"):
            Evaluation.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(bundle={}),
        lambda content: content.update(data=3),
        lambda content: content["results"]["1"].update(captions={}),
        lambda content: content["results"]["1"]["captions"]["000.jpg"].update(text=3),
        lambda content: content.update(settings=[]),
    ],
)
def test_an_edited_evaluation_is_refused(
    edit: Callable[[dict[str, Any]], None], tiny_bundle: Path, made_up_data: Path, tmp_path: Path
) -> None:
    evaluate(tiny_bundle, read_dataset(made_up_data), "dev", limit=1, beam_sizes=[1]).save(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    edit(content)
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"x\.json: not an evaluation written by caplet-export"):
        Evaluation.load(tmp_path / "x.json")
