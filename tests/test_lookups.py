"""tasks/lookups.py: the questions token by token, that each has one answer, and that all places are asked alike."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from test_strings import spell

from tasks.base import Batch, stream
from tasks.lookups import PrefixLookup, SuffixLookup, draw_others, only_at

CPU = torch.device("cpu")
kinds = pytest.mark.parametrize("kind", [PrefixLookup, SuffixLookup])


def make(kind: type[SuffixLookup] = SuffixLookup, **knobs: Any) -> SuffixLookup:
    defaults = {"seq_len": 64, "min_length": 8, "n_letters": 26, "n_gram": 2, "length_answer": 4}
    return kind(**defaults | knobs)


def draw(task: SuffixLookup, n: int) -> Batch:
    return task.sample(n, stream(0, "train", 0, CPU), CPU)


def read(task: SuffixLookup, text: str) -> tuple[str, str, str, str]:
    """Pads, key, string and what follows the prompt, of either variant."""
    pads, _, text = text.partition("$")
    if isinstance(task, PrefixLookup):
        key, string, rest = text.split("|")
        return pads, key, string, rest
    string, _, text = text.partition("|")
    return pads, text[: task.n_gram], string, text[task.n_gram :]


@kinds
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"n_letters": 3},  # most n-grams of random letters repeat, and overlap themselves
        {"n_letters": 4, "n_gram": 3, "length_answer": 1, "min_length": 4},
        {"n_letters": 2, "n_gram": 1, "length_answer": 1, "min_length": 2, "seq_len": 20},
        {"n_letters": 5, "min_length": 6, "seq_len": 15},  # one string fits, at one place
    ],
)
def test_every_question_has_one_answer_and_it_is_the_target(kind: type[SuffixLookup], knobs: dict[str, int]) -> None:
    task = make(kind, **knobs)
    inputs, targets = draw(task, 400)
    lengths = set()
    for tokens, wanted in zip(inputs, targets, strict=True):
        pads, key, string, rest = read(task, spell(tokens, task.n_letters))
        starts = [i for i in range(len(string)) if string.startswith(key, i)]
        assert len(starts) == 1, "the key is unique in the string, overlaps included"
        behind = starts[0] + task.n_gram
        answer = string[behind : behind + task.length_answer]
        assert rest == answer
        assert spell(wanted, task.n_letters) == "-" * (task.n_prompt - 1) + answer + "."
        assert len(answer) == task.length_answer
        assert set(pads) <= {"*"}
        lengths.add(len(string))
    frame = 2 + task.n_gram + task.length_answer + (kind is PrefixLookup)
    assert lengths == set(range(task.min_length, task.seq_len - frame + 1))
    assert task.max_scored == task.length_answer + 1


@pytest.mark.parametrize(
    ("kind", "row", "wanted"),
    [(SuffixLookup, "*$badc|adc", "--------c."), (PrefixLookup, "$ad|badc|c", "--------c.")],
)
def test_the_examples_of_the_docstrings(kind: type[SuffixLookup], row: str, wanted: str) -> None:
    task = make(kind, seq_len=10, n_letters=4, length_answer=1, min_length=3)
    inputs, targets = draw(task, 20_000)
    assert (row, wanted) in {(spell(i, 4), spell(t, 4)) for i, t in zip(inputs, targets, strict=True)}
    for text in (row, wanted):
        assert text in (kind.__doc__ or "").replace(" ", "")


def test_random_strings_would_ask_ambiguous_questions() -> None:
    """The trap: keys drawn from i.i.d. strings. At 300 letters about a third of them occur twice or more."""
    letters = torch.randint(26, (2000, 300), generator=stream(0, "train", 0, CPU))
    bigrams = letters[:, :-1] * 26 + letters[:, 1:]
    repeated = (bigrams == bigrams[:, 150:151]).sum(dim=1) > 1
    assert 0.3 < repeated.float().mean() < 0.4
    kept = only_at(letters, torch.full((2000, 1), 150), 2, 26, stream(1, "train", 0, CPU))
    bigrams = kept[:, :-1] * 26 + kept[:, 1:]
    assert ((bigrams == bigrams[:, 150:151]).sum(dim=1) == 1).all()
    assert ((kept != letters).sum(dim=1) > 0).float().mean() == repeated.float().mean(), "no more than needed"


@kinds
def test_all_places_are_asked_alike(kind: type[SuffixLookup]) -> None:
    task = make(kind, n_letters=4).with_length(30)
    inputs, targets = draw(task, 12_000)
    letters = inputs[:, task.n_head : task.n_head + task.longest]
    answer = torch.cat((task._key(inputs, torch.zeros(12_000, 1, dtype=torch.long)), targets[:, -5:-1]), dim=1)
    starts = (letters.unfold(1, 6, 1) == answer.unsqueeze(1)).all(dim=2)
    assert (starts.sum(dim=1) == 1).all()
    counts = starts.sum(dim=0).double()
    assert len(counts) == task.longest - 5
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    assert abs(chi_square - (len(counts) - 1)) < 4 * (2 * (len(counts) - 1)) ** 0.5


def test_others_are_uniform_over_all_tokens_but_the_excluded() -> None:
    excluded = torch.tensor([[3, 3, 0], [5, 1, 2], [4, 4, 4]])
    drawn = draw_others(excluded, 20_000, 6, stream(0, "train", 0, CPU))
    for row, tokens in zip(excluded.tolist(), drawn, strict=True):
        counts = torch.bincount(tokens, minlength=6).double()
        left = [t for t in range(6) if t not in row]
        assert len(counts) == 6
        assert counts[row].sum() == 0
        expected = 20_000 / len(left)
        assert ((counts[left] - expected).abs() < 4 * expected**0.5).all()


@kinds
def test_a_test_has_strings_as_long_as_fit_and_the_same_question(kind: type[SuffixLookup]) -> None:
    longer = make(kind).with_length(200)
    inputs, targets = draw(longer, 100)
    assert (inputs != longer.pad).all()
    assert (targets[:, -1] == longer.end).all()
    for task in (longer, make(kind)):
        chance, length = (task.baselines()[name] for name in ("chance", "length"))
        assert (chance, length) == (1 / 27, pytest.approx((4 / 26 + 1) / 5))
    assert make(kind).with_length(15).longest == 15 - 8 - (kind is PrefixLookup)
    with pytest.raises(ValueError, match=r"seq_len=13 is too short .* needs seq_len >= 1[45]"):
        longer.with_length(13)


@kinds
@pytest.mark.parametrize("knobs", [{}, {"n_letters": 4}, {"n_gram": 1, "length_answer": 2}])
def test_the_last_letter_alone_tells_much_of_the_answer(kind: type[SuffixLookup], knobs: dict[str, int]) -> None:
    """The trap of a teacher-forced answer: in a short string few letters follow a given one."""
    task = make(kind, **knobs)
    inputs, targets = draw(task, 500)
    first = task.n_prompt - 1
    guess = task.guess("bigram", inputs).gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)[:, first:]
    for tokens, wanted, found in zip(inputs, targets, guess.tolist(), strict=True):
        _, key, string, _ = read(task, spell(tokens, task.n_letters))
        answer = spell(wanted[first:-1], task.n_letters)
        last = ("" if kind is PrefixLookup else key[-1], *answer[:-1])
        assert found == pytest.approx(
            [follows(string, *pair, task.n_letters) for pair in zip(last, answer, strict=True)] + [1]
        )
    assert task.baselines()["bigram"] == pytest.approx(guess.mean().item(), abs=0.02)


def follows(string: str, letter: str, target: str, n_letters: int) -> float:
    after = [b for a, b in itertools.pairwise(string) if a == letter]
    return after.count(target) / len(after) if after else 1 / n_letters


@pytest.mark.parametrize(
    ("seq_len", "suffix", "prefix"), [(64, 0.554, 0.474), (128, 0.398, 0.357), (300, 0.300, 0.283)]
)
def test_what_the_last_letter_alone_scores_in_a_test(seq_len: int, suffix: float, prefix: float) -> None:
    for kind, share in {SuffixLookup: suffix, PrefixLookup: prefix}.items():
        assert make(kind).with_length(seq_len).baselines()["bigram"] == pytest.approx(share, abs=0.003)


def test_one_letter_behind_a_bar_follows_no_letter() -> None:
    assert set(make(PrefixLookup, length_answer=1).baselines()) == {"chance", "length"}
    assert set(make(SuffixLookup, length_answer=1).baselines()) == {"chance", "length", "bigram"}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n_gram": 0}, r"task\.n_gram=0 is too small: needs n_gram >= 1"),
        ({"length_answer": 0}, r"task\.length_answer=0 is too small: needs length_answer >= 1"),
        ({"n_letters": 2}, r"task\.n_letters=2 is too small for task\.n_gram=2: needs n_letters > n_gram"),
        ({"min_length": 5}, r"task\.min_length=5 is too small: needs min_length >= 6"),
        ({"seq_len": 15}, r"seq_len=15 is too short for task\.min_length=8 .*: needs seq_len >= 16"),
    ],
)
def test_knobs_that_do_not_fit(knobs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**knobs)
