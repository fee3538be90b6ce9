"""Whole models as people start them, against the rules in their authors' code; the source stands beside each value."""

from __future__ import annotations

import pytest
import torch
from models import depth
from torch import Tensor

from arch_bench.backbone import Backbone
from arch_bench.config.instantiate import build
from arch_bench.config.schema import cell_of, compose
from arch_bench.train.step import TrainStep, list_scored
from tasks.base import stream

D, LAYERS = 64, 4


def backbone(name: str, *overrides: str) -> Backbone:
    torch.manual_seed(0)
    given = [f"backbone={name}", f"d_model={D}", "seq_len=64", depth(name, LAYERS), *overrides]
    return build(cell_of(compose(given)), "backbone", vocab_size=512)


def bound(weight: Tensor) -> float:
    """That of a uniform distribution of the same spread, which PyTorch starts linear maps with at fan_in^-1/2."""
    limit: float = weight.abs().max().item()
    assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.03)
    return limit


@pytest.mark.parametrize("mlp", ["none", "gelu", "swiglu"])
@pytest.mark.parametrize("name", ["mamba", "mamba2", "mamba3", "samba", "jamba"])
def test_what_mamba_adds_to_the_residual_stream_starts_smaller_the_deeper_it_is(name: str, mlp: str) -> None:
    """mamba_ssm, mixer_seq_simple.py, `_init_weights`: fan_in^-1/2 over the root of the sums, 1 or 2 to a layer."""
    model = backbone(name, f"backbone.mlp={mlp}")
    n_layers = len(model._stack)
    n_sums = n_layers if mlp == "none" else 2 * n_layers
    found = {
        key: p for key, p in model.named_parameters() if key.endswith(("out.weight", "out_proj.weight", "down.weight"))
    }
    assert len(found) == n_sums
    for key, weight in found.items():
        assert bound(weight) == pytest.approx((weight.shape[1] * n_sums) ** -0.5, rel=0.01), key
    for key, bias in model.named_parameters():
        assert not (".mlp." in key and key.endswith(".bias") and bias.any()), key


@pytest.mark.parametrize("overrides", [["backbone.norm_at=post"], []])
def test_others_and_post_norms_are_not_damped(overrides: list[str]) -> None:
    for block in backbone("mamba" if overrides else "transformer", *overrides)._stack:
        weights = [
            p for key, p in block.named_parameters() if key.endswith(("out.weight", "out_proj.weight", "down.weight"))
        ]
        assert len(weights) == 2
        assert all(bound(p) == pytest.approx(p.shape[1] ** -0.5, rel=0.01) for p in weights)


def embedded(model: Backbone) -> Tensor:
    return model.eval()._embed(torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(1)))


def test_sinusoidal_waves_meet_words_of_their_size() -> None:
    """Vaswani et al. 2017, section 3.4, as in tensor2tensor: words of std 1 beside waves of root mean square 0.71."""
    for name, *overrides in (
        ("encoder_decoder",),
        ("transformer", "backbone.positions=sinusoidal"),
        ("bert", "backbone.positions=sinusoidal"),
    ):
        model = backbone(name, *overrides)
        words = embedded(model) - model.positions(torch.arange(64))  # type: ignore[misc]
        assert words.std().item() == pytest.approx(1, rel=0.03)
        assert model.positions(torch.arange(64)).square().mean().item() == pytest.approx(0.5)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["bert", "llama", "lstm"])
def test_a_post_norm_model_has_a_norm_on_its_embeddings(name: str) -> None:
    """BERT's `embeddings.LayerNorm`: words and positions of std 0.02 each, then of std 1."""
    model = backbone(name, "backbone.norm_at=post")
    assert type(model.embedding_norm) is type(model._stack[0].norm)
    assert embedded(model).std().item() == pytest.approx(1, rel=0.02)  # eps is 1e-5, their variance 4e-4
    assert not [*backbone(name, "backbone.norm_at=pre").embedding_norm.parameters()]
    weights = {id(p) for p in model.stepping()}
    assert all(id(p) in weights for p in model.embedding_norm.parameters())


def test_the_first_attention_of_bert_tells_words_apart() -> None:
    """Scores of 3e-4 without the norm; BERT's own first layer has about 0.1 at its width (std 0.02 d K^-1/2 x 0.02)."""
    model = backbone("bert")
    q, k, _ = model.mixer._project(embedded(model))  # type: ignore[operator]
    assert 0.1 < (q @ k.mT * q.shape[-1] ** -0.5).std() < 1


def test_embeddings_and_untied_heads_start_at_the_scale_of_gpt2() -> None:
    """mamba_ssm's `initializer_range`, GPT-2's and fla's: 0.02."""
    model = backbone("mamba", "backbone.tie_embeddings=false")
    for weight in (model.embedding.weight, model.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)


MQAR = ["task=mqar", "task.vocab_size=64", "task.n_pairs=4", "backbone.d_conv=4"]
LEARNERS = {
    "bert": ["backbone=bert", *MQAR],
    "sinusoidal": ["backbone=transformer", "backbone.positions=sinusoidal", *MQAR],
    **{
        f"encoder_decoder, {norm_at}-norm, {task}": [
            "backbone=encoder_decoder",
            f"backbone.norm_at={norm_at}",
            f"task={task}",
        ]
        for norm_at in ("pre", "post")
        for task in ("string_copy", "reverse")
    },
    "encoder_decoder, pre-norm, mqar": ["backbone=encoder_decoder", "backbone.norm_at=pre", *MQAR],
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", LEARNERS.values(), ids=LEARNERS)
def test_a_small_task_is_solved(overrides: list[str]) -> None:
    """Within 1,000 steps of 64 examples at the default rate; needed were 400 to 700."""
    cell = cell_of(compose([f"d_model={D}", "seq_len=32", "trainer.max_steps=1000", *overrides]))
    cpu = torch.device("cpu")
    task = build(cell, "task")
    torch.manual_seed(0)
    model = build(cell, "backbone", vocab_size=task.vocab_size)
    step = TrainStep(model, cell.optim, max_steps=1000, kind="eager", precision="fp32", loss_kernel="auto")
    test = list_scored(task.sample(256, stream(0, "test", 0, cpu), cpu), task.max_scored)
    assert test.positions is not None
    is_scored = test.targets >= 0
    accuracies = []
    for i in range(1000):
        step(list_scored(task.sample(64, stream(0, "train", i, cpu), cpu), task.max_scored))
        if i % 100 == 99:
            with torch.no_grad():
                hidden = model(test.inputs).gather(1, test.positions.unsqueeze(-1).expand(-1, -1, D))
                is_right = model.head(hidden).argmax(-1) == test.targets
            accuracies.append(is_right[is_scored].float().mean().item())
            if accuracies[-1] > 0.97:
                return
    pytest.fail(f"accuracies after every hundred steps: {accuracies}")
