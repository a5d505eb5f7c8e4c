"""README and docs/: links lead somewhere, commands and options exist, examples run, words are the field's."""

import ast
import re
import shlex
import sys
from pathlib import Path

import house
import pytest
from test_options import commands, options_of

from cnnjax.cli import main
from cnnjax.commands.network import Architecture
from cnnjax.models import BACKBONES
from cnnjax.models.registry import entries

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTENDING = ROOT / "docs" / "extending.md"
# What the glossary has other words for. In the package these are looked for in names alone.
REPLACED = (
    "trained numbers", "head-first", "on_bad", "on-bad", "find-rate", "so_far", "stored, and never again",
    "ours to its", "no number",
)  # fmt: skip
OLD_NAMES = {
    "Keeping", "Running", "Standing", "Bench", "Rows", "Own", "Half", "Kept", "so_far", "on_bad", "undivided",
    "deepest",
}  # fmt: skip

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text):
    """Fenced and indented blocks: language ("" where it has none) and text."""
    found, prose, rest = [], [], text.splitlines()
    while rest:
        line = rest.pop(0)
        if line.startswith("```"):
            end = next(k for k, other in enumerate(rest) if other.startswith("```"))
            found.append((line[3:].strip(), "\n".join(rest[:end])))
            rest = rest[end + 1 :]
        elif line.startswith("    ") and (not prose or not prose[-1].strip()):
            inside = [line]
            while rest and (rest[0].startswith("    ") or not rest[0].strip()):
                inside.append(rest.pop(0))
            found.append(("", "\n".join(one[4:] for one in inside)))
            prose.append("")
        else:
            prose.append(line)
    return found


def command_lines(text):
    """The words after `cnnjax` of every command in the blocks of a page."""
    for language, block in blocks(text):
        if language == "python":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?<![\w/.-])cnnjax (?=[a-z])", line):
                words = shlex.split(line[found.end() :].rstrip('"'), comments=True)
                yield words[: words.index("&&")] if "&&" in words else words


def known_options():
    """The options of each command, "show cam" among them."""
    networks = {name for entry in entries().values() for name in entry.options} | {"backbone_options"}
    found = {}
    for name, kind in commands():
        names = {option for option, *_ in options_of(kind)}
        own = networks if issubclass(kind, Architecture) or "backbone_options" in names else set()
        flags = {f"--{option.replace('_', '-')}" for option in names | own}
        found[name] = flags | {f"--no-{flag[2:]}" for flag in flags} | {"--help", "--verbose"}
    return found


def faults(words, known):
    """What a command line names that there is not."""
    name = " ".join(words[:2]) if words[0] == "show" else words[0]
    if name not in known:
        return [name] if name != "COMMAND" else []
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known[name]]


@pytest.fixture(scope="module")
def known():
    return known_options()


@pages
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_files_that_pages_name_exist():
    file = r"(?:docs|experiments|scripts|tests|cnnjax)/[\w/]+\.\w+"
    named = {name for page in PAGES for name in re.findall(file, page.read_text())}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_readme_is_read_at_a_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_every_page_is_linked_from_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


def test_readme_lists_every_family():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])) == sorted(BACKBONES)
    for row in rows:
        _, names, options, size, *_ = row.split("|")
        for name in re.findall(r"`(\w+)`", names):
            own = {f"--{option.replace('_', '-')}" for option in entries()[name].options}
            told = set(re.findall(r"`(--[\w-]+)`", options))
            assert told == own or ("and more" in options and told < own), name
            assert size.split()[0].rstrip(",") == str(entries()[name].image_size[0]), name


@pages
def test_commands_and_options_exist(page, known):
    found = {" ".join(words): faults(words, known) for words in command_lines(page.read_text())}
    assert {line: wrong for line, wrong in found.items() if wrong} == {}


@pages
def test_options_in_the_text_exist(page, known):
    every = set().union(*known.values()) | {"--version", "--requeue", "--extra"}
    spans = re.findall(r"`(?:cnnjax )?(--[a-z][^`]*)`", page.read_text())
    named = {word.partition("=")[0] for span in spans for word in span.split() if word.startswith("--")}
    assert named - every == set()


def test_commands_are_found():
    text = "Text:\n\n    pip install uv && cnnjax fit --data x \\\n        --wrong 1  # --not\n\n```\ncnnjax shw\n```\n"
    assert [faults(words, known_options()) for words in command_lines(text)] == [["--wrong"], ["shw"]]
    assert any(words[0] == "ablate" for words in command_lines((ROOT / "README.md").read_text()))


@pages
def test_words_are_the_field_s(page):
    text = page.read_text()
    assert [word for word in REPLACED if word in text] == []
    assert re.findall(r"(?i)\bpictures?\b", text) == []
    assert re.findall(r"(?i)(?:--|\b)(?:keeping|standing)=", text) == []


def test_names_are_the_field_s():
    """Of classes, functions, arguments and attributes, in the package; and its texts speak of images."""
    found = {}
    for module, (path, tree) in house.modules().items():
        names = {
            str(getattr(node, key)) for node in ast.walk(tree) for key in ("name", "arg", "attr") if hasattr(node, key)
        }
        if wrong := names & OLD_NAMES:
            found[module] = wrong
        if "picture" in path.read_text().lower() and module != "cnnjax.cli":  # which refuses the old option
            found[module] = {"picture"}
    assert found == {}


@pages
def test_python_examples_import_what_there_is(page):
    """Every block is Python, and what it takes of the package exists; data and weights are the reader's."""
    import importlib

    import cnnjax

    for language, block in blocks(page.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cnnjax"):
                assert all(hasattr(importlib.import_module(node.module), name.name) for name in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cnnjax":
                assert hasattr(cnnjax, node.attr), node.attr


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_fast")
def test_examples_of_code_of_your_own_run(tmp_path, monkeypatch, capsys):
    """The blocks that begin with `# own.py` are that file; the commands run on it; then the other blocks in order."""
    text = EXTENDING.read_text()
    python = [block for language, block in blocks(text) if language == "python"]
    own = [block for block in python if block.startswith("# own.py")]
    (tmp_path / "own.py").write_text("\n\n\n".join(own) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    for words in command_lines(text):
        main(words)
    assert "dice" in capsys.readouterr().out
    scope = {"__name__": "example"}
    try:
        for block in python:
            if block not in own:
                exec(compile(block, str(EXTENDING), "exec"), scope)
    finally:
        sys.modules.pop("own", None)
    assert scope["log"] and {"body", "kind", "age"} <= set(scope["seen"])
    assert [feature.shape for feature in scope["pair"] and scope["trainer"].staged.features] == [(32, 32, 3)]
