"""Settings: frozen, checked when made, and the same after a trip through TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parvae.errors import SettingError
from parvae_pipeline.commands import parse_duration
from parvae_pipeline.config import (
    DataSettings,
    ModelSettings,
    RunSettings,
    TrainSettings,
    merged,
    parse_assignment,
    read_toml,
)
from parvae_pipeline.roles import parse_overrides

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12
)


# TOML


def test_defaults_survive_toml() -> None:
    assert RunSettings.from_mapping(tomllib.loads(RunSettings().to_toml())) == RunSettings()


@settings(max_examples=60, deadline=None)
@given(
    paths=st.lists(NAMES, max_size=3),
    columns=st.dictionaries(NAMES, NAMES, max_size=3),
    label=st.none() | NAMES,
    share=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    latent_size=st.none() | st.integers(1, 10**6),
    rate=st.none() | st.floats(1e-300, 1.0),
    seed=st.integers(0, 2**31),
)
def test_any_settings_survive_toml(
    paths: list[str],
    columns: dict[str, str],
    label: str | None,
    share: float,
    latent_size: int | None,
    rate: float | None,
    seed: int,
) -> None:
    wanted = RunSettings(
        data=DataSettings(paths=tuple(paths), columns=columns, label=label, held_out_share=share),
        model=ModelSettings(latent_size=latent_size),
        train=TrainSettings(learning_rate=rate, seed=seed),
    )
    assert RunSettings.from_mapping(tomllib.loads(wanted.to_toml())) == wanted


def test_settings_that_are_left_open_are_left_out_of_toml() -> None:
    document = tomllib.loads(RunSettings().to_toml())
    assert "latent_size" not in document["model"]
    assert document["model"]["depth"] == 2


def test_a_configuration_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[model]\nwidth = 128\n[data.columns]\nage = "numeric"\n')
    found = RunSettings.from_mapping(read_toml(str(path)))
    assert found.model.width == 128
    assert found.data.columns == {"age": "numeric"}
    assert found.train == TrainSettings()


@pytest.mark.parametrize("content", [None, b"width = ", b"\xff\xfe\x00"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=r"mine\.toml cannot be read"):
        read_toml(str(path))


# --set


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.width=256", ("model.width", 256)),
        ("train.learning_rate=1e-3", ("train.learning_rate", 1e-3)),
        ("model.network=image", ("model.network", "image")),
        ('model.network="image"', ("model.network", "image")),
        ("data.label=a=b", ("data.label", "a=b")),
        ('data.paths=["a", "b"]', ("data.paths", ["a", "b"])),
        ('data.columns={age = "key"}', ("data.columns", {"age": "key"})),
        ("data.label=", ("data.label", "")),
        ("data.x=true", ("data.x", True)),
    ],
)
def test_an_assignment_is_toml_or_a_string(text: str, expected: tuple[str, Any]) -> None:
    assert parse_assignment(text) == expected


def test_an_assignment_without_a_value_shows_how() -> None:
    with pytest.raises(SettingError, match=r"--set model\.width: write table\.key=value"):
        parse_assignment("model.width")


def test_assignments_overrule_the_file_and_leave_it_as_it_was() -> None:
    document = {"model": {"width": 1, "depth": 3}}
    found = merged(document, {"model.width": 2, "train.seed": 5})
    assert found == {"model": {"width": 2, "depth": 3}, "train": {"seed": 5}}
    assert document == {"model": {"width": 1, "depth": 3}}


def test_an_assignment_without_a_table_shows_how() -> None:
    with pytest.raises(SettingError, match=r"write table\.key=value"):
        merged({}, {"width": 2})


def test_an_assignment_into_what_is_no_table_is_refused() -> None:
    with pytest.raises(SettingError, match="model"):
        RunSettings.from_mapping(merged({"model": 3}, {"model.width": 2}))


# What is refused


def test_an_unknown_table_lists_the_tables() -> None:
    with pytest.raises(SettingError, match=r"'modle' is no table; there are 'data', 'model', 'train'"):
        RunSettings.from_mapping({"modle": {}})


def test_an_unknown_key_lists_the_keys() -> None:
    with pytest.raises(SettingError, match=r"'widht' is no setting of model; there are .*'width'"):
        RunSettings.from_mapping({"model": {"widht": 3}})


def test_an_unknown_choice_lists_the_choices() -> None:
    with pytest.raises(SettingError, match=r"model\.network is 'conv'; it must be one of 'auto', 'table', 'image'"):
        RunSettings.from_mapping({"model": {"network": "conv"}})


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match=r"model is 3; it must be a table, like \[model\]"):
        RunSettings.from_mapping({"model": 3})


@pytest.mark.parametrize(
    ("table", "key", "value", "allowed"),
    [
        ("model", "width", "wide", "a whole number"),
        ("model", "width", 1.5, "a whole number"),
        ("model", "width", True, "a whole number"),
        ("train", "learning_rate", "fast", "a number"),
        ("train", "beta", True, "a number"),
        ("data", "label", 3, "a string"),
        ("data", "paths", "a.parquet", "a list of strings"),
        ("data", "paths", [1], "a list of strings"),
        ("data", "columns", "age:key", "a table"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_is_needed(table: str, key: str, value: object, allowed: str) -> None:
    with pytest.raises(SettingError, match=rf"{table}\.{key} is .*; it must be {allowed}"):
        RunSettings.from_mapping({table: {key: value}})


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("data", "held_out_share", 0.0),
        ("data", "held_out_share", 1.0),
        ("data", "held_out_share", float("nan")),
        ("data", "max_held_out_rows", 0),
        ("data", "reservoir_rows", -1),
        ("data", "memory_budget_mb", 0.0),
        ("data", "memory_budget_mb", float("nan")),
        ("model", "latent_size", 0),
        ("model", "width", 0),
        ("model", "depth", -1),
        ("model", "channels", 3),
        ("train", "seed", -1),
        ("train", "max_steps", 0),
        ("train", "budget_s", 0.0),
        ("train", "budget_s", -1.0),
        ("train", "batch_size", 0),
        ("train", "learning_rate", 0.0),
        ("train", "learning_rate", float("inf")),
        ("train", "weight_decay", -0.1),
        ("train", "warmup_share", 1.1),
        ("train", "beta", -1.0),
        ("train", "patience", 0),
        ("train", "checkpoint_every_s", -1.0),
        ("train", "checkpoint_every_s", float("nan")),
        ("train", "threads", 0),
    ],
)
def test_a_value_out_of_range_names_the_setting_and_the_value(table: str, key: str, value: float) -> None:
    with pytest.raises(SettingError, match=rf"{table}\.{key} is {value!r}; it must be"):
        RunSettings.from_mapping({table: {key: value}})


def test_settings_made_in_python_are_checked_too() -> None:
    with pytest.raises(SettingError, match=r"model\.width is 0"):
        ModelSettings(width=0)


def test_a_whole_number_does_for_a_number() -> None:
    found = RunSettings.from_mapping({"train": {"budget_s": 90}}).train.budget_s
    assert found == 90.0
    assert isinstance(found, float)


@pytest.mark.parametrize("section", [DataSettings(), ModelSettings(), TrainSettings(), RunSettings()])
def test_settings_are_frozen(section: Any) -> None:
    for field in dataclasses.fields(section):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, field.name, None)


# Words on the command line


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("2h", 7200.0), ("45", 45.0), ("1.5 m", 90.0), (" 3s ", 3.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "-5s", "5d", "1e3", "ten minutes", "5m30s", "nan", "inf"])
def test_what_is_no_duration_shows_how(text: str) -> None:
    with pytest.raises(SettingError, match="write a time like 90s, 10m or 2h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("age:numeric", {"age": "numeric"}),
        ("age:numeric,zip:category", {"age": "numeric", "zip": "category"}),
        ("a:b:key", {"a:b": "key"}),
        ("age:numeric,", {"age": "numeric"}),
    ],
)
def test_overrides_of_roles(text: str, expected: dict[str, str]) -> None:
    assert parse_overrides(text) == expected


def test_an_override_without_a_role_shows_how() -> None:
    with pytest.raises(SettingError, match="--columns age: write name:role"):
        parse_overrides("zip:key,age")


def test_an_autoencoder_has_no_importance_weights() -> None:
    document = {"model": {"kind": "autoencoder"}, "train": {"objective": "iwae"}}
    with pytest.raises(SettingError, match=r"train\.objective is 'iwae'.*'elbo' where model\.kind is 'autoencoder'"):
        RunSettings.from_mapping(document)
