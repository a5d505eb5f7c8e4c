"""What `test_house.py` counts in the package: imports, circles, private names, lengths and signatures, by reading it.

`python tests/house.py` prints the counts.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cnnjax"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "array_record", "tensorstore",
             "tyro")  # fmt: skip
ALIASES = {"jnp": "jax.numpy", "lax": "jax.lax", "nnx": "flax.nnx", "ocp": "orbax.checkpoint",
           "tfds": "tensorflow_datasets", "core": "jax.extend.core"}  # fmt: skip
# What a library exports and calls unstable or its own: `jax.extend` may change with any release.
UNSTABLE = ("jax.core", "jax.extend", "jax.interpreters", "tensorflow_datasets.core", "tensorflow_datasets.proto")
# Names that are theirs alone although no underscore says so, found on values and in texts.
INTERNAL = ("source_info", "name_stack", "debug_info", "func_filename", "_pytree__", ".orbax-checkpoint-tmp",
            "_CHECKPOINT_METADATA", "manifest.ocdbt", "__onednn$")  # fmt: skip
# Underscored, and documented as public.
PUBLIC = {"_replace", "_fields", "_asdict", "_make", "_field_defaults", "_exit"}


class Import(NamedTuple):
    """An import of a module of the package: by whom, of what, and how ("module", "typing", "function")."""

    by: str
    of: str
    how: str
    line: int


class Private(NamedTuple):
    """The use of a name that a library does not promise to keep."""

    module: str
    name: str
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> Mapping[str, tuple[Path, ast.Module]]:
    """Every module of the package by name."""
    found = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: (path, ast.parse(path.read_text())) for name, path in found.items()}


def imports() -> Iterator[Import]:
    """Every import of one module of the package by another."""
    known = modules()
    for name, (_, tree) in known.items():
        for node, how in _imports(tree, "module"):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{name}:{node.lineno}: a relative import"
                base = node.module or ""
                targets = [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
            for target in dict.fromkeys(targets):
                if target in known and target != name:
                    yield Import(name, target, how, node.lineno)


def _imports(node: ast.AST, how: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, how
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, "function")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(child, "typing")
        else:
            yield from _imports(child, how)


def room(module: str) -> str:
    """The first level below the package; the root's own modules are rooms of one file."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The strongly connected parts of more than one node (Tarjan), each sorted."""
    graph: dict[str, set[str]] = {}
    for a, b in edges:
        graph.setdefault(a, set()).add(b)
        graph.setdefault(b, set())
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = [stack.pop()]
            while part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def module_circles(*how: str) -> list[list[str]]:
    """Circles of modules that import each other in the ways named. The package's own face (`cnnjax`) is left out."""
    edges = ((i.by, i.of) for i in imports() if i.how in how and "cnnjax" not in (i.by, i.of))
    return circles(edges)


def room_circles(*how: str) -> list[list[str]]:
    """The same of rooms."""
    edges = {(room(i.by), room(i.of)) for i in imports() if i.how in how}
    return circles((a, b) for a, b in edges if a != b and "" not in (a, b))


def foreign_private() -> Iterator[Private]:
    """Private names of the libraries that are used, and modules that these call unstable."""
    own = _own_names()
    for module, (_, tree) in modules().items():
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if _foreign(alias.name):
                        yield Private(module, alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    if _foreign(full):
                        yield Private(module, full, node.lineno)
            elif isinstance(node, ast.Attribute):
                full = _dotted(node)
                if full.split(".")[0] in LIBRARIES:
                    if id(node) not in inner and _foreign(full):
                        yield Private(module, full, node.lineno)
                elif (_is_private(node.attr) and node.attr not in own) or node.attr in INTERNAL:
                    yield Private(module, node.attr, node.lineno)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in INTERNAL:
                yield Private(module, node.value, node.lineno)


@cache
def _own_names() -> frozenset[str]:
    """Private names that the package's own modules define: functions, classes, variables and attributes."""
    found = set()
    for _, tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Constant) and _is_private(node.value):  # set by setattr or in a __dict__
                found.add(str(node.value))
    return frozenset(found)


def _is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def _foreign(full: str) -> bool:
    if full.startswith("tensorflow_datasets.core."):  # what it lists is in its documentation, its modules are not
        return full.split(".")[2] not in tfds.core.__all__
    parts = full.split(".")
    unstable = any(full == name or full.startswith(f"{name}.") for name in UNSTABLE)
    return parts[0] in LIBRARIES and (unstable or any(_is_private(part) for part in parts[1:]))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ALIASES.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def reached_into() -> Iterator[Private]:
    """Private names of one of our modules that another one imports or takes from an object."""
    for module, (_, tree) in modules().items():
        mine = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        mine |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        mine |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cnnjax"):
                yield from (Private(module, f"{node.module}.{a.name}", node.lineno) for a in node.names
                            if _is_private(a.name))  # fmt: skip
            elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in mine:
                base = _dotted(node).split(".")[0]
                if base not in ("self", "cls", *LIBRARIES) and ast.unparse(node.value) != "super()":
                    yield Private(module, node.attr, node.lineno)


def long_files(most: int = 400) -> dict[str, int]:
    """Files of more lines than that."""
    lengths = {name: len(path.read_text().splitlines()) for name, (path, _) in modules().items()}
    return {name: n for name, n in lengths.items() if n > most}


def anys() -> dict[str, int]:
    """By room, how many arguments and results are annotated as `Any` itself or contain it."""
    found: dict[str, int] = {}
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                every = [
                    *node.args.posonlyargs,
                    *node.args.args,
                    *node.args.kwonlyargs,
                    node.args.vararg,
                    node.args.kwarg,
                ]
                hints = [a.annotation for a in every if a is not None]
                count = sum(1 for hint in hints if isinstance(hint, ast.Name) and hint.id == "Any")
                found[room(name)] = found.get(room(name), 0) + count
    return {name: n for name, n in sorted(found.items()) if n}


def loose() -> list[str]:
    """Modules that stand at the package's root."""
    return sorted(name.split(".")[1] for name, (path, _) in modules().items() if path.parent == PACKAGE and "." in name)


def main() -> None:
    loose = sorted(
        name.split(".")[1] for name, (path, _) in modules().items() if path.parent == PACKAGE and "." in name
    )
    print(f"{len(loose)} loose modules: {', '.join(loose)}")
    for how in (("module",), ("module", "typing"), ("module", "typing", "function")):
        print(f"circles of modules, {'+'.join(how)}: {len(module_circles(*how))} {module_circles(*how)}")
        print(f"circles of rooms, {'+'.join(how)}: {len(room_circles(*how))} {room_circles(*how)}")
    private = list(foreign_private())
    print(f"{len(private)} uses of libraries' private or unstable names")
    for module, name, line in private:
        print(f"  {module}:{line} {name}")
    own = list(reached_into())
    print(f"{len(own)} uses of a private name of another of our modules")
    for module, name, line in own:
        print(f"  {module}:{line} {name}")
    print(f"files over 400 lines: {long_files()}")
    print(f"{sum(anys().values())} arguments annotated Any: {anys()}")


if __name__ == "__main__":
    main()
