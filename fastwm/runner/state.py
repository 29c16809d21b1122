"""Nested states of optimisers, counters and generators as JSON and tensors, so that reading one runs nothing."""

from typing import Any

from torch import Tensor

from fastwm.errors import FastwmError

Tensors = dict[str, Tensor]


def pack(state: Any) -> tuple[Any, Tensors]:
    """A tree that JSON can hold, and the tensors it names. `state` nests dicts, lists and tuples of plain values."""
    tensors: Tensors = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = _own(value, tensors)
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, walk(v)] for key, v in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [walk(v) for v in value]}
        if isinstance(value, list):
            return [walk(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"a state may not hold a {type(value).__name__}")

    return walk(state), tensors


def unpack(tree: Any, tensors: Tensors) -> Any:
    """The inverse of `pack`; anything else is a FastwmError."""
    match tree:
        case {"tensor": str(name)} if name in tensors:
            return tensors[name]
        case {"dict": list(pairs)} if all(_is_pair(pair) for pair in pairs):
            return {key: unpack(value, tensors) for key, value in pairs}
        case {"tuple": list(values)}:
            return tuple(unpack(value, tensors) for value in values)
        case list():
            return [unpack(value, tensors) for value in tree]
        case None | bool() | int() | float() | str():
            return tree
    raise FastwmError("the saved state is damaged")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int))


def _own(tensor: Tensor, others: Tensors) -> Tensor:
    """The tensor with memory of its own, as safetensors wants it."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
    shared = any(tensor.data_ptr() == other.data_ptr() for other in others.values())
    return tensor if whole and not shared else tensor.clone()
