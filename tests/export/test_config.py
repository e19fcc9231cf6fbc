"""One typed configuration: it survives its file, and nothing wrong gets in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import pytest

from caplet_export.cli import main
from caplet_export.config import (
    Config,
    ModelConfig,
    TextConfig,
    TrainConfig,
    changed_switches,
    inherit,
    load_config,
    override,
    require_effect,
)
from caplet_export.errors import ConfigurationError

RELEASED = Path(__file__).parents[2] / "models" / "checkpoints" / "flickr8k-gru"


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = override(Config(), ["model.state_size=64", "text.rules=tutorial", "train.views=plain"])
    config.save(tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


def test_switches_are_set_by_name() -> None:
    blocks = "mixed8 mixed9 mixed10"
    given = ["train.learning_rate=1", "train.captions_per_image=1", "text.max_length=1000", "model.members=3"]
    config = override(Config(), [*given, f"model.feature_block={blocks}"])
    assert config.train.learning_rate == 1.0 and type(config.train.learning_rate) is float
    assert config.train.captions_per_image == 1
    assert config.text.max_length == 1000
    assert config.model.feature_block == blocks


def test_a_run_that_goes_on_has_the_text_and_model_of_the_earlier_one_but_its_own_dropout() -> None:
    earlier = override(Config(), ["text.minimum_count=9", "model.state_size=64", "model.dropout=0.1", "train.seed=7"])
    own = ["model.dropout=0.2", "model.channel_dropout=0.3", "train.seed=8"]
    config = override(Config(), ["text.minimum_count=2", "model.state_size=32", *own])
    assert inherit(config, earlier) == override(earlier, own)


def test_what_changed_is_told_by_section() -> None:
    before = override(Config(), ["train.seed=7"])
    now = override(before, ["model.state_size=64", "model.vocabulary_size=9", "train.views=plain"])
    assert changed_switches(now, before) == {"model.state_size": 64, "train.views": "plain"}
    assert changed_switches(before) == {"train.seed": 7}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.lr=1", "expected SECTION.SWITCH=VALUE with one of text.rules"),
        ("nonsense", "expected SECTION.SWITCH=VALUE"),
        ("text=1", "expected SECTION.SWITCH=VALUE"),
        ("epochs=3", "expected SECTION.SWITCH=VALUE, perhaps train.epochs$"),
        ("train.dropout=0", "perhaps model.dropout or model.channel_dropout$"),
        ("train.patience", "perhaps train.patience$"),
        ("train.epochs=many", "expected int, found"),
        ("train.epochs=1.5", "expected int, found 1.5"),
        ("train.seed=true", "expected int, found True"),
        ("model.dropout=true", "dropout: expected float, found True"),
        ("model.initial_state=random", "expected one of mean, zero"),
        ("model.initial_state=mean zero", "expected one of mean, zero"),
        ("train.extractor_layer=foo", "expected one of none, mixed0, mixed1, .*, mixed10, found"),
        ("model.feature_block= ", "expected one of mixed8"),
        ("model.dropout=NaN", "dropout: expected 0 or more and below 1, found nan"),
        ("model.dropout=1", "below 1, found 1"),
        ("model.state_size=0", "expected 1 to 8192, found 0"),
        ("text.max_length=0", "expected 1 to 1000"),
        ("text.max_length=1001", "expected 1 to 1000"),  # which no bundle may have
        ("model.feature_block=mixed10 mixed9", "feature_block: expected one block, or members=1 blocks"),
        ("train.seed=4294967296", "expected 0 to 4294967295"),
        ("train.views=", "expected at least one view"),
        ("train.mixup=2", "expected 0 to 1"),
        ("train.gradient_norm=0", "expected above 0"),
        ("train.patience=-1", "expected 0 to 1000000"),
        ("train.learning_rate=Infinity", "found inf"),
        (f"train.learning_rate=1{'0' * 400}", "learning_rate: expected 0 to 1000000, found 10000"),
        (f"train.epochs=1{'0' * 5000}", "--set train.epochs: expected int, found '10000"),
        (f"train.epochs={'[' * 200_000}", "--set train.epochs: expected int, found"),
        ("model.state_size=100000", "expected 1 to 8192, found 100000"),
        ("model.members=1000", "expected 1 to 100, found 1000"),
    ],
)
def test_a_wrong_switch_is_named(assignment: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        override(Config(), [assignment])
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    ("verb", "objective", "switch", "only"),
    [
        ("train", "cross_entropy", "mixup", "`train` by distillation and `tune` by distillation"),
        ("train", "self_critical", "mixup", "`train` by distillation and `tune` by distillation"),
        ("train", "cross_entropy", "bigram_penalty", "`train` by self_critical and `tune` by self_critical"),
        ("tune", "distillation", "reward_rouge", "`train` by self_critical and `tune` by self_critical"),
        ("train", "self_critical", "cross_entropy_weight", "`tune` by self_critical"),
        ("train", "self_critical", "label_smoothing", "`train` by cross_entropy and `tune` by self_critical"),
        ("train", "cross_entropy", "teacher_view", "`train` by distillation"),
        *(
            ("train", "distillation", name, "`tune` by self_critical or distillation")
            for name in ("evaluate_every", "smallest_crop", "color_jitter", "random_erasing")
        ),
        ("train", "self_critical", "attention_regularisation", "`train` by cross_entropy"),
        ("tune", "self_critical", "attention_regularisation", "`train` by cross_entropy"),
        ("tune", "self_critical", "views", "`train` by cross_entropy or self_critical or distillation"),
    ],
)
def test_a_switch_that_would_do_nothing_is_refused(verb: str, objective: str, switch: str, only: str) -> None:
    said = f"--set train.{switch}=1: no effect on `{verb}` by {objective}, only on {only}"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(said)}$"):
        require_effect(["train.seed=1", f"train.{switch}=1"], verb, with_switches(f"train.objective={objective}"))


def with_switches(*assignments: str) -> Config:
    return override(Config(), list(assignments))


@pytest.mark.parametrize(
    ("verb", "switch", "void", "needed"),
    [
        ("train", "train.extractor_learning_rate=1e-5", "train.extractor_layer=none", "train.extractor_layer"),
        ("train", "train.warmup_steps=9", "train.decay=constant", "train.decay=cosine"),
        ("tune", "train.label_smoothing=0.2", "train.cross_entropy_weight=0", "train.cross_entropy_weight above 0"),
        ("train", "model.tied_embeddings=true", "model.deep_output=false", "model.deep_output"),
    ],
)
def test_a_switch_that_another_makes_void_is_refused(verb: str, switch: str, void: str, needed: str) -> None:
    """Where both are given as where the other is the recipe's; a recipe itself may hold both."""
    objective = "train.objective=self_critical" if verb == "tune" else "train.objective=cross_entropy"
    void_config = with_switches(objective, void)
    require_effect([void], verb, void_config)
    said = f"--set {switch}: no effect on `{verb}` without {needed}"
    for given in ([switch], [void, switch]):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(said)}$"):
            require_effect(given, verb, override(void_config, given))
    enough = ["train.extractor_layer=mixed7", "train.decay=cosine", "train.cross_entropy_weight=1"]
    require_effect([switch], verb, with_switches(objective, *enough, switch))


