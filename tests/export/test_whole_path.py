"""From photos to a caption through `caplet-export`, by the commands of docs/training.md, and what it says to bad input.

The commands are taken from the page and run as they stand, in a folder that looks as the page says, on a made-up data
set of coloured shapes; only weights and switches are added that make this a matter of seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

from caplet import Captioner
from caplet_export.cli import VERBS, main
from caplet_export.config import Config, changed_switches, inherit, load_config, override, require_effect
from caplet_export.features import FeatureStore
from caplet_export.recipes import RECIPES
from caplet_export.stages import read_stages
from quick_jax import quick_jax
from tiny_flickr8k import COLOURS, SHAPES, write_split, write_tiny_flickr8k

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def commands_in(mark: str) -> list[str]:
    """The commands of the page's blocks with this mark, each on a line."""
    blocks = re.findall(rf"^<!-- test: {mark} -->\n```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [" ".join(line.split()) for line in lines if line.strip()]


COMMANDS = commands_in("export")
WEIGHTS = "random.weights.h5"
# A decoder small enough to learn eight pictures by heart in seconds; the later stages are told to change little.
SMALL = ["model.feature_size=64", "model.attention_size=32", "model.embedding_size=32", "model.state_size=64"]
CALM = ["model.dropout=0", "model.channel_dropout=0", "train.patience=0", "train.ema_decay=0"]
BY_HEART = ["epochs=35", "batch_images=1", "learning_rate=0.002", "label_smoothing=0", "attention_regularisation=0"]
ONE_EPOCH = ["epochs=1", "batch_images=4", "learning_rate=1e-6"]


@dataclass(frozen=True)
class Done:
    """What a command of the page did."""

    command: str
    stdout: str
    stderr: str


def added_options(command: str) -> list[str]:
    words = shlex.split(command)
    verb = words[1] if words[0] == "caplet-export" else ""
    options = ["--encoder-weights", WEIGHTS] if verb in ("features", "train", "tune", "convert") else []
    if verb in ("train", "tune"):
        # The shape of a model is taken over from the run that it begins with.
        shape, stage = ([], ONE_EPOCH) if "--from" in words else (SMALL, BY_HEART)
        if verb == "tune" or "fine_tune" in words:
            stage = [*stage, "extractor_learning_rate=1e-6"]
        if verb == "tune":  # which in bfloat16, or through all blocks, would take minutes
            stage = [*stage, "precision=float32", "extractor_layer=mixed9"]
        switches = [*shape, *CALM, *(f"train.{switch}" for switch in stage)]
        options += [option for switch in switches for option in ("--set", switch)]
    return options


def run_shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, **quick_jax()}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which Keras sets here where JAX is installed
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def write_random_extractor(path: Path) -> None:
    """Weights of InceptionV3 that are random, but large enough for colours and shapes to survive its 48 layers."""
    import keras

    from caplet_export.inception import build_extractor

    keras.utils.set_random_seed(1)
    extractor = build_extractor(None)
    for layer in extractor.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([1.3 * weights for weights in layer.get_weights()])
    extractor.save_weights(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The folder the page speaks of."""
    folder = tmp_path_factory.mktemp("whole-path")
    write_tiny_flickr8k(folder / "flickr8k", train=8, dev=4)
    shutil.copytree(photos, folder / "tests" / "photos")
    write_random_extractor(folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> Sequence[Done]:
    """Every command of the page, in its order."""
    results = []
    for line in COMMANDS:
        command = f"{line.replace('/tmp/', f'{folder}/tmp/')} {shlex.join(added_options(line))}"
        process = run_shell(folder, command)
        assert process.returncode == 0, f"{command}\n{process.stdout}{process.stderr}"
        results.append(Done(line, process.stdout, process.stderr))
    return results


def test_the_page_uses_every_verb_in_the_order_of_the_data(done: Sequence[Done]) -> None:
    verbs = [shlex.split(one.command)[1] for one in done if one.command.startswith("caplet-export")]
    assert list(dict.fromkeys(verbs)) == list(VERBS)


def test_the_shortest_way_is_made_of_these_commands() -> None:
    """It converts the first run, where the page goes through further stages."""
    shortest = commands_in("skip, the stages below are the same commands")
    assert len(shortest) == 6
    assert {line.replace("runs/first", "runs/final") for line in shortest[2:]} | set(shortest[:2]) <= set(COMMANDS)


def test_nothing_is_said_on_standard_error_when_all_is_well(done: Sequence[Done]) -> None:
    assert {one.command: one.stderr for one in done if one.stderr} == {}


def test_features_of_every_photo_and_of_the_mirrored_training_photos(done: Sequence[Done], folder: Path) -> None:
    for layer, shape in (("mixed10", (64, 2048)), ("mixed7", (289, 768))):
        plain, flip = (FeatureStore(folder / "features" / f"{layer}-{view}") for view in ("plain", "flip"))
        assert (len(plain.names), len(flip.names)) == (12, 8)
        assert plain[plain.names[0]].shape == shape


def test_each_stage_of_training_leaves_a_run(done: Sequence[Done], folder: Path) -> None:
    for run in ("first", "fine-tuned", "final", "whole", "fitted"):
        names = {path.name for path in (folder / "runs" / run).iterdir()}
        assert {"config.json", "vocabulary.txt", "decoder.weights.h5", "history.json", "curves.png"} <= names
        assert ("extractor.npz" in names) == (run in ("fine-tuned", "whole", "fitted"))


def test_the_pages_lines_open_a_run_in_python(done: Sequence[Done], folder: Path) -> None:
    """By a training photo, which this run knows by heart."""
    _, code = PAGE.read_text(encoding="utf-8").partition("\n## 2. ")[2].split("```python\n")[:2]
    code = code.partition("```")[0].replace('split("dev")', 'split("train")')
    process = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    caption, likeliest, *attention = process.stdout.splitlines()[-10:]
    photo, first, *others = caption.split()
    assert photo == "0000_square.jpg" and {"red", "square"} <= set(others)
    assert likeliest.split()[0] == first and len(likeliest.split()) == 5 and len(attention) == 8


def test_features_by_a_runs_own_blocks(done: Sequence[Done], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the extractor as `convert` loads it for the run that was trained on them."""
    from caplet_export.checkpoint import load_extractor
    from caplet_export.flickr8k import read_dataset
    from caplet_export.inception import scale
    from caplet_export.photos import read_photo

    monkeypatch.chdir(folder)
    stored, others = (FeatureStore(Path(name) / "mixed10-plain") for name in ("features-whole", "features"))
    dataset, name = read_dataset(Path("flickr8k")), stored.names[0]
    pixels = read_photo(dataset, name, (299, 299))
    expected = load_extractor("runs/fitted", WEIGHTS)(scale(pixels[None]), training=False)[0]
    rounding, tuning = (abs(stored[name] - np.reshape(other, (64, 2048))).mean() for other in (expected, others[name]))
    assert rounding < 0.3 * tuning


def test_the_bundle_has_learned_the_tiny_world(done: Sequence[Done], folder: Path) -> None:
    """Each photo's own colour, and some shape: random convolutions hardly tell squares from circles."""
    captioner = Captioner(folder / "bundles" / "int8")
    photos = sorted((folder / "flickr8k" / "Flicker8k_Dataset").iterdir())[:8]
    captions = [captioner.caption(photo) for photo in photos]
    right = [list(COLOURS)[number % 4] in caption.words for number, caption in enumerate(captions)]
    assert sum(right) >= 7, [caption.text for caption in captions]
    assert all(set(caption.words) & set(SHAPES) for caption in captions)


def test_int8_and_float_bundles_say_nearly_the_same(done: Sequence[Done], folder: Path) -> None:
    score = json.loads((folder / "int8.json").read_text())["results"]["3"]["scores"]["cider_d"]
    manifest = json.loads((folder / "bundles" / "int8" / "manifest.json").read_text())
    assert manifest["metrics"]["results"]["3"]["scores"]["cider_d"] == pytest.approx(score)
    comparison = next(one.stdout for one in done if "--compare" in one.command)
    assert "my-captioner-float (beam 3)" in comparison
    assert (folder / "tmp" / "float-int8" / "report.md").exists()
    sizes = {
        kind: sum(path.stat().st_size for path in (folder / "graphs" / kind).glob("*.onnx"))
        for kind in ("float", "int8")
    }
    assert sizes["int8"] < 0.3 * sizes["float"]


def test_the_last_commands_caption_a_photo_and_check_the_bundle(done: Sequence[Done]) -> None:
    caption, check = done[-2:]
    assert len(caption.stdout.split()) >= 3
    assert "10 of 10 golden captions are the same" in check.stdout


def test_the_same_commands_again_have_nothing_left_to_do(
    done: Sequence[Done], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "runs" / "first" / "history.json").stat().st_mtime_ns
    line = next(one.command for one in done if "train runs/first" in one.command)
    monkeypatch.chdir(folder)
    assert main([*shlex.split(line)[1:], *added_options(line)]) == 0
    assert capsys.readouterr().out.startswith("kept epoch 35")
    assert (folder / "runs" / "first" / "history.json").stat().st_mtime_ns == before


# -- the page and the code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_explains_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert options
    assert not options - set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text(encoding="utf-8")))


