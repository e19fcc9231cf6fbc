"""Comparing two captioners: differences with paired intervals, what changed, and a report outside any repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from caplet_export.cli import main
from caplet_export.compare import Change, compare, format_comparison, write_report
from caplet_export.errors import ConfigurationError, DataError, ExportError
from caplet_export.evaluate import BeamResult, CaptionJournal, CaptionRecord, Evaluation
from caplet_export.flickr8k import Dataset, read_dataset
from caplet_export.metrics import METRICS, Interval, references_of
from caplet_export.verbs.evaluate import beam_of_each

WORDS = ["dog", "cat", "horse", "child", "bike", "boat", "bird", "train", "ball", "tree", "house", "car"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve photos of one colour, each of another thing, with three captions that name it."""
    root = tmp_path_factory.mktemp("things")
    (root / "images").mkdir()
    lines = []
    for number, word in enumerate(WORDS):
        Image.new("RGB", (500, 375), (20 * number, 100, 50)).save(root / "images" / f"{word}.jpg")
        templates = ("A {} stands near the water .", "The {} is seen in the sun", "one small {} in front of a wall")
        lines += [f"{word}.jpg#{i}\t{template.format(word)}" for i, template in enumerate(templates)]
    (root / "things.token.txt").write_text("\n".join(lines))
    (root / "devImages.txt").write_text("\n".join(f"{word}.jpg" for word in WORDS))
    return read_dataset(root)


def evaluation(
    dataset: Dataset, captions: dict[str, str], beams: tuple[int, ...] = (1,), name: str = "x"
) -> Evaluation:
    records = {image: CaptionRecord(text, -1.0, 10.0) for image, text in captions.items()}
    result = BeamResult.of(records, references_of(dataset, list(captions)))
    return Evaluation({"name": name}, {"unreadable": {}}, {}, {}, dict.fromkeys(beams, result))


@pytest.fixture
def vague(dataset: Dataset) -> dict[str, str]:
    """The same sentence for all but the boat."""
    captions = dict.fromkeys(dataset.split("dev"), "a thing stands near the water")
    return captions | {"boat.jpg": "the boat is seen in the sun"}


@pytest.fixture
def mixed(vague: dict[str, str]) -> dict[str, str]:
    """Better on ten photos, worse on the boat, unchanged on the bird."""
    named = {image: f"a {Path(image).stem} stands near the water" for image in vague}
    return named | {"boat.jpg": "what", "bird.jpg": vague["bird.jpg"]}


def test_differences_are_those_of_the_scores(dataset: Dataset, vague: dict[str, str], mixed: dict[str, str]) -> None:
    first, second = evaluation(dataset, vague), evaluation(dataset, mixed)
    comparison = compare(first, second, dataset)
    for name in METRICS:
        expected = getattr(second.results[1].scores, name) - getattr(first.results[1].scores, name)
        assert comparison.differences[name].value == pytest.approx(expected)
    assert comparison.differences["cider_d"].low > 0
    backwards = compare(second, first, dataset)
    assert backwards.differences["cider_d"].high == pytest.approx(-comparison.differences["cider_d"].low)


def test_the_columns_add_up_where_the_captions_have_changed_since(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str]
) -> None:
    evaluations = evaluation(dataset, vague), evaluation(dataset, mixed)
    others = replace(dataset, captions={name: said[:1] for name, said in dataset.captions.items()})
    table = format_comparison(compare(*evaluations, others))
    for row in [line.split("|")[2:5] for line in table.splitlines() if line.startswith("| ")][1:]:
        first, second, difference = map(float, row)
        assert difference == pytest.approx(second - first, abs=0.011)
    assert evaluations[0].results[1].scores.cider_d != pytest.approx(compare(*evaluations, others).scores[0]["cider_d"])


def test_changes_are_the_captions_that_differ_worst_first(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str]
) -> None:
    changes = compare(evaluation(dataset, vague), evaluation(dataset, mixed), dataset).changes
    assert {change.image for change in changes} == {f"{word}.jpg" for word in WORDS} - {"bird.jpg"}
    assert (changes[0].image, changes[0].second) == ("boat.jpg", "what")
    assert changes[0].gain < 0 < changes[1].gain
    assert [change.gain for change in changes] == sorted(change.gain for change in changes)


