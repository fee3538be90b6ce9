"""tasks/needle.py: where the fact is, that only its key leads to it, and the depths that are reported apart."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tasks.base import IGNORE, Batch, stream
from tasks.needle import Needle

CPU = torch.device("cpu")
KNOBS: dict[str, Any] = {"seq_len": 64, "n_words": 256, "length_key": 2, "length_value": 4, "is_marked": True}
KNOBS |= {"filler": "uniform", "depth": None, "n_depths": 5}


def make(**knobs: Any) -> Needle:
    return Needle(**KNOBS | knobs)


def draw(task: Needle, n: int) -> Batch:
    return task.sample(n, stream(0, "train", 0, CPU), CPU)


def assert_uniform(counts: torch.Tensor) -> None:
    chi_square = ((counts - counts.double().mean()) ** 2 / counts.double().mean()).sum().item()
    assert abs(chi_square - (len(counts) - 1)) < 4 * (2 * (len(counts) - 1)) ** 0.5


def starts(haystack: list[int], key: list[int]) -> list[int]:
    return [i for i in range(len(haystack)) if haystack[i : i + len(key)] == key]


@pytest.mark.parametrize("filler", ["uniform", "zipf"])
@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"n_words": 3},  # filler repeats nearly every key, and the key overlaps itself
        {"n_words": 4, "length_key": 3, "length_value": 3},
        {"n_words": 2, "length_key": 1, "length_value": 1, "seq_len": 12},
        {"n_words": 5, "seq_len": 14},  # no filler, or two words of it
    ],
)
def test_the_key_occurs_once_and_its_value_is_the_target(knobs: dict[str, Any], is_marked: bool, filler: str) -> None:
    task = make(is_marked=is_marked, filler=filler, **knobs)
    inputs, targets = draw(task, 300)
    length_fact = task.length_key + is_marked + task.length_value
    for tokens, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        haystack, asked = tokens[: tokens.index(task.question)], tokens[tokens.index(task.question) + 1 :]
        assert len(haystack) == task.seq_len - length_fact
        key, shown = asked[: task.length_key], asked[task.length_key + is_marked :]
        found = starts(haystack, key)
        assert len(found) == 1, "the key is unique in the haystack, overlaps included"
        value = haystack[found[0] + task.length_key + is_marked :][: task.length_value]
        assert wanted == [IGNORE] * (task.seq_len - task.length_value) + value
        assert shown == value[:-1]
        marks = [i for i, token in enumerate(haystack) if token == task.mark]
        assert marks == ([found[0] + task.length_key] if is_marked else [])
        assert (asked[task.length_key] == task.mark) if is_marked else (task.mark not in asked)
        assert max(value) < task.n_words


def test_the_example_of_the_docstring() -> None:
    table = [
        line.split() for line in (Needle.__doc__ or "").splitlines() if line.split()[:1] in (["token"], ["target"])
    ]
    (_, *row), (_, *wanted) = table
    task = make(n_words=10, length_value=2, seq_len=16)
    inputs = torch.tensor([["0123456789=?".index(symbol) for symbol in row]])
    assert task.n_prompt == 15
    assert task.oracle(inputs)[0, 14:].tolist() == [int(symbol) for symbol in wanted[14:]]
    assert wanted[:14] == ["-"] * 14


def place(task: Needle, inputs: torch.Tensor) -> torch.Tensor:
    return (inputs[:, : task._length_haystack] == task.mark).int().argmax(1) - task.length_key


def test_all_depths_are_alike() -> None:
    task = make(seq_len=34)
    places = place(task, draw(task, 10_000).inputs)
    counts = torch.bincount(places)
    assert len(counts) == 34 - 2 * 7 + 1
    assert_uniform(counts)


def test_key_and_value_are_uniform_also_in_zipf_filler() -> None:
    task = make(n_words=8, filler="zipf")
    inputs, targets = draw(task, 16_000)
    for i in range(4):
        assert_uniform(torch.bincount(targets[:, -4 + i], minlength=8))
    key = inputs[:, task._length_haystack + 1 :][:, :2]
    assert_uniform(torch.bincount(key[:, 0] * 8 + key[:, 1], minlength=64))


def test_zipf_filler_is_zipf() -> None:
    task = make(n_words=8, filler="zipf", depth=1.0)
    filler = task._filler(4000, stream(0, "train", 0, CPU), CPU)
    weights = 1 / torch.arange(1, 9, dtype=torch.float64)
    expected = weights / weights.sum() * filler.numel()
    counts = torch.bincount(filler.flatten(), minlength=8)
    assert ((counts - expected).abs() < 4 * expected.sqrt()).all()


def follows(haystack: list[int], shown: int, target: int, n_words: int) -> float:
    """How often, where the one stands, the other comes next among words."""
    pairs = [pair for pair in itertools.pairwise(haystack) if pair[0] == shown < n_words and pair[1] < n_words]
    return sum(after == target for _, after in pairs) / len(pairs) if pairs else 1 / n_words


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"seq_len": 128, "n_words": 64},
        {"is_marked": False},
        {"is_marked": False, "filler": "zipf", "n_words": 8},
        {"is_marked": False, "length_key": 1, "length_value": 1, "depth": 1.0},
    ],
)
def test_the_last_word_alone_tells_much_of_the_answer(knobs: dict[str, Any]) -> None:
    """The trap of a teacher-forced answer: what followed its last word is nearly always what comes next."""
    task = make(**knobs)
    inputs, targets = draw(task, 500)
    guess = task.guess("bigram", inputs).gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    expected = [
        [
            follows(row[: task._length_haystack], row[i], wanted[i], task.n_words)
            for i in range(task.n_prompt - 1, task.seq_len)
        ]
        for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(guess[:, task.n_prompt - 1 :], torch.tensor(expected))
    assert task.baselines()["bigram"] == pytest.approx(guess[:, task.n_prompt - 1 :].mean().item(), abs=0.02)


@pytest.mark.parametrize(
    ("knobs", "share"),
    [
        ({"seq_len": 128, "n_words": 64}, 0.353),
        ({"seq_len": 512, "n_words": 64}, 0.110),
        ({"is_marked": False}, 0.899),
        ({"is_marked": False, "seq_len": 256}, 0.640),
    ],
)
def test_what_the_last_word_alone_scores(knobs: dict[str, Any], share: float) -> None:
    task = make(**knobs)
    assert task.baselines() == {"chance": 1 / task.n_words, "bigram": pytest.approx(share, abs=0.003)}


def test_no_depth_is_easier_by_the_last_word() -> None:
    task = make(n_depths=3)
    for part in task.parts().values():
        assert part.baselines()["bigram"] == pytest.approx(task.baselines()["bigram"], abs=0.006)


def test_a_mark_leads_to_one_word_without_a_guess() -> None:
    assert make(length_value=1).baselines() == {"chance": 1 / 256}


@pytest.mark.parametrize("n_depths", [2, 5, 11, 101])
def test_parts_are_depths(n_depths: int) -> None:
    task = make(n_depths=n_depths)
    parts = task.parts()
    assert len(parts) == n_depths
    assert next(iter(parts)) == "depth_0.00"
    assert list(parts)[-1] == "depth_1.00"
    for i, part in enumerate(parts.values()):
        for factor in (1, 4):
            longer = part.with_length(64 * factor)
            places = place(longer, draw(longer, 8).inputs)
            n_filler = 64 * factor - 2 * 7
            assert (places == round(i / (n_depths - 1) * n_filler)).all()
    assert not make(n_depths=0).parts()
    assert not make(depth=0.5).parts()
    assert task.depth is None


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"length_key": 0}, r"task\.length_key=0 is too small: needs length_key >= 1"),
        ({"length_value": 0}, r"task\.length_value=0 is too small: needs length_value >= 1"),
        ({"n_words": 2}, r"task\.n_words=2 is too small for task\.length_key=2: needs n_words > length_key"),
        ({"seq_len": 13}, r"seq_len=13 is too short .*: needs seq_len >= 14"),
        ({"filler": "essay"}, r"task\.filler=essay is unknown; choose from: uniform, zipf"),
        ({"depth": 1.5}, r"task\.depth=1\.5 is no share of the filler: needs 0 <= depth <= 1"),
        ({"n_depths": 1}, r"task\.n_depths=1 is impossible: needs n_depths = 0 or 2 <= n_depths <= 101"),
        ({"n_depths": 102}, r"task\.n_depths=102 is impossible"),
    ],
)
def test_knobs_that_do_not_fit(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**knobs)


def test_the_shortest_that_fits() -> None:
    assert draw(make().with_length(14), 4).inputs.shape == (4, 14)
    assert draw(make(is_marked=False).with_length(12), 4).inputs.shape == (4, 12)
    with pytest.raises(ValueError, match=r"seq_len=13 is too short"):
        make().with_length(13)
