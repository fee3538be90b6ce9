"""Instantiate the objects that `_target_` names in YAML: a backbone, a task, a protocol, a launcher."""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Any, ForwardRef, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.errors import InstantiationException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from arch_bench.config.errors import ConfigError, first_complaint
from arch_bench.config.lineage import Unknown, is_derived
from arch_bench.config.schema import Cell, Node


def build(cell: Cell, group: Literal["backbone", "task"], *, context_len: int | None = None, **kwargs: Any) -> Any:
    """Build the object that a group's `_target_` names; `kwargs` are arguments that come from the harness.

    A backbone that takes `n_source` gets the task's, a function of the sequence length. With `context_len` it is
    constant: that of an example of this length, however long the sequence grows.

    Raises ConfigError when an argument has a wrong type, the constructor refuses it with ValueError, or the task has no
    source for a backbone that needs one.
    """
    node = getattr(cell, group)
    if takes(group, node, "n_source"):
        kwargs["n_source"] = _n_source(cell, context_len)
    return made(group, node, getattr(cell, f"{group}_name"), _try_out if group == "task" else None, **kwargs)


def made(group: str, node: Node, name: str, try_out: Callable[[Any], None] | None = None, **kwargs: Any) -> Any:
    """Build the object of a group's node and pass it to `try_out`. Raises ConfigError as `build` does."""
    _check(group, node, Expected(BASES[group]), kwargs)
    try:
        built = _instantiate(node, **kwargs)
        if try_out is not None:
            try_out(built)
    except ValueError as error:
        said = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        told = _placed(said, group, node)
        if not name and told == said:
            told = f"{group}.{told}"
        raise ConfigError(f"{group}={name}: {told}" if name else told) from None
    return built


def takes(group: Literal["backbone", "task"], node: Node, argument: str) -> bool:
    """Check if the constructor of a group's node has the argument. Raises ConfigError."""
    return argument in _annotations(_class(group, node, Expected(BASES[group])))


BASES = {
    "backbone": "arch_bench.backbone.Backbone",
    "task": "tasks.base.Task",
    "protocol": "arch_bench.sweep.protocols.Protocol",
    "launcher": "arch_bench.launchers.base.Launcher",
}
"""Base class of each group. The annotations of a class's constructor define the nodes that it may contain."""
_GIVEN = ("d_model",)
"""Arguments that a backbone passes to its mixers, which are `_partial_` nodes."""


def _placed(message: str, group: str, node: Node) -> str:
    """Complete the key of a message such as `n_heads=3 must ...`.

    The message is unchanged unless exactly one node has that setting and no dial of the cell has the name.
    """
    key, _, rest = message.partition("=")
    owners = [
        path
        for path, each in _targets(node, group).items()
        if key in each and rest.startswith(str(each[key]).removesuffix(".0"))
    ]
    return f"{owners[0]}.{message}" if len(owners) == 1 and key not in Cell.model_fields else message


def _n_source(cell: Cell, context_len: int | None) -> Callable[[int], int]:
    task = build(cell, "task")
    if not task.n_source(task.seq_len):
        raise ConfigError(
            f"backbone={cell.backbone_name}: needs a source, and task={cell.task_name} gives nothing whole before its "
            "first scored position"
        )
    if context_len is not None:
        return lambda _: task.n_source(context_len)
    n_source: Callable[[int], int] = task.n_source
    return n_source


def _try_out(task: Any) -> None:
    """Draw one example of each split, so that a missing or too short corpus is reported before any training."""
    import torch

    for split in ("train", "validation", "test"):
        task.for_split(split).sample(1, torch.Generator().manual_seed(0), torch.device("cpu"))


