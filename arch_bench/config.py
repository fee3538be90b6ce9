"""The composed configuration as one typed, read-only record, and the way its `_target_`s become objects."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from arch_bench import usage

_HERE = Path(__file__).resolve().parent
CONF = next(path for path in (_HERE / "conf", _HERE.parent / "conf") if path.is_dir())
"""In a wheel the YAML lies inside the package, in a clone beside it."""
usage.register(CONF)
HYDRA: dict[str, Any] = {} if hasattr(hydra.utils, "execution_whitelist") else {"version_base": "1.3"}
"""Hydra 1.3 warns when it is not told its version, Hydra 1.4 when it is."""


class ConfigError(ValueError):
    """The user's mistake, in one line that names the key, the value and what is allowed."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Count = Annotated[int, Field(ge=1)]
Lengths = Annotated[list[Count], Field(min_length=1)]
Node = dict[str, Any]
"""A `_target_` and its arguments."""


class Optim(_Record):
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    betas: Annotated[list[float], Field(min_length=2, max_length=2)]
    schedule: Literal["cosine", "inverse_sqrt", "constant"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    clip_norm: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


class Trainer(_Record):
    max_steps: Count
    batch_size: Count
    val_every: Count
    n_val_batches: Count
    n_test_batches: Count
    stop_at: Annotated[float, Field(gt=0, le=1)] | None
    strategy: Literal["single", "ddp", "fsdp"]
    devices: Count


class Logger(_Record):
    kind: Literal["wandb", "none"]
    project: str | None
    entity: str | None


class Match(_Record):
    params: Count | None


class Speed(_Record):
    lengths: Lengths
    batching: Literal["constant_tokens", "single"]
    tokens_per_step: Count
    search_max_len: bool
    n_steps: Annotated[int, Field(ge=3)]
    max_seconds: Annotated[float, Field(gt=0)]


class Decode(_Record):
    lengths: Lengths
    batching: Literal["single", "largest"]
    n_tokens: Count


class Trial(_Record):
    """What makes a cell one trial of a search."""

    study: str
    """The search, by the name of its journal."""
    number: Annotated[int, Field(ge=0)]
    values: Node
    """What is tried, by dial."""
    prune_from_trial: Annotated[int, Field(ge=1)] | None
    """Trials that must have finished before this one may be given up; None: it never is."""
    prune_from_step: Annotated[int, Field(ge=0)]


class Cell(_Record):
    """A backbone on a task at one training length and one seed: every number that its rows depend on."""

    name: str
    backbone_name: str
    task_name: str
    seq_len: Count
    d_model: Count
    n_layers: Count
    seed: Annotated[int, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "tf32", "bf16"]
    kernel: str
    loss_kernel: Literal["auto", "full", "fla", "torch"]
    step: Literal["auto", "eager", "compiled", "graph"]
    phases: Annotated[list[Literal["quality", "scan", "speed", "decode", "kernels"]], Field(min_length=1)]
    eval_scales: Lengths
    results_dir: Annotated[str, Field(min_length=1)]
    isolate: bool
    rerun: bool
    time_limit_s: Annotated[float, Field(gt=0)]
    checkpoint_every_s: Annotated[float, Field(gt=0)] | None
    backbone: Node
    task: Node
    match: Match
    optim: Optim
    trainer: Trainer
    logger: Logger
    speed: Speed
    decode: Decode
    chosen: str = ""
    """What a protocol chose for it, and why; never set by a file."""
    trial: Trial | None = None
    """Of a search, by a protocol; never set by a file."""
    overrides: Annotated[list[str], Field(exclude=True)] = []
    """What was asked for to compose it: `recomposed` goes by them, and rows do not hold them."""


class Sweeping(_Record):
    """What concerns all cells of a command: which of them to run, and where."""

    protocol: Node
    launcher: Node
    dry_run: bool


def cell_of(cfg: DictConfig) -> Cell:
    """Resolve and check a composed config. Raises ConfigError for the first value that is not allowed."""
    values = {key: value for key, value in _values(cfg).items() if key not in Sweeping.model_fields}
    return _checked(Cell, values | {"overrides": _overrides()})


def recomposed(cell: Cell, changes: Mapping[str, Any]) -> Cell:
    """The same cell with other values of some dials, and with all that follows from them.

    What was changed in a cell after it was composed is lost. Raises ConfigError, and what Hydra raises of unknown keys.
    """
    added = [f"{dial}={json.dumps(value)}" for dial, value in changes.items()]
    return cell_of(compose([*cell.overrides, *added]))


def _overrides() -> list[str]:
    """Those of the config that Hydra composed last, and the user's folder of configs."""
    if not HydraConfig.initialized():
        return []
    made = HydraConfig.get()
    folders = [source.path for source in made.runtime.config_sources if source.provider == "command-line"]
    searchpath = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []
    return [*searchpath, *made.overrides.task]


def sweeping_of(cfg: DictConfig) -> Sweeping:
    """What the same config says of the whole command. Raises ConfigError."""
    return _checked(Sweeping, {key: value for key, value in _values(cfg).items() if key in Sweeping.model_fields})


def _values(cfg: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(_with_pattern(cfg), resolve=True, throw_on_missing=True)
    return dict(values)


_R = TypeVar("_R", bound=_Record)


def _checked(record: type[_R], values: dict[str, Any]) -> _R:
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_complaint(error)) from None


def compose(overrides: list[str]) -> DictConfig:
    """Compose a config outside the command line, exactly as the command line does (tests, notebooks)."""
    with hydra.initialize_config_dir(str(CONF), **HYDRA):
        cfg = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _with_pattern(cfg: DictConfig) -> DictConfig:
    """The same config, with the mixers that a pattern names put into `backbone.mixer`, under what is there already."""
    pattern = cfg.backbone.get("pattern")
    if not isinstance(pattern, ListConfig):
        return cfg
    if "_target_" in cfg.backbone.mixer:
        name = cfg.get("backbone_name")
        raise ConfigError(f"backbone.pattern={pattern}: backbone={name} has one mixer; a pattern needs backbone=hybrid")
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg])
    for name in dict.fromkeys(pattern):
        mixer, changes = _mixer_of(name, pattern), cfg.backbone.mixer.get(name, {})
        for key in set(changes) - set(mixer):
            raise ConfigError(f"backbone.mixer.{name}.{key} is not a key; it takes: {', '.join(map(str, mixer))}")
        with open_dict(cfg):
            cfg.backbone.mixer[name] = OmegaConf.merge(mixer, changes)
    return cfg


