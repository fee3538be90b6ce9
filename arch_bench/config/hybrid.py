"""Add the mixers of a pattern to a composed config, as for `backbone=hybrid`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from arch_bench.config.errors import ConfigError
from arch_bench.config.usage import CONF, HYDRA, options


def with_pattern(cfg: DictConfig) -> DictConfig:
    """Return the config with the pattern's mixers in `backbone.mixer`, where existing settings override theirs.

    Raises ConfigError for a pattern or mixer setting that does not fit.
    """
    pattern = cfg.backbone.get("pattern") if isinstance(cfg.get("backbone"), DictConfig) else None
    if not isinstance(pattern, ListConfig):
        return cfg
    if not isinstance(cfg.backbone.get("mixer"), DictConfig):
        raise ConfigError(f"backbone.mixer={cfg.backbone.get('mixer')}: needs the mixers of the pattern, or {{}}")
    if "_target_" in cfg.backbone.mixer:
        name = cfg.get("backbone_name")
        raise ConfigError(f"backbone.pattern={pattern}: backbone={name} has one mixer; a pattern needs backbone=hybrid")
    for name in cfg.backbone.mixer:
        if name not in pattern and name not in _composed_mixer(cfg.backbone_name):  # its file may list unused mixers
            known = ", ".join(dict.fromkeys(map(str, pattern)))
            raise ConfigError(f"backbone.mixer.{name}: not in backbone.pattern={pattern}; choose from: {known}")
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg])
    for name in dict.fromkeys(pattern):
        mixer, changes = _mixer_of(name, pattern), cfg.backbone.mixer.get(name, {})
        if not isinstance(changes, dict | DictConfig):
            raise ConfigError(f"backbone.mixer.{name}={changes}: needs what changes in it, as {{d_state: 4}}")
        for key in set(changes) - set(mixer):
            raise ConfigError(f"backbone.mixer.{name}.{key} is not a key; it takes: {', '.join(map(str, mixer))}")
        with open_dict(cfg):
            cfg.backbone.mixer[name] = OmegaConf.merge(mixer, changes)
    return cfg


def _mixer_of(name: str, pattern: ListConfig) -> DictConfig:
    known = options(CONF, "backbone")
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
