"""Replay numbers recorded from World Models' V: `python -m tests.golden_conv_vae FILE.npz`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fastwm.agents.world_models.official import from_tensorflow, load_vae, vae_layers
from fastwm.nn import ConvVAE
from tests.golden_dreamerv3 import Check, within
from tests.golden_mdn_rnn import adam_without_corrected_epsilon, report

VALUE_TOLERANCE = 1e-5
GRAD_TOLERANCE = 5e-4
NAMES = [
    *(f"enc_conv{i}" for i in range(1, 5)), "enc_fc_mu", "enc_fc_log_var", "dec_fc",
    *(f"dec_deconv{i}" for i in range(1, 5)),
]  # fmt: skip


class Golden:
    def __init__(self, path: str | Path):
        with np.load(path) as file:
            self.data = {key: file[key] for key in file.files}
        self.config = ast.literal_eval(str(self.data["config"]))

    def replay(self) -> list[Check]:
        torch.manual_seed(0)
        return [*self.small(), *self.full()]

    def loss(self, part: str, vae: ConvVAE) -> Iterator[Check]:
        x, epsilon = torch.from_numpy(self.data["x"]), torch.from_numpy(self.data["epsilon"])
        latent = vae.encode(x)
        z = latent.sample(epsilon)
        ours = {
            "mu": latent.mu, "logvar": latent.logvar, "z": z, "recon": vae.decode(z), "kl_per_sample": latent.kl(),
        }  # fmt: skip
        if f"{part}/recon_logit" in self.data:
            ours["recon_logit"] = vae.decode_logits(z)
        loss = vae.loss(x, epsilon, self.config["kl_tolerance"])
        ours |= {"r_loss": loss.reconstruction, "kl_loss": loss.kl, "loss": loss.total}
        as_bytes = vae.encode(torch.from_numpy(self.data["x_uint8"]))
        yield within(f"{part}/mu of uint8 frames", as_bytes.mu.detach().numpy(), self.data[f"{part}/mu"], 1e-4)
        for name, value in ours.items():
            tolerance = VALUE_TOLERANCE if part == "small" else 1e-4
            yield within(f"{part}/{name}", value.detach().numpy(), self.data[f"{part}/{name}"], tolerance)
        loss.total.backward()

    def small(self) -> Iterator[Check]:
        vae = ConvVAE(self.config["z"], self.config["small_channels"])
        params = [self.data[f"small/params0/{name}/{kind}"] for name in NAMES for kind in ("kernel", "bias")]
        load_vae(vae, params)
        yield from self.loss("small", vae)
        for name, layer in zip(NAMES, vae_layers(vae), strict=True):
            for kind, p in (("kernel", layer.weight), ("bias", layer.bias)):
                theirs = from_tensorflow(self.data[f"small/grad/{name}/{kind}"]).numpy()
                yield within(f"small/grad/{name}/{kind}", p.grad.numpy(), theirs, GRAD_TOLERANCE)
        adam_without_corrected_epsilon(vae.parameters(), self.config["lr"], self.config["adam_eps"]).step()
        for name, layer in zip(NAMES, vae_layers(vae), strict=True):
            for kind, p in (("kernel", layer.weight), ("bias", layer.bias)):
                theirs = from_tensorflow(self.data[f"small/params1/{name}/{kind}"]).numpy()
                yield within(f"small/params1/{name}/{kind}", p.detach().numpy(), theirs, GRAD_TOLERANCE)

    def full(self) -> Iterator[Check]:
        """Original widths; the weights come from a seed."""
        rng, params = np.random.RandomState(int(self.data["full/seed"])), []
        for name in self.data["full/names"]:
            shape, amplitude = self.data[f"full/{name}/shape"], float(self.data[f"full/{name}/amplitude"])
            params.append((rng.uniform(-1, 1, shape) * amplitude).astype(np.float32))
            first = self.data[f"full/{name}/weight_first"]
            yield within(f"full/{name}/weight_first", params[-1].ravel()[: len(first)], first, 0)
        vae = ConvVAE(self.config["z"], self.config["full_channels"])
        load_vae(vae, params)
        yield from self.loss("full", vae)
        for name, layer in zip(NAMES, vae_layers(vae), strict=True):
            for kind, p in (("kernel", layer.weight), ("bias", layer.bias)):
                grad, key = p.grad, f"full/{name}/{kind}"
                # Back to the recorded layout: (height, width, in, out) and (in, out).
                grad = grad.permute(2, 3, 1, 0) if grad.dim() == 4 else grad.mT if grad.dim() == 2 else grad
                flat, theirs = grad.reshape(-1).double().numpy(), self.data[f"{key}/grad_value"]
                scale = float(np.abs(flat).max())
                error = float(np.abs(flat[self.data[f"{key}/grad_index"]] - theirs).max()) / scale
                yield Check(f"{key}/grad_value", error, error <= GRAD_TOLERANCE)
                norm, recorded = float(np.linalg.norm(flat)), float(self.data[f"{key}/grad_l2"])
                error = abs(norm - recorded) / recorded
                yield Check(f"{key}/grad_l2", error, error <= GRAD_TOLERANCE)


if __name__ == "__main__":
    sys.exit(report(Golden, __doc__))
