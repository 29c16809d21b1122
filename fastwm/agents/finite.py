"""An update with a loss or a gradient that is not finite is refused before it touches a weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastwm.errors import FastwmError


@dataclass
class Finding:
    """The losses and parameters that are watched together, and the first of them that was not finite."""

    losses: list[str]
    params: list[Tensor]
    record: Tensor
    """int64 [3], on the device: updates so far, the first that failed (0: none), and which loss or gradient it was."""


class FiniteCheck:
    """Finds the first loss or gradient that is not finite.

    On a CPU it raises at once, before a weight is touched. On a GPU nothing waits: the answer is a flag for the
    optimisers' `apply`, which leaves weights and state as they are, and the finding is kept on the device until it is
    read.
    """

    def __init__(self) -> None:
        self.findings: dict[str, Finding] = {}

    def __call__(
        self, module: nn.Module, part: str, losses: Mapping[str, Tensor], params: Sequence[Tensor], norms: Tensor,
        restore: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor | None:  # fmt: skip
        """Whether all `losses` (scalars) and the gradients of `params`, by their `norms` [P], are finite.

        A bool [] on the device, or None where the answer was read at once. `part` names what is watched together,
        `restore` pairs each buffer that the losses have changed with the value it gets back if they are not finite.

        Raises:
            FastwmError: on a CPU, with the name of the loss or of the parameter in `module`.
        """
        values = torch.cat([torch.stack([loss.detach().float() for loss in losses.values()]), norms.float()])
        finite = values.isfinite()
        if self.read_at_once(values.device):
            if not finite.all():
                for buffer, before in restore:
                    buffer.copy_(before)
                index = int(finite.logical_not().int().argmax())
                raise FastwmError(f"update: {describe(module, list(losses), params, index)}; no weight was changed")
            return None
        if part not in self.findings or self.findings[part].record.device != values.device:
            record = torch.zeros(3, dtype=torch.int64, device=values.device)
            self.findings[part] = Finding(list(losses), list(params), record)
        record, apply = self.findings[part].record, finite.all()
        record[0] += 1
        first = torch.stack([record[0], finite.logical_not().int().argmax()])
        record[1:] = torch.where(apply | (record[1] > 0), record[1:], first)
        for buffer, before in restore:
            buffer.copy_(torch.where(apply, buffer, before))
        return apply

    @staticmethod
    def read_at_once(device: torch.device) -> bool:
        return device.type == "cpu"

    def read(self, module: nn.Module) -> None:
        """Raise for the first finding that is kept on the device, and forget it: this waits for the device.

        Raises:
            FastwmError: with the name of the loss or of the parameter in `module`.
        """
        found = []
        for finding in self.findings.values():
            _, update, index = finding.record.tolist()
            if update:
                finding.record[1:] = 0
                found.append((update, describe(module, finding.losses, finding.params, index)))
        if found:
            update, what = min(found, key=lambda pair: pair[0])
            raise FastwmError(f"update {update} of this process: {what}; that update changed no weight")


def describe(module: nn.Module, losses: Sequence[str], params: Sequence[Tensor], index: int) -> str:
    """The loss or gradient with this number, in words."""
    if index < len(losses):
        hint = ": the rewards, or their predictions, are not finite or too large" if losses[index] == "reward" else ""
        return f"the loss {losses[index]!r} is not finite{hint}"
    names = {id(p): name for name, p in module.named_parameters()}
    name = names.get(id(params[index - len(losses)]), "a parameter that is no longer in the module")
    return f"the gradient of {name} is not finite"
