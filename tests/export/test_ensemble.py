"""Joined captioners: what they say together is the mean of what each says, and only what fits is joined."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from caplet_export import checkpoint
from caplet_export.checkpoint import load_checkpoint, model_to_load, run_digest, save_weights
from caplet_export.cli import main
from caplet_export.config import Config, ModelConfig, TextConfig
from caplet_export.ensemble import average_runs, join_runs
from caplet_export.errors import ConfigurationError
from caplet_export.model import build_model
from caplet_export.stages import (
    ALL,
    Stage,
    encoder_weights,
    join_stages,
    read_stages,
    require_encoder_weights,
    write_stages,
)
from caplet_export.text import SPECIALS, Vocabulary
from tiny_encoder import CONFIG

WORDS = [f"word{number}" for number in range(CONFIG.vocabulary_size - len(SPECIALS))]


def write_run(
    folder: Path, seed: int, model: ModelConfig = CONFIG, words: list[str] = WORDS, max_length: int = 9
) -> Path:
    folder.mkdir()
    Config(TextConfig(max_length=max_length), model).save(folder / "config.json")
    Vocabulary([*SPECIALS, *words]).save(folder / "vocabulary.txt")
    captioner = model_to_load(model)
    random = np.random.default_rng(seed)
    for variable in captioner.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    save_weights(captioner, folder / "decoder.weights.h5")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs. Read only: Keras takes a tenth of a second to make each."""
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / str(seed), seed) for seed in (1, 2, 3)]


@pytest.fixture
def runs(tmp_path: Path, written: list[Path]) -> list[Path]:
    """Copies of them, to be changed."""
    return [shutil.copytree(run, tmp_path / run.name) for run in written]


def test_together_they_say_the_mean_of_what_each_says(runs: list[Path], tmp_path: Path) -> None:
    assert main(["join", *map(str, runs), "-o", str(tmp_path / "joined")]) == 0
    joined = load_checkpoint(tmp_path / "joined")
    assert (joined.config.model.members, joined.config.model.feature_block) == (3, CONFIG.feature_block)
    random = np.random.default_rng(0)
    photos = random.normal(size=(2, CONFIG.locations, CONFIG.channels)).astype(np.float32)
    singles = [load_checkpoint(run).model for run in runs]
    encoded = joined.model.encode(photos)
    separate = [single.encode(photos) for single in singles]
    token = np.array([5, 7])
    logits, state, attention = joined.model.step(token, encoded[2], *encoded[:2])
    steps = [single.step(token, own[2], *own[:2]) for single, own in zip(singles, separate, strict=True)]
    close = {"rtol": 0.02, "atol": 0.02}  # the joined weights are rounded to float16
    np.testing.assert_allclose(logits, np.mean([step[0] for step in steps], axis=0), **close)
    np.testing.assert_allclose(state, np.concatenate([step[1] for step in steps], axis=1), **close)
    np.testing.assert_allclose(attention, np.mean([step[2] for step in steps], axis=0), **close)
    np.testing.assert_allclose(np.sum(attention, axis=1), 1, atol=1e-5)


def test_members_may_read_different_blocks(tmp_path: Path) -> None:
    blocks = ("mixed10", "mixed9", "mixed10")
    runs = [
        write_run(tmp_path / str(seed), seed, dataclasses.replace(CONFIG, feature_block=block))
        for seed, block in enumerate(blocks)
    ]
    assert main(["join", *map(str, runs), "-o", str(tmp_path / "joined")]) == 0
    model = load_checkpoint(tmp_path / "joined").model
    assert model.config.feature_block == "mixed10 mixed9 mixed10"
    assert model.config.blocks == ("mixed10", "mixed9")
    random = np.random.default_rng(0)
    seen = {block: random.normal(size=(2, CONFIG.locations, CONFIG.channels)) for block in model.config.blocks}
    encoded = model.encode(np.concatenate([seen["mixed10"], seen["mixed9"]], axis=-1))
    separate = [load_checkpoint(run).model.encode(seen[block]) for run, block in zip(runs, blocks, strict=True)]
    for together, *parts in zip(encoded, *separate, strict=True):
        np.testing.assert_allclose(together, np.concatenate(parts, axis=-1), rtol=0.02, atol=0.02)
    assert main(["join", "--average", *map(str, runs), "-o", str(tmp_path / "mean")]) == 1