def switches(config: Config) -> dict[str, str]:
    """Every switch with its value as `--set` takes it."""
    return {
        f"{section.name}.{switch.name}": value if isinstance(value, str) else json.dumps(value)
        for section in fields(config)
        for switch in fields(getattr(config, section.name))
        for value in [getattr(getattr(config, section.name), switch.name)]
    }


def test_the_page_names_every_switch_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| `([^`]+)` \| \S", PAGE.read_text(encoding="utf-8"), re.M)
    assert {name: json_value(value) for name, value in rows} == {
        name: json_value(value) for name, value in switches(Config()).items()
    }


def test_the_page_says_what_each_recipe_changes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    usual = switches(Config())
    for name, recipe in RECIPES.items():
        changed = {key: json_value(value) for key, value in switches(recipe).items() if value != usual[key]}
        row = re.search(rf"^\| `{name}` \| (.*) \|$", text, re.M)
        said = re.findall(r"`(\w+\.\w+)=([^`]+)`", row[1]) if row else []
        assert {key: json_value(value) for key, value in said} == changed, name


CHECKPOINT = PAGE.parents[1] / "models" / "checkpoints" / "flickr8k-gru"


def calls_in(mark: str, folder: Path) -> list[argparse.Namespace]:
    """How the blocks with this mark call `caplet-export`, with their shell variables filled in; no verb runs."""
    blocks = re.findall(rf"^<!-- test: {mark} -->\n```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    script = "caplet-export() { printf '%s\\0' \"$@\"; echo; }\n" + "".join(blocks)
    done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True, check=True)
    calls = []
    for verb, *words in (line.split("\0")[:-1] for line in done.stdout.splitlines()):
        parser = argparse.ArgumentParser(exit_on_error=False)
        importlib.import_module(f"caplet_export.verbs.{verb}").add_arguments(parser)
        calls.append(parser.parse_args(words, argparse.Namespace(verb=verb)))
    return calls


def test_the_commands_of_the_released_model_are_the_stages_that_it_records(tmp_path: Path) -> None:
    """Each by its switches, what it began with and who taught it; what was averaged; and how it was made smaller."""
    recorded = {stage.run: stage for stage in read_stages(CHECKPOINT)}
    last = {f"{name}-{stage.epochs}": name for name, stage in recorded.items()}  # copies taken after all epochs
    configs: dict[str, Config] = {}
    for call in calls_in("skip, hours", tmp_path):
        if call.verb in ("train", "tune"):
            recipe = call.recipe if call.verb == "train" else "tune_distillation" if call.teacher else "tune"
            config = RECIPES[recipe]
            if call.start_from:
                config = inherit(config, configs[call.start_from.name])
            config = override(config, call.set)
            require_effect(call.set, call.verb, config)
            switches = changed_switches(config)
            stage = recorded.pop(call.run.name)
            if call.run.name == "tuned5":
                assert "`tuned5` after 35 of 60" in " ".join(PAGE.read_text(encoding="utf-8").split())
                assert (switches["train.epochs"], stage.epochs) == (35, 35)
                switches["train.epochs"] = 60
            if call.teacher:
                teachers = call.teacher if call.verb == "tune" else [call.teacher]
                switches["teacher"] = " ".join(run.name for run in teachers)
            if "from" in stage.switches:  # only where it is not the stage before
                switches["from"] = call.start_from.name
            assert switches == stage.switches, call.run
            configs[call.run.name] = config
        elif call.verb == "join":
            names = [last.get(run.name, run.name) for run in call.runs]
            config = configs[names[-1]]
            if call.average:
                mean = next(name for name in recorded if name.startswith("mean of the weights of "))
                averaged = mean.removeprefix("mean of the weights of ").split(", ")
                assert names == [last.get(name, name) for name in averaged]
                del recorded[mean]
            else:
                blocks = " ".join(configs[name].model.feature_block for name in names)
                config = replace(config, model=replace(config.model, members=len(names), feature_block=blocks))
            configs[call.output.name] = config
        elif call.verb in ("trim", "prune"):
            config, cut = configs[call.run.name], "vocabulary: "
            if call.verb == "prune":
                sizes = {name: getattr(call, name) for name in ("state_size", "feature_size", "attention_size")}
                config = replace(config, model=replace(config.model, **sizes))
                cut = "pruned to " + ", ".join(f"{name} {size}" for name, size in sizes.items())
            del recorded[next(name for name in recorded if name.startswith(cut))]
            configs[call.output.name] = config
    assert recorded == {}, "stages without a command"
    model = replace(configs["released"].model, vocabulary_size=0)
    assert model == replace(load_config(CHECKPOINT / "config.json").model, vocabulary_size=0)


def test_the_commands_for_single_switches_change_what_the_cards_table_says(tmp_path: Path) -> None:
    table = json.loads((CHECKPOINT / "card" / "switches.json").read_text(encoding="utf-8"))
    calls = calls_in("skip, (?:hours|an hour)", tmp_path)
    options = {call.run.name: call.set for call in calls if call.verb == "train"}
    said = {row[0]: row[-1] for row in table["rows"]}
    configs = {name: override(Config(), options[name]) for name in said}
    first = configs["short"]
    changed = {name: changed_switches(config, first) for name, config in configs.items() if name != "short"}
    told = {}
    for name, switches in changed.items():
        ((switch, value),) = switches.items()
        told[name] = f"{switch.partition('.')[2]} {value}"
    assert {"short": "(the baseline)", **told} == said
    assert changed_switches(first).pop("train.epochs") == 4
    for switch, value in changed_switches(first).items():
        name = switch.partition(".")[2]
        assert f" {value} {name}" in table["note"] or f" {name} {value}" in table["note"]


def json_value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


# -- bad input ----------------------------------------------------------------------------------------------------

Arrange = Callable[[Path], list[str]]
BAD_INPUT: dict[str, tuple[Arrange, str]] = {}


def bad_input(said: str) -> Callable[[Arrange], Arrange]:
    """Register a case: what it prepares below a folder and the arguments it gives, and what the one line says."""

    def register(arrange: Arrange) -> Arrange:
        BAD_INPUT[arrange.__name__] = (arrange, said)
        return arrange

    return register


DEFECT = re.compile(r"caplet-export \w+: [^ :]+:\d+: ")
DATA = ["--data", "flickr8k"]
TRAIN = ["train", "runs/new", *DATA, "--features", "features"]
SMALL_SWITCHES = [option for switch in SMALL + CALM for option in ("--set", switch)]


@bad_input("nowhere: no such folder")
def no_data(_: Path) -> list[str]:
    return ["features", "features", "--data", "nowhere"]


@bad_input("no image folder")
def no_image_folder(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["features", "features", "--data", "empty"]


@bad_input("no line of the form '<file>#<n>TAB<caption>'")
def not_one_caption(folder: Path) -> list[str]:
    (folder / "flickr8k" / "Flickr8k.token.txt").write_text("a line\nanother\n")
    return ["features", "features", *DATA]


@bad_input("name no image that is present")
def only_absent_images(folder: Path) -> list[str]:
    for split in ("train", "dev"):
        write_split(folder / "flickr8k", split, ["gone.jpg"])
    return ["features", "features", *DATA]


@bad_input("both the train and the dev split")
def an_empty_split(folder: Path) -> list[str]:
    write_split(folder / "flickr8k", "dev", ["gone.jpg"])
    return TRAIN


@bad_input("gone.h5: No such file")
def weights_that_are_not_there(_: Path) -> list[str]:
    return ["features", "new", *DATA, "--encoder-weights", "gone.h5"]


@bad_input("no feature store here")
def no_store(_: Path) -> list[str]:
    return ["train", "runs/new", *DATA, "--features", "nowhere"]


@bad_input("extraction has not finished")
def an_unfinished_store(folder: Path) -> list[str]:
    (folder / "features" / "mixed10-plain" / "skipped.txt").unlink()
    return TRAIN


@bad_input("no features of")
def a_store_without_some_photos(folder: Path) -> list[str]:
    store = folder / "features" / "mixed10-plain"
    names = (store / "names.txt").read_text().splitlines(keepends=True)
    (store / "names.txt").write_text("".join(names[:-1]))
    return TRAIN


@bad_input("expected SECTION.SWITCH=VALUE")
def an_unknown_switch(_: Path) -> list[str]:
    return [*TRAIN, "--set", "train.speed=fast"]


@bad_input("model.locations, model.channels: 64×1024, but the features have 64×2048")
def channels_that_the_features_do_not_have(_: Path) -> list[str]:
    return [*TRAIN, *SMALL_SWITCHES, "--set", "model.channels=1024"]


@bad_input("runs/first: model.locations, model.channels: 49×2048, but the features have 64×2048")
def locations_that_the_features_do_not_have(folder: Path) -> list[str]:
    path = folder / "runs" / "first" / "config.json"
    path.write_text(path.read_text().replace('"locations": 64', '"locations": 49'))
    return ["trim", "runs/first", *DATA, "--features", "features", "-o", "runs/new"]


@bad_input("self-critical training goes on from a trained run; give --from")
def rewards_for_random_weights(_: Path) -> list[str]:
    return [*TRAIN, *SMALL_SWITCHES, "--recipe", "self_critical"]


@bad_input("gone.json: No such file")
def no_configuration(_: Path) -> list[str]:
    return [*TRAIN, "--config", "gone.json"]


@bad_input("holds a run of another configuration")
def a_run_of_another_configuration(_: Path) -> list[str]:
    return ["train", "runs/first", *DATA, "--features", "features", "--set", "train.seed=7"]


@bad_input("a model of another configuration")
def a_start_from_another_model(_: Path) -> list[str]:
    return [*TRAIN, *SMALL_SWITCHES, "--set", "model.state_size=32", "--from", "runs/first"]


@bad_input("runs/gone: no trained run here; give the folder of a run that has finished an epoch")
def a_start_from_nowhere(_: Path) -> list[str]:
    return [*TRAIN, "--from", "runs/gone"]


@bad_input("runs/gone: no trained run here")
def no_run(_: Path) -> list[str]:
    return ["convert", "runs/gone", *DATA, "-o", "graphs/new"]


@bad_input("weights of another configuration, or damaged")
def a_checkpoint_from_another_configuration(folder: Path) -> list[str]:
    path = folder / "runs" / "first" / "config.json"
    path.write_text(path.read_text().replace('"state_size": 64', '"state_size": 48'))
    return ["convert", "runs/first", *DATA, "--encoder-weights", WEIGHTS, "-o", "graphs/new"]


@bad_input("vocabulary.txt has")
def a_vocabulary_of_another_run(folder: Path) -> list[str]:
    with (folder / "runs" / "first" / "vocabulary.txt").open("a") as file:
        file.write("more\n")
    return ["convert", "runs/first", *DATA, "--encoder-weights", WEIGHTS, "-o", "graphs/new"]


@bad_input("has no 'test' split")
def a_split_that_is_not_there(_: Path) -> list[str]:
    return ["evaluate", "bundles/int8", *DATA, "--split", "test"]


@bad_input("graphs/gone")
def no_graphs(_: Path) -> list[str]:
    return ["quantize", "graphs/gone", *DATA, "-o", "graphs/new"]


@bad_input("gone.jpg: no such file")
def no_golden_photo(_: Path) -> list[str]:
    terms = ["--weights-license", "MIT", "--data-license", "my own"]
    return ["bundle", "graphs/int8", "--run", "runs/final", "--name", "n", "--golden", "gone.jpg", *terms, "-o", "new"]


@bad_input("vocabulary.txt: has been altered")
def a_bundle_with_an_altered_file(folder: Path) -> list[str]:
    path = folder / "bundles" / "int8" / "vocabulary.txt"
    path.write_text(path.read_text().replace("red", "rod"))
    return ["evaluate", "bundles/int8", *DATA]


@bad_input("decoder.onnx: is missing")
def a_bundle_with_a_missing_file(folder: Path) -> list[str]:
    (folder / "bundles" / "int8" / "decoder.onnx").unlink()
    return ["evaluate", "bundles/int8", *DATA]


@bad_input("no such directory")
def no_bundle(_: Path) -> list[str]:
    return ["evaluate", "bundles/gone", *DATA]


@bad_input("stored with other Inception weights; give the same --encoder-weights")
def upper_blocks_of_other_weights_than_the_stored_ones(folder: Path) -> list[str]:
    for store in (folder / "features").glob("mixed7-*/store.json"):
        store.write_text(json.dumps({**json.loads(store.read_text()), "weights": "others"}))
    return [*TRAIN, "--recipe", "fine_tune", "--from", "runs/first", "--encoder-weights", WEIGHTS]


@bad_input("runs/whole: trained Inception blocks of its own, but features/mixed10-plain was made with others")
def features_that_are_not_a_tuned_runs(_: Path) -> list[str]:
    return [*TRAIN, "--recipe", "self_critical", "--from", "runs/whole"]


@bad_input("features-whole/mixed10-plain: made with blocks that a run trained; give that run as --from")
def features_of_a_tuned_run_without_that_run(_: Path) -> list[str]:
    return ["train", "runs/new", *DATA, "--features", "features-whole", *SMALL_SWITCHES]


@bad_input("runs/gone: no trained run here")
def features_of_no_run(_: Path) -> list[str]:
    return ["features", "new", *DATA, "--run", "runs/gone"]


@bad_input("runs/whole: trained Inception blocks of its own, but features/mixed10-plain was made with others")
def a_teacher_with_an_extractor_of_its_own(_: Path) -> list[str]:
    return [*TRAIN, "--recipe", "distillation", "--from", "runs/final", "--teacher", "runs/whole"]


@bad_input("bundles/int8: a bundle; give the graphs that it was made of")
def a_bundle_in_place_of_the_graphs_to_bundle(_: Path) -> list[str]:
    licences = ["--weights-license", "MIT", "--data-license", "mine"]
    golden = str(Path(__file__).parents[1] / "photos" / "cat.jpg")
    return ["bundle", "bundles/int8", "--run", "runs/first", "--name", "x", "--golden", golden, *licences, "-o", "new"]


@bad_input("bundles/float: a bundle; give the graphs that it was made of")
def a_bundle_in_place_of_the_graphs_to_quantise(_: Path) -> list[str]:
    return ["quantize", "bundles/float", *DATA, "-o", "new"]


@bad_input("graphs/float/vocabulary.txt: No such file")
def graphs_without_their_words(folder: Path) -> list[str]:
    (folder / "graphs" / "float" / "vocabulary.txt").unlink()
    return ["quantize", "graphs/float", *DATA, "-o", "new"]


@bad_input("bundles/int8: holds something other than this run")
def a_bundle_in_place_of_a_run(_: Path) -> list[str]:
    return ["train", "bundles/int8", *DATA, "--features", "features"]


@bad_input("mine: holds something other than this run")
def files_of_somebody_elses_called_like_a_runs(folder: Path) -> list[str]:
    (folder / "mine").mkdir()
    (folder / "mine" / "config.json").write_text('{"my": "settings"}')
    return ["train", "mine", *DATA, "--features", "features"]


@pytest.fixture
def spoilable(done: Sequence[Done], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the path made, to be spoiled; large files are links to the originals, which no case writes to."""

    def copy(source: str, target: str) -> str:
        if Path(source).stat().st_size > 1_000_000:
            os.link(source, target)
            return target
        return shutil.copyfile(source, target)

    copied = tmp_path / "copy"
    shutil.copytree(folder, copied, copy_function=copy)
    monkeypatch.chdir(copied)
    return copied


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_line(case: str, spoilable: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arrange, said = BAD_INPUT[case]
    arguments = arrange(spoilable)
    there = snapshot(spoilable)
    capfd.readouterr()
    status = main(arguments)
    errors = [line for line in capfd.readouterr().err.splitlines() if not DEFECT.match(line)]
    assert status == 1
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"caplet-export {arguments[0]}: ")
    assert said in errors[0]
    new = {name for name in snapshot(spoilable) if name not in there}
    assert not (spoilable / "runs" / "new").exists()
    assert not {name for name in new if name.endswith((".onnx", "manifest.json", "decoder.weights.h5", "rows.f16"))}


def snapshot(folder: Path) -> Mapping[str, int]:
    """Every file with its size."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_the_one_line_is_all_a_person_sees(done: Sequence[Done], folder: Path) -> None:
    """In a process of its own, where TensorFlow and Keras would have their say as well."""
    import keras

    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(3)(inputs)).save_weights(folder / "other.weights.h5")
    process = run_shell(folder, "caplet-export features new --data flickr8k --encoder-weights other.weights.h5")
    assert process.returncode == 1
    assert process.stdout == ""
    expected = r"caplet-export features: other\.weights\.h5: not weights of InceptionV3 without top: .*\n"
    assert re.fullmatch(expected, process.stderr)
    assert not (folder / "new").exists()
