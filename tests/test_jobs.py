"""Jobs of a sweep are composed as Hydra itself composes them, and one that cannot be ends no other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from cells import TINY
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from test_cli import arch_bench

from arch_bench.config.jobs import MISTAKES, Composer
from arch_bench.config.schema import CONF, HYDRA
from arch_bench.sweep import sweep
from arch_bench.sweep.plan import NO_ESTIMATE

AXES = [
    [["seed=0", "seed=1"], ["optim.lr=1e-3", "optim.lr=3e-3"]],
    [["backbone=lstm", "backbone=mamba", "backbone=transformer"], ["++backbone.mixer.n_heads=2"], ["seed=0", "seed=1"]],
    [["d_model=${seq_len}"], ["seq_len=32", "seq_len=64"], ["+note=${hydra:job.num}-${backbone_name}"]],
    [["experiment=quickstart"], ["task=mqar", "task=text"], ["backbone=lstm", "backbone=mamba"], ["seed=5"]],
    [["experiment=mqar_zoology"], ["experiment/by_length=mqar_zoology_64", "experiment/by_length=mqar_zoology_128"]],
    [["backbone=hybrid"], ["+backbone.mixer.mamba.d_state=4", "~backbone.pattern", "backbone.pattern=[mamba]"]],
    [["~task.n_pairs", "~task.n_pairs=4", "task={n_pairs:2}", "+task.other={a:[1,2],b:null}", "++seed=3"]],
    [["optim={lr:0.1}"], ["optim.lr=0.2", "optim.betas=[0.1,0.2]"]],
    [["optim.lr=0.2", "optim.lr=0.3"], ["optim={lr:0.1}"]],
    [["optim.betas=[0.5,0.6]"], ["++optim.betas.0=0.7", "seed=1"]],
    [["optim.lr=1.", "optim.lr='1'", 'name="a b"', "name=${task_name}", "name=???"], ["hydra.job.name=x"]],
    [
        [
            "seed=1",
            "nosuch=1",
            "+seed=3",
            "~nosuch",
            "task=nosuch",
            "task.n_pais=3",
            "a b=3",
            "seed=[",
            "~task=text",
            "=",
        ]
    ],
    [
        [
            "task@other=mqar",
            "+task@other=mqar",
            "+optim=adamw",
            "+nosuch/group=1",
            "~optim",
            "seed=1,2",
            "seed=${nosuch}",
        ]
    ],
]
"""Of the jobs of a sweep, one axis after the other."""


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    before = HydraConfig.instance().cfg
    with hydra.initialize_config_dir(str(CONF), **HYDRA):
        yield GlobalHydra.instance().config_loader()
    HydraConfig.instance().cfg = before


def found(make: Any) -> Any:
    """What a config has, in its order, with and without its interpolations; or what was raised."""
    try:
        cfg: DictConfig = make()
    except (*MISTAKES, ValueError, AssertionError) as error:
        return type(error), str(error)
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    try:
        resolved = str(OmegaConf.to_container(own, resolve=True))
    except (*MISTAKES, ValueError) as error:
        resolved = str(error)
    mine = HydraConfig.get()
    return str(OmegaConf.to_container(own)), resolved, OmegaConf.is_struct(cfg), OmegaConf.to_container(mine)


@pytest.mark.parametrize("axes", AXES)
def test_a_job_is_what_hydra_makes_of_it(axes: list[list[str]], loader: ConfigLoader) -> None:
    master = loader.load_configuration("config", ["hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN)
    HydraConfig.instance().set_config(master)
    assert master.hydra.sweep.dir, "which has the time in it, once for all"
    jobs = [list(job) for job in itertools.product(*axes)]
    composer, n_composed = Composer(loader, master, jobs), 0
    assert sweep.SWEEP, "whose module has the resolver that Hydra's folders need"
    for number, job in enumerate(jobs):

        def expected(job: list[str] = job, number: int = number) -> DictConfig:
            cfg = loader.load_sweep_config(master, job)
            OmegaConf.set_readonly(cfg.hydra, False)
            OmegaConf.set_struct(cfg.hydra, False)
            cfg.hydra.job.id = cfg.hydra.job.num = number
            cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.sweep.dir).absolute())
            HydraConfig.instance().set_config(cfg)
            return cfg

        def ours(job: list[str] = job, number: int = number) -> DictConfig:
            return composer.compose(job, number)

        mine = found(ours)
        assert mine == found(expected), job
        n_composed += isinstance(mine[0], str)
    assert n_composed


def test_a_job_that_cannot_be_ends_no_other(tmp_path: Path) -> None:
    done = arch_bench("-m", *TINY, "seed=0,${nosuch},1", "dry_run=true", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == f"2 cells, 0 done, 2 to run{NO_ESTIMATE}\n"
    assert done.stderr == "arch-bench: seed=${nosuch}: there is no nosuch\n"


def test_callbacks_and_variables_of_a_users_own_are_kept(tmp_path: Path) -> None:
    asked = ["+hydra.job.env_set.BENCH=a", "name=${oc.env:BENCH}", "seed=0,${nosuch},1"]
    done = arch_bench("-m", *TINY, *asked, "dry_run=true", cwd=tmp_path)
    assert done.stdout == f"2 cells, 0 done, 2 to run{NO_ESTIMATE}\n", done.stderr