def test_blocks_may_have_different_channels(tmp_path: Path) -> None:
    blocks = {"mixed8": 20, "mixed10": CONFIG.channels}
    runs = [write_run(tmp_path / block, 1, dataclasses.replace(CONFIG, feature_block=block)) for block in blocks]
    assert main(["join", *map(str, runs), "-o", str(tmp_path / "joined")]) == 0
    random = np.random.default_rng(0)
    seen = [random.normal(size=(2, CONFIG.locations, channels)) for channels in blocks.values()]
    encoded = load_checkpoint(tmp_path / "joined").model.encode(np.concatenate(seen, axis=-1))
    separate = [load_checkpoint(run).model.encode(own) for run, own in zip(runs, seen, strict=True)]
    for together, *parts in zip(encoded, *separate, strict=True):
        np.testing.assert_allclose(together, np.concatenate(parts, axis=-1), rtol=0.02, atol=0.02)


def test_what_was_joined_before_brings_its_members(runs: list[Path], tmp_path: Path) -> None:
    pair, nested, flat = (str(tmp_path / name) for name in ("pair", "nested", "flat"))
    third = str(write_run(tmp_path / "4", 4, dataclasses.replace(CONFIG, feature_block="mixed9")))
    for number, run in enumerate(runs):
        write_stages(run, [stage(f"xe{number}", 1)])
    assert main(["join", str(runs[0]), str(runs[1]), "-o", pair]) == 0
    write_stages(Path(pair), [*read_stages(Path(pair)), stage("both", 0)])
    write_stages(Path(third), [stage("third", 1), stage("trimmed", 0)])
    assert main(["join", str(runs[2]), pair, third, "-o", nested]) == 0
    assert main(["join", *map(str, (runs[2], *runs[:2])), third, "-o", flat]) == 0
    one, other = (load_checkpoint(Path(folder)) for folder in (nested, flat))
    assert one.config == other.config
    assert one.config.model.feature_block == "mixed10 mixed10 mixed10 mixed9"
    for ours, theirs in zip(one.model.trainable_variables, other.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    told = [(stage.run, stage.member) for stage in read_stages(Path(nested))]
    assert told == [("xe2", 1), ("xe0", 2), ("xe1", 3), ("both", "2-3"), ("third", 4), ("trimmed", 4)]
    again = join_stages([Path(third), Path(nested)], [1, 4])
    assert [stage.member for stage in again] == [1, 1, 2, 3, 4, "3-4", 5, 5]


def stage(run: str, member: int) -> Stage:
    return Stage(run, member, 1, 1, None, None, {})


def test_a_block_for_each_member_or_one_for_all() -> None:
    with pytest.raises(ConfigurationError, match="2 blocks for 3 members"):
        build_model(dataclasses.replace(CONFIG, members=3, feature_block="mixed9 mixed10"))


def test_joined_weights_take_half_the_room(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "joined").mkdir()
    join_runs(runs[:2], tmp_path / "joined")
    folders = (*runs[:2], tmp_path / "joined")
    model = build_model(CONFIG)
    arrays = sum(np.asarray(variable).nbytes for variable in model.trainable_variables)
    single, _, joined = ((folder / "decoder.weights.h5").stat().st_size for folder in folders)
    assert joined < 2 * single - 0.9 * arrays


def test_averaged_weights_are_the_mean(runs: list[Path], tmp_path: Path) -> None:
    assert main(["join", "--average", *map(str, runs), "-o", str(tmp_path / "mean")]) == 0
    mean = load_checkpoint(tmp_path / "mean")
    assert mean.config == load_checkpoint(runs[-1]).config
    [told] = read_stages(tmp_path / "mean")
    assert (told.run, told.member) == ("mean of the weights of 1, 2, 3", 1)
    models = [load_checkpoint(run).model for run in runs]
    for averaged, *values in zip(mean.model.trainable_variables, *(m.trainable_variables for m in models), strict=True):
        np.testing.assert_allclose(averaged, np.mean([np.asarray(value) for value in values], axis=0), rtol=1e-5)


def write_extractor_part(run: Path, base: int, values: np.ndarray) -> None:
    np.savez(run / "extractor.npz", base=np.array(base), **{"2": values, "2.scale": np.float32([0.1, 0.2])})


def test_what_was_trained_of_inception_is_averaged_too(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = [shutil.copytree(run, tmp_path / "tuned" / run.name) for run in runs[:2]]
    for run, value in zip(tuned, (127, -63), strict=True):
        write_extractor_part(run, 7, np.array([[value, 20], [10, -127]], np.int8))
    command = ["join", "--average", *map(str, tuned)]
    assert main([*command, "-o", str(tmp_path / "mean")]) == 0
    with np.load(tmp_path / "mean" / "extractor.npz") as arrays:
        np.testing.assert_allclose(arrays["2"] * arrays["2.scale"], [[3.2, 4.0], [1.0, -25.4]], atol=0.11)
        assert arrays["2"].dtype == np.int8 and int(arrays["base"]) == 7
    own = f"{tuned[0]}: trained Inception blocks of its own"
    for others, said in (([str(runs[2])], own), ([], "other Inception weights or blocks")):
        write_extractor_part(tuned[1], 8, np.zeros((2, 2), np.int8))
        assert main([*command[:2], *others, *command[2:], "-o", str(tmp_path / "new")]) == 1
        assert said in capsys.readouterr().err
    np.savez(tuned[1] / "extractor.npz", base=np.array(7), **{"3": np.zeros(2, np.float32)})
    assert main([*command, "-o", str(tmp_path / "new")]) == 1
    assert "other Inception weights or blocks" in capsys.readouterr().err
    assert main(["join", *map(str, tuned), "-o", str(tmp_path / "new")]) == 1
    assert "blocks of its own" in capsys.readouterr().err
    (tuned[0] / "extractor.npz").write_bytes(b"PK")
    assert main([*command, "-o", str(tmp_path / "new")]) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("average", [[], ["--average"]], ids=["joined", "averaged"])
def test_runs_that_read_the_same_trained_blocks_keep_them(runs: list[Path], tmp_path: Path, average: list[str]) -> None:
    """To the byte, since features are known by it."""
    for run in runs:
        (run / "extractor.npz").write_bytes(b"blocks")
    assert main(["join", *average, *map(str, runs), "-o", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "extractor.npz").read_bytes() == b"blocks"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"words": [*WORDS[:-1], "other"]}, "its vocabulary is not that of"),
        ({"model": dataclasses.replace(CONFIG, tied_embeddings=False)}, "model.* switches"),
        ({"max_length": 5}, "text.* switches"),
    ],
)
def test_what_does_not_fit_is_not_joined(
    runs: list[Path], tmp_path: Path, change: dict, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "other", 4, **change)
    assert main(["join", *map(str, runs[:2]), str(other), "-o", str(tmp_path / "joined")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "joined").exists()


def test_dropout_may_differ(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", 4, dataclasses.replace(CONFIG, dropout=0.1, channel_dropout=0.2))
    assert main(["join", str(runs[0]), str(other), "-o", str(tmp_path / "joined")]) == 0
    assert main(["join", "--average", str(runs[0]), str(other), "-o", str(tmp_path / "mean")]) == 0
    assert load_checkpoint(tmp_path / "mean").config == load_checkpoint(other).config


def test_a_run_is_not_replaced_by_what_it_is_joined_to(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = (runs[1] / "decoder.weights.h5").read_bytes()
    assert main(["join", *map(str, runs), "-o", str(runs[1])]) == 1
    assert f"{runs[1]}: would replace what is read" in capsys.readouterr().err
    assert (runs[1] / "decoder.weights.h5").read_bytes() == before


def test_a_run_is_known_by_all_that_was_trained_of_it(runs: list[Path]) -> None:
    (runs[0] / "extractor.npz").write_bytes(b"and a part of Inception")
    content = (runs[0] / "decoder.weights.h5").read_bytes() + b"and a part of Inception"
    assert run_digest(runs[0]) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("words", [WORDS[1:], [*WORDS, "more"]], ids=["fewer", "more"])
def test_a_run_with_fewer_or_more_words_than_it_says_is_refused(tmp_path: Path, words: list[str]) -> None:
    run = write_run(tmp_path / "run", 1, words=words)
    with pytest.raises(ConfigurationError, match=f"has {len(words) + 4} words, config.json says 24"):
        load_checkpoint(run)


def test_one_run_is_not_joined(runs: list[Path]) -> None:
    with pytest.raises(ConfigurationError, match="two runs"):
        join_runs(runs[:1], runs[0])


def test_a_mean_tells_every_branch_once(runs: list[Path], tmp_path: Path) -> None:
    """Two epochs of one run, and one of another that began alike."""
    first = Stage("xe", 1, 3, 2, 50.0, 60.0, {"train.seed": 2, "train.epochs": 3})
    again = dataclasses.replace(first, switches={"train.epochs": 3, "train.seed": 2})
    write_stages(runs[0], [first, dataclasses.replace(first, run="left", epochs=2)])
    write_stages(runs[1], [again, dataclasses.replace(first, run="left", epochs=4)])
    write_stages(
        runs[2], [first, dataclasses.replace(first, member=2), dataclasses.replace(first, run="as one", member=ALL)]
    )
    (tmp_path / "mean").mkdir()
    average_runs(runs, tmp_path / "mean")
    stages = [(stage.run, stage.member, stage.epochs) for stage in read_stages(tmp_path / "mean")]
    mean = ("mean of the weights of 1, 2, 3", 1, 0)
    assert stages == [("xe", 1, 3), ("left", 1, 4), ("xe", 2, 3), ("as one", ALL, 3), mean]
    average_runs(runs[::-1], tmp_path / "mean")  # the earlier epoch after the later one
    assert {(stage.run, stage.epochs) for stage in read_stages(tmp_path / "mean")} >= {("left", 4)}


def test_a_mean_of_runs_that_share_no_beginning_is_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without a history, one more epoch of the first, and one that only its seed tells from that."""
    first = Stage("xe", 1, 3, 2, 50.0, 60.0, {"train.seed": 2})
    write_stages(runs[1], [first, stage("left", 1)])
    command = ["join", "--average", *map(str, runs), "-o", str(tmp_path / "mean")]
    write_stages(runs[2], [dataclasses.replace(first, epochs=4, kept=4)])
    assert main(command) == 0
    capsys.readouterr()
    write_stages(runs[2], [dataclasses.replace(first, switches={"train.seed": 3}), stage("left", 1)])
    assert main(command) == 1
    said = f"{runs[2]}: shares no beginning with {runs[1]}, so their mean is useless; leave out --average"
    assert said in capsys.readouterr().err
    command.remove("--average")  # each speaks for itself
    assert main(command) == 0


def test_the_mean_of_ensembles_is_of_all_their_captioners(runs: list[Path], tmp_path: Path) -> None:
    """Also if they were never trained as one, so that no stage is of all of them."""
    for name, joined in (("one", runs[:2]), ("other", runs[1:])):
        (tmp_path / name).mkdir()
        join_runs(joined, tmp_path / name)
    (tmp_path / "mean").mkdir()
    average_runs([tmp_path / "one", tmp_path / "other"], tmp_path / "mean")
    assert read_stages(tmp_path / "mean")[-1].member == ALL
    with pytest.raises(ConfigurationError, match=r"model\.\* switches"):
        average_runs([runs[0], tmp_path / "one"], tmp_path / "mean")


def test_two_runs_of_one_name_are_two(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run, seed in zip(runs, (1, 2, 2), strict=True):
        write_stages(run, [stage("xe", 1), Stage("tuned", 1, 3 * seed, 2, 50.0, 60.0, {"train.seed": seed})])
    (tmp_path / "mean").mkdir()
    monkeypatch.chdir(runs[0])  # which has a name, too
    (tmp_path / "link").symlink_to(runs[1])
    average_runs([Path(), tmp_path / "link", runs[2]], tmp_path / "mean")
    stages = [(stage.run, stage.epochs) for stage in read_stages(tmp_path / "mean")]
    assert stages == [("xe", 1), ("tuned", 3), ("tuned", 6), ("mean of the weights of 1, link, 3", 0)]


def test_weights_of_which_a_byte_is_damaged_are_said_in_a_line(runs: list[Path]) -> None:
    """HDF5 has errors of its own for what its links and lists run into."""
    whole, random, said = (runs[0] / "decoder.weights.h5").read_bytes(), np.random.default_rng(3), 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 255
        (runs[0] / "decoder.weights.h5").write_bytes(damaged)
        try:
            load_checkpoint(runs[0])
        except ConfigurationError as error:
            said += "or damaged" in str(error)
    assert said > 3


def test_the_members_bring_their_stages(runs: list[Path], tmp_path: Path) -> None:
    first = Stage("xe", 1, 3, 2, 50.0, 60.0, {"train.seed": 2})
    write_stages(runs[0], [first, dataclasses.replace(first, run="scst")])
    write_stages(runs[1], [first])
    (tmp_path / "joined").mkdir()
    join_runs(runs[:2], tmp_path / "joined")
    stages = read_stages(tmp_path / "joined")
    assert [(stage.run, stage.member) for stage in stages] == [("xe", 1), ("scst", 1), ("xe", 2)]


@pytest.mark.parametrize("average", [[], ["--average"]], ids=["joined", "averaged"])
def test_runs_on_other_inception_weights_are_not_put_together(
    runs: list[Path], average: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that do not say on which are let through, and what is made of the others says it."""
    command = ["join", *average, *map(str, runs), "-o", str(tmp_path / "together")]
    said_by_two = Stage("x", 1, 1, 1, 50.0, 1.0, {}, encoder_weights="ours")
    for run in runs[1:]:
        older = dataclasses.replace(said_by_two, encoder_weights="older")
        write_stages(run, [older, said_by_two, Stage("y", 1, 1, 1, 50.0, 1.0, {})])
    assert main(command) == 0
    assert encoder_weights(tmp_path / "together") == "ours"
    require_encoder_weights(runs[1], None, "features of weights that nobody noted")
    write_stages(runs[2], [dataclasses.replace(said_by_two, encoder_weights="others")])
    assert main(command) == 1
    expected = f"caplet-export join: {runs[2]}: trained on other Inception weights than those of {runs[1]}\n"
    assert capsys.readouterr().err == expected


def test_a_full_disk_is_said(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before HDF5, which would end the process, begins to write."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(checkpoint, "save_weights", lambda *_: pytest.fail("written"))
    assert main(["join", *map(str, runs), "-o", str(tmp_path / "joined")]) == 1
    expected = f"caplet-export join: {tmp_path / 'joined'}: cannot write: no room for the 1 MB that are to be written\n"
    assert capsys.readouterr().err == expected
    assert sorted(tmp_path.iterdir()) == runs


@pytest.mark.parametrize(
    "edit",
    [
        {"seconds": "4"},
        {"dev_cider": "50"},
        {"member": "x-y"},
        {"member": "1-2, 3"},
        {"member": None},
        {"switches": []},
        {"device": 3},
        {"x": 1},
    ],
    ids=str,
)
def test_damaged_stages_are_said_in_a_line(tmp_path: Path, edit: dict[str, object]) -> None:
    write_stages(tmp_path, [Stage("x", "1-2", 1, 1, None, None, {"train.seed": 2})])
    assert read_stages(tmp_path)[0].member == "1-2"
    (stage,) = json.loads((tmp_path / "stages.json").read_text())
    (tmp_path / "stages.json").write_text(json.dumps([{**stage, **edit}]))
    with pytest.raises(ConfigurationError, match=r"stages\.json: damaged: .*"):
        read_stages(tmp_path)


@pytest.mark.parametrize("content", ["[" * 99_999, "7", None], ids=["nested", "number", "folder"])
def test_what_holds_no_stages_is_said_in_a_line(tmp_path: Path, content: str | None) -> None:
    if content is None:
        (tmp_path / "stages.json").mkdir()
    else:
        (tmp_path / "stages.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"stages\.json: damaged: .*"):
        read_stages(tmp_path)
