"""Stage 2: V learns to compress frames."""

import time

import numpy as np
import torch

from fastwm.agents.world_models.collect import Frames, open_chunks
from fastwm.agents.world_models.stage import Learner, Stage, Stopped, check_finite
from fastwm.nn.conv_vae import VAELoss

PROBE = 500  # frames whose latents are looked at


class TrainV(Stage):
    """Adam on shuffled frames; an epoch drops the last, incomplete batch."""

    name = "v"

    def restore(self) -> bool:
        v = self.config.v
        if self.iteration and not v.refine_steps:
            return True
        self.learner = Learner(self.agent.vae, v.lr)
        state = self.run.restore(self.learner)
        self.step = state["step"] if state else 0
        self.total: int | None = state["total"] if state else None
        if v.steps or self.iteration:
            self.total = v.refine_steps if self.iteration else v.steps
        return self.total is not None and self.step >= self.total

    def work(self) -> None:
        v = self.config.v
        frames = Frames(open_chunks([folder / "collect" for folder in self.folders]))
        batch = min(v.batch, len(frames))
        per_epoch = len(frames) // batch
        if self.total is None:
            self.total = max(1, round(v.epochs * per_epoch))
        count = sum(p.numel() for p in self.agent.vae.parameters())
        self.run.say(
            f"V: {count:,} parameters; {self.total:,} updates of {batch} frames = {self.total * batch:,} of "
            f"{len(frames):,} frames, {self.total / per_epoch:.2g} epochs; {self.step:,} done"
        )
        start, first = time.monotonic(), self.step
        while self.step < self.total:
            epoch, at = divmod(self.step, per_epoch)
            if at == 0 or self.step == first:
                order = self.rng(epoch).permutation(len(frames))
            rows = np.sort(order[at * batch : (at + 1) * batch])
            x = frames[rows].to(self.device)
            self.update(x)
            if self.run.due("log") or self.step == self.total:
                self.tell(x, start, first)
            if self.run.stopping() or self.run.due("save") or self.step == self.total:
                self.save()
                if self.run.stopping() and self.step < self.total:
                    raise Stopped
        self.run.publish(self.agent)

    def update(self, x: torch.Tensor) -> None:
        torch.manual_seed(int(self.rng(0, self.step).integers(2**31)))  # so that a resume draws the same noise
        with self.agent.autocast():
            loss = self.agent.vae.loss(x, kl_tolerance=self.config.v.kl_tolerance)
        losses = {"reconstruction": loss.reconstruction, "kl": loss.kl}
        self.learner.minimize(losses, loss.total)
        self.step += 1
        self.loss = VAELoss(*(x.detach() for x in loss))

    @torch.no_grad()
    def tell(self, x: torch.Tensor, start: float, first: int) -> None:
        assert self.total is not None
        self.learner.check_finite()
        latent = self.agent.encode(x[:PROBE])
        seconds = time.monotonic() - start
        rate = (self.step - first) / max(seconds, 1e-9)
        values = {
            "loss": float(self.loss.total), "reconstruction": float(self.loss.reconstruction),
            "kl": float(self.loss.kl), "kl_unfloored": float(latent.kl().mean()),
            "active_latents": float((latent.logvar.mean(0) < -1).sum()), "frames_per_second": rate * len(x),
        }  # fmt: skip
        check_finite(self.name, self.step, values)
        self.run.log(self.step, values)
        left = (self.total - self.step) / max(rate, 1e-9)
        tell = self.run.say if self.step == self.total else self.run.show
        tell(
            f"V: update {self.step:,}/{self.total:,}  error {values['reconstruction']:.1f} a frame  "
            f"KL {values['kl_unfloored']:.1f}  {values['active_latents']:.0f} latents active  "
            f"{values['frames_per_second']:,.0f} frames/s  about {left:.0f} s left"
        )

    def save(self) -> None:
        self.learner.check_finite()
        check_finite(self.name, self.step, {"loss": float(self.loss.total)})
        self.run.save(self.step, self.learner, {"step": self.step, "total": self.total})
