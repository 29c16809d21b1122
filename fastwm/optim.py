"""LaProp with adaptive gradient clipping, DreamerV3's optimiser."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LaProp(torch.optim.Optimizer):
    """Clip each tensor's gradient by its parameter's norm, normalise by RMS, then apply momentum.

        g <- g / max(1, |g| / (agc * max(pmin, |p|)))             per tensor, every tensor
        nu <- b2 nu + (1 - b2) g^2;   g' = g / (sqrt(nu / (1 - b2^t)) + eps)
        mu <- b1 mu + (1 - b1) g';    p <- p - lr_t mu / (1 - b1^t)

    `lr_t = lr * min(1, (t - 1) / warmup)`: with a warm-up the first step moves nothing. State is float32.
    Source: Ziyin et al. 2020 (LaProp), Brock et al. 2021 (AGC, here per tensor), the official DreamerV3 code.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        agc: float = 0.3,
        pmin: float = 1e-3,
        warmup: int = 1000,
    ):
        if lr < 0 or agc < 0 or warmup < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"LaProp: lr={lr}, betas={betas}, agc={agc}, warmup={warmup} are out of range")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, agc=agc, pmin=pmin, warmup=warmup, step=0))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"nu": torch.zeros_like(p), "mu": torch.zeros_like(p)}
        nu = [self.state[p]["nu"] for p in params]
        mu = [self.state[p]["mu"] for p in params]
        beta1, beta2 = group["betas"]
        lr = group["lr"] * (min(1.0, group["step"] / group["warmup"]) if group["warmup"] else 1.0)
        group["step"] += 1
        grads = self._clip(group, params, [p.grad for p in params if p.grad is not None])
        torch._foreach_mul_(nu, beta2)
        torch._foreach_addcmul_(nu, grads, grads, 1 - beta2)
        rms = torch._foreach_sqrt(torch._foreach_div(nu, 1 - beta2 ** group["step"]))
        torch._foreach_add_(rms, group["eps"])
        torch._foreach_lerp_(mu, torch._foreach_div(grads, rms), 1 - beta1)
        torch._foreach_add_(params, mu, alpha=-lr / (1 - beta1 ** group["step"]))

    @staticmethod
    def _clip(group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        if not group["agc"]:
            return grads
        limit = torch.stack(torch._foreach_norm(params)).clamp(min=group["pmin"]) * group["agc"]
        excess = (torch.stack(torch._foreach_norm(grads)) / limit).clamp(min=1)
        return list(torch._foreach_div(grads, list(excess.unbind())))
