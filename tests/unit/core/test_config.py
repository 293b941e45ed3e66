"""The layered settings: who wins, what is refused, and what is never shown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.config import (
    Between,
    EnvironmentName,
    Trait,
    from_assignments,
    from_environment,
    from_flags,
    from_toml,
    load_config,
    refuse_personal,
    settings_of,
    values_of,
)
from qwenstack.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Oven:
    temperature: Annotated[int, Between(low=0, high=300)] = 180
    fan: bool = False
    preheat_s: float | None = None
    mode: Literal["bake", "grill"] = "bake"


@dataclass(frozen=True, kw_only=True)
class Kitchen:
    name: str = "home"
    book: Annotated[Path | None, EnvironmentName(name="COOKBOOK")] = None
    guests: tuple[str, ...] = ()
    safe_code: Annotated[str | None, Trait.SECRET] = None
    landlord: Annotated[str, Trait.PERSONAL] = "none known"
    oven: Oven = Oven()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_stand_where_nobody_says_anything():
    resolved = load_config(Kitchen)
    assert resolved.value == Kitchen()
    assert set(resolved.origins.values()) == {"default"}


def test_each_place_overrules_the_ones_before_it_and_is_named_as_the_origin(tmp_path: Path):
    user = write(tmp_path / "user.toml", 'name = "user"\n[oven]\ntemperature = 1\nfan = true\nmode = "grill"\n')
    project = write(tmp_path / "project.toml", "[oven]\ntemperature = 2\nfan = false\n")
    environ = {"QWENSTACK_OVEN_TEMPERATURE": "3", "QWENSTACK_GUESTS": "Ann, 小明", "UNRELATED": "x"}
    resolved = load_config(
        Kitchen,
        from_toml(user),
        from_toml(project),
        from_environment(Kitchen, environ),
        from_assignments(["oven.preheat_s=60", "oven.temperature=4"]),
        from_flags({"oven.temperature": 5, "name": None}),
    )
    assert resolved.value == Kitchen(
        name="user", guests=("Ann", "小明"), oven=Oven(temperature=5, fan=False, preheat_s=60.0, mode="grill")
    )
    assert resolved.origins == {
        "name": str(user),
        "book": "default",
        "guests": "QWENSTACK_GUESTS",
        "safe_code": "default",
        "landlord": "default",
        "oven.temperature": "the command line",
        "oven.fan": str(project),
        "oven.preheat_s": "the command line",
        "oven.mode": str(user),
    }


@pytest.mark.parametrize(
    ("assignment", "nearest"),
    [
        ("oven.temprature=1", "'oven.temperature'"),
        ("temperature=1", "'oven.temperature'"),
        ("oven.guests=1", "'guests'"),
        ("oven=1", "oven.temperature, oven.fan"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(assignment: str, nearest: str):
    with pytest.raises(ConfigError, match="There is no setting") as caught:
        load_config(Kitchen, from_assignments([assignment]))
    assert nearest in str(caught.value)


def test_a_key_unlike_any_other_is_refused_without_a_guess():
    with pytest.raises(ConfigError, match=r"There is no setting 'oven\.zzz'") as caught:
        load_config(Kitchen, from_assignments(["oven.zzz=1"]))
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("oven.temperature=hot", "a whole number from 0 to 300"),
        ("oven.temperature=301", "a whole number from 0 to 300"),
        ("oven.temperature=1.0", "a whole number from 0 to 300"),
        ("oven.temperature=" + "9" * 5000, "a whole number from 0 to 300"),
        ("oven.temperature=\u0663", "a whole number from 0 to 300"),  # an Arabic-Indic three
        ("oven.fan=perhaps", "true or false"),
        ("oven.preheat_s=nan", "a number, or 'none'"),
        ("oven.preheat_s=inf", "a number, or 'none'"),
        ("oven.mode=boil", "one of 'bake', 'grill'"),
        ("book=", "a path, or 'none'"),
        ('guests=["Ann", 1]', "a list, each a text"),
        ('guests=["Ann"', "a list, each a text"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_origin_and_what_would_fit(assignment: str, expected: str):
    key, _, value = assignment.partition("=")
    with pytest.raises(ConfigError) as caught:
        load_config(Kitchen, from_assignments([assignment]))
    assert str(caught.value) == f"{key} is {value!r} (from the command line); it must be {expected}."


@pytest.mark.parametrize(
    "line",
    [
        "name = 3",
        "oven.fan = 1",
        "oven.fan = 'true'",
        "oven.temperature = '3'",
        "oven.temperature = true",
        "guests = 'a'",
    ],
)
def test_a_file_states_types_so_text_is_not_taken_for_a_number_there(tmp_path: Path, line: str):
    with pytest.raises(ConfigError, match="it must be"):
        load_config(Kitchen, from_toml(write(tmp_path / "c.toml", line)))


def test_none_is_written_as_a_word_where_it_is_allowed(tmp_path: Path):
    layers = [from_toml(write(tmp_path / "c.toml", "oven.preheat_s = 5")), from_assignments(["oven.preheat_s=none"])]
    assert load_config(Kitchen, *layers).value.oven.preheat_s is None


def test_a_whole_number_will_do_for_a_number(tmp_path: Path):
    layer = from_toml(write(tmp_path / "c.toml", "oven.preheat_s = 5"))
    assert load_config(Kitchen, layer).value.oven.preheat_s == 5.0
    too_large = from_toml(write(tmp_path / "d.toml", f"oven.preheat_s = 1{'0' * 400}"))
    with pytest.raises(ConfigError, match=r"oven\.preheat_s"):
        load_config(Kitchen, too_large)


def test_a_path_may_start_at_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert load_config(Kitchen, from_assignments(["book=~/cake"])).value.book == Path("/somewhere/cake")


def test_items_with_commas_are_written_as_json():
    layer = from_assignments(['guests=["Smith, Ann", "Bo"]'])
    assert load_config(Kitchen, layer).value.guests == ("Smith, Ann", "Bo")


def test_an_assignment_without_an_equals_sign_is_refused():
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        from_assignments(["oven.fan"])


def test_an_empty_variable_counts_as_not_set():
    assert load_config(Kitchen, from_environment(Kitchen, {"QWENSTACK_NAME": ""})).value.name == "home"


def test_a_variable_of_other_tools_sets_a_value_too_and_ours_wins_over_it():
    assert load_config(Kitchen, from_environment(Kitchen, {"COOKBOOK": "/a"})).origins["book"] == "COOKBOOK"
    both = from_environment(Kitchen, {"COOKBOOK": "/a", "QWENSTACK_BOOK": "/b"})
    assert load_config(Kitchen, both).value.book == Path("/b")


@pytest.mark.parametrize("name", ["QWENSTACK_OVEN_TEMPRATURE", "QWENSTACK_OVEN_X", "QWENSTACK_NAMES"])
def test_a_misspelt_variable_is_refused_with_the_nearest_name(name: str):
    with pytest.raises(ConfigError, match=f"{name} sets nothing. Did you mean QWENSTACK_"):
        from_environment(Kitchen, {name: "1"})


def test_variables_of_ours_that_are_no_settings_are_left_alone():
    environ = {"QWENSTACK_DATA": "1", "QWENSTACK_OVEN_NUMBER": "2"}
    assert from_environment(Kitchen, environ, other_names={"QWENSTACK_OVEN_NUMBER"}) == {}


def test_a_secret_is_never_repeated_in_an_error(tmp_path: Path):
    layer = from_toml(write(tmp_path / "c.toml", "safe_code = 271828"))
    with pytest.raises(ConfigError) as caught:
        load_config(Kitchen, layer)
    assert "271828" not in str(caught.value)


@pytest.mark.parametrize("line", ["landlord = 'Eve'", "safe_code = '1'"])
def test_the_file_of_a_folder_one_enters_cannot_decide_what_is_personal(tmp_path: Path, line: str):
    with pytest.raises(ConfigError, match="your own configuration or as QWENSTACK_"):
        refuse_personal(Kitchen, from_toml(write(tmp_path / "c.toml", line)))
    harmless = from_toml(write(tmp_path / "c.toml", "name = 'x'"))
    assert refuse_personal(Kitchen, harmless) is harmless


@pytest.mark.parametrize(
    "content",
    [b"name = ", b"\xff\xfe", b"a" * (1 << 21), b"x = " + b"[" * 10_000, b".".join([b"a"] * 2_000) + b" = 1"],
    ids=["syntax", "not UTF-8", "too large", "deep list", "deep key"],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        from_toml(path)


def test_a_folder_in_place_of_the_file_is_an_error_and_a_missing_file_is_none(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        from_toml(tmp_path)
    assert from_toml(tmp_path / "missing.toml") == {}


def test_two_keys_must_not_share_a_variable():
    @dataclass(frozen=True, kw_only=True)
    class Ambiguous:
        oven_fan: bool = False
        oven: Oven = Oven()

    with pytest.raises(TypeError, match="QWENSTACK_OVEN_FAN"):
        settings_of(Ambiguous)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text != "none")
kitchens = st.builds(
    Kitchen,
    name=texts,
    book=st.none() | st.just(Path("/x y/小")),
    guests=st.lists(texts).map(tuple),
    safe_code=st.none() | texts,
    oven=st.builds(
        Oven,
        temperature=st.integers(0, 300),
        fan=st.booleans(),
        preheat_s=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        mode=st.sampled_from(["bake", "grill"]),
    ),
)


def as_text(value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps(value)
    return "none" if value is None else str(value)


@given(kitchen=kitchens)
@settings(deadline=None)
def test_every_value_survives_being_written_as_text(kitchen: Kitchen):
    assignments = [f"{key}={as_text(value)}" for key, value in values_of(kitchen).items()]
    assert load_config(Kitchen, from_assignments(assignments)).value == kitchen


@given(kitchen=kitchens)
@settings(deadline=None)
def test_every_value_survives_the_environment(kitchen: Kitchen):
    environ = {
        settings_of(Kitchen)[key].environment_names[0]: as_text(value) for key, value in values_of(kitchen).items()
    }
    assert load_config(Kitchen, from_environment(Kitchen, environ)).value == kitchen


@given(key=st.sampled_from(list(settings_of(Kitchen))), text=st.text())
@settings(deadline=None, max_examples=300)
def test_any_text_gives_a_valid_value_or_a_typed_error(key: str, text: str):
    try:
        value = load_config(Kitchen, from_assignments([f"{key}={text}"])).value
    except ConfigError:
        return
    assert 0 <= value.oven.temperature <= 300
    assert value.oven.mode in ("bake", "grill")
    assert all(isinstance(guest, str) for guest in value.guests)


@given(layers=st.lists(st.dictionaries(st.sampled_from(["name", "oven.mode", "landlord"]), st.just("grill"))))
@settings(deadline=None)
def test_the_last_layer_that_speaks_decides(layers: list[dict[str, object]]):
    numbered = [
        {key: f"{value}" if key == "oven.mode" else f"{index}" for key, value in layer.items()}
        for index, layer in enumerate(layers)
    ]
    value = load_config(Kitchen, *(from_flags(layer) for layer in numbered)).value
    last = [layer["name"] for layer in numbered if "name" in layer]
    assert value.name == (last[-1] if last else "home")
