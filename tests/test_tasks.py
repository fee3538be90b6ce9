"""The contract of tasks/base.py, for every conf/task/*.yaml: a new task is tested the moment its file exists."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.base import IGNORE, Batch, Split, Task, stream
from tasks.mixture import Mixture
from tasks.text import Text
from tasks.tokens import Tokens

CONF = Path(__file__).parent.parent / "conf" / "task"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
CPU = torch.device("cpu")
SEQ_LEN = 64
LONGER = {"recall_mixture": 256}
"""Tasks whose defaults need more room."""
FRAGMENT = 32  # bytes: two random texts do not share so many in a row


def write_corpus(folder: Path) -> None:
    """60 files of random words, 220 kB: small, and no two files share a fragment."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(2000)]
    folder.mkdir()
    for i in range(60):
        text = " ".join(rng.choices(words, k=rng.randint(400, 700)))
        Path(folder, f"{i:02}.txt").write_text(text + "\n")


def make(name: str, home: Path, seq_len: int | None = None) -> Task:
    """The task as its YAML configures it, but for a corpus that is small and in `home`."""
    seq_len = LONGER.get(name, SEQ_LEN) if seq_len is None else seq_len
    config = OmegaConf.create({"seq_len": seq_len, "task": written(name)})
    knobs = OmegaConf.to_container(config, resolve=True)["task"]
    if "path" in knobs:
        knobs |= {"path": str(home / "corpus"), "cache_dir": str(home / "cache"), "bpe_vocab_size": 512}
        knobs |= dict.fromkeys(("config_name", "max_bytes", "revision", "sha256"))  # of what is downloaded
    task: Task = instance(knobs)
    return task


def written(name: str) -> Any:
    """A YAML over those that its defaults list names. Not by hydra, whose composing takes a tenth of a second."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    bases = [base for base in config.pop("defaults", []) if base != "_self_"]
    return OmegaConf.merge(*map(written, bases), config)


def instance(node: Any) -> Any:
    """Not hydra's instantiate, which wraps a ValueError in its own."""
    if not isinstance(node, dict):
        return node
    made = {key: instance(value) for key, value in node.items()}
    return get_class(made.pop("_target_"))(**made) if "_target_" in made else made


def alone(task: Task) -> list[Task]:
    """What has an oracle and guesses: the task, or what it mixes."""
    return list(task.parts().values()) if isinstance(task, Mixture) else [task]


def draw(task: Task, n: int, *, seed: int = 0, split: Split = "train", step: int = 0) -> Batch:
    return task.for_split(split).sample(n, stream(seed, split, step, CPU), CPU)


def digests(home: Path) -> str:
    """One line for each task, of what it draws and has learned from a text; another process prints it too."""
    return "\n".join(f"{name} {digest(make(name, home))}" for name in NAMES)


def digest(task: Task) -> str:
    batch = draw(task, 64)
    found = hashlib.sha256(batch.inputs.numpy().tobytes() + batch.targets.numpy().tobytes())
    if isinstance(task, Text) and isinstance(task.tokens, Tokens):
        for file in (task.tokens.vocabulary.file, "tokens.bin"):
            found.update((task.tokens.folder / file).read_bytes())
    return found.hexdigest()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_corpus(folder / "corpus")
    return folder


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest, home: Path) -> Task:
    return make(request.param, home)


def test_discovery_finds_the_suite() -> None:
    assert {"copy_memory", "mqar", "text"} <= set(NAMES)


def test_no_example_has_more_scored_positions_than_it_says(task: Task) -> None:
    n_scored = (draw(task, 256).targets != IGNORE).sum(1)
    assert n_scored.max() == task.max_scored
    assert (
        task.with_length(2 * task.seq_len).max_scored
        == (draw(task.with_length(2 * task.seq_len), 64).targets != IGNORE).sum(1).max()
    )


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_source_ends_at_the_first_position_that_may_be_scored(task: Task, factor: int) -> None:
    longer = task.with_length(factor * task.seq_len)
    first_scored = (draw(longer, 512).targets != IGNORE).any(0).int().argmax()
    n_source = longer.n_source(longer.seq_len)
    assert n_source in {0, first_scored.item()}, "where there is one"
    assert n_source == task.n_source(longer.seq_len)


