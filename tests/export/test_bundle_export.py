"""A bundle written by the toolchain is one that the runtime loads, checks and captions with."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import caplet
from caplet import Captioner
from caplet.bundle import load_bundle
from caplet.image import load_pixels
from caplet_export.ablation import COLUMNS
from caplet_export.bundle import Licences, read_ablation, write_bundle
from caplet_export.card import markdown_table, render_card, render_scores, render_summary
from caplet_export.checkpoint import run_digest
from caplet_export.cli import main
from caplet_export.config import DEFAULT_DECODING, Config
from caplet_export.errors import ConfigurationError, ExportError
from caplet_export.outputs import ATTENTION, CHART, GRAPHS, whole_folder
from caplet_export.stages import ALL, Stage, write_stages
from caplet_export.text import SPECIALS, Vocabulary

HUMAN = {"bleu_1": 60.0, "bleu_2": 41.0, "bleu_3": 28.0, "bleu_4": 21.75, "rouge_l": 49.5, "cider_d": 83.25}
EVALUATION: dict[str, Any] = {
    "scorer": "a scorer",
    "bundle": {"name": "tiny"},
    "settings": {
        "limit": None,
        "max_length": 20,
        "length_penalty": 1.0,
        "block_repeated_trigrams": True,
        "repeatable": None,
        "forms": [],
    },
    "data": {"split": "dev", "images": 7, "human": {**HUMAN}},
    "results": {
        "3": {
            "captions": {"secret.jpg": {"text": "never in a bundle"}},
            "scores": {
                "bleu_1": 61.23,
                "bleu_2": 42.0,
                "bleu_3": 29.0,
                "bleu_4": 20.0,
                "rouge_l": 46.0,
                "cider_d": 55.55,
            },
            "intervals": {"cider_d": {"low": 52.1, "high": 58.9}},
            "cider_d_by_score": [31.0, 42.0, 53.0, 64.0, 75.0],
            "leave_one_out": {**HUMAN, "bleu_4": 18.25, "cider_d": 55.375},
            "milliseconds": 24.04,
        }
    },
}

TERMS = ["--weights-license", "MIT", "--data-license", "my own photos"]


def evaluation_of(graphs: Path, **changes: Any) -> dict[str, Any]:
    """What `evaluate` would have written of a bundle with these graphs."""
    files = {"encoder": "encoder.onnx", "decoder": "decoder.onnx", "vocabulary": "vocabulary.txt"}
    sha256 = {role: hashlib.sha256((graphs / file).read_bytes()).hexdigest() for role, file in files.items()}
    return {**EVALUATION, "bundle": {"name": "tiny", "sha256": sha256}, **changes}


GREEDY = {**EVALUATION["results"]["3"], "milliseconds": 20.0}
ABLATION = {
    "title": "What each part gave",
    "columns": ["run", "CIDEr-D"],
    "rows": [["all", 55.5], ["no gate", 54.0]],
    "note": "One seed each.",
}

SECOND = {"title": "What each switch gives", "columns": ["run"], "rows": [["no smoothing"]]}


@pytest.fixture
def golden(photos: Path) -> list[Path]:
    return [photos / "cat.jpg", photos / "coffee.jpg"]


@pytest.fixture
def graphs(tiny_bundle: Path, tmp_path: Path) -> Path:
    """What `quantize` leaves: graphs, vocabulary, and the records of its and of `convert`'s work."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    for name in ("encoder.onnx", "decoder.onnx", "vocabulary.txt"):
        (folder / name).write_bytes((tiny_bundle / name).read_bytes())
    parity = {
        "encoder_weights": "5" * 64,
        "photos": 9,
        "identical_captions": 8,
        "max_difference": {"features": 1.5e-5},
        "different_captions": [{"photo": "secret.jpg"}],
    }
    (folder / "parity.json").write_text(json.dumps(parity))
    quantization = {"method": "mse", "photos": 8, "seed": 1, "rounding": "nearest", "biases": "by means"}
    (folder / "quantization.json").write_text(json.dumps(quantization))
    return folder


