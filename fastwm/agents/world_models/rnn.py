"""Stage 4: M learns what comes next, from V's latents and the actions."""

import time

import numpy as np
import torch
from torch import Tensor

from fastwm.agents.world_models.encode import encoded_folders, read_latents
from fastwm.agents.world_models.stage import Learner, Stage, Stopped, check_finite, check_same, fingerprint
from fastwm.nn.conv_vae import Latent
from fastwm.nn.mdn_rnn import MDNRNNLoss

ACTIVE = -1.0  # mean log-variance below which a latent says something


class Streams:
    """Episodes shuffled, laid end to end, cut into `batch` streams, and those into chunks of `length` rows.

    A chunk also brings the row that follows it, as the target of its last one; without `overlap` it does not, and
    that transition is never trained, as in the public code.
    """

    def __init__(self, is_first: np.ndarray, batch: int, length: int, overlap: bool):
        self.starts = np.append(np.flatnonzero(is_first), len(is_first))
        rows = len(is_first)
        self.length = min(length, rows)
        self.batch = min(batch, rows // self.length)
        self.chunks = rows // (self.batch * self.length)
        self.overlap = overlap

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """Row numbers of one epoch's streams, [batch, chunks * length]."""
        order = rng.permutation(len(self.starts) - 1)
        rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in order])
        return rows[: self.batch * self.chunks * self.length].reshape(self.batch, -1)

    def chunk(self, streams: np.ndarray, index: int) -> np.ndarray:
        """Row numbers of a chunk, time-major [length + 1, batch], or less by one."""
        end = (index + 1) * self.length + self.overlap
        return np.ascontiguousarray(streams[:, index * self.length : end].T)


class TrainM(Stage):
    """Adam with its learning rate falling, gradients clipped element by element; z is drawn anew for each batch."""

    name = "m"

    def restore(self) -> bool:
        m = self.config.m
        self.learner = Learner(self.agent.rnn, m.lr)
        state = self.run.restore(self.learner)
        self.step = state["step"] if state else 0
        self.total: int | None = m.steps or (state["total"] if state else None)
        self.carried = (state["h"], state["c"]) if state and state["h"].numel() else None
        self.mark = fingerprint(self.agent.vae)
        if state:
            check_same(self.name, "V", state["v"], self.mark, self.run.folder)
        return self.total is not None and self.step >= self.total

    def work(self) -> None:
        m, data = self.config.m, read_latents(encoded_folders(self))
        self.data = {key: torch.from_numpy(value) for key, value in data.items()}
        self.active = self.data["logvar"].float().mean(0) < ACTIVE
        streams = Streams(data["is_first"], m.batch, m.length, m.overlap)
        if self.total is None:
            self.total = max(1, round(m.epochs * streams.chunks))
        self.tell_cost(streams)
        start, first = time.monotonic(), self.step
        while self.step < self.total:
            epoch, at = divmod(self.step, streams.chunks)
            if at == 0 or self.step == first:
                rows = streams.shuffled(self.rng(epoch))
            if at == 0:
                self.carried = None
            self.update(streams.chunk(rows, at))
            if self.run.due("log") or self.step == self.total:
                self.tell(streams, start, first)
            if self.run.stopping() or self.run.due("save") or self.step == self.total:
                self.save()
                if self.run.stopping() and self.step < self.total:
                    raise Stopped
        self.run.publish(self.agent)

    def update(self, rows: np.ndarray) -> None:
        torch.manual_seed(int(self.rng(0, self.step).integers(2**31)))  # so that a resume draws the same latents
        loss, self.carried = self.loss_of(torch.from_numpy(rows), self.carried)
        m = self.config.m
        self.learner.optimizer.param_groups[0]["lr"] = learning_rate(self.step, m.lr, m.lr_min, m.lr_decay)
        self.learner.minimize({"latent": loss.latent} | loss.heads, loss.total, m.clip)
        self.step += 1
        heads = {name: value.detach() for name, value in loss.heads.items()}
        self.loss = MDNRNNLoss(loss.total.detach(), loss.latent.detach(), heads, loss.per_latent.detach())

    def loss_of(
        self, rows: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[MDNRNNLoss, tuple[Tensor, Tensor] | None]:
        """The loss of rows [L + 1, B], each predicting the next, and the state to begin the next chunk with."""
        m, rnn = self.config.m, self.agent.rnn
        batch = {key: value[rows].to(self.device) for key, value in self.data.items()}
        z = self.agent.latent(Latent(batch["mu"], batch["logvar"]))
        action, is_first, done = batch["action"].float(), batch["is_first"], batch["done"]
        with self.agent.autocast():
            prediction, state = rnn(z[:-1], action[:-1], state, is_first[:-1])
        reward = batch["reward"][:-1]
        targets = {
            "done": done[:-1].float(),
            "reward": reward.clamp(-m.reward_clip, m.reward_clip) if m.reward_clip else reward,
        }
        # What follows a time limit is another episode, for no reason that M could know.
        mask = ~is_first[1:] | done[:-1]
        loss = rnn.loss(
            prediction, z[1:], {key: targets[key] for key in rnn.heads}, mask, m.done_weight, m.reward_weight
        )
        return loss, (state[0].detach(), state[1].detach()) if m.stateful else None

    def tell_cost(self, streams: Streams) -> None:
        assert self.total is not None
        count = sum(p.numel() for p in self.agent.rnn.parameters() if p.requires_grad)
        self.run.say(
            f"M: {count:,} parameters; {self.total:,} updates of {streams.batch} x {streams.length} rows, "
            f"{self.total / streams.chunks:.2g} epochs of {len(self.data['is_first']):,}; "
            f"{int(self.active.sum())} of {len(self.active)} latents active; {self.step:,} done"
        )

    def tell(self, streams: Streams, start: float, first: int) -> None:
        assert self.total is not None
        self.learner.check_finite()
        rate = (self.step - first) / max(time.monotonic() - start, 1e-9)
        per_latent = self.loss.per_latent
        values = {"loss": float(self.loss.total), "latent": float(self.loss.latent)}
        values |= {name: float(value) for name, value in self.loss.heads.items()}
        if per_latent.dim() and self.active.any():
            values["latent_active"] = float(per_latent[self.active.to(per_latent.device)].mean())
        check_finite(self.name, self.step, values)
        values["rows_per_second"] = rate * streams.batch * streams.length
        values["lr"] = self.learner.optimizer.param_groups[0]["lr"]
        self.run.log(self.step, values)
        parts = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if k not in ("loss", "lr", "rows_per_second"))
        tell = self.run.say if self.step == self.total else self.run.show
        tell(
            f"M: update {self.step:,}/{self.total:,}  {parts}  {values['rows_per_second']:,.0f} rows/s  "
            f"about {(self.total - self.step) / max(rate, 1e-9):.0f} s left"
        )

    def save(self) -> None:
        self.learner.check_finite()
        check_finite(self.name, self.step, {"loss": float(self.loss.total)})
        empty = torch.zeros(0)
        h, c = self.carried if self.carried else (empty, empty)
        self.run.save(self.step, self.learner, {"step": self.step, "total": self.total, "h": h, "c": c, "v": self.mark})


def learning_rate(step: int, lr: float, lr_min: float, decay: float) -> float:
    return (lr - lr_min) * decay**step + lr_min
