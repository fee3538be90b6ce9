"""What YAML's `_target_`s name, as objects: a backbone, a task, a protocol, a launcher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args, get_type_hints

import hydra
from hydra.errors import InstantiationException
from pydantic import TypeAdapter, ValidationError

from arch_bench.config import Cell, ConfigError, Node, first_complaint


def build(cell: Cell, group: Literal["backbone", "task"], *, context_len: int | None = None, **kwargs: Any) -> Any:
    """The object that a group's `_target_` names, with `kwargs` for what only the harness knows.

    A backbone that takes `n_source` gets that of the cell's task, a function of the sequence length. With `context_len`
    it is that of an example so long, however far the sequence goes on.

    Raises ConfigError when an argument has a wrong type, the constructor refuses it with ValueError, or the task has no
    source for a backbone that needs one.
    """
    node = getattr(cell, group)
    if "n_source" in _annotations(_class(group, node)):
        kwargs["n_source"] = _n_source(cell, context_len)
    return made(group, node, getattr(cell, f"{group}_name"), _try_out if group == "task" else None, **kwargs)


def made(group: str, node: Node, name: str, try_out: Callable[[Any], None] | None = None, **kwargs: Any) -> Any:
    """The object of a group's node, tried out. Raises ConfigError, as `build` does."""
    for path, each in {group: node, **_targets(node, group)}.items():
        _check_types(path, each, kwargs if each is node else _GIVEN if "_partial_" in each else ())
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


def allowed_targets() -> AbstractContextManager[object]:
    """Within it, YAML may name what this repository defines; Hydra 1.4 and later want that said."""
    allow = getattr(hydra.utils, "execution_whitelist", None)
    return allow(["arch_bench.*", "tasks.*"]) if allow else nullcontext()


def _instantiate(node: Node, **kwargs: Any) -> Any:
    """Hydra's instantiate, raising what the constructor raised."""
    with allowed_targets():
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


def _class(path: str, node: Node) -> type:
    name = node.get("_target_")
    if not isinstance(name, str):
        raise ConfigError(f"{path}._target_={name}: needs the name of a class")
    try:
        return hydra.utils.get_class(name)
    except (ImportError, ValueError, InstantiationException) as error:
        raise ConfigError(f"{path}._target_={name}: {str(error).splitlines()[0]}") from None


def _check_types(path: str, node: Node, given: Iterable[str]) -> None:
    """Check a node's plain values against the annotations of the constructor it names.

    given: arguments that it gets besides.
    """
    target = _class(path, node)
    annotations = _annotations(target)
    for key in annotations.keys() - node.keys() - set(given):
        parameter = inspect.signature(target).parameters.get(key)
        if parameter is None or parameter.default is parameter.empty:
            raise ConfigError(f"{path}.{key} is missing: {node['_target_']} needs it")
    for key, value in node.items():
        if key.startswith("_") or isinstance(value, dict):
            continue
        if key not in annotations:
            raise ConfigError(f"{path}.{key}={value}: {node['_target_']} takes no {key}")
        try:
            TypeAdapter(annotations[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(first_complaint(error, f"{path}.{key}")) from None


def _annotations(target: type) -> dict[str, Any]:
    """What a constructor takes, by name; `**dials: Unpack[SomeTypedDict]` counts as the keys of that."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(target, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            (dials,) = get_args(parameter.annotation)
            found |= get_type_hints(dials)
        else:
            found[name] = parameter.annotation
    return found
