"""One typed configuration: it survives its file, and nothing wrong gets in."""

from __future__ import annotations

from pathlib import Path

import pytest

from caplet_export.config import Config, load_config, override
from caplet_export.errors import ConfigurationError


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = override(Config(), ["model.state_size=64", "text.rules=tutorial", "train.views=plain"])
    config.save(tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


def test_switches_are_set_by_name() -> None:
    config = override(Config(), ["train.learning_rate=1", "model.initial_state=zero"])
    assert config.train.learning_rate == 1.0
    assert config.model.initial_state == "zero"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.lr=1", "expected SECTION.SWITCH=VALUE with one of text.rules"),
        ("nonsense", "expected SECTION.SWITCH=VALUE"),
        ("train.epochs=many", "is no int"),
        ("train.epochs=1.5", "expected int, found 1.5"),
        ("train.seed=true", "expected int, found True"),
        ("model.initial_state=random", "expected one of mean, zero"),
    ],
)
def test_a_wrong_switch_is_named(assignment: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        override(Config(), [assignment])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"modle": {}}', "unknown switch modle"),
        ('{"model": 3}', "expected an object, found int"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load_config(path)
    with pytest.raises(ConfigurationError, match="No such file"):
        load_config(tmp_path / "gone.json")