def test_shapes_types_and_ranges(task: Task) -> None:
    for n in (1, 33):
        inputs, targets = draw(task, n)
        assert inputs.shape == targets.shape == (n, task.seq_len)
        assert inputs.dtype == torch.int64
        assert targets.dtype == (torch.int64 if task.tolerance is None else torch.float32)
        assert inputs.min() >= 0
        assert inputs.max() < task.vocab_size
        scored = targets != IGNORE
        assert scored.any(dim=1).all()
        assert targets[scored].min() >= 0
        assert targets[scored].max() < task.vocab_size


def test_a_batch_is_a_function_of_seed_split_and_step(task: Task) -> None:
    first = draw(task, 16)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(task, 16), strict=True))
    others = [draw(task, 16, seed=1), draw(task, 16, step=1), draw(task, 16, split="validation")]
    assert not any(torch.equal(first.inputs, other.inputs) for other in others)


def test_global_randomness_is_left_alone(task: Task) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    draw(task, 16)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_copies_and_pickles_draw_the_same(task: Task) -> None:
    first = draw(task, 16)  # a task that has been used, with whatever it keeps
    again = draw(pickle.loads(pickle.dumps(task)), 16)
    assert torch.equal(first.inputs, again.inputs)


def fragments(task: Task, split: Split, n_steps: int) -> set[bytes]:
    """What must not occur in two splits: whole examples, or stretches of text whatever window they are in."""
    inputs = torch.cat([draw(task, 1024, split=split, step=step).inputs for step in range(n_steps)]).numpy()
    if task.bytes_per_token is not None:
        small = inputs.astype(np.min_scalar_type(task.vocab_size))
        inputs = np.lib.stride_tricks.sliding_window_view(small, FRAGMENT, axis=1)
    return {row.tobytes() for row in inputs.reshape(-1, inputs.shape[-1])}


def test_splits_are_disjoint(task: Task) -> None:
    train, validation, test = fragments(task, "train", 8), fragments(task, "validation", 1), fragments(task, "test", 1)
    assert len(train) > 8000  # the sample is as large as it looks
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_oracle_is_right_at_every_scored_position(task: Task, factor: int) -> None:
    seq_len = task.seq_len
    for longer in alone(task.with_length(factor * seq_len)):
        inputs, targets = draw(longer, 256)
        assert inputs.shape == (256, factor * seq_len)
        answer = longer.oracle(inputs)
        if task.bytes_per_token is not None:
            assert answer is None
            return
        assert answer is not None
        scored = targets != IGNORE
        assert torch.equal(answer[scored], targets[scored])
    assert task.seq_len == seq_len


def mean_and_error(per_position: Tensor, scored: Tensor) -> tuple[float, float]:
    """Mean over scored positions, as the harness reports it, and its standard error.

    Positions of one example are not independent, so the spread is taken between examples.
    """
    total, n = (per_position.double() * scored).sum(dim=1), scored.sum(dim=1).double()
    mean = total.sum() / n.sum()
    return mean.item(), ((total - mean * n).std() / n.mean()).item() / len(n) ** 0.5


def probability_of_target(probabilities: Tensor, batch: Batch, vocab_size: int) -> Tensor:
    everywhere = probabilities.expand(*batch.targets.shape, vocab_size)
    return everywhere.gather(2, batch.targets.clamp(min=0).unsqueeze(2)).squeeze(2)


def test_guessing_scores_what_the_baseline_says(task: Task) -> None:
    for each in alone(task):
        check_guesses(each)


def check_guesses(task: Task) -> None:
    batch = draw(task, 2048, split="test")
    for name, stated in task.baselines().items():
        guess = task.guess(name, batch.inputs)
        if task.tolerance is None:
            per_position = probability_of_target(guess, batch, task.vocab_size)
        else:
            per_position = ((guess - batch.targets).abs() <= task.tolerance).float()
        if task.bytes_per_token is not None:
            per_position = -per_position.log2() / task.bytes_per_token
        measured, error = mean_and_error(per_position, batch.targets != IGNORE)
        assert abs(measured - stated) <= 3 * error + 1e-6, name


def test_guesses_are_distributions(task: Task) -> None:
    for each in alone(task):
        check_distributions(each)


def check_distributions(task: Task) -> None:
    batch = draw(task, 4)
    if task.tolerance is not None:
        return  # numbers
    for name in task.baselines():
        probabilities = task.guess(name, batch.inputs)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))


def position_counts(task: Task, batch: Batch) -> Tensor:
    """How often each token is the target at each position: (seq_len, vocab_size)."""
    scored = batch.targets != IGNORE
    cells = torch.arange(task.seq_len) * task.vocab_size + batch.targets.clamp(min=0)
    return torch.bincount(cells[scored], minlength=task.seq_len * task.vocab_size).view(task.seq_len, task.vocab_size)


