"""The order that the package's modules are kept in."""

import re
import tomllib

import house


def test_no_module_imports_in_a_circle():
    """Nor hides a circle in an import inside a function, or one for types alone."""
    assert house.module_circles("module", "typing", "function") == []


def test_no_room_imports_in_a_circle():
    assert house.room_circles("module", "typing", "function") == []


def test_circles_are_found():
    assert house.circles([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e")]) == [["a", "b", "c"]]
    assert house.circles([("a", "b"), ("b", "c"), ("a", "c")]) == []


def test_only_the_nouns_stand_at_the_root():
    assert house.loose() == ["__main__", "cli", "freeze", "functional", "hooks"]


def test_digests_writers_and_what_was_meant_stand_once():
    """`cnnjax/sizing` imports nothing of ours, so that it has its own."""
    named = {name: path.read_text() for name, (path, _) in house.modules().items() if house.room(name) != "sizing"}
    assert [name for name, text in named.items() if "hashlib" in text] == ["cnnjax.files.digests"]
    assert [name for name, text in named.items() if "difflib" in text] == ["cnnjax.runtime.nearest"]


def test_private_interfaces_are_those_that_are_listed():
    lines = (house.ROOT / "docs" / "private-interfaces.md").read_text().splitlines()
    cells = [[cell.strip(" `") for cell in line.split(" | ")] for line in lines if line.startswith("| `")]
    listed = [(cells[0].lstrip("| `"), cells[1]) for cells in cells]
    found = {(use.name, use.module) for use in house.foreign_private()}
    assert set(listed) == found
    assert len(listed) == len(found)


def test_packages_whose_private_interfaces_are_used_are_capped():
    project = tomllib.loads((house.ROOT / "pyproject.toml").read_text())["project"]
    needs = [re.match(r"([\w.-]+)(\S*)", text) for text in project["dependencies"]]
    caps = {need[1]: "<" in need[2] for need in needs if need}
    used = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "array-record", "tyro")
    assert [name for name in used if not caps[name]] == []


def test_files_can_be_read_at_a_sitting():
    assert house.long_files(400) == {}
