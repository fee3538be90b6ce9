"""Wrapper for any layer of flash-linear-attention, for architectures without an implementation here."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from arch_bench.mixers.base import Card, Mixer, State, count_flops
from arch_bench.ops.fused import TRIAL, missing, refusal
from arch_bench.ops.kernel import Unsupported

OURS = {"hidden_size", "d_model", "layer_idx"}
"""Arguments of the layers that `options` may not set: the block sets them."""
TRIAL_PROMPT, TRIAL_STEPS = 3, 5
"""Number of tokens in the decoding trial."""
ALLOWED = 5e-2
"""Relative error of its steps above which a layer does not decode: rounding in bf16 stays below."""


class FlaLayer(Mixer):
    """`fla.layers.<layer>(hidden_size=d_model, num_heads=n_heads, layer_idx=0, **options)`, initialised as it is there.

    n_heads is passed to layers that take num_heads. For a layer's function and cost see its file in
    flash-linear-attention; `kernel=auto` is the only kernel, so there is no reference to check it, as the gate reports.

    State: the tensors that the layer writes into fla's cache. A layer decodes if these have a fixed size, start from
    zeros, and its steps equal its forward pass, which a trial decides: layers that keep keys and values, or read their
    position from the host, do not.

    Raises ValueError if the layer is unknown, does not take an option, or refuses the sizes; Unsupported where it
    cannot run.
    """

    card = Card("library", "as the layer's", "as the layer's", "as the layer's", "flash-linear-attention")
    kernels = MappingProxyType({"fla": None})
    step_kernel = "fla"
    counts_all_flops: ClassVar[bool] = False

    def __init__(self, *, d_model: int, layer: str, n_heads: int, options: dict[str, Any] | None, kernel: str) -> None:
        super().__init__()
        self.name, self.d_model = f"fla.layers.{layer}", d_model
        device = torch.get_default_device()
        is_counted = device.type == "meta"  # on the meta device, only to list its parameters
        if kernel == "reference" and not is_counted:
            raise Unsupported(f"kernel=reference: {self.name} has none here")
        if obstacle := not_installed() or (None if is_counted else missing(device, "fla")):
            raise Unsupported(f"{self.name} {obstacle}")
        self.choose("auto" if kernel == "reference" else kernel, self.kernels)
        self.layer = _build(_class(layer), self.name, d_model, n_heads, options or {})
        if not is_counted and (obstacle := self._refusal()):
            raise Unsupported(f"{self.name}: {obstacle}")
        self._no_decoding: dict[bool, str] = {}  # depends on its mode: some layers decode in evaluation only

    def _refusal(self) -> str | None:
        """Return why it cannot train here, by trial: some dtypes and widths are refused."""
        x = torch.full((*TRIAL, self.d_model), self.d_model**-0.5)
        return refusal("fla", self.forward, (x,))

    def forward(self, x: Tensor) -> Tensor:
        return _call(self.layer, x)

    def flops_per_token(self, seq_len: int) -> float:
        """Count the projections only: layers do not report the cost of their state, hence `counts_all_flops`."""
        return count_flops(*(p for p in self.parameters() if p.dim() == 2))

    def init_state(self, batch_size: int, max_len: int, position: int = 0) -> State:
        if self.training not in self._no_decoding:
            self._no_decoding[self.training] = self._decode_refusal()
        if why := self._no_decoding[self.training]:
            raise Unsupported(f"{self.name} {why}")
        return tuple(torch.zeros_like(leaf) for leaf in _leaves(self._after_one_token(batch_size)))

    def prefill(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        cache = _cache()
        y = _call(self.layer, x, past_key_values=cache, use_cache=True)
        for kept, new in zip(state, _leaves(cache[0]), strict=True):
            kept.copy_(new)
        return y, state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        cache = _cache(_filled(self._form, iter(state)))
        y = _call(self.layer, x_t.unsqueeze(1), past_key_values=cache, use_cache=True)
        return y[:, 0], tuple(new.to(old.dtype) for old, new in zip(state, _leaves(cache[0]), strict=True))

    @torch.no_grad()
    def _after_one_token(self, batch_size: int) -> Any:
        """Return the content of the cache after one token."""
        cache, weight = _cache(), next(self.parameters())
        x = weight.new_zeros(batch_size, 1, self.d_model)
        _call(self.layer, x, past_key_values=cache, use_cache=True)
        return cache[0]

    @torch.no_grad()
    def _decode_refusal(self) -> str:
        """Return why it does not decode, or an empty result."""
        if "past_key_values" not in inspect.signature(self.layer.forward).parameters:
            return "takes no cache: it has no state to decode from"
        try:
            return self._tried_to_decode()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # from a layer's assertions or from Triton: they share no class
            return f"cannot decode here ({_said(error)})"

    def _tried_to_decode(self) -> str:
        self._form = self._after_one_token(1)
        state = tuple(torch.zeros_like(leaf) for leaf in _leaves(self._form))
        if not state:
            return "writes nothing into its cache: it has no state to decode from"
        if self._form["attn_state"] is not None:
            return "keeps keys and values in a cache that grows by copying: it does not decode here"
        return self._decode_error(state)

    def _decode_error(self, state: State) -> str:
        """Try its steps and return what is wrong with them, if anything."""
        weight = next(self.parameters())
        rng = torch.Generator(weight.device).manual_seed(0)
        shape = (1, TRIAL_PROMPT + TRIAL_STEPS, self.d_model)
        x = torch.randn(shape, generator=rng, device=weight.device, dtype=weight.dtype)
        y, state = self.prefill(x[:, :TRIAL_PROMPT], state)
        found = [y]
        for x_t in x[:, TRIAL_PROMPT:].unbind(1):
            y_t, state = self.step(x_t, state)
            found.append(y_t.unsqueeze(1))
        expected = self(x)
        error = ((torch.cat(found, 1) - expected).norm() / expected.norm()).item()
        return "" if error <= ALLOWED else f"is {error:.2g} off its forward pass when it decodes; allowed is {ALLOWED}"


def not_installed() -> str | None:
    """Return what to install, or None. Reads the package's metadata: finding fla.layers would import all of it."""
    try:
        distribution("flash-linear-attention")
    except PackageNotFoundError:
        return "needs flash-linear-attention: pip install flash-linear-attention"
    return None


