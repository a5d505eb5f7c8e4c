"""The commands' options: one name has one default and one meaning, and an old name says what it is called now."""

import dataclasses
import importlib
import typing

import pytest
from tyro._docstrings import get_field_docstring

from cnnjax.cli import COMMANDS, RENAMED, main, renamed

SEVERAL = {"freeze", "augment"}
"""`ablate` compares several values of these, and so defaults to several."""


def options_of(kind):
    """Name, default (None if it has to be given) and help of every option of a command's dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        if dataclasses.is_dataclass(inner):
            yield from options_of(inner)
            continue
        texts = [m.help for m in getattr(hint, "__metadata__", ()) if getattr(m, "help", None)]
        text = texts[0] if texts else get_field_docstring(kind, field.name, ())
        required = field.default is field.default_factory is dataclasses.MISSING
        made = field.default if field.default is not dataclasses.MISSING else None
        yield field.name, "required" if required else repr(made), " ".join((text or "").split())


def commands():
    for name, (module, options, *_) in COMMANDS.items():
        kind = getattr(importlib.import_module(module), options)
        for one in typing.get_args(kind) or (kind,):
            yield name if one is kind else f"{name} {one.__name__.lower()}", one


def test_an_option_has_one_default_and_one_help_text_in_all_commands():
    defaults, texts = {}, {}
    for command, kind in commands():
        for name, default, text in options_of(kind):
            assert text, f"{name} of {command} has no help"
            texts.setdefault(name, {}).setdefault(text, []).append(command)
            if default != "required" and not (name in SEVERAL and command == "ablate"):
                defaults.setdefault(name, {}).setdefault(default, []).append(command)
    assert {name: found for name, found in texts.items() if len(found) > 1} == {}
    assert {name: found for name, found in defaults.items() if len(found) > 1} == {}


def test_no_option_is_called_by_a_word_that_the_field_does_not_use():
    names = {name for _, kind in commands() for name, *_ in options_of(kind)}
    assert not {name for name in names if set(name.split("_")) & {"picture", "pictures", "bad", "rate", "rates"}} - {
        "learning_rate", "learning_rates", "learning_rate_groups", "find_learning_rate", "sample_rate",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fit --data x --on-bad skip", "`--on-bad` is now `--on-error`"),
        ("pack x --on_bad=skip", "`--on-bad` is now `--on-error`"),
        ("fit --data x --find-rate", "`--find-rate` is now `--find-learning-rate`"),
        ("fit --data x --rate-groups head 1", "`--rate-groups` is now `--learning-rate-groups`"),
        ("fit --data x --task regression --error mae", "`--error` is now `--loss`"),
        ("ablate --methods direct head-first", "`--methods head-first` is now `--methods lp-ft`"),
        ("predict x y --backbone vit.py:model", "`--backbone` is now `--code`"),
    ],
)
def test_old_names_are_refused_with_the_new_one(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2 and capsys.readouterr().err.strip() == f"cnnjax: {said}"


def test_a_value_that_looks_like_an_old_one_is_let_through():
    assert renamed("fit", ["--data", "head-first", "--out", "--"]) is None
    known = {f"--{name.replace('_', '-')}" for _, kind in commands() for name, *_ in options_of(kind)}
    for name, kind in commands():  # an option that a command has is not refused
        own = {f"--{option.replace('_', '-')}" for option, *_ in options_of(kind)}
        assert not own & set(RENAMED[""] | RENAMED.get(name, {})), name
    assert {now for names in RENAMED.values() for old, now in names.items() if now.startswith("--")} <= known


def test_a_network_cannot_have_an_option_that_a_command_with_networks_has():
    from cnnjax.commands.network import Architecture
    from cnnjax.models.registry import RESERVED, register

    with_networks = [kind for _, kind in commands() if issubclass(kind, Architecture)]
    every = {name for kind in with_networks for name, *_ in options_of(kind)}
    assert every <= RESERVED

    def deep(
        input_shape=(8, 8, 3), include_top=True, classes=10, classifier_activation=None, rngs=None, epochs: int = 1
    ):
        """A network.

        Args:
            epochs: How deep it is.
        """

    with pytest.raises(TypeError, match="the option 'epochs' of deep lacks a name that no command has"):
        register()(deep)
