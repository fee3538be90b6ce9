"""Schema of the composed configuration: typed, read-only records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from arch_bench.config import usage
from arch_bench.config.errors import ConfigError, first_complaint, quoted
from arch_bench.config.hybrid import with_pattern
from arch_bench.config.usage import CONF, HYDRA
from arch_bench.config.values import check_values

usage.register(CONF)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Count = Annotated[int, Field(ge=1, lt=2**31)]
"""Positive integer within the 32-bit range that kernels use for sizes."""
Lengths = Annotated[list[Count], Field(min_length=1)]
Node = dict[str, Any]
"""Node with a `_target_` and its arguments."""


class Optim(_Record):
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
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


_RESERVED = "/ \\ # ? % :"
"""Characters that W&B forbids in project names: it would lose the run silently."""


def _named(name: str) -> str | None:
    if len(name) > 128 or set(_RESERVED.split()) & set(name):
        raise PydanticCustomError(
            "name", f"needs at most 128 characters and none of {_RESERVED} (as WANDB_* may set it)"
        )
    return name or None


class Logger(_Record):
    kind: Literal["wandb", "none"]
    project: Annotated[str, AfterValidator(_named)] | None
    entity: Annotated[str, AfterValidator(_named)] | None


class Match(_Record):
    params: Count | None
    tolerance: Annotated[float, Field(ge=0, lt=1)]


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
    """Settings that make a cell one trial of a search."""

    study: str
    """Name of the search's journal."""
    number: Annotated[int, Field(ge=0)]
    values: Node
    """Values under trial, by dial."""
    prune_from_trial: Annotated[int, Field(ge=1)] | None
    """Number of trials that must finish before this one may be pruned; None: it is never pruned."""
    prune_from_step: Annotated[int, Field(ge=0)]


class Cell(_Record):
    """Backbone on a task at one training length and one seed: every setting that its rows depend on."""

    name: str
    backbone_name: str
    task_name: str
    seq_len: Count
    d_model: Count
    n_layers: Annotated[int, Field(ge=1, le=1_000)]
    """Number of blocks; the limit is there because building more takes minutes before any error can show."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
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
    """Choice of a protocol for this cell, with the reason; never set by a file."""
    trial: Trial | None = None
    """Trial of a search, set by a protocol; never set by a file."""
    overrides: Annotated[list[str], Field(exclude=True)] = []
    """Overrides that composed the cell: `recomposed` uses them, and rows do not contain them."""


class Sweeping(_Record):
    """Settings for all cells of a command: which of them to run, and where."""

    protocol: Node
    launcher: Node
    dry_run: bool


def read(cfg: DictConfig) -> tuple[Cell, Sweeping]:
    """Resolve and check a composed config. Raises ConfigError for the first value that is not allowed."""
    values = _values(cfg)
    return _cell(values), _sweeping(values)


def cell_of(cfg: DictConfig) -> Cell:
    """Return the cell alone. Raises ConfigError."""
    return _cell(_values(cfg))


def sweeping_of(cfg: DictConfig) -> Sweeping:
    """Return the settings for the whole command from the same config. Raises ConfigError."""
    return _sweeping(_values(cfg))


def _sweeping(values: dict[str, Any]) -> Sweeping:
    return _checked(Sweeping, {key: value for key, value in values.items() if key in Sweeping.model_fields})


def _cell(values: dict[str, Any]) -> Cell:
    own = {key: value for key, value in values.items() if key not in Sweeping.model_fields}
    cell = _checked(Cell, own | {"overrides": _overrides(), "results_dir": _home(values.get("results_dir"))})
    _check_name(cell.name)
    for (group, key), dial in _FOLLOWERS.items():
        value, leading = getattr(cell, group).get(key), getattr(cell, dial)
        if value not in (None, leading):
            raise ConfigError(f"{group}.{key}={value}: set by {dial}={leading}; change that")
    return cell


_FOLLOWERS = {
    ("task", "seq_len"): "seq_len",
    ("backbone", "max_len"): "seq_len",
    ("backbone", "d_model"): "d_model",
    ("backbone", "n_layers"): "n_layers",
}
"""Settings that follow a dial of the cell; rows and reports use the dial."""
_FOLDERS = ("rows", "logs", "checkpoints", "claims", "hydra", "optuna", "published", "submitit", "wandb")
"""Reserved folders in `results_dir`: a report's folder, named after the experiment, lies beside them."""


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name) or name.lower() in _FOLDERS:  # some file systems ignore case
        raise ConfigError(
            f"name={name}: a folder of results_dir; give letters, digits, _, - and ., not a . or - first, and none of "
            f"{', '.join(_FOLDERS)}"
        )


def _home(folder: Any) -> Any:
    """Expand `~` in a folder; leave a value that is no text for validation to refuse. Raises ConfigError."""
    try:
        return str(Path(folder).expanduser()) if isinstance(folder, str) and folder.startswith("~") else folder
    except RuntimeError as error:
        raise ConfigError(f"results_dir={folder}: {error}; write the folder out") from None


def recomposed(cell: Cell, changes: Mapping[str, Any]) -> Cell:
    """Compose the cell again with other values of some dials, and with all that follows from them.

    Changes made to the cell after composition are lost. Raises ConfigError, and Hydra's errors for unknown keys.
    """
    added = [f"{dial}={json.dumps(value)}" for dial, value in changes.items()]
    return cell_of(compose([*cell.overrides, *added]))


def _overrides() -> list[str]:
    """Return the overrides of the config that Hydra composed last, with the user's config folders."""
    if not HydraConfig.initialized():
        return []
    made = HydraConfig.get()
    sources = [source for source in made.runtime.config_sources if source.provider in _USERS]
    folders = ",".join(quoted(f"{source.schema}://{source.path}") for source in sources)
    return [*([f"hydra.searchpath=[{folders}]"] if folders else []), *typed()]


def typed() -> list[str]:
    """Return the overrides of the last composed config as written, so that `d_model=${seq_len}` still follows."""
    found: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(found)


_USERS = ("command-line", "hydra.searchpath in command-line")
"""Hydra's names for the folders of `-cd` and of `hydra.searchpath=`."""


def _values(cfg: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(with_pattern(cfg), resolve=True, throw_on_missing=True)
    check_values(values)
    return dict(values)


_R = TypeVar("_R", bound=_Record)


def _checked(record: type[_R], values: dict[str, Any]) -> _R:
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_complaint(error)) from None


def check_options(overrides: Iterable[str]) -> None:
    """Check that every option is a name, before Hydra answers with a traceback. Raises ConfigError."""
    if complaint := usage.nameless(CONF, overrides):
        raise ConfigError(complaint)


def compose(overrides: list[str]) -> DictConfig:
    """Compose a config outside the command line, exactly as the command line does (tests, notebooks)."""
    check_options(overrides)
    with hydra.initialize_config_dir(str(CONF), **HYDRA):
        cfg = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def with_kernel(cell: Cell, kernel: str) -> Cell:
    """Return the same cell with this kernel in every mixer of its backbone."""

    def change(node: Any) -> Any:
        if isinstance(node, list):
            return [change(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {key: kernel if key == "kernel" else change(value) for key, value in node.items()}

    return cell.model_copy(update={"kernel": kernel, "backbone": change(cell.backbone)})
