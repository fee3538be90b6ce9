"""Mixers of ours beside the layers of flash-linear-attention that compute the same, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from arch_bench.mixers.base import Mixer
from arch_bench.mixers.delta import DeltaNet, GatedDeltaNet
from arch_bench.mixers.gated_linear_attention import GLA, RetNet

Pair = tuple[Mixer, nn.Module]
D, HEADS = 64, 2


def _filled(layer: nn.Module, ours: dict[str, torch.Tensor]) -> nn.Module:
    """Every parameter of the layer, and no other. Raises where one is missing or has another shape."""
    layer.load_state_dict({key: weight.detach().clone() for key, weight in ours.items()}, strict=True)
    return layer


def _shared(mixer: Any) -> dict[str, torch.Tensor]:
    q, k, v = mixer.qkv.weight.split(mixer._widths)
    return {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": mixer.out.weight}


def gla(layers: Any) -> Pair:
    mixer = GLA(d_model=D, n_heads=HEADS, expand_k=0.5, expand_v=1.0, d_gate=16, kernel="chunked")
    layer = layers.GatedLinearAttention(hidden_size=D, num_heads=HEADS, expand_k=0.5, expand_v=1.0, layer_idx=0)
    weights = {"g_proj.weight": mixer.gate.weight, "g_norm_swish_gate.weight": mixer.norm.weight}
    weights |= {f"gk_proj.{key}": weight for key, weight in mixer.decay_proj.named_parameters()}
    return mixer, _filled(layer, _shared(mixer) | weights)


def retention(layers: Any) -> Pair:
    """The layer's norm has weights unless it is told otherwise, torchscale's and ours have none."""
    mixer = RetNet(d_model=D, n_heads=HEADS, expand=2, kernel="chunked")
    norm = {"fuse_norm": False, "elementwise_affine": False, "norm_eps": mixer.norm.eps}
    layer = layers.MultiScaleRetention(hidden_size=D, num_heads=HEADS, expand_v=2, layer_idx=0, **norm)
    buffers = {key: value for key, value in layer.state_dict().items() if key.startswith("rotary.")}
    return mixer, _filled(layer, _shared(mixer) | {"g_proj.weight": mixer.gate.weight} | buffers)


def _convolved(mixer: Any, layer: Any, weights: dict[str, torch.Tensor]) -> Pair:
    taps = mixer.conv1d.weight.split(mixer._widths)
    weights |= {f"{name}_conv1d.weight": weight for name, weight in zip("qkv", taps, strict=True)}
    weights |= {"b_proj.weight": mixer.beta.weight, "o_norm.weight": mixer.norm.weight}
    assert layer.o_norm.eps == mixer.norm.eps
    return mixer, _filled(layer, _shared(mixer) | weights)


def delta_net(layers: Any) -> Pair:
    mixer = DeltaNet(d_model=D, n_heads=HEADS, d_conv=4, negative_eigenvalues=False, kernel="chunked")
    return _convolved(mixer, layers.DeltaNet(hidden_size=D, num_heads=HEADS, layer_idx=0), {})


def gated_delta_net(layers: Any) -> Pair:
    sizes: Any = {"expand_k": 0.75, "expand_v": 1.5, "d_conv": 4}
    mixer = GatedDeltaNet(d_model=D, n_heads=HEADS, negative_eigenvalues=False, kernel="chunked", **sizes)
    layer = layers.GatedDeltaNet(hidden_size=D, num_heads=HEADS, head_dim=24, expand_v=2, layer_idx=0)
    weights = {"g_proj.weight": mixer.gate.weight, "a_proj.weight": mixer.dt.weight}
    return _convolved(mixer, layer, weights | {"A_log": mixer.A_log, "dt_bias": mixer.dt_bias})


PAIRS: dict[str, Callable[[Any], Pair]] = {
    "GatedLinearAttention": gla,
    "MultiScaleRetention": retention,
    "DeltaNet": delta_net,
    "GatedDeltaNet": gated_delta_net,
}
"""By the name of the layer; the argument is the module `fla.layers`."""
