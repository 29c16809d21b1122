"""What an entry of the registry is made of."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastwm import ops

Sizes = dict[str, Any]
Wrong = tuple[Callable[..., Any], str]


class Draw:
    """Tensors of one dtype from one seed: other dtypes round the same numbers. What has a gradient requires it."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        self.dtype, self.wide = dtype, torch.promote_types(dtype, torch.float32)
        self.generator = torch.Generator().manual_seed(seed)

    def data(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)).to(self.dtype)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self.data(*shape, scale=scale).requires_grad_()

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.wide)

    def flags(self, *shape: int, share: float = 0.2) -> Tensor:
        return torch.rand(shape, generator=self.generator) < share

    def onehot(self, *shape: int) -> Tensor:
        index = torch.randint(shape[-1], shape[:-1], generator=self.generator)
        return torch.nn.functional.one_hot(index, shape[-1]).to(self.dtype)

    def weight(self, *shape: int) -> Tensor:
        """[out, in], or [blocks, in, out]."""
        return self.normal(*shape, scale=max(1, shape[1]) ** -0.5)

    def scale(self, width: int) -> Tensor:
        return (1 + 0.3 * self.data(width)).requires_grad_()

    def dense(self, out: int, inputs: int) -> ops.DenseWeights:
        return ops.DenseWeights(self.weight(out, inputs), self.normal(out, scale=0.3), self.scale(out))

    def layer(self, out: int, inputs: int, norm: bool, bias: bool = True) -> ops.LayerWeights:
        affine = (self.scale(out), self.normal(out, scale=0.3)) if norm else (None, None)
        return ops.LayerWeights(self.weight(out, inputs), self.normal(out, scale=0.3) if bias else None, *affine)

    def linear(self, out: int, inputs: int) -> ops.LinearWeights:
        return ops.LinearWeights(self.weight(out, inputs), self.normal(out, scale=0.3))

    def mlp(self, inputs: int, outputs: int, units: int = 6, layers: int = 2) -> ops.MLPWeights:
        hidden = tuple(self.dense(units, units if i else inputs) for i in range(layers))
        return ops.MLPWeights(hidden, self.linear(outputs, units))


@dataclass(frozen=True)
class Case:
    """One operator, or one of its forms, and what it promises beyond what all do."""

    name: str
    operator: Callable[..., Any]
    """The public function."""
    make: Callable[..., tuple[Any, ...]]
    """`make(draw, **sizes)`: its arguments."""
    kernel: str
    """The raw operator that serves it, `torch.ops.fastwm.KERNEL`."""
    sizes: Sequence[Sizes]
    """Compared with the reference in float64. The first is small: what takes long is tested there."""
    wide: Sizes
    """Fills vectors and tiles, with a remainder: instruction sets, repeats."""
    shared: Sequence[Sizes]
    """Large enough for threads to share the work."""
    rows: Sizes
    """For NaN: 37 rows, and no other size of 37."""
    ranges: Mapping[str, Any]
    """Of random sizes: (least, most), or a list of choices."""
    tolerance: float = 1e-10
    """In float64."""
    close: str = "element"
    """Errors are divided by 1 + |wanted| of each `element`, by a `tensor`'s largest, or by |wanted| (`relative`)."""
    precision: Mapping[torch.dtype, float] = field(default_factory=dict)
    """Dtypes of the kernel, and their tolerances by the result's dtype."""
    smooth: Callable[[Any], Any] = lambda outputs: outputs
    """The outputs that finite differences know: all but samples."""
    reduced: str = "inputs"
    """How bfloat16 comes in: as `inputs`, under `autocast` of float32 ones, or served by PyTorch (`plain`)."""
    reduced_sizes: Sequence[Sizes] = ()
    autocast_dtype: torch.dtype = torch.float32
    """Of the first output under autocast, of bfloat16 inputs."""
    batched: bool = False
    """vmap is refused: it takes a batch itself."""
    settle: Callable[["Case", tuple[Any, ...]], tuple[Any, ...]] | None = None
    """Moves noise to the middle of the most likely class, which rounding does not move."""
    threads: str = "equal"
    """Any number of threads gives `equal` bits; or but for `rounding`, since they split sums."""
    constants: Sequence[int] = ()
    """Which of its tensors are constants, of which nothing is promised where they are NaN."""
    wrong: Sequence[Wrong] = ()
    """Changes of small arguments, and the error's text."""
    without: Mapping[str, str] = field(default_factory=dict)
    """Properties that do not apply, or not here: the name of the test, and why."""
    only: Sequence[str] = ()
    """The properties that are tested, else all: for a form that differs little from another one."""
    alike: bool = False
    """A form whose way from the public function to the raw operator is that of another form: numbers differ."""

    def args(self, sizes: Sizes | None = None, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Any, ...]:
        return self.make(Draw(dtype, seed), **(self.sizes[0] if sizes is None else sizes))

    def has(self, name: str) -> bool:
        """Whether this property, a test's name without `test_`, is tested."""
        name = name.removesuffix("_at_every_instruction_set")
        return name not in self.without and (not self.only or name in self.only)

    def random_sizes(self, rng: random.Random) -> Sizes:
        def choose(within: Any) -> Any:
            if isinstance(within, list):
                return rng.choice(within)
            least, most = within
            return rng.choice([n for n in (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33) if least <= n <= most])

        return {name: choose(within) for name, within in self.ranges.items()}


CASES: dict[str, Case] = {}


def register(case: Case, forms: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Adds a case, or a form of it for each entry: sizes that hold in all of it, and other changes of its fields."""
    for form, changed in (forms or {"": {}}).items():
        name = f"{case.name}-{form}" if form else case.name
        fixed = {key: value for key, value in changed.items() if key not in Case.__dataclass_fields__}
        fields = {key: value for key, value in changed.items() if key in Case.__dataclass_fields__}

        def with_fixed(d: Draw, fixed: Mapping[str, Any] = fixed, **sizes: Any) -> tuple[Any, ...]:
            return case.make(d, **(sizes | fixed))

        assert name not in CASES, name
        CASES[name] = replace(case, name=name, make=with_fixed, **fields)


LAYOUTS = ("reversed", "every second", "offset", "expanded")


def lay_out(args: Any, layout: str | Callable[[], str]) -> Any:
    """The same arguments, the tensors laid out in memory in another way; expanded ones repeat their first row."""

    def move(x: Tensor) -> Tensor:
        kind, y = layout if isinstance(layout, str) else layout(), x.detach()
        if kind == "reversed":
            back = tuple(reversed(range(x.dim())))
            y = y.permute(back).contiguous().permute(back)
        elif kind == "every second" and x.dim():
            y = torch.stack([y, y], -1)[..., 0]
        elif kind == "offset":  # not aligned
            y = torch.cat([y.new_zeros(1), y.flatten()])[1:].view(y.shape)
        elif kind == "expanded" and x.dim() > 1 and len(x):
            y = y[:1].expand(y.shape)
        return y.requires_grad_(x.requires_grad)

    return pytree.tree_map_only(Tensor, move, args)


def convert(args: Any, dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """The same numbers in another floating dtype, or on another device."""

    def move(x: Tensor) -> Tensor:
        to = dtype if dtype and x.is_floating_point() else x.dtype
        return x.detach().to(device=device or x.device, dtype=to).requires_grad_(x.requires_grad)

    return pytree.tree_map_only(Tensor, move, args)
