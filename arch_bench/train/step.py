"""One optimiser step, from a batch on the device to updated parameters: eager, compiled, or one CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from arch_bench.backbone import Backbone
from arch_bench.config.schema import ConfigError, Optim
from arch_bench.ops.linear_cross_entropy import choose_loss_kernel, linear_cross_entropy
from arch_bench.runtime.cuda_graph import capture
from arch_bench.runtime.precision import autocast
from arch_bench.train.optimizer import make_optimizer, rate_factor, set_form
from arch_bench.train.team import SOLO, Team
from tasks.base import IGNORE, Batch

FALLBACKS = {"graph": ("graph", "compiled", "eager"), "compiled": ("compiled", "eager"), "eager": ("eager",)}
"""Ways to run a step, in the order they are tried, by the way requested."""

COMPILER: dict[str, Any] = {"combo_kernels": True}
"""Independent kernels share a launch: a tenth more steps of a small model on an H200, mostly due to AdamW."""


class Scored(NamedTuple):
    """A batch with a list of scored positions, equally many per example: shapes are fixed, so nothing needs counting.

    Any of the tensors may carry leading dimensions, as for a block of several batches.
    """

    inputs: Tensor
    """(batch, seq_len) tokens."""
    positions: Tensor | None
    """(batch, n_scored) scored positions; None when all are scored, in order."""
    targets: Tensor
    """(batch, n_scored) the token, or number, to predict at each of them; `IGNORE` if an example has fewer."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Scored:
        """Return a copy with `change` applied to every tensor."""
        positions = None if self.positions is None else change(self.positions)
        return Scored(change(self.inputs), positions, change(self.targets))


def join(parts: Sequence[Scored]) -> Scored:
    """Concatenate parts of a block along the first dimension."""
    positions = [part.positions for part in parts if part.positions is not None]
    inputs, targets = (torch.cat(found) for found in ([p.inputs for p in parts], [p.targets for p in parts]))
    return Scored(inputs, torch.cat(positions) if positions else None, targets)


def list_scored(batch: Batch, max_scored: int) -> Scored:
    """List the positions with a target, at most `max_scored` an example, without waiting for the device."""
    if max_scored == batch.inputs.shape[-1]:
        return Scored(batch.inputs, None, batch.targets)
    is_scored = batch.targets != IGNORE
    place = torch.where(is_scored, is_scored.cumsum(-1) - 1, max_scored)  # the rest share a slot that is cut off
    shape = (*batch.targets.shape[:-1], max_scored + 1)
    where = torch.arange(batch.targets.shape[-1], device=place.device).expand_as(place)
    positions = place.new_zeros(shape).scatter_(-1, place, where)[..., :max_scored]
    targets = batch.targets.new_full(shape, IGNORE).scatter_(-1, place, batch.targets)[..., :max_scored]
    return Scored(batch.inputs, positions.contiguous(), targets.contiguous())