def test_each_side_may_have_its_own_beam(dataset: Dataset, vague: dict[str, str], mixed: dict[str, str]) -> None:
    both = evaluation(dataset, vague, beams=(1, 3))
    better = Evaluation({"name": "y"}, {}, {}, {}, {1: both.results[1], 3: evaluation(dataset, mixed).results[1]})
    assert compare(both, better, dataset, beams=(1, 1)).differences["cider_d"].value == 0
    comparison = compare(both, better, dataset, beams=(1, 3))
    assert comparison.differences["cider_d"].value > 0
    assert comparison.names == ("x (beam 1)", "y (beam 3)")
    with pytest.raises(ConfigurationError, match=r"name one with --beam"):
        compare(both, better, dataset)
    with pytest.raises(ConfigurationError, match=r"not 5"):
        compare(both, better, dataset, beams=(5, 5))
    assert [beam_of_each(sizes) for sizes in ([], [1], [1, 3])] == [(None, None), (1, 1), (1, 3)]
    with pytest.raises(ConfigurationError, match=r"or two, not 3"):
        beam_of_each([1, 2, 3])


def test_the_first_photos_alone_are_told_as_such(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str]
) -> None:
    first, second = (replace(evaluation(dataset, said), settings={"limit": 12}) for said in (vague, mixed))
    told = "12 photos (of the first 12; CIDEr-D not comparable with that of the whole split); 11 captions changed"
    assert told in format_comparison(compare(first, second, dataset))


def test_different_images_are_not_compared(dataset: Dataset, vague: dict[str, str]) -> None:
    fewer = {image: text for image, text in vague.items() if image != "car.jpg"}
    with pytest.raises(ConfigurationError, match=r"different images; in only one of them: 1, first car\.jpg$"):
        compare(evaluation(dataset, vague), evaluation(dataset, fewer), dataset)
    with pytest.raises(ConfigurationError, match=r"different images; in only one of them: 1, first car\.jpg$"):
        compare(evaluation(dataset, fewer), evaluation(dataset, vague), dataset)


def test_images_that_the_data_set_does_not_describe_are_not_compared(dataset: Dataset, vague: dict[str, str]) -> None:
    others = replace(dataset, captions={name: said for name, said in dataset.captions.items() if name != "car.jpg"})
    with pytest.raises(DataError, match=r"without captions in the data set: 1, first car\.jpg$"):
        compare(evaluation(dataset, vague), evaluation(dataset, vague), others)


def test_the_order_in_which_photos_were_captioned_does_not_matter(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str]
) -> None:
    first = evaluation(dataset, vague)
    backwards = dict(reversed(mixed.items()))
    expected = compare(first, evaluation(dataset, mixed), dataset)
    found = compare(first, evaluation(dataset, backwards), dataset)
    assert found.changes == expected.changes
    assert found.differences == expected.differences


def test_gains_are_percent_and_their_mean_is_the_difference(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str]
) -> None:
    comparison = compare(evaluation(dataset, vague), evaluation(dataset, mixed), dataset)
    mean = sum(change.gain for change in comparison.changes) / comparison.photos
    assert mean == pytest.approx(comparison.differences["cider_d"].value)


def test_the_table_says_which_intervals_exclude_zero(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str]
) -> None:
    better = format_comparison(compare(evaluation(dataset, vague), evaluation(dataset, mixed), dataset))
    same = format_comparison(compare(evaluation(dataset, vague), evaluation(dataset, vague), dataset))
    row = next(line for line in better.splitlines() if line.startswith("| CIDEr-D"))
    assert row.endswith(" | excludes 0 |")
    assert "excludes 0" not in same
    assert "12 photos; 11 captions changed, B scores higher on 10 and lower on 1." in better
    assert "12 photos; 0 captions changed, B scores higher on 0 and lower on 0." in same
    comparison = compare(evaluation(dataset, vague), evaluation(dataset, mixed), dataset)
    for least in (Interval(4.5e-3, 4e-3, 4.9e-3), Interval(-4.5e-3, -4.9e-3, -4e-3)):
        none = dict.fromkeys(METRICS, least)
        assert "excludes 0" not in format_comparison(replace(comparison, differences=none)), "+0.00 to +0.00"
    for small in (Interval(0.02, 0.01, 0.03), Interval(-0.02, -0.03, -0.01)):
        clear = dict.fromkeys(METRICS, small)
        assert format_comparison(replace(comparison, differences=clear)).count("excludes 0") == len(METRICS)
    nothing = dict.fromkeys(METRICS, Interval(-1e-4, -4e-3, 4e-3))
    assert "| +0.00 | +0.00 to +0.00 |" in format_comparison(replace(comparison, differences=nothing)), "no -0.00"
    known = {"scores": (dict.fromkeys(METRICS, 10.0), dict.fromkeys(METRICS, 11.5))}
    known["differences"] = dict.fromkeys(METRICS, Interval(1.5, -0.25, 3.25))
    assert "| CIDEr-D | 10.00 | 11.50 | +1.50 | -0.25 to +3.25 |  |" in format_comparison(replace(comparison, **known))
    more = [Change("bird.jpg", "one", "other", gain) for gain in (0.0, 0.5)]
    two_more = replace(comparison, changes=[*comparison.changes, *more])
    assert "13 captions changed, B scores higher on 11 and lower on 1." in format_comparison(two_more)