def test_where_a_switch_needs_no_other_it_is_not_refused() -> None:
    require_effect(
        ["train.warmup_steps=9"], "tune", with_switches("train.objective=self_critical", "train.decay=constant")
    )
    require_effect(["train.label_smoothing=0.2"], "train", with_switches("train.cross_entropy_weight=0"))
    untied = ["model.tied_embeddings=false", "model.deep_output=false"]
    require_effect(untied, "train", with_switches(*untied))


def test_a_switch_that_does_something_is_not_refused() -> None:
    for verb, objective, switches in (
        ("train", "cross_entropy", ["views", "label_smoothing", "attention_regularisation", "extractor_layer"]),
        ("train", "self_critical", ["views", "reward_rouge", "bigram_penalty"]),
        ("train", "distillation", ["views", "mixup", "teacher_view"]),
        ("tune", "self_critical", ["random_erasing", "cross_entropy_weight", "evaluate_every"]),
        ("tune", "distillation", ["random_erasing", "smallest_crop", "color_jitter", "mixup"]),
    ):
        given = ["model.dropout=0", *(f"train.{switch}=1" for switch in switches)]
        require_effect(given, verb, with_switches(f"train.objective={objective}"))


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_verbs_refuse_switches_that_would_do_nothing(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is read."""
    switch, objective = (
        ("evaluate_every=2", "cross_entropy") if verb == "train" else ("teacher_view=same", "self_critical")
    )
    options = ["--features", "nowhere"] if verb == "train" else ["--from", str(RELEASED)]
    assert main([verb, "run", "--data", "nowhere", *options, "--set", f"train.{switch}"]) == 1
    assert f"--set train.{switch}: no effect on `{verb}` by {objective}" in capsys.readouterr().err


def test_the_configuration_of_the_released_model_is_read() -> None:
    config = load_config(RELEASED / "config.json")
    assert config.train.extractor_layer == "mixed2" and config.train.views == "plain flip"


def test_every_number_has_a_range() -> None:
    for section in (TextConfig, ModelConfig, TrainConfig):
        numbers = {name for name, kind in get_type_hints(section).items() if kind in (int, float)}
        assert numbers <= {name for name, switch in section.known().items() if switch.values is not None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ("[" * 200_000, "not JSON"),
        ('{"modle": {}}', "unknown switch modle"),
        ('{"model": 3}', "expected an object, found int"),
        ('{"train": {"epochs": 0}}', "train: epochs: expected 1 to 1000000, found 0"),
        ('{"train": {"objective": "self_critical", "captions_per_image": 1}}', "needs 2 or more"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load_config(path)
    with pytest.raises(ConfigurationError) as refused:
        load_config(tmp_path / "gone.json")
    assert str(refused.value) == f"{tmp_path / 'gone.json'}: No such file or directory"


def test_files_of_earlier_releases_are_read(tmp_path: Path) -> None:
    config = override(Config(), ["train.ema_decay=0.9", "train.mixup=0.25"])
    text = config.as_json().replace("ema_decay", "average_decay").replace("mixup", "mixing")
    (tmp_path / "config.json").write_text(text)
    assert load_config(tmp_path / "config.json") == config