def _mixer_of(name: str, pattern: ListConfig) -> DictConfig:
    known = usage.options(CONF, "backbone")
    if name not in known:
        raise ConfigError(f"backbone.pattern={pattern}: {name} is unknown; choose from: {', '.join(known)}")
    mixer = _composed_mixer(name)
    if "_target_" not in mixer:
        raise ConfigError(f"backbone.pattern={pattern}: {name} is a pattern itself; name its mixers instead")
    if "_partial_" not in mixer:
        raise ConfigError(f"backbone.pattern={pattern}: {name} has no mixer that stands alone; choose another")
    return mixer


@cache
def _composed_mixer(name: str) -> DictConfig:
    is_running = GlobalHydra.instance().is_initialized()  # on the command line, not in a test or a notebook
    with nullcontext() if is_running else hydra.initialize_config_dir(str(CONF), **HYDRA):
        mixer: DictConfig = hydra.compose("config", overrides=[f"backbone={name}"]).backbone.mixer
    return mixer


def with_kernel(cell: Cell, kernel: str) -> Cell:
    """The same cell, every mixer of its backbone by the kernel of that name."""

    def change(node: Any) -> Any:
        if isinstance(node, list):
            return [change(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {key: kernel if key == "kernel" else change(value) for key, value in node.items()}

    return cell.model_copy(update={"kernel": kernel, "backbone": change(cell.backbone)})


def build(cell: Cell, group: Literal["backbone", "task"], *, context_len: int | None = None, **kwargs: Any) -> Any:
    """The object that a group's `_target_` names, with `kwargs` for what only the harness knows.

    A backbone that takes `n_source` gets that of the cell's task, a function of the sequence length. With `context_len`
    it is that of an example so long, however far the sequence goes on.

    Raises ConfigError when an argument has a wrong type, the constructor refuses it with ValueError, or the task has no
    source for a backbone that needs one.
    """
    node = getattr(cell, group)
    _check_node(group, node)
    if "n_source" in _annotations(hydra.utils.get_class(node["_target_"])):
        kwargs["n_source"] = _n_source(cell, context_len)
    return made(group, node, getattr(cell, f"{group}_name"), _try_out if group == "task" else None, **kwargs)


def made(group: str, node: Node, name: str, try_out: Callable[[Any], None] | None = None, **kwargs: Any) -> Any:
    """The object of a group's node, tried out. Raises ConfigError, as `build` does."""
    _check_node(group, node)
    try:
        built = _instantiate(node, **kwargs)
        if try_out is not None:
            try_out(built)
    except ValueError as error:
        raise ConfigError(f"{group}={name}: {error}" if name else f"{group}.{error}") from None
    return built


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


def _check_node(group: str, node: Node) -> None:
    for path, target in _targets(node, group):
        _check_types(path, target)


def _targets(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    if "_target_" in node:
        yield path, node
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _targets(value, f"{path}.{key}")


def _check_types(path: str, node: Node) -> None:
    """Check a node's plain values against the annotations of the constructor it names."""
    try:
        target = hydra.utils.get_class(node["_target_"])
    except (ImportError, ValueError, InstantiationException) as error:
        raise ConfigError(f"{path}._target_={node['_target_']}: {str(error).splitlines()[0]}") from None
    annotations = _annotations(target)
    for key, value in node.items():
        if key.startswith("_") or isinstance(value, dict):
            continue
        if key not in annotations:
            raise ConfigError(f"{path}.{key}={value}: {node['_target_']} takes no {key}")
        try:
            TypeAdapter(annotations[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(_first_complaint(error, f"{path}.{key}")) from None


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


def _first_complaint(error: ValidationError, path: str = "") -> str:
    """`key=value: what is allowed`, from pydantic's first finding."""
    found: Mapping[str, Any] = error.errors(include_url=False)[0]
    key = ".".join([path] * bool(path) + [str(part) for part in found["loc"] if str(part) != path])
    message = found["msg"][0].lower() + found["msg"][1:]
    return f"{key}={found['input']}: {message}"
