"""What YAML's `_target_`s name, as objects: a backbone, a task, a protocol, a launcher."""

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
    """The object that a group's `_target_` names, with `kwargs` for what only the harness knows.

    A backbone that takes `n_source` gets that of the cell's task, a function of the sequence length. With `context_len`
    it is that of an example so long, however far the sequence goes on.

    Raises ConfigError when an argument has a wrong type, the constructor refuses it with ValueError, or the task has no
    source for a backbone that needs one.
    """
    node = getattr(cell, group)
    if takes(group, node, "n_source"):
        kwargs["n_source"] = _n_source(cell, context_len)
    return made(group, node, getattr(cell, f"{group}_name"), _try_out if group == "task" else None, **kwargs)


def made(group: str, node: Node, name: str, try_out: Callable[[Any], None] | None = None, **kwargs: Any) -> Any:
    """The object of a group's node, tried out. Raises ConfigError, as `build` does."""
    _check(group, node, Expected(BASES[group]), kwargs)
    try:
        built = _instantiate(node, **kwargs)
        if try_out is not None:
            try_out(built)
    except ValueError as error:
        told = _placed(str(error), group, node)
        if not name and told == str(error):
            told = f"{group}.{told}"
        raise ConfigError(f"{group}={name}: {told}" if name else told) from None
    return built


def takes(group: Literal["backbone", "task"], node: Node, argument: str) -> bool:
    """Whether the constructor of a group's node has such an argument. Raises ConfigError."""
    return argument in _annotations(_class(group, node, Expected(BASES[group])))


BASES = {
    "backbone": "arch_bench.backbone.Backbone",
    "task": "tasks.base.Task",
    "protocol": "arch_bench.sweep.protocols.Protocol",
    "launcher": "arch_bench.launchers.base.Launcher",
}
"""What the class of each group is derived from. The annotations of its constructor say what the nodes in it may be."""
_GIVEN = ("d_model",)
"""What a backbone calls its mixers with: nodes that are `_partial_`."""


def _placed(message: str, group: str, node: Node) -> str:
    """`n_heads=3 must ...` with the whole key, where one node alone has that, and no dial of the cell is called so."""
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
    """Draw one example of each split: a corpus that is missing or too short shows before anything is trained."""
    import torch

    for split in ("train", "validation", "test"):
        task.for_split(split).sample(1, torch.Generator().manual_seed(0), torch.device("cpu"))


def _instantiate(node: Node, **kwargs: Any) -> Any:
    """Hydra's instantiate, raising what the constructor raised."""
    try:
        return hydra.utils.instantiate(node, **kwargs, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ or error from None


def _targets(node: Node, path: str) -> dict[str, Node]:
    """A node and those within it that name a `_target_`, by path."""
    found = {path: node} if "_target_" in node else {}
    for key, value in node.items():
        if isinstance(value, dict):
            found |= _targets(value, f"{path}.{key}")
    return found


class Expected(NamedTuple):
    """What a node has to be."""

    base: str
    """The class that its own is derived from, by its dotted name."""
    is_partial: bool = False
    """It is called later, with what only the harness knows."""
    methods: frozenset[str] = frozenset()
    """Of a protocol, which a class may keep without being derived from it; one method alone says too little."""


def _class(path: str, node: Node, expected: Expected) -> type:
    """The class of a node. Its module is imported, and so run, once its source says that the class fits."""
    name = node.get("_target_")
    if not isinstance(name, str):
        raise ConfigError(f"{path}._target_={name}: needs the name of a class")
    try:
        if not is_derived(name, expected.base, expected.methods):
            raise ConfigError(f"{path}._target_={name}: needs a class derived from {expected.base}")
        return hydra.utils.get_class(name)
    except Unknown as error:
        raise ConfigError(f"{path}._target_={name}: {error}") from None
    except (ImportError, ValueError, InstantiationException) as error:
        raise (
            error
            if isinstance(error, ConfigError)
            else ConfigError(f"{path}._target_={name}: {str(error).splitlines()[0]}")
        ) from None


def _check(path: str, node: Node, expected: Expected, given: Iterable[str]) -> None:
    """Check a node against the constructor it names, and the nodes in it. given: arguments that it gets besides."""
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
    """Check an argument: a node, nodes by name or in a list, or a plain value."""
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


_ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _expected(annotation: Any) -> Expected | None:
    """What a node has to be for an argument; None where that takes plain values only."""
    for each in _members(annotation):
        is_partial = get_origin(each) is abc.Callable
        cls = get_args(each)[-1] if is_partial else each
        if isinstance(cls, type) and get_origin(cls) is None and cls.__module__ != "builtins":
            own = {name for name, made in vars(cls).items() if inspect.isfunction(made) and not name.startswith("_")}
            is_protocol = getattr(cls, "_is_protocol", False) and len(own) > 1
            return Expected(f"{cls.__module__}.{cls.__qualname__}", is_partial, frozenset(own if is_protocol else ()))
    return None


def _members(annotation: Any) -> list[Any]:
    """Of a union, what it is made of."""
    is_union = get_origin(annotation) in (Union, UnionType)
    return [each for one in get_args(annotation) for each in _members(one)] if is_union else [annotation]


def _annotations(target: type) -> dict[str, Any]:
    """What a constructor takes, by name; `**dials: Unpack[SomeTypedDict]` counts as the keys of that."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(target, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            for dials in get_args(parameter.annotation):
                found |= get_type_hints(dials)
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            is_late = isinstance(parameter.annotation, ForwardRef)  # of a named tuple
            found[name] = get_type_hints(target)[name] if is_late else parameter.annotation
    return found
