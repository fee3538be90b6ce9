"""tasks/mixture.py: who is drawn how often, padding, and what is reported apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_tasks import make, write_corpus

from tasks.base import IGNORE, Task, stream
from tasks.copying import CopyMemory
from tasks.mixture import Component, Mixture
from tasks.recall import MQAR
from tasks.strings import Reverse, Sort, StringCopy

CPU = torch.device("cpu")


def mixture(**weights: float) -> Mixture:
    short = CopyMemory(seq_len=16, n_data=2, n_symbols=4)
    long = CopyMemory(seq_len=16, n_data=5, n_symbols=8)
    chosen = {"short": Component(weights.get("short", 3.0), 0.5, short), "long": Component(1.0, 1.0, long)}
    return Mixture(seq_len=16, components=chosen)


def test_components_are_drawn_by_weight_and_padded() -> None:
    inputs, targets = mixture().sample(8000, stream(0, "train", 0, CPU), CPU)
    is_short = (targets != IGNORE).sum(1) == 2
    assert is_short.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert (inputs[is_short, 8:] == 0).all()
    assert (targets[is_short][:, 6:8] != IGNORE).all(), "its last positions, half way"
    assert (targets[is_short][:, 8:] == IGNORE).all()


def test_parts_are_its_components() -> None:
    task = mixture()
    assert task.vocab_size == 10
    for name, n_scored in {"short": 2, "long": 5}.items():
        part = task.parts()[name]
        inputs, targets = part.sample(50, stream(0, "test", 0, CPU), CPU)
        assert inputs.shape == (50, 16)
        assert ((targets != IGNORE).sum(1) == n_scored).all()


def test_a_longer_mixture_keeps_the_shares() -> None:
    longer = mixture().with_length(40)
    _, targets = longer.parts()["short"].sample(3, stream(0, "test", 0, CPU), CPU)
    assert (targets[:, 18:20] != IGNORE).all()
    assert mixture().seq_len == 16


def test_guessing_is_weighted_by_what_is_scored() -> None:
    assert mixture().baselines() == {"chance": pytest.approx((3 * 2 / 4 + 1 * 5 / 8) / (3 * 2 + 5))}


def test_impossible_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="components is empty"):
        Mixture(seq_len=8, components={})
    with pytest.raises(ValueError, match=r"short.weight=0.0 is too small"):
        mixture(short=0.0)
    task = MQAR(seq_len=16, n_pairs=4, vocab_size=32, power_a=1.0, filler="zero")
    with pytest.raises(ValueError, match=r"a.share=1.5 does not fit"):
        Mixture(seq_len=16, components={"a": Component(1.0, 1.5, task)})
    with pytest.raises(ValueError, match=r"seq_len=8 is too short for task.n_pairs=4"):
        Mixture(seq_len=16, components={"a": Component(1.0, 0.5, task)})


@pytest.mark.parametrize("kind", [StringCopy, Reverse, Sort])
def test_strings_are_of_all_lengths_in_training_and_the_longest_in_a_test(kind: type[StringCopy]) -> None:
    strings = kind(seq_len=32, min_length=3, n_letters=26)
    whole = Mixture(seq_len=64, components={"half": Component(1.0, 0.5, strings), "all": Component(1.0, 1.0, strings)})
    for name, room in {"half": 32, "all": 64}.items():
        part, longest = whole.parts()[name], (room - 2) // 2
        assert n_letters(part) == set(range(3, longest + 1))
        assert n_letters(whole.resized(32).parts()[name]) == set(range(3, (room // 2 - 2) // 2 + 1))
        assert n_letters(whole.with_length(64).parts()[name]) == {longest}
        assert n_letters(whole.with_length(256).parts()[name]) == {2 * room - 1}
    assert n_letters(whole) == set(range(3, 32)), "none was changed"


def n_letters(task: Task) -> set[int]:
    """Letters of the answers, without the end token."""
    _, targets = task.sample(4000, stream(0, "train", 0, CPU), CPU)
    return set(((targets != IGNORE).sum(1) - 1).tolist())


def test_a_component_that_has_its_length_is_left_as_it_is() -> None:
    longest = StringCopy(seq_len=16, min_length=3, n_letters=26).with_length(32)
    assert n_letters(Mixture(seq_len=32, components={"strings": Component(1.0, 1.0, longest)})) == {15}


def test_mixtures_of_mixtures_are_fitted_too() -> None:
    strings = StringCopy(seq_len=32, min_length=3, n_letters=26)
    inner = Mixture(seq_len=32, components={"strings": Component(1.0, 1.0, strings)})
    outer = Mixture(seq_len=16, components={"inner": Component(1.0, 1.0, inner)})
    assert n_letters(outer) == set(range(3, 8))
    assert n_letters(outer.with_length(64)) == {31}
    assert n_letters(inner) == set(range(3, 16))
    assert outer.mean_scored == 6.0


def test_guessing_counts_the_mean_length_of_strings() -> None:
    parts = {
        "short": Component(1.0, 0.25, StringCopy(seq_len=64, min_length=3, n_letters=4)),
        "long": Component(1.0, 1.0, Reverse(seq_len=64, min_length=3, n_letters=26)),
    }
    whole = Mixture(seq_len=64, components=parts)
    scored = {
        name: (part.sample(4000, stream(0, "test", 0, CPU), CPU).targets != IGNORE).sum().item() / 4000
        for name, part in whole.parts().items()
    }
    for name, part in whole.parts().items():
        assert part.mean_scored == pytest.approx(scored[name], rel=0.03)
    expected = sum(scored[name] * part.baselines()["length"] for name, part in whole.parts().items())
    assert whole.baselines()["length"] == pytest.approx(expected / sum(scored.values()), rel=0.01)


def test_a_split_is_kept(tmp_path: Path) -> None:
    """Splits of a corpus are ranges of its text."""
    write_corpus(tmp_path / "corpus")
    text = make("text", tmp_path, seq_len=16)

    def mixed(seq_len: int, text: Task) -> Mixture:
        return Mixture(seq_len=seq_len, components={"text": Component(1.0, 0.5, text)})

    def drawn(task: Task) -> torch.Tensor:
        return task.sample(20, stream(0, "test", 0, CPU), CPU).inputs

    whole, tested = mixed(32, text).for_split("test"), text.for_split("test")
    longer = whole.with_length(64)
    for task in (whole, longer, whole.parts()["text"], longer.parts()["text"]):
        assert torch.equal(drawn(task), drawn(mixed(task.seq_len, tested)))
        assert not torch.equal(drawn(task), drawn(mixed(task.seq_len, text)))
    assert torch.equal(drawn(whole.resized(64)), drawn(longer))
