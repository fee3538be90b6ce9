"""Compose the jobs of a sweep: the part that several share once, by Hydra, and then each job's own values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from arch_bench.config.errors import ConfigError, is_hydras

MISTAKES = (HydraException, OmegaConfBaseException, ConfigError, OSError)
"""Exceptions that a user's mistake in a job can raise."""


class _Shared(NamedTuple):
    """Config that jobs with the same options share."""

    cfg: DictConfig
    hydra: Any
    """Content of `HydraConfig`."""


class _Parsed(NamedTuple):
    text: str
    override: Override
    is_value: bool


class Composer:
    """Composer of jobs with Hydra's results: it composes group options, most of the work, once for all jobs with them.

    Hydra sets values after it has composed the options, and no option depends on a value. Values that all jobs share
    are set with the options, unless another override concerns a part of the same node: order matters there.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self._loader, self._master = loader, master
        self._parsed = cache(self._parse)
        self._shared = cache(self._compose_shared)
        self._common = self._find_common(jobs)

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Return a job's config and set `HydraConfig` for that job. Exceptions of Hydra pass through."""
        parsed = [self._parsed(each) for each in overrides]
        shared = self._shared(tuple(one for one in overrides if one in self._common or not self._parsed(one).is_value))
        cfg = copy.deepcopy(shared.cfg)
        own = [each.override for each in parsed if each.is_value and each.text not in self._common]
        ConfigLoaderImpl._apply_overrides_to_config(own, cfg)
        HydraConfig.instance().cfg = shared.hydra
        kept = [each.override for each in parsed if not each.override.is_hydra_override()]
        self._note(shared.hydra.hydra, kept, number)
        return cfg

    def _note(self, hydra: Any, overrides: list[Override], number: int) -> None:
        naming = hydra.job.config.override_dirname
        with read_write(hydra), open_dict(hydra):
            hydra.job.id = hydra.job.num = number
            hydra.overrides.task = [each.input_line for each in overrides]
            hydra.job.override_dirname = get_overrides_dirname(
                overrides, kv_sep=naming.kv_sep, item_sep=naming.item_sep, exclude_keys=naming.exclude_keys
            )

    def _find_common(self, jobs: Sequence[Sequence[str]]) -> set[str]:
        common = set(jobs[0]).intersection(*jobs[1:]) if jobs else set()
        keys = {key for job in jobs for override in job if (key := _key(override))}
        return {one for one in common if not any(_is_nested(_key(one), other) for other in keys - {_key(one)})}

    def _parse(self, text: str) -> _Parsed:
        (override,) = OverridesParser.create(config_loader=self._loader).parse_overrides([text])
        return _Parsed(text, override, self._is_value(override))

    def _is_value(self, override: Override) -> bool:
        """Check if an override only sets a value; a doubtful one counts as an option, which Hydra itself composes."""
        key = override.key_or_group
        is_plain = override.package is None and not override.is_sweep_override() and not key.startswith("hydra")
        is_option = not isinstance(override.value(), dict) and self._loader.repository.group_exists(key)
        return is_plain and not is_option and not self._master.hydra.searchpath

    def _compose_shared(self, overrides: tuple[str, ...]) -> _Shared:
        cfg = self._loader.load_sweep_config(self._master, list(overrides))
        with open_dict(cfg.hydra.runtime):
            cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.sweep.dir).absolute())
        HydraConfig.instance().set_config(cfg)
        hydra = HydraConfig.instance().cfg
        assert hydra is not None
        plain = copy.deepcopy(cfg)
        with open_dict(plain):
            del plain["hydra"]
        return _Shared(plain, hydra)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _is_nested(key: str, other: str) -> bool:
    """Check if one of two keys lies within the other's node; a list is the node of its items."""
    one, two = (each.replace("[", ".").split(".") for each in (key, other))
    return all(a == b for a, b in zip(one, two, strict=False))


def composing(mistaken: Callable[[BaseException, Sequence[str]], None]) -> Callable[..., Sequence[JobReturn]]:
    """Return a `launch` for Hydra's launcher that passes each job to the program; a bad job does not end the others.

    mistaken: receives the exception and the overrides of a bad job.
    """

    def launch(self: BasicLauncher, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        assert self.hydra_context is not None
        assert self.config is not None
        assert self.task_function is not None
        run = _run_plainly if _is_plain(self.config) else _run_by_hydra
        composer = Composer(self.hydra_context.config_loader, self.config, job_overrides)
        before = HydraConfig.instance().cfg
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            try:
                run(self, composer, overrides, number)
            except Exception as error:
                if not isinstance(error, MISTAKES) and not is_hydras(error):
                    raise
                mistaken(error, overrides)
            finally:
                HydraConfig.instance().cfg = before
        done = JobReturn(status=JobStatus.COMPLETED)
        return [done] * len(job_overrides)

    return launch


def _run_plainly(launcher: Any, composer: Composer, overrides: Sequence[str], number: int) -> None:
    launcher.task_function(composer.compose(overrides, number))


def _run_by_hydra(launcher: Any, _: Composer, overrides: Sequence[str], number: int) -> None:
    """Run a job with Hydra's other features that a user may have set: callbacks, variables, folders, logs."""
    cfg = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    context, task = launcher.hydra_context, launcher.task_function
    done = run_job(task, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", hydra_context=context)
    _ = done.return_value  # reraises the job's exception


def _is_plain(master: DictConfig) -> bool:
    """Check if jobs use nothing of Hydra but the config, as with this repository's own files."""
    hydra = master.hydra
    is_silent = hydra.runtime.choices["hydra/job_logging"] == "none" and not hydra.verbose
    stays = not hydra.job.chdir and hydra.output_subdir is None and OmegaConf.select(hydra, "sweep.subdir") == "."
    return (
        is_silent and stays and not hydra.job.env_set and not hydra.job.env_copy and set(hydra.callbacks) == {"sweep"}
    )