def test_position_alone_tells_nothing(task: Task) -> None:
    """The best guess by position, fitted on one sample, does not beat the best baseline on another."""
    batch = draw(task, 2048, split="test")
    scored = batch.targets != IGNORE
    if task.tolerance is not None:
        mean = draw(task, 8192).targets.mean(0)  # what is not scored is the same in all
        hits = (batch.targets - mean).abs() <= task.tolerance
        measured, error = mean_and_error(hits, scored)
        assert measured <= max(task.baselines().values()) + 3 * error
        return
    counts = position_counts(task, draw(task, 8192))
    if task.bytes_per_token is not None:
        smooth = (counts + 1) / (counts + 1).sum(dim=1, keepdim=True)
        bits = -probability_of_target(smooth, batch, task.vocab_size).log2() / task.bytes_per_token
        measured, error = mean_and_error(bits, scored)
        assert measured >= min(task.baselines().values()) - 3 * error
    else:
        hits = counts.argmax(dim=1) == batch.targets
        measured, error = mean_and_error(hits, scored)
        assert measured <= max(task.baselines().values()) + 3 * error


class CountOps(TorchDispatchMode):
    n_ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.n_ops += 1
        return func(*args, **(kwargs or {}))


def test_sampling_has_no_loop_over_examples(task: Task) -> None:
    draw(task, 1)  # a corpus is opened once
    n_ops = []
    for n in (8, 4096):
        with CountOps() as counter:
            draw(task, n)
        n_ops.append(counter.n_ops)
    assert n_ops[1] <= 2 * n_ops[0]


def test_another_process_draws_and_learns_the_same(home: Path, tmp_path: Path) -> None:
    """Hashes have another seed there, tokenizers one thread; its cache is empty, so that it learns all again."""
    (tmp_path / "corpus").symlink_to(home / "corpus")
    code = f"import pathlib, test_tasks; print(test_tasks.digests(pathlib.Path({str(tmp_path)!r})))"
    other_seed = str(1 + (os.environ.get("PYTHONHASHSEED") == "1"))
    environment = {**os.environ, "PYTHONHASHSEED": other_seed, "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == digests(home)
    assert list((tmp_path / "cache").iterdir())


def test_impossible_lengths_and_splits_are_refused(task: Task, home: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(ValueError, match="seq_len=0"):
        make(request.node.callspec.params["task"], home, seq_len=0)
    with pytest.raises(ValueError, match="seq_len=0"):
        task.with_length(0)
    with pytest.raises(ValueError, match="split=holdout is unknown"):
        task.for_split("holdout")  # type: ignore[arg-type]


def test_a_task_says_whether_its_inputs_show_the_answers(task: Task) -> None:
    inputs, targets = draw(task, 256)
    scored = targets[:, :-1] != IGNORE
    shown = (inputs[:, 1:] == targets[:, :-1])[scored].float().mean() if scored.any() else torch.tensor(0.0)
    assert (shown == 1.0) == task.shows_answers
    assert task.shows_answers or shown < 0.6, "more often than a coin would"


def test_an_answer_is_written_token_by_token(task: Task) -> None:
    if (n_prompt := task.n_prompt) is None:
        return
    inputs, targets = draw(task, 256)
    start = n_prompt - 1
    scored = targets != IGNORE
    assert scored[:, start].all(), "an answer follows the prompt at once"
    assert not scored[:, :start].any(), "nothing of the prompt is scored"
    assert torch.equal(inputs[:, n_prompt:][scored[:, start:-1]], targets[:, start:-1][scored[:, start:-1]])
    assert task.shows_answers


def test_the_parts_of_a_task_speak_its_tokens(task: Task) -> None:
    for name, part in task.parts().items():
        assert name
        assert (part.vocab_size, part.seq_len) == (task.vocab_size, task.seq_len)
        assert not part.parts()
        inputs, targets = draw(part, 8)
        assert inputs.shape == (8, task.seq_len)
        assert (targets != IGNORE).any(1).all()


def test_every_token_has_a_word(task: Task) -> None:
    words = [task.word(token) for token in range(task.vocab_size)]
    assert all(0 < len(word) <= 8 and word.isprintable() for word in words)
    assert len(set(words)) == task.vocab_size


def test_provenance_is_flat(task: Task) -> None:
    assert all(isinstance(value, str | int) for value in task.provenance().values())