def test_the_report_shows_the_largest_gains_and_losses_with_thumbnails(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str], tmp_path: Path
) -> None:
    comparison = compare(evaluation(dataset, vague), evaluation(dataset, mixed), dataset)
    ranked = [replace(change, gain=10.0 * place - 5) for place, change in enumerate(comparison.changes)]
    comparison = replace(comparison, changes=ranked)
    report = write_report(comparison, dataset, tmp_path / "report", shown=3)
    text = report.read_text()
    gains, losses = text[text.index("## B gains most") :].split("## B loses most")
    assert [line.split()[1] for line in gains.splitlines() if line.startswith("### ")] == ["+95", "+85", "+75"]
    assert losses.count("### -") == 1
    assert "boat.jpg" in losses
    assert "- A: **the boat is seen in the sun**\n- B: **what**\n- reference: A boat stands near the water ." in losses
    assert format_comparison(comparison) in text
    thumbnails = list((report.parent / "thumbnails").iterdir())
    assert len(thumbnails) == 4
    for thumbnail in thumbnails:
        assert f"](thumbnails/{thumbnail.name})" in text
        with Image.open(thumbnail) as image:
            assert max(image.size) <= 224
    backwards = compare(evaluation(dataset, mixed), evaluation(dataset, vague), dataset)
    text = write_report(backwards, dataset, tmp_path / "backwards", shown=3).read_text()
    assert (text.count("### +"), text.count("### -")) == (1, 3)
    little = replace(comparison, changes=[replace(ranked[0], gain=gain) for gain in (-0.6, 0.0, 0.6)])
    text = write_report(little, dataset, tmp_path / "little").read_text()
    assert (text.count("### +"), text.count("### -")) == (1, 1)


def test_photos_stay_out_of_repositories(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".git").mkdir()
    comparison = compare(evaluation(dataset, vague), evaluation(dataset, mixed), dataset)
    for folder in (tmp_path, tmp_path / "deep" / "report"):
        with pytest.raises(ConfigurationError, match="photos must stay out"):
            write_report(comparison, dataset, folder)
    assert not (tmp_path / "thumbnails").exists() and not (tmp_path / "deep").exists()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ExportError, match="lead in a circle"):
        write_report(comparison, dataset, tmp_path / "circle")


@pytest.mark.parametrize(
    ("name", "address"), [("dog #1 (50%).PNG", "dog%20%231%20%2850%25%29.PNG.jpg"), ("ä.JPG", "%C3%A4.JPG")]
)
def test_photos_of_any_name_and_format_are_shown(name: str, address: str, dataset: Dataset, tmp_path: Path) -> None:
    Image.new("RGB", (500, 375)).save(tmp_path / name)
    said = {name: ["Ein Hund läuft .", "a dog runs"], "cat.jpg": dataset.captions["cat.jpg"]}
    others = replace(dataset, images=tmp_path, captions=said)
    first, second = ({name: caption, "cat.jpg": "a cat"} for caption in ("what", "a dog runs"))
    comparison = compare(evaluation(others, first), evaluation(others, second), others)
    report = write_report(comparison, others, tmp_path / "report")
    assert f"![{name}](thumbnails/{address})" in report.read_text("utf-8")
    assert "- reference: Ein Hund läuft ." in report.read_text("utf-8")
    with Image.open(tmp_path / "report" / "thumbnails" / unquote(address)) as image:
        assert image.format == "JPEG"


