"""Settings from several places, each value with its origin: defaults < files < environment < command line.

The settings themselves are frozen dataclasses elsewhere; this module knows only their types. A key is the path to a
field, such as `server.port`; a field that is a dataclass is a section:

    port: Annotated[int, Between(low=0, high=65_535)] = 8000
    api_keys: Annotated[tuple[str, ...], Trait.SECRET] = ()
    engine: EngineSettings = EngineSettings()

It reads no environment by itself: callers hand over what they want looked at.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Generic, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from qwenstack.core.config_value import Between, Mismatch, TypeForm, convert, describe
from qwenstack.core.errors import ConfigError

__all__ = [
    "Between",
    "EnvironmentName",
    "Layer",
    "Resolved",
    "Setting",
    "Trait",
    "from_assignments",
    "from_environment",
    "from_flags",
    "from_toml",
    "load_config",
    "refuse_personal",
    "secrets_of",
    "settings_of",
]

SettingsT = TypeVar("SettingsT")

ENVIRONMENT_PREFIX = "QWENSTACK_"
COMMAND_LINE = "the command line"
DEFAULT = "default"
_MAX_TOML_BYTES = 16 << 10
"""Far more than all settings take; the time to parse a hostile file grows with the square of this, to 2 s here."""
_TYPO_SIMILARITY = 0.8
"""From this ratio of `difflib` on, an unknown environment variable counts as a misspelt key."""


class Trait(Enum):
    """What else is true of a setting; a mark in `Annotated`."""

    SECRET = "secret"  # noqa: S105 - the name of the trait, not a password
    """Its value is never shown."""
    PERSONAL = "personal"
    """A project's file may not set it: entering somebody's folder must not decide where one's keys go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentName:
    """A further environment variable that sets a value, such as one other tools share; a mark in `Annotated`."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One leaf of the settings tree."""

    key: str
    form: TypeForm
    """Its type, with the marks."""

    @property
    def marks(self) -> tuple[object, ...]:
        """The marks of its `Annotated`, also where that is one of several types."""
        return tuple(_marks_of(self.form))

    @property
    def is_secret(self) -> bool:
        """Whether its value must not be shown."""
        return Trait.SECRET in self.marks

    @property
    def is_personal(self) -> bool:
        """Whether a project's file must not set it."""
        return Trait.PERSONAL in self.marks or self.is_secret

    @property
    def environment_names(self) -> tuple[str, ...]:
        """The variables that set it, first the one derived from the key: `server.port` is `QWENSTACK_SERVER_PORT`."""
        derived = ENVIRONMENT_PREFIX + self.key.replace(".", "_").upper()
        return (derived, *(mark.name for mark in self.marks if isinstance(mark, EnvironmentName)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value as somebody gave it, not yet checked."""

    value: object
    origin: str
    is_text: bool = False
    """The place it comes from knows only text, so that `8` arrives as `"8"`."""


Layer: TypeAlias = Mapping[str, Given]
"""What one place says, by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(Generic[SettingsT]):
    """Checked settings, and where each value came from."""

    value: SettingsT
    origins: Mapping[str, str]
    """For every key: a file, an environment variable, the command line, or `default`."""


def load_config(cls: type[SettingsT], *layers: Layer) -> Resolved[SettingsT]:
    """Merge the layers over the defaults of `cls`, later ones winning, and check every value.

    Raises:
        ConfigError: a key does not exist, or a value is of the wrong type or outside its limits.
    """
    settings = settings_of(cls)
    values: dict[str, object] = {}
    origins = dict.fromkeys(settings, DEFAULT)
    for layer in layers:
        for key, given in layer.items():
            values[key] = _checked(settings, key, given)
            origins[key] = given.origin
    return Resolved(value=_build(cls, values, prefix=""), origins=MappingProxyType(origins))


@functools.cache
def settings_of(cls: type) -> Mapping[str, Setting]:
    """Return every leaf of a settings dataclass by its key, in the order of the fields.

    Raises:
        TypeError: two keys would share an environment variable; a mistake in the dataclass.
    """
    settings = {setting.key: setting for setting in _leaves(cls, prefix="")}
    names = [name for setting in settings.values() for name in setting.environment_names]
    shared = {name for name in names if names.count(name) > 1}
    if shared:
        raise TypeError(f"{cls.__name__} has several keys for the same environment variable: {sorted(shared)}")
    return MappingProxyType(settings)


def values_of(config: object) -> dict[str, object]:
    """Return the value of every key of a settings dataclass."""
    return {key: functools.reduce(getattr, key.split("."), config) for key in settings_of(type(config))}


def secrets_of(config: object) -> list[str]:
    """Return the texts in a settings dataclass that must not be shown."""
    settings, found = settings_of(type(config)), list[str]()
    for key, value in values_of(config).items():
        if settings[key].is_secret:
            found += [value] if isinstance(value, str) else cast("tuple[str, ...]", value or ())
    return found


def from_toml(path: Path) -> Layer:
    """Read a TOML file; one that does not exist says nothing.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or is larger than a configuration can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_TOML_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"The configuration file {str(path)!r} cannot be read: {error.strerror}.") from error
    if len(content) > _MAX_TOML_BYTES:
        raise ConfigError(f"The configuration file {str(path)!r} is larger than {_MAX_TOML_BYTES} bytes.")
    try:
        leaves = dict(_flatten(tomllib.loads(content.decode()), prefix=""))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The configuration file {str(path)!r} is not valid TOML: {error}.") from error
    return {key: Given(value=value, origin=str(path)) for key, value in leaves.items()}


def from_environment(cls: type, environ: Mapping[str, str], *, other_names: Collection[str] = ()) -> Layer:
    """Read the variables that set a key of `cls`; an empty one counts as not set.

    Args:
        cls: the settings dataclass.
        environ: the environment.
        other_names: variables with our prefix that are no settings, so that they are not taken for misspelt ones.

    Raises:
        ConfigError: a variable with our prefix looks like a misspelt key.
    """
    settings = settings_of(cls)
    known = {name for setting in settings.values() for name in setting.environment_names}
    for name in environ:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and name not in other_names:
            _refuse_misspelt(name, settings, known)
    layer: dict[str, Given] = {}
    for setting in settings.values():
        name = next((name for name in setting.environment_names if environ.get(name)), None)
        if name is not None:
            layer[setting.key] = Given(value=environ[name], origin=name, is_text=True)
    return layer


def from_assignments(assignments: Iterable[str]) -> Layer:
    """Read `key=value` texts, as `--set` takes them; the last one for a key wins.

    Raises:
        ConfigError: a text has no `=`.
    """
    layer: dict[str, Given] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment!r} sets nothing; write it as KEY=VALUE, such as server.port=8001.")
        layer[key.strip()] = Given(value=value, origin=COMMAND_LINE, is_text=True)
    return layer


def from_flags(values: Mapping[str, object]) -> Layer:
    """Take the values of command-line options by key; None means that the option was not used."""
    return {key: Given(value=value, origin=COMMAND_LINE) for key, value in values.items() if value is not None}


def refuse_personal(cls: type, layer: Layer) -> Layer:
    """Return the layer as it is, if it sets nothing that a project's file must not set.

    Raises:
        ConfigError: it does.
    """
    for key, given in layer.items():
        setting = settings_of(cls).get(key)
        if setting is not None and setting.is_personal:
            raise ConfigError(
                f"{given.origin!r} sets {key!r}, which a project's file may not decide. "
                f"Set it in your own configuration or as {setting.environment_names[0]}."
            )
    return layer


def _marks_of(form: TypeForm) -> Iterator[object]:
    if get_origin(form) is Annotated:
        yield from get_args(form)[1:]
    elif get_origin(form) in (Union, UnionType):
        for option in get_args(form):
            yield from _marks_of(option)


def _leaves(cls: type, *, prefix: str) -> Iterator[Setting]:
    forms = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        form = cast("TypeForm", forms[field.name])
        if is_dataclass(form):
            yield from _leaves(cast("type", form), prefix=f"{prefix}{field.name}.")
        else:
            yield Setting(key=prefix + field.name, form=form)


def _build(cls: type[SettingsT], values: Mapping[str, object], *, prefix: str) -> SettingsT:
    forms = get_type_hints(cls)
    arguments: dict[str, object] = {}
    for field in fields(cast("type", cls)):
        key, form = prefix + field.name, forms[field.name]
        if is_dataclass(form):
            arguments[field.name] = _build(cast("type[object]", form), values, prefix=f"{key}.")
        elif key in values:
            arguments[field.name] = values[key]
    return cls(**arguments)


def _flatten(table: Mapping[str, object], *, prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(cast("dict[str, object]", value), prefix=f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _checked(settings: Mapping[str, Setting], key: str, given: Given) -> object:
    setting = settings.get(key)
    if setting is None:
        raise ConfigError(f"There is no setting {key!r} (from {given.origin}). {_advice(key, settings)}")
    try:
        return convert(given.value, setting.form, is_text=given.is_text)
    except Mismatch:
        shown = "***" if setting.is_secret else repr(given.value)
        raise ConfigError(f"{key} is {shown} (from {given.origin}); it must be {describe(setting.form)}.") from None


def _advice(key: str, settings: Mapping[str, Setting]) -> str:
    inside = [name for name in settings if name.startswith(f"{key}.")]
    if inside:
        return f"It is a section; its settings are {', '.join(inside)}."
    nearest = _nearest_key(key, settings)
    hint = "" if nearest is None else f"Did you mean {nearest!r}? "
    return f"{hint}'qwenstack config show' lists all."


def _nearest_key(key: str, settings: Mapping[str, Setting]) -> str | None:
    """Compare the last names, first within the section that was written: in `engine.nm`, `engine.` says nothing."""
    section, _, leaf = key.rpartition(".")
    for candidates in ([name for name in settings if name.rpartition(".")[0] == section], list(settings)):
        leaves = {name.rpartition(".")[2]: name for name in candidates}
        nearest = difflib.get_close_matches(leaf, leaves, n=1)
        if nearest:
            return leaves[nearest[0]]
    return None


def _refuse_misspelt(name: str, settings: Mapping[str, Setting], known: Collection[str]) -> None:
    sections = {f"{ENVIRONMENT_PREFIX}{key.partition('.')[0].upper()}_" for key in settings if "." in key}
    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_TYPO_SIMILARITY)
    if nearest or name.startswith(tuple(sections)):
        meant = nearest or difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
        raise ConfigError(
            f"The environment variable {name} sets nothing. Did you mean {meant[0]}? "
            "'qwenstack config show' lists all settings."
        )