def _class(layer: str) -> type[nn.Module]:
    """Return the layer's class. Raises ValueError with the library's layers if it has none of this name."""
    layers = importlib.import_module("fla.layers")
    names = [name for name in layers.__all__ if not name.startswith("YOCO")]  # parts that share keys with each other
    if layer not in names:
        raise ValueError(f"layer={layer} is unknown; choose from: {', '.join(names)}")
    found: type[nn.Module] = getattr(layers, layer)
    return found


def _build(wanted: type[nn.Module], name: str, d_model: int, n_heads: int, options: dict[str, Any]) -> nn.Module:
    takes = inspect.signature(wanted).parameters
    free = [key for key, it in takes.items() if key not in OURS and it.kind is not it.VAR_KEYWORD]
    for key in options:
        if key not in free:
            raise ValueError(f"options.{key} is nothing that {name} takes; choose from: {', '.join(free)}")
    ours = {"hidden_size": d_model, "num_heads": n_heads, "layer_idx": 0}
    try:
        return wanted(**{key: value for key, value in ours.items() if key in takes} | options)
    except ImportError as error:
        raise Unsupported(f"{name}: {_said(error)}") from error
    except (AssertionError, ValueError, ZeroDivisionError) as error:
        sizes = f"d_model={d_model}, n_heads={n_heads}, options={options}"
        raise ValueError(f"{name} refuses {sizes} ({_said(error)})") from error


def _said(error: Exception) -> str:
    """Shorten an error to one line."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


@torch.compiler.disable
def _call(layer: nn.Module, x: Tensor, **cache: Any) -> Tensor:
    """Call the layer and drop its further outputs: most layers return several."""
    found = layer(x, **cache)
    y: Tensor = found[0] if isinstance(found, tuple) else found
    return y


def _cache(state: dict[str, Any] | None = None) -> Any:
    """Build fla's cache of one layer, empty or with this state. Its token count is not kept: a graph could not."""
    cache = importlib.import_module("fla.models.utils").Cache
    return cache() if state is None else cache.from_legacy_cache((state,), seen_tokens=1)


def _leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a layer's cache: nested dicts, tuples and lists, which may hold None."""
    if isinstance(tree, Tensor):
        yield tree
    for item in _items(tree):
        yield from _leaves(item)


def _filled(form: Any, leaves: Iterator[Tensor]) -> Any:
    """Return the same structure with other tensors."""
    if isinstance(form, Tensor):
        return next(leaves)
    if isinstance(form, dict):
        return {key: _filled(item, leaves) for key, item in form.items()}
    return type(form)(_filled(item, leaves) for item in form) if isinstance(form, tuple | list) else form


def _items(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return list(tree.values())
    return list(tree) if isinstance(tree, tuple | list) else []