def scored_hidden(backbone: Callable[[Tensor], Tensor], batch: Scored) -> Tensor:
    """Return the inputs of the head: (batch, n_scored, d_model).

    Gathering before the head keeps a vocabulary of 8,192 affordable when 1 position in 8 is scored.
    """
    hidden = backbone(batch.inputs)
    if batch.positions is None:
        return hidden
    return hidden.gather(1, batch.positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def scored_loss(backbone: Backbone, batch: Scored, *, loss_kernel: str, label_smoothing: float) -> Tensor:
    """Return the mean cross-entropy over scored positions, in nats; for regression, the mean squared error."""
    hidden = scored_hidden(backbone, batch).flatten(0, 1)
    if batch.targets.is_floating_point():
        targets = batch.targets.flatten()
        is_scored = targets != IGNORE
        return ((predicted_number(backbone, hidden) - targets).square() * is_scored).sum() / is_scored.sum()
    return linear_cross_entropy(
        hidden, backbone.head.weight, batch.targets.flatten(), kernel=loss_kernel, label_smoothing=label_smoothing
    )


def predicted_number(backbone: Backbone, hidden: Tensor) -> Tensor:
    """Map (n, d_model) linearly to (n,), in fp32: the head's output for token 0."""
    return (hidden.float() * backbone.head.weight[0]).sum(-1)


def pick_step(name: str, device: torch.device, strategy: str = "single") -> str:
    """Resolve `auto`: graph on CUDA (with shards, compiled), eager elsewhere. Raises ConfigError for a graph without
    CUDA."""
    is_sharded = strategy == "fsdp"
    if name == "auto":
        return ("compiled" if is_sharded else "graph") if device.type == "cuda" else "eager"
    if name == "graph" and is_sharded:  # parameters are gathered and freed block by block
        raise ConfigError("step=graph: not with trainer.strategy=fsdp; choose from: auto, eager, compiled")
    if name == "graph" and device.type != "cuda":
        raise ConfigError(f"step=graph: needs a CUDA device, not {device.type}; choose from: auto, eager, compiled")
    return name


def _nothing() -> None: ...


class TrainStep:
    """A training step on one device or in a team: forward, loss, backward, clipping, AdamW and its schedule.

    Calling it takes one step and never waits for the device. The first call decides how steps run: it tries the
    requested way on its batch, falls back if the backbone cannot be captured or compiled, and restores parameters,
    optimiser and random state.

    Args:
        backbone: the model, on its device, in training mode.
        kind: eager | compiled | graph; a graph is compiled, then captured.
        precision: as for `arch_bench.runtime.precision.autocast`.
        loss_kernel: auto, or a kernel of `arch_bench.ops.linear_cross_entropy`.
        at_part: called before the forward pass, after it, and after the backward pass of every step that is not a
            replay.
        team: the processes that take the step together, each on its part of the batch.

    Raises:
        Unsupported, ValueError: the loss kernel cannot run here, or is unknown.
    """

    def __init__(
        self,
        backbone: Backbone,
        optim: Optim,
        *,
        max_steps: int,
        kind: str,
        precision: str,
        loss_kernel: str,
        at_part: Callable[[], None] = _nothing,
        team: Team = SOLO,
    ) -> None:
        self.backbone = backbone
        self.team = team
        self.kind = kind
        """The way steps run; final after the first step."""
        self.why: str | None = None
        """The reason for a fallback; None if `kind` is the requested way."""
        self.settle_s = 0.0
        """Seconds spent compiling, autotuning and capturing."""
        self.device = backbone.embedding.weight.device
        self.count = torch.zeros((), dtype=torch.long, device=self.device)
        self.rate, self.loss_sum, self.grad_norm = (torch.zeros((), device=self.device) for _ in range(3))
        steps = torch.arange(max_steps, device=self.device)
        self._rates = optim.lr * rate_factor(steps, max_steps, optim)  # a table: one look-up a step, not 15 kernels
        self.team.share(backbone)
        self.optimizer = make_optimizer(backbone, optim, self.rate)
        self._optim, self._precision, self._at_part = optim, precision, at_part
        self.loss_kernel = choose_loss_kernel(
            loss_kernel, backbone.head.out_features, optim.label_smoothing, self.device
        )
        self._options: dict[str, Any] = {"loss_kernel": self.loss_kernel, "label_smoothing": optim.label_smoothing}
        self._loss: Callable[..., Tensor] = scored_loss
        self._update: Callable[[Tensor], None] = self._updated
        self._run: Callable[[Scored], None] | None = None

    def __call__(self, batch: Scored) -> None:
        if self._run is None:
            started = time.perf_counter()
            self._run = self._settle(batch)
            self.settle_s = time.perf_counter() - started
        self._run(batch)

    def resume(self, n_steps: int) -> None:
        """Continue after `n_steps` steps; parameters and optimiser may have been loaded or moved since."""
        self.release()
        self.count.fill_(n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # loading replaced it

    def once_without_graph(self, batch: Scored) -> None:
        """Take one step, kernel by kernel: its allocations are visible, while a graph allocates only once.

        Call `release` first, which frees the graph's allocations.
        """
        self._step(batch)

    def tensors(self) -> list[Tensor]:
        """Return the tensors a step changes: parameters, buffers, optimiser state (none before the first step),
        counters."""
        state = [x for of_one in self.optimizer.state.values() for x in of_one.values() if isinstance(x, Tensor)]
        model = [*self.backbone.parameters(), *self.backbone.buffers()]
        return [*model, *state, self.count, self.rate, self.loss_sum, self.grad_norm]

    def release(self) -> None:
        """Discard the prepared step and the memory of its graph; the next call prepares it anew.

        Required when parameters move: a replay would keep writing to their old addresses. `nn.LSTM` moves its
        parameters even when it is sent to the device it is on.
        """
        self._run = None

    def figures(self, n_steps: int) -> Tensor:
        """Return mean loss of the last `n_steps` steps, last rate and gradient norm, (3,), and reset the loss sum."""
        figures = torch.stack((self.loss_sum / n_steps, self.rate, self.grad_norm))
        self.loss_sum.zero_()
        return figures

    def _step(self, batch: Scored) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._at_part()
        with autocast(self._precision, self.device):
            loss = self._loss(self.backbone, batch, **self._options)
        self._at_part()
        loss, mean_loss = self.team.pool(loss, batch.targets)
        loss.backward()
        self.team.exchange([p.grad for p in self.backbone.parameters() if p.grad is not None])
        self._at_part()
        self._update(mean_loss)

    def _updated(self, loss: Tensor) -> None:
        parameters = [p for p in self.backbone.parameters() if p.grad is not None]
        self.grad_norm.copy_(self.team.norm([p.grad for p in parameters if p.grad is not None]))
        if self._optim.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self._optim.clip_norm, self.grad_norm)
        now = self.count.clamp(max=len(self._rates) - 1)
        self.rate.copy_(self._rates.gather(0, now.view(1)).squeeze(0))  # indexing would read the index back to the host
        self.optimizer.step()
        self.count += 1
        self.loss_sum += loss

    def _settle(self, batch: Scored) -> Callable[[Scored], None]:
        for kind in FALLBACKS[self.kind]:
            self.kind = kind
            before = _Snapshot(self)
            run, obstacle = None, "another rank cannot"
            try:
                run = self._prepare(kind, batch)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, AssertionError) as error:  # raised by dynamo, inductor and CUDA
                obstacle = _first_line(error)
            finally:
                before.restore()
            if self.team.all_well(run is not None) and run is not None:
                return run
            self.why = "; ".join(filter(None, (self.why, f"{kind}: {obstacle}")))
        raise AssertionError("eager has nothing to prepare")

    @functorch.patch(view_replay_for_aliased_outputs=False)  # else torch reads shapes of its cache from freed memory
    def _prepare(self, kind: str, batch: Scored) -> Callable[[Scored], None]:
        self._loss, self._update = scored_loss, self._updated
        set_form(self.optimizer, is_compiled=kind != "eager" and not self.team.is_sharded)
        if kind != "eager":
            torch.compiler.reset()  # else the ninth model of a process would silently run uncompiled
            self._loss = torch.compile(scored_loss, dynamic=False, options=COMPILER)
        if kind != "eager" and not self.team.is_sharded:
            self._update = torch.compile(self._updated, dynamic=False, options=COMPILER)
        if kind == "compiled":
            self._step(batch)
        if kind != "graph":
            return self._step
        static = batch.map(torch.clone)
        replay = capture(lambda: self._step(static))

        def run(batch: Scored) -> None:
            for mine, theirs in zip(static, batch, strict=True):
                if mine is not None and theirs is not None:
                    mine.copy_(theirs)
            replay()

        return run


class _Snapshot:
    """A copy of the tensors a step changes, restored in place because a captured step keeps using the same tensors."""

    def __init__(self, step: TrainStep) -> None:
        self._step = step
        self._cpu_rng = torch.get_rng_state()
        self._cuda_rng = torch.cuda.get_rng_state(step.device) if step.device.type == "cuda" else None
        self._values = {tensor: tensor.detach().clone() for tensor in step.tensors()}

    @torch.no_grad()
    def restore(self) -> None:
        for tensor in self._step.tensors():
            if tensor in self._values:
                tensor.copy_(self._values[tensor])
            else:
                tensor.zero_()  # created since: optimiser state, which starts at zero
        self._step.optimizer.zero_grad(set_to_none=True)
        torch.set_rng_state(self._cpu_rng)
        if self._cuda_rng is not None:
            torch.cuda.set_rng_state(self._cuda_rng, self._step.device)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