def test_a_photo_that_cannot_be_drawn_is_an_error_of_the_report(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str], tmp_path: Path
) -> None:
    comparison = compare(evaluation(dataset, vague), evaluation(dataset, mixed), dataset)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "boat.jpg").write_bytes(b"no photo any more")
    elsewhere = replace(dataset, images=tmp_path / "photos")
    with pytest.raises(ConfigurationError, match=r"report: the report cannot be written \(.*boat\.jpg"):
        write_report(comparison, elsewhere, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_report_replaces_a_report(
    dataset: Dataset, vague: dict[str, str], mixed: dict[str, str], tmp_path: Path
) -> None:
    comparison = compare(evaluation(dataset, vague), evaluation(dataset, mixed), dataset)
    text = write_report(comparison, dataset, tmp_path).read_text()
    assert write_report(replace(comparison, names=("one", "other")), dataset, tmp_path).read_text() != text
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "thumbnails"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{bundle}", "{json}", "--beam", "3"], "vague.json: evaluated with beam size 1, not 3"),
        (["{bundle}", "{photos}"], "manifest.json"),
        (["{json}", "{bundle}", "--beam", "1", "--limit", "3"], "vague.json: evaluated on other images"),
        (["{bundle}", "{json}", "--beam", "1", "--split", "test"], "no 'test' split"),
        (["{json}", "{json}", "--limit", "3"], "--limit is for captioning"),
        (["{json}", "{json}", "--split", "test"], "--split is for captioning"),
        (["{json}", "{json}", "--threads", "2"], "--threads is for captioning"),
        (["{few}", "{bundle}", "--beam", "1"], "few.json: evaluated on other images"),
        (["{bundle}", "{report}/A.json", "--report", "{report}"], "A.json: would replace what is read"),
        (["{bundle}", "{json}", "--report", "{foreign}"], "A.json: not a file that caplet-export writes here"),
        (["{bundle}", "{json}", "--report", "{mine}"], "mine/report.md: not a file that caplet-export"),
        (["{bundle}", "{json}", "--report", "{odd}"], "odd/report.md: not a file that caplet-export"),
        (["{bundle}", "{json}", "--report", "{pictures}"], "pictures/thumbnails: not made with a report"),
        (["{bundle}", "{json}", "--report", "{flat}"], "flat/thumbnails: not made with a report"),
        (["{json}", "{json}", "--report", "{few}"], "few.json: is a file, not a folder"),
    ],
)
def test_the_command_refuses_before_it_captions(
    dataset: Dataset,
    vague: dict[str, str],
    options: list[str],
    said: str,
    tmp_path: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluation(dataset, vague, name="vague").save(tmp_path / "vague.json")
    evaluation(dataset, {"boat.jpg": "a boat"}).save(tmp_path / "few.json")
    monkeypatch.setattr("caplet_export.evaluate.evaluate", lambda *_, **__: pytest.fail("captioned"))
    evaluation(dataset, vague).save(tmp_path / "report" / "A.json")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "A.json").write_text("{}")
    for mine in ("mine/report.md", "odd/report.md/mine", "pictures/thumbnails/boat.jpg", "flat/thumbnails"):
        (tmp_path / mine).parent.mkdir(parents=True)
        (tmp_path / mine).write_text("# What I found")
    places = {name: tmp_path / name for name in ("report", "foreign", "mine", "odd", "pictures", "flat")}
    places |= {"bundle": tiny_bundle, "photos": dataset.images, "json": tmp_path / "vague.json"}
    places["few"] = tmp_path / "few.json"
    filled = [option.format_map(places) for option in options]
    assert main(["evaluate", "--data", str(dataset.images.parent), "--compare", *filled]) == 1
    assert said in capsys.readouterr().err


def test_the_command_compares_a_bundle_with_a_saved_evaluation(
    dataset: Dataset, vague: dict[str, str], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which may lie in the folder of the report, and have been evaluated with other beams as well."""
    data, report = str(dataset.images.parent), tmp_path / "report"
    saved = evaluation(dataset, vague, beams=(1, 3), name="vague")
    saved.save(report / "A.json")
    command = ["evaluate", "--data", data, "--compare", str(report / "A.json"), str(tiny_bundle)]
    assert main([*command, "--beam", "3", "1", "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "A: vague (beam 3)" in printed and "B: tiny-6 (beam 1)" in printed
    assert Evaluation.load(report / "A.json") == saved
    assert printed.rstrip().endswith("report.md")
    assert (report / "report.md").read_text().count("## B ") == 2
    assert Evaluation.load(report / "B.json").results[1].captions.keys() == vague.keys()


def test_what_was_captioned_before_an_interruption_is_not_captioned_again(
    dataset: Dataset, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the bundle that was evaluated whole as of the other."""
    report, captioned = tmp_path / "report", []
    add = CaptionJournal.add

    def interrupted(journal: CaptionJournal, beam_size: int, name: str, record: CaptionRecord) -> None:
        if len(captioned) == len(WORDS) + 5:
            raise KeyboardInterrupt
        captioned.append(name)
        add(journal, beam_size, name, record)

    command = ["evaluate", "--data", str(dataset.images.parent), "--beam", "1", "--report", str(report)]
    command += ["--compare", str(tiny_bundle), str(tiny_bundle)]
    monkeypatch.setattr(CaptionJournal, "add", interrupted)
    assert main(command) == 130
    monkeypatch.setattr(CaptionJournal, "add", lambda *arguments: captioned.append(arguments[2]) or add(*arguments))
    assert main(command) == 0
    assert len(captioned) == 2 * len(WORDS)
    assert {path.name for path in report.iterdir()} == {"A.json", "B.json", "report.md", "thumbnails"}
