"""Layers that a fused operator computes from their parameters, without a call."""

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `layer` is of that kind and computes as it does: not a subclass with a `forward` of its own."""
    return isinstance(layer, kind) and type(layer).forward is kind.forward


def plain(layer: nn.Module, kind: type[Layer], where: str) -> Layer:
    """`layer`, if a fused operator may compute it from its parameters.

    Raises:
        TypeError: where it is another module, which the operator would leave out.
    """
    if isinstance(layer, kind) and is_plain(layer, kind):
        return layer
    raise TypeError(
        f"{where} is {type(layer).__module__}.{type(layer).__qualname__}, but a fused operator reads the parameters of "
        f"fastwm's {kind.__name__} there; call the modules step by step, or put your layer in front of the network"
    )
