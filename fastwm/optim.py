"""The agents' optimisers: LaProp of DreamerV3, and Adam as PlaNet, Dreamer V1 and DreamerV2 had it from Keras."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fastwm.ops import laprop_step_


class LaProp(torch.optim.Optimizer):
    """Clip each tensor's gradient by its parameter's norm, normalise by RMS, then apply momentum.

        g <- g / max(1, |g| / (agc * max(pmin, |p|)))             per tensor, every tensor
        nu <- b2 nu + (1 - b2) g^2;   g' = g / (sqrt(nu / (1 - b2^t)) + eps)
        mu <- b1 mu + (1 - b1) g';    p <- p - lr_t mu / (1 - b1^t)

    `lr_t = lr * min(1, (t - 1) / warmup)`: with a warm-up the first step moves nothing. State is float32.
    With `capturable` the step counter lives on the parameters' device, and `step` can be captured into a CUDA
    graph; the learning rate may then be a float32 tensor `[]` there, to be changed between replays.
    Source: Ziyin et al. 2020 (LaProp), Brock et al. 2021 (AGC, here per tensor), the official DreamerV3 code.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        agc: float = 0.3,
        pmin: float = 1e-3,
        warmup: int = 1000,
        capturable: bool = False,
    ):
        if isinstance(lr, Tensor) and not capturable:
            raise ValueError("LaProp: lr may be a tensor only with capturable=True")
        negative = not isinstance(lr, Tensor) and lr < 0
        if negative or agc < 0 or warmup < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"LaProp: lr={lr}, betas={betas}, agc={agc}, warmup={warmup} are out of range")
        settings = dict(lr=lr, betas=betas, eps=eps, agc=agc, pmin=pmin, warmup=warmup, capturable=capturable)
        super().__init__(params, settings | dict(step=0))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("capturable", False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, apply: Tensor | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Where `apply` is False, a bool [] on their device, weights and state stay as they are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params, apply)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], apply: Tensor | None) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states):
            if not state:
                state.update(nu=torch.zeros_like(p), mu=torch.zeros_like(p))
        if group["capturable"] or apply is not None:
            # A loaded step may be a number, or on the device it was saved from.
            group["step"] = torch.as_tensor(group["step"], device=params[0].device)
        laprop_step_(
            params,
            [p.grad for p in params if p.grad is not None],
            [state["nu"] for state in states],
            [state["mu"] for state in states],
            group["step"],
            group["lr"],
            group["betas"],
            group["eps"],
            group["agc"],
            group["pmin"],
            group["warmup"],
            apply,
        )
        group["step"] += 1 if apply is None else apply


class KerasAdam(torch.optim.Optimizer):
    """Adam in TensorFlow's form, with the clipping and the weight decay of the older agents.

        g <- g * clip / max(clip, |g|)                     |g| over all parameters
        p <- (1 - decay) p                                 every parameter, whatever the learning rate
        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)

    The epsilon is not bias-corrected: at t = 1 `torch.optim.Adam` would need 32 times it for the same step. In groups
    made `capturable` the step counter lives on the parameters' device, and a CUDA graph can hold `step`.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float, clip: float, decay: float = 0.0):
        if min(lr, eps, clip, decay) < 0:
            raise ValueError(f"KerasAdam: lr={lr}, eps={eps}, clip={clip}, decay={decay} must not be negative")
        settings = dict(lr=lr, keras_eps=eps, clip=clip, decay=decay, betas=(0.9, 0.999), steps=0, capturable=False)
        super().__init__(params, settings)

    @property
    def params(self) -> list[Tensor]:
        """All that are trained, of every group."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def backward(self, loss: Tensor, average: Callable[[list[Tensor]], None] | None = None) -> Tensor:
        """Set the gradients of the own parameters alone, the graph kept; returns their norm.

        `average` replaces the gradients by their means over several processes, before anything is made of them.
        """
        grads = torch.autograd.grad(loss, self.params, retain_graph=True, materialize_grads=True)
        for p, grad in zip(self.params, grads):
            p.grad = grad.clone() if 0 in grad.stride() else grad  # an expanded number cannot be clipped in place
        if average is not None:
            average([p.grad for p in self.params if p.grad is not None])
        self.norms = gradient_norms(self.params)
        return torch.linalg.vector_norm(self.norms)

    def minimize(self, loss: Tensor) -> Tensor:
        """One step down the loss; returns the norm of its gradient."""
        norm = self.backward(loss)
        self.step()
        return norm

    @torch.no_grad()
    def step(self, closure: None = None, *, apply: Tensor | None = None) -> None:  # type: ignore[override]
        """Clip, decay, and move every parameter that has a gradient.

        Where `apply` is False, a bool [] on their device, weights and state stay as they are.
        """
        params = [p for p in self.params if p.grad is not None]
        if not params:
            return
        if apply is not None:
            for p in params:
                p.grad.masked_fill_(~apply, 0)  # type: ignore[union-attr]
        norm = torch.linalg.vector_norm(gradient_norms(params))
        for group in self.param_groups:
            own = [p for p in group["params"] if p.requires_grad and p.grad is not None]
            if own:
                self._update(group, own, norm, apply)

    def _update(self, group: dict[str, Any], params: list[Tensor], norm: Tensor, apply: Tensor | None) -> None:
        def unless_held(factor: Any, held: float) -> Any:
            return factor if apply is None else torch.where(apply, factor, held)

        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_mul_(grads, group["clip"] / norm.clamp(min=group["clip"]))
        if group["decay"]:
            torch._foreach_mul_(params, unless_held(1 - group["decay"], 1.0))
        for p in params:
            if not self.state[p]:
                self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        means, squares = ([self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq"))
        (b1, b2), t = group["betas"], group["steps"]
        if group["capturable"] or apply is not None:
            # A loaded counter may be a number, or on the device it was saved from.
            t = group["steps"] = torch.as_tensor(t, dtype=torch.float64, device=params[0].device)
        t += 1 if apply is None else apply
        group["steps"] = t
        torch._foreach_mul_(means, unless_held(b1, 1.0))
        torch._foreach_add_(means, grads, alpha=1 - b1)
        torch._foreach_mul_(squares, unless_held(b2, 1.0))
        torch._foreach_addcmul_(squares, grads, grads, 1 - b2)
        rate = unless_held(-group["lr"] * (1 - b2**t) ** 0.5 / (1 - b1**t), 0.0)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["keras_eps"])
        moves = torch._foreach_div(means, roots)
        torch._foreach_mul_(moves, rate.to(params[0].dtype) if isinstance(rate, Tensor) else rate)
        torch._foreach_add_(params, moves)


def gradient_norms(params: Iterable[Tensor]) -> Tensor:
    """The norm of each gradient that there is [P]."""
    return torch.stack(torch._foreach_norm([p.grad for p in params if p.grad is not None]))