def _instantiate(node: Node, **kwargs: Any) -> Any:
    """Call Hydra's instantiate and raise the constructor's own exception."""
    try:
        return hydra.utils.instantiate(node, **kwargs, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error from None


def _targets(node: Node, path: str) -> dict[str, Node]:
    """Collect the node and its inner nodes that name a `_target_`, by path."""
    found = {path: node} if "_target_" in node else {}
    for key, value in node.items():
        if isinstance(value, dict):
            found |= _targets(value, f"{path}.{key}")
    return found


class Expected(NamedTuple):
    """Requirements for a node."""

    base: str
    """Dotted name of the required base class."""
    is_partial: bool = False
    """True if the node is called later, with arguments that come from the harness."""
    methods: frozenset[str] = frozenset()
    """Methods of a typing protocol, which a class may satisfy without deriving from it.

    Empty for a protocol with a single method, which would match too many classes.
    """


def _class(path: str, node: Node, expected: Expected) -> type:
    """Return the class of a node, importing (and so running) its module only if the source shows that it fits.

    Raises ConfigError.
    """
    name = node.get("_target_")
    if not isinstance(name, str):
        raise ConfigError(f"{path}._target_={name}: needs the name of a class")
    try:
        if not is_derived(name, expected.base, expected.methods):
            raise ConfigError(f"{path}._target_={name}: needs a class derived from {expected.base}")
        return hydra.utils.get_class(name)
    except Unknown as error:
        raise ConfigError(f"{path}._target_={name}: {error}") from None
    except (ImportError, ValueError, InstantiationException, SystemExit) as error:  # a module may do so when it runs
        raise (
            error
            if isinstance(error, ConfigError)
            else ConfigError(f"{path}._target_={name}: {' '.join(str(error).split())[:_LONGEST]}")
        ) from None


def _check(path: str, node: Node, expected: Expected, given: Iterable[str]) -> None:
    """Check a node and its inner nodes against their constructors. given: arguments that the caller will add.

    Raises ConfigError.
    """
    target = _class(path, node, expected)
    for key in node:
        if str(key).startswith("_") and key not in ("_target_", "_partial_"):
            raise ConfigError(f"{path}.{key}: arguments are given by their names; leave it out")
    if node.get("_partial_", False) is not expected.is_partial:
        needs = "needs true, for it is called later" if expected.is_partial else "is made at once; leave it out"
        raise ConfigError(f"{path}._partial_={node.get('_partial_', False)}: {node['_target_']} {needs}")
    annotations = _annotations(target)
    for key in annotations.keys() - node.keys() - set(given):
        parameter = inspect.signature(target).parameters.get(key)
        if parameter is None or parameter.default is parameter.empty:
            raise ConfigError(f"{path}.{key} is missing: {node['_target_']} needs it")
    for key, value in node.items():
        if key in ("_target_", "_partial_"):
            continue
        if key not in annotations:
            raise ConfigError(f"{path}.{key}={value}: {node['_target_']} takes no {key}")
        _check_value(f"{path}.{key}", value, annotations[key])


def _check_value(path: str, value: Any, annotation: Any) -> None:
    """Check an argument: a node, a dict or list of nodes, or a plain value. Raises ConfigError."""
    if not _has_target(value):
        try:
            TypeAdapter(annotation, config=_ANY_CLASS).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(first_complaint(error, path)) from None
    elif isinstance(value, dict) and "_target_" in value:
        found = _expected(annotation)
        if found is None:
            raise ConfigError(f"{path}._target_={value['_target_']}: {path} is a plain value, and names no class")
        _check(path, value, found, _GIVEN if found.is_partial else ())
    else:
        inner = [get_args(each) for each in _members(annotation) if get_origin(each) is type(value)]
        if not inner:
            raise ConfigError(f"{path}: is a plain value, and names no class; leave _target_ out")
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            _check_value(f"{path}.{key}", each, inner[0][-1])


_LONGEST = 1_000
"""Number of characters kept of what a constructor, or a module that cannot be imported, says."""
_ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _expected(annotation: Any) -> Expected | None:
    """Return the requirements for a node as this argument; None if the argument takes only plain values."""
    for each in _members(annotation):
        is_partial = get_origin(each) is abc.Callable
        cls = get_args(each)[-1] if is_partial else each
        if isinstance(cls, type) and get_origin(cls) is None and cls.__module__ != "builtins":
            own = {name for name, made in vars(cls).items() if inspect.isfunction(made) and not name.startswith("_")}
            is_protocol = getattr(cls, "_is_protocol", False) and len(own) > 1
            return Expected(f"{cls.__module__}.{cls.__qualname__}", is_partial, frozenset(own if is_protocol else ()))
    return None


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    is_union = get_origin(annotation) in (Union, UnionType)
    return [each for one in get_args(annotation) for each in _members(one)] if is_union else [annotation]


def _annotations(target: type) -> dict[str, Any]:
    """Map a constructor's arguments to their annotations; `**dials: Unpack[SomeTypedDict]` adds the keys of that."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(target, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            for dials in get_args(parameter.annotation):
                found |= get_type_hints(dials)
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            is_late = isinstance(parameter.annotation, ForwardRef)  # as in a named tuple
            found[name] = get_type_hints(target)[name] if is_late else parameter.annotation
    return found