def test_round_trip(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    settings: dict[str, Any] = {"max_length": 9, "length_penalty": 0.7}
    write_bundle(
        output,
        graphs,
        name="tiny",
        golden=golden,
        recipe={"model": {"state_size": 7}},
        decoding=replace(DEFAULT_DECODING, beam_size=4, **settings, repeatable=((4,), (5, 4)), forms=((4, 6, 7),)),
        metrics=evaluation_of(
            graphs,
            settings={**EVALUATION["settings"], **settings, "repeatable": [[4], [5, 4]], "forms": [[4, 6, 7]]},
        ),
        ablations=[ABLATION],
    )
    bundle = load_bundle(output)
    assert not bundle.manifest.saturates
    decoding = bundle.manifest.decoding
    assert (decoding.beam_size, decoding.max_length, decoding.length_penalty) == (4, 9, 0.7)
    captioner = Captioner(output)
    entries = {(entry.file, entry.beam_size): entry for entry in bundle.manifest.golden}
    assert set(entries) == {(f"golden/{name}.png", beam) for name in ("cat", "coffee") for beam in (1, 4)}
    assert {entry.source for entry in entries.values()} == {photo.name for photo in golden}  # of absolute paths
    for (file, beam), entry in entries.items():
        caption = captioner.caption(output / file, beam_size=beam)
        assert (caption.text, pytest.approx(caption.score, abs=1e-5)) == (entry.text, entry.score)
    for photo in golden:
        with Image.open(output / f"golden/{photo.stem}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), load_pixels(photo))
    kept = {name: value for name, value in EVALUATION["results"]["3"].items() if name != "captions"}
    assert bundle.manifest.metrics == {
        **EVALUATION["data"],
        "scorer": "a scorer",
        "limit": None,
        "results": {"3": {**kept, "milliseconds": 24.0}},
    }
    assert "secret" not in (output / "manifest.json").read_text() + (output / "README.md").read_text()


@pytest.mark.parametrize("saturating", ["encoder", "decoder"])
def test_which_graph_saturates_is_told(
    saturating: str, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {graph: onnx.load(graphs / f"{graph}.onnx") for graph in ("encoder", "decoder")}
    monkeypatch.setattr("caplet_export.bundle.saturates", lambda model: model == models[saturating])
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=[])
    assert json.loads((tmp_path / "bundle/manifest.json").read_text())["graphs"] == {
        graph: {"file": f"{graph}.onnx", "opset": model.opset_import[0].version, "saturates": graph == saturating}
        for graph, model in models.items()
    }


def test_where_golden_photos_are_below_the_working_folder_is_told(
    graphs: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=[Path("photos/cat.jpg")])
    assert {entry.source for entry in load_bundle(tmp_path / "bundle").manifest.golden} == {"photos/cat.jpg"}


def test_a_golden_photo_that_cannot_be_read_is_an_error(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    (half := tmp_path / "half.jpg").write_bytes(golden[0].read_bytes()[:9000])
    with pytest.raises(ExportError) as caught:
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=[half])
    assert str(caught.value) == f"{half}: the JPEG file is truncated; get a complete copy"
    assert not (tmp_path / "bundle").exists()


def test_golden_photos_of_one_name_would_be_one_file(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    shutil.copy(golden[1], again := tmp_path / golden[0].name)
    with pytest.raises(ConfigurationError, match="--golden: two photos are called cat; rename one"):
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=[golden[0], again])
    assert not (tmp_path / "bundle").exists()


def test_every_file_but_the_card_and_its_pictures_is_listed_with_its_hash(
    graphs: Path, golden: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    row = ["xe", "51.6 (48.2 to 55.2)", "", "19.8", "46.1", "10.4", "10.2", "", "(the baseline)"]
    tables = [{"title": "What each stage gave", "columns": list(COLUMNS), "rows": [row]}]
    write_bundle(output, graphs, name="tiny", golden=golden, ablations=tables)
    listed = json.loads((output / "manifest.json").read_text())["files"]
    present = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    for name in ("manifest.json", "README.md", ATTENTION, CHART):
        del present[name]
    assert set(listed) == set(present)
    for name, path in present.items():
        assert listed[name] == {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
    (output / "README.md").write_text("edited on the Hub")
    assert load_bundle(output, verify=True).manifest.name == "tiny"


def test_a_bundle_names_the_caplet_that_ran(
    graphs: Path, golden: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable installation keeps the version that the checkout had when it was installed."""
    monkeypatch.setattr("caplet_export.bundle.version", lambda _: "0.0.1")
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["created_with"]["caplet"] == caplet.__version__
    assert manifest["created_with"]["onnx"] == "0.0.1"


def test_the_card_shows_where_the_first_golden_photo_was_looked_at(
    graphs: Path, golden: list[Path], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden)
    card = (tmp_path / "bundle/README.md").read_text()
    assert card.index("](attention.jpg)") < card.index("## Scores")
    with Image.open(tmp_path / "bundle/attention.jpg") as figure:
        assert figure.width <= 1200
        captioner = Captioner(tmp_path / "bundle")
        drawings = [captioner.caption(photo).plot(photo).resize(figure.size) for photo in golden]
        first, other = (np.abs(np.asarray(drawing, np.float64) - np.asarray(figure)).mean() for drawing in drawings)
        assert first < 0.2 * other


def test_the_card_has_a_chart_of_its_ablations(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    row = ["xe", "51.6 (48.2 to 55.2)", "", "19.8", "46.1", "10.4", "10.2", "", "(the baseline)"]
    tables = [{"title": "What each stage gave", "columns": list(COLUMNS), "rows": [row]}]
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden, ablations=tables)
    card = (tmp_path / "bundle/README.md").read_text()
    assert card.index("](ablations.png)") < card.index("## What each stage gave")
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden)  # a bundle with a chart is replaced
    assert not (tmp_path / "bundle/ablations.png").exists()


def test_the_card_says_what_was_found_out(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden, findings="- Bigger did not help.\n")
    assert "## What was found out\n\n- Bigger did not help.\n\n##" in (tmp_path / "bundle/README.md").read_text()


def test_the_card_tells_every_stage_with_its_cost(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    stages = [
        Stage("xe", 1, 3, 2, 50.04, 90.0, {"train.seed": 2}),
        Stage("scst", 2, 4, 4, 0.0, None, {}),
        Stage("both", ALL, 5, 5, 57.0, 60.0, {}, device="one GPU"),
        Stage("halves", "1-2", 0, 0, None, 0.0, {}),
    ]
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden, stages=stages)
    card = (tmp_path / "bundle/README.md").read_text()
    assert "| xe | 1 | 3 | 2 | 50.0 | train.seed 2 |" in card
    assert "| scst | 2 | 4 | not recorded | 0.0 |  |" in card
    assert "| both | all, as one | 5 | 1 (one GPU) | 57.0 |  |" in card
    assert "| halves | 1-2, as one | 0 | 0 |  |  |" in card


def test_card_says_what_may_be_repeated() -> None:
    metrics = {**EVALUATION["data"], "limit": None, "scorer": "s", "results": EVALUATION["results"]}
    decoding = {**vars(DEFAULT_DECODING), "repeatable": ((4,), (5,), (5, 4))}
    assert "said once but for 2 and 1 that people repeat." in render_scores(metrics, decoding)
    assert "said once but for 0 and 0 that people repeat." in render_scores(metrics, {**decoding, "repeatable": ()})
    assert render_scores({**metrics, "results": {}}, decoding) == "Not measured yet."


def test_card_says_before_how_many_words_an_is_written() -> None:
    metrics = {**EVALUATION["data"], "limit": None, "scorer": "s", "results": EVALUATION["results"]}
    decoding = {**vars(DEFAULT_DECODING), "forms": ((4, 6, 7), (4, 6, 8))}
    assert 'repeated trigrams blocked, "an" for "a" before 2 words.' in render_scores(metrics, decoding)
    assert '"an"' not in render_scores(metrics, vars(DEFAULT_DECODING))


def test_what_is_not_known_of_scores_is_left_out() -> None:
    result = EVALUATION["results"]["3"]
    metrics = {**EVALUATION["data"], "limit": None, "scorer": "s", "results": {"1": GREEDY, "3": result}}
    decoding = {**vars(DEFAULT_DECODING), "beam_size": 3}
    assert "Beside people" in render_scores(metrics, decoding)
    alone = {"3": {**result, "leave_one_out": None}}
    for changes in ({"human": None}, {"results": alone}):
        assert "Beside people" not in render_scores({**metrics, **changes}, decoding)
    assert "greedy" in render_summary(metrics, decoding)
    assert "greedy" not in render_summary({**metrics, "results": alone}, decoding)
    assert "greedy" not in render_summary(metrics, {**decoding, "beam_size": 1}), "that is the row as it ships"
    untimed = {"1": GREEDY, "3": {**result, "milliseconds": None}}
    assert "| 55.5 (52.1-58.9) |  |" in render_scores({**metrics, "results": untimed}, decoding)
    few = {"3": {**result, "cider_d_by_score": [31.0, 42.0, 53.0, 64.0]}}
    assert "How much a caption's score tells" not in render_scores({**metrics, "results": few}, decoding)
    assert "repeated trigrams allowed" in render_scores(metrics, {**decoding, "block_repeated_trigrams": False})


def test_card_says_what_it_must(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    tables = [ABLATION, SECOND]
    metrics = evaluation_of(graphs, results={"1": GREEDY, **EVALUATION["results"]})
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden, metrics=metrics, ablations=tables)
    card = (tmp_path / "bundle/README.md").read_text()
    for phrase in (
        "| **3** (default) | 61.2 | 42.0 | 29.0 | 20.0 | 46.0 | 55.5 (52.1-58.9) | 1.20 |",
        "## What each part gave",
        "| no gate | 54.0 |",
        "## What each switch gives",
        "| no smoothing |",
        "One seed each.",
        "| caplet, against one reference fewer | 60.0 | 41.0 | 28.0 | 18.2 | 49.5 | 55.4 |",
        "| one person, against as many references | 60.0 | 41.0 | 28.0 | 21.8 | 49.5 | 83.2 |",
        "repeated trigrams blocked.",
        "| CIDEr-D | 31.0 | 42.0 | 53.0 | 64.0 | 75.0 |",
        "8 of 9 greedy captions",
        f"sha256 of the weights it started from `{'5' * 64}`",
        "ranges by mse on 8 training photos (seed 1), weights rounded by nearest, biases corrected by means\n",
        "dev split",
    ):
        assert phrase in card, phrase


def test_the_card_of_an_older_bundle_tells_its_recipe_and_no_correction(graphs: Path, tmp_path: Path) -> None:
    """Of whose stages nothing is known."""
    record = json.loads((graphs / "quantization.json").read_text())
    del record["biases"]
    (graphs / "quantization.json").write_text(json.dumps(record))
    recipe = {"model": {"state_size": 7, "members": 1}, "train": {"seed": 2}}
    write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=[], recipe=recipe)
    card = (tmp_path / "bundle/README.md").read_text()
    assert "- model: state_size 7, members 1\n- train: seed 2\n" in card
    assert "weights rounded by nearest\n" in card


@pytest.mark.parametrize(
    ("blocks", "told"), [("mixed10 mixed9", "blocks mixed10, mixed9:"), ("mixed10", "block mixed10:")]
)
def test_card_says_that_several_captioners_speak(
    blocks: str, told: str, graphs: Path, golden: list[Path], tmp_path: Path
) -> None:
    model = {"members": 2, "feature_block": blocks}
    write_bundle(tmp_path / "bundle", graphs, name="two", golden=golden, recipe={"model": model})
    assert "an ensemble of 2 captioners" in (card := (tmp_path / "bundle/README.md").read_text())
    assert f"the Inception {told}" in card


def test_the_card_claims_nothing_of_its_own_about_the_data(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", graphs, name="mine", golden=golden)
    assert load_bundle(tmp_path / "bundle").manifest.license == {"weights": "not stated", "data": "not stated"}
    card = (tmp_path / "bundle/README.md").read_text()
    assert "- Weights: not stated.\n- Data: not stated.\n" in card
    assert not [claim for claim in ("Flickr", "dogs", "not for") if claim in card]


def test_the_card_says_what_it_is_told_of_terms_and_limits(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    licences = Licences(weights="MIT\n", data="my own photos.")  # the card has the full stop of one that is a sentence
    write_bundle(tmp_path / "bundle", graphs, name="mine", golden=golden, licences=licences, limits="Not for cats.\n")
    assert load_bundle(tmp_path / "bundle").manifest.license == {"weights": "MIT\n", "data": "my own photos."}
    card = (tmp_path / "bundle/README.md").read_text()
    assert "## What it is not for\n\nNot for cats.\n\n## Licence\n\n- Weights: MIT.\n- Data: my own photos.\n" in card


@pytest.mark.parametrize(
    ("terms", "licence"),
    [
        ("Apache-2.0. Derived from Inception", ["license: apache-2.0"]),
        ("MIT\n", ["license: mit"]),
        ("CC-BY-NC-4.0.", ["license: cc-by-nc-4.0"]),
        ("MIT for the decoder only", []),
        ("MIT\n---\nlibrary_name: other", []),
        ("not stated", []),
    ],
)
def test_the_card_begins_with_what_the_hub_reads(
    terms: str, licence: list[str], graphs: Path, golden: list[Path], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle", graphs, name="mine: #1", golden=golden, licences=Licences(weights=terms))
    card = (tmp_path / "bundle/README.md").read_text()
    told = ["library_name: caplet", "pipeline_tag: image-to-text", "tags: [image-captioning, onnx]"]
    assert card.startswith("\n".join(["---", *licence, *told, "---", "", "# mine: #1\n"]))


def test_the_card_says_how_to_use_the_bundle(
    graphs: Path, golden: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(tmp_path / "bundle", graphs, name="mine", golden=golden)
    code = re.search(r"^```python\n(.*?)^```$", (tmp_path / "bundle/README.md").read_text(), re.M | re.S)
    assert code is not None
    exec(code[1].replace("FOLDER", str(tmp_path / "bundle")).replace("photo.jpg", str(golden[0])))
    assert capsys.readouterr().out == f"{Captioner(tmp_path / 'bundle').caption(golden[0]).text}\n"


def test_links_of_the_card_stay_inside_the_bundle(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", graphs, name="mine", golden=golden)
    links = re.findall(r"\]\(([^)]+)\)", (tmp_path / "bundle/README.md").read_text())
    assert links == ["attention.jpg"]
    assert (tmp_path / "bundle/attention.jpg").exists()
    write_bundle(tmp_path / "bare", graphs, name="mine", golden=[])
    assert "](" not in (tmp_path / "bare/README.md").read_text()


def test_an_old_bundle_is_replaced_whole_and_kept_on_failure(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    write_bundle(output, graphs, name="tiny", golden=golden)
    before = {path.name for path in output.iterdir()}
    (output / "parity.json").touch()
    with pytest.raises(ConfigurationError) as caught:
        write_bundle(output, graphs, name="tiny", golden=golden, decoding=replace(DEFAULT_DECODING, beam_size=99))
    assert str(caught.value).startswith(f"{output}: not a bundle that caplet can use: {output}: decoding.beam_size")
    assert {path.name for path in output.iterdir()} == {*before, "parity.json"}
    write_bundle(output, graphs, name="tiny", golden=golden)
    assert {path.name for path in output.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"graphs", "bundle"}


def test_what_stands_behind_a_link_is_replaced(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(tmp_path / f"real-{name}", target_is_directory=True)
    (tmp_path / "real-old").mkdir()
    for name in ("old", "new"):
        with whole_folder(tmp_path / name, GRAPHS) as folder:
            (folder / "made").touch()
        assert (tmp_path / name).is_symlink() and (tmp_path / f"real-{name}" / "made").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"old", "new", "real-old", "real-new"}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("file", "is a file"),
        ("link", "is a file"),
        ("file/below", "not a folder that can be written to"),
        ("circle", "symbolic links that lead in a circle"),
        (".", "working folder"),
        ("/", "working folder"),
        ("photos", r"holds what caplet-export does not write there \(cat\.jpg\)"),
        ("graph", r"does not write there \(encoder\.onnx\)"),
        ("thesis", r"does not write there \(thesis\.txt\)"),
        ("album", r"does not write there \(golden/notes\.txt\)"),
        ("run", "would replace what is read"),
        ("../here/run", "would replace what is read"),
    ],
)
def test_what_is_not_to_be_replaced_stays(
    tmp_path: Path, target: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    whole = {
        "thesis": ("encoder.onnx", "decoder.onnx", "vocabulary.txt", "thesis.txt"),
        "album": ("encoder.onnx", "decoder.onnx", "vocabulary.txt", "golden/notes.txt"),
        "run": ("config.json", "vocabulary.txt", "decoder.weights.h5", "graphs/encoder.onnx"),
    }
    for folder, names in {"photos": ["cat.jpg"], "graph": ["encoder.onnx"], **whole, ".": ["file"]}.items():
        for name in names:
            (here / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (here / folder / name).touch()
    (here / "link").symlink_to("file")
    (here / "circle").symlink_to("circle")
    monkeypatch.chdir(here)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportError, match=said), whole_folder(Path(target), GRAPHS, [Path("run/graphs")]):
        pytest.fail("begun")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_or_graphs_are_not_replaced_by_what_is_made_of_them(
    graphs: Path, golden: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (graphs, tmp_path / "run"):
        assert verb(graphs, tmp_path, golden, "-o", str(option)) == 1
        assert f"{option}: would replace what is read" in capsys.readouterr().err
        assert (option / "vocabulary.txt").exists()


@pytest.mark.parametrize("missing", ["encoder.onnx", "vocabulary.txt"])
def test_missing_files_are_named(graphs: Path, golden: list[Path], tmp_path: Path, missing: str) -> None:
    (graphs / missing).unlink()
    with pytest.raises(ConfigurationError, match=missing):
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden)
    assert not (tmp_path / "bundle").exists()


def verb(graphs: Path, tmp_path: Path, golden: list[Path], *more: str) -> int:
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    Config().save(run / "config.json")
    if not (run / "vocabulary.txt").exists():
        (run / "vocabulary.txt").write_bytes((graphs / "vocabulary.txt").read_bytes())
    arguments = ["bundle", str(graphs), "--run", str(run), "--name", "tiny", "-o", str(tmp_path / "bundle")]
    return main([*arguments, *TERMS, *more, "--golden", *map(str, golden)])


def test_verb(graphs: Path, golden: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = tmp_path / "evaluation.json"
    metrics.write_text(json.dumps(evaluation_of(graphs)))
    (tmp_path / "run").mkdir()
    write_stages(tmp_path / "run", [Stage("xe", 1, 3, 2, 50.04, 90.0, {})])
    assert verb(graphs, tmp_path, golden, "--metrics", str(metrics), "--beam", "2") == 0
    assert "golden/cat.png (beam 2): " in capsys.readouterr().out
    manifest: dict[str, Any] = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["decoding"]["beam_size"] == 2
    assert manifest["decoding"]["max_length"] == Config().text.max_length
    assert manifest["license"] == {"weights": "MIT", "data": "my own photos"}
    assert manifest["provenance"]["recipe"] == json.loads(Config().as_json())
    assert [stage["run"] for stage in manifest["provenance"]["stages"]] == ["xe"]


def test_verb_puts_what_it_is_given_where_it_belongs(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    given = {"comparison": "A is B.", "findings": "Bigger did not help.", "limits": "Not for cats."}
    options = ["--length-penalty", "0.5", "--max-length", "7"]
    for name, text in given.items():
        (tmp_path / f"{name}.md").write_text(text)
        options += [f"--{name}", str(tmp_path / f"{name}.md")]
    for number in (1, 2):
        table = {"title": f"Table {number}", "columns": ["run", "score"], "rows": [["x", "1"]]}
        (tmp_path / f"{number}.json").write_text(json.dumps(table))
    tables = ["--ablation", str(tmp_path / "1.json"), str(tmp_path / "2.json")]
    assert verb(graphs, tmp_path, golden, *options, *tables) == 0
    decoding = load_bundle(tmp_path / "bundle").manifest.decoding
    assert (decoding.max_length, decoding.length_penalty) == (7, 0.5)
    card = (tmp_path / "bundle/README.md").read_text()
    headings = ("## What 8 bits cost", "## What was found out", "## What it is not for")
    assert all(f"{heading}\n\n{text}" in card for heading, text in zip(headings, given.values(), strict=True))
    assert card.index("## Table 1") < card.index("## Table 2")


def data_set(folder: Path, train: str, dev: str) -> Path:
    """A photo in each split, with ten times the same caption."""
    (folder / "Images").mkdir(parents=True)
    for photo in "ab":
        Image.new("RGB", (8, 8)).save(folder / f"Images/{photo}.jpg")
    captions = [f"{photo}.jpg#{n}\t{text}\n" for photo, text in (("a", train), ("b", dev)) for n in range(10)]
    (folder / "my.token.txt").write_text("".join(captions))
    (folder / "trainImages.txt").write_text("a.jpg\n")
    (folder / "devImages.txt").write_text("b.jpg\n")
    return folder


def test_verb_learns_from_the_training_captions_where_to_write_an(
    graphs: Path, golden: list[Path], tmp_path: Path
) -> None:
    words = Vocabulary.load(graphs / "vocabulary.txt").words
    words[words.index("woman")] = "an"
    Vocabulary(words).save(graphs / "vocabulary.txt")
    data = data_set(tmp_path / "data", "An child runs on a beach .", "an dog")
    assert verb(graphs, tmp_path, golden, "--data", str(data)) == 0
    expected = tuple(map(words.index, ("a", "an", "child")))
    assert load_bundle(tmp_path / "bundle").manifest.decoding.forms == (expected,)
    assert verb(graphs, tmp_path, golden) == 0
    assert load_bundle(tmp_path / "bundle").manifest.decoding.forms == ()


def test_verb_lets_captions_repeat_what_the_data_repeats(
    graphs: Path, golden: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Vocabulary.load(graphs / "vocabulary.txt").words[4:6]
    data = data_set(tmp_path / "data", f"{first.title()} {second}, {first} .", f"{second} {first} {second}")
    assert verb(graphs, tmp_path, golden, "--data", str(data)) == 0
    assert load_bundle(tmp_path / "bundle").manifest.decoding.repeatable == ((4,),)
    assert verb(graphs, tmp_path, golden) == 0
    assert load_bundle(tmp_path / "bundle").manifest.decoding.repeatable is None
    assert verb(graphs, tmp_path, golden, "--data", str(tmp_path / "none")) == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--weights-license", "--data-license"])
def test_verb_asks_for_the_terms(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = TERMS.index(option)
    with pytest.raises(SystemExit):
        main(
            [
                *["bundle", "graphs", "--run", "r", "--name", "n", "--golden", "g", "-o", "o"],
                *TERMS[:place],
                *TERMS[place + 2 :],
            ]
        )
    assert f"the following arguments are required: {option}" in capsys.readouterr().err


def test_verb_refuses_the_run_of_other_graphs(
    graphs: Path, golden: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    Vocabulary([*SPECIALS, "unheard"]).save(tmp_path / "run/vocabulary.txt")
    assert verb(graphs, tmp_path, golden) == 1
    assert "its vocabulary is not that of" in capsys.readouterr().err


def test_graphs_that_changed_places_are_told(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    encoder, decoder = ((graphs / f"{name}.onnx").read_bytes() for name in ("encoder", "decoder"))
    (graphs / "encoder.onnx").write_bytes(decoder)
    (graphs / "decoder.onnx").write_bytes(encoder)
    with pytest.raises(ConfigurationError, match=f"{graphs}/encoder.onnx: another graph: expected an input 'pixels'"):
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden)


def test_an_encoder_of_photos_without_a_batch_is_told(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    model = onnx.load(graphs / "encoder.onnx")
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    onnx.save(model, graphs / "encoder.onnx")
    with pytest.raises(ConfigurationError, match="another graph: expected 'pixels' to have 4 dimensions, found 3"):
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden)


def test_verb_refuses_another_run_of_the_same_vocabulary(
    graphs: Path, golden: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose card would tell of stages that the weights never had; of older graphs it is not known."""
    assert verb(graphs, tmp_path, golden) == 0
    weights = tmp_path / "run" / "decoder.weights.h5"
    weights.write_bytes(b"weights")
    parity = json.loads((graphs / "parity.json").read_text())
    (graphs / "parity.json").write_text(json.dumps({**parity, "run_weights": run_digest(tmp_path / "run")}))
    assert verb(graphs, tmp_path, golden) == 0
    weights.write_bytes(b"others")
    capsys.readouterr()
    assert verb(graphs, tmp_path, golden) == 1
    expected = f"caplet-export bundle: {graphs}: converted from other weights than those of {tmp_path / 'run'}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundle": {"name": "tiny"}}, "not what `caplet-export evaluate --json` writes"),
        ({"settings": {**EVALUATION["settings"], "length_penalty": 0.5}}, "length_penalty 0.5, not 1.0"),
        ({"settings": {**EVALUATION["settings"], "max_length": 9}}, "max_length 9, not 20"),
        ({"settings": {**EVALUATION["settings"], "block_repeated_trigrams": False}}, "trigrams False, not True"),
        ({"settings": {**EVALUATION["settings"], "repeatable": [[4]]}}, r"of --data \(repeatable\); give the same"),
        ({"settings": {**EVALUATION["settings"], "forms": [[4, 6, 7]]}}, r"of --data \(forms\); give the same"),
        ({"results": {}}, "not what `caplet-export evaluate --json` writes"),
        ({"results": None}, "not what `caplet-export evaluate --json` writes"),
        ({"results": {"3": {**GREEDY, "scores": {}}}}, "not what `caplet-export evaluate --json` writes"),
        ({"results": {"3": {**GREEDY, "scores": None}}}, "not what `caplet-export evaluate --json` writes"),
    ],
)
def test_scores_of_something_else_are_refused(
    graphs: Path, golden: list[Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden, metrics=evaluation_of(graphs, **changes))
    assert not (tmp_path / "bundle").exists()


def test_the_card_says_of_scores_that_they_are_of_a_part(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    for limit in (None, 9):
        metrics = evaluation_of(graphs, settings={**EVALUATION["settings"], "limit": limit})
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden, metrics=metrics)
        card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
        part = "7 photos of the dev split (of the first 9; CIDEr-D not comparable with that of the whole split)"
        assert (part in card) == (limit is not None)


@pytest.mark.parametrize("role", ["encoder", "decoder", "vocabulary"])
def test_scores_of_other_graphs_are_refused(graphs: Path, golden: list[Path], tmp_path: Path, role: str) -> None:
    metrics = evaluation_of(graphs)
    metrics["bundle"]["sha256"][role] = "0" * 64
    with pytest.raises(ConfigurationError, match=f"measured with another {role}"):
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden, metrics=metrics)


def test_scores_of_another_bundle_are_refused(graphs: Path, golden: list[Path], tmp_path: Path) -> None:
    metrics = evaluation_of(graphs)
    metrics["bundle"]["name"] = "other"
    with pytest.raises(ConfigurationError, match="measured with name other, not tiny"):
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=golden, metrics=metrics)


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        *(
            ("--ablation", content, "other.json: not a table")
            for content in (
                *("[1]", "{}", "3", "null", '{"title": "x", "columns": ["run"], "rows": [1]}'),
                '{"title": "x", "columns": ["run"], "rows": [["a", "b"]]}',
                '{"title": 3, "columns": ["run"], "rows": []}',
                '{"title": "x", "columns": "r", "rows": []}',
            )
        ),
        *(("--metrics", content, "") for content in ("{", "{}", "[1]")),
    ],
)
def test_verb_refuses_other_files(
    graphs: Path,
    golden: list[Path],
    tmp_path: Path,
    option: str,
    content: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.json"
    other.write_text(content)
    assert verb(graphs, tmp_path, golden, option, str(other)) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and said in errors[0]


@pytest.mark.parametrize(
    ("file", "needed"),
    [
        ("parity.json", ["photos", "identical_captions", "max_difference", "encoder_weights"]),
        ("quantization.json", ["method", "photos", "seed", "rounding"]),
    ],
)
@pytest.mark.parametrize("lacking", [None, 0, 1, 2, 3])
def test_other_records_beside_the_graphs_are_refused(
    graphs: Path, tmp_path: Path, file: str, needed: list[str], lacking: int | None
) -> None:
    """Another file, or one without any field that the card tells."""
    record = json.loads((graphs / file).read_text())
    if lacking is not None:
        del record[needed[lacking]]
    (graphs / file).write_text(json.dumps(needed if lacking is None else record))
    with pytest.raises(ConfigurationError, match=f"{file}: not what caplet-export writes"):
        write_bundle(tmp_path / "bundle", graphs, name="tiny", golden=[])


def test_a_name_that_is_not_utf_8_is_refused_in_a_line(
    graphs: Path, golden: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(graphs, tmp_path, golden, "--name", "caf\udce9") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "surrogates not allowed" in errors[0]
    assert not (tmp_path / "bundle").exists()


def test_what_nobody_foresaw_is_one_line(
    graphs: Path,
    golden: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr("caplet_export.bundle.write_bundle", fail)
    assert verb(graphs, tmp_path, golden) == 1
    assert capsys.readouterr().err == "caplet-export bundle: somewhere: Permission denied\n"


def test_tables() -> None:
    assert markdown_table(["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_the_released_card_is_what_bundle_writes() -> None:
    """From the manifest and the texts and tables that are kept for it: nothing in it was typed by hand."""
    models = Path(__file__).resolve().parents[2] / "models"
    parts = models / "checkpoints" / "flickr8k-gru" / "card"
    manifest = json.loads((models / "flickr8k-gru-int8" / "manifest.json").read_text(encoding="utf-8"))
    tables = [read_ablation(parts / f"{name}.json") for name in ("stages", "switches")]
    texts = [(parts / f"{name}.md").read_text(encoding="utf-8") for name in ("comparison", "findings", "limits")]
    card = (models / "flickr8k-gru-int8" / "README.md").read_text(encoding="utf-8")
    assert card == render_card(manifest, tables, *texts, figure=True, chart=True)
    assert (models / "flickr8k-gru-int8" / CHART).exists()
    manifest |= {"preprocessing": {"height": 240, "width": 320}, "provenance": {}}
    bare = render_card(manifest, [], None, None, None, figure=False, chart=False)
    assert "uint8 RGB 240×320," in bare and "\n\n\n" not in bare
