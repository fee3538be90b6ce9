"""Find the base classes of a class from its module's source, because an import would run the module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path


class Unknown(LookupError):
    """Raised when a module, or a class in it, does not exist; the message names it."""


def is_derived(name: str, base: str, methods: Set[str] = frozenset()) -> bool:
    """Check if the class of a dotted name is `base`, derives from it, or defines all of a non-empty `methods`.

    Raises Unknown if the name leads to no class.
    """
    classes = list(_ancestry(name))
    if not classes:
        module, _, own = name.rpartition(".")
        raise Unknown(f"{module} has no class {own}")
    defined = {each.name for _, found in classes if found for each in found.body if isinstance(each, ast.FunctionDef)}
    return base in {each for each, _ in classes} or bool(methods and methods <= defined)


def _ancestry(name: str, met: Set[str] = frozenset()) -> Iterator[tuple[str, ast.ClassDef | None]]:
    """Yield the dotted names of a class and its ancestors, with definitions, or None where there is no source."""
    module, _, own = name.rpartition(".")
    if name in met or not module:
        return
    met = met | {name}
    found, elsewhere = _definition(module, own)
    if found is not None:
        yield name, found
    for each in elsewhere:
        if found is not None:
            yield each, None
        with suppress(Unknown):  # a base without source, or one of several `import *`
            yield from _ancestry(each, met)


def _definition(module: str, own: str) -> tuple[ast.ClassDef | None, list[str]]:
    """Return the class statement and the names of its bases, or None and the names that the module imports it from."""
    tree, package = _tree(module)
    names = {given: origin for node in _top(tree.body) for given, origin in _imported(node, package)}
    for node in _top(tree.body):
        if isinstance(node, ast.ClassDef) and node.name == own:
            return node, [_resolved(base, names, module) for base in node.bases]
    stars = [f"{origin}.{own}" for given, origin in names.items() if given.startswith("*")]
    return None, [names[own]] if own in names else stars


def _top(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the module-level statements, including those inside an `if` or a `try`."""
    for node in body:
        yield node
        for part in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
                yield from _top(getattr(node, part, []))


def _imported(node: ast.stmt, package: str) -> Iterator[tuple[str, str]]:
    """Yield each imported name with the dotted name of its origin."""
    if isinstance(node, ast.Import):
        for each in node.names:
            yield (each.asname, each.name) if each.asname else (each.name.split(".")[0],) * 2
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        origin = ".".join([*parts, *([node.module] if node.module else [])])
        for each in node.names:
            yield (f"*{origin}", origin) if each.name == "*" else (each.asname or each.name, f"{origin}.{each.name}")


def _resolved(base: ast.expr, names: dict[str, str], module: str) -> str:
    """Return the dotted name of a base written as `Task`, `base.Task` or `Stack[int]`."""
    while isinstance(base, ast.Subscript):
        base = base.value
    first, dot, rest = ast.unparse(base).partition(".")
    return names.get(first, f"{module}.{first}") + dot + rest


@cache
def _tree(module: str) -> tuple[ast.Module, str]:
    """Return the syntax tree of a module and its package. Raises Unknown for a module without source."""
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise Unknown(f"there is no module {module}" if spec is None else f"{module} is not written in Python")
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    try:
        return ast.parse(Path(spec.origin).read_bytes()), package
    except (OSError, SyntaxError, ValueError) as error:
        raise Unknown(f"{spec.origin} cannot be read ({' '.join(str(error).split())})") from None


def _spec(module: str) -> ModuleSpec | None:
    """Find a module without importing its packages; return None if it does not exist."""
    path, name, spec = None, "", None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        finders = (finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec"))
        try:
            spec = next((found for find in finders if (found := find(name, path)) is not None), None)
        except (ImportError, KeyError, ValueError):  # a namespace whose parent is not imported
            return None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return spec
