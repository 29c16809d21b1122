"""Operators' declarations: what is generated from them, and what their errors say."""

from pathlib import Path

import pytest
import torch

from fastwm import _lib
from fastwm.ops import _declared
from fastwm.ops.declaration import DeclarationError, load

needs_native = pytest.mark.skipif(not _lib.has_cpu, reason="not built")


@needs_native
@pytest.mark.parametrize("name", _declared.OPS)
def test_the_library_has_the_declared_schema(name: str) -> None:
    assert str(getattr(torch.ops.fastwm, name).default._schema) == f"fastwm::{_declared.OPS[name].schema}"


@needs_native
def test_errors_name_the_argument_and_what_was_wanted_and_given() -> None:
    op, x = torch.ops.fastwm.lambda_return, torch.ones(4, 3)
    for cont, got in (
        (x[:, :1], r"\[4, 1\] float32 on cpu"),
        (x.double(), r"\[4, 3\] float64 on cpu"),
    ):
        with pytest.raises(RuntimeError, match=rf"cont \[steps, \*columns\] = \[4, 3\] float32 on cpu, got {got}"):
            op(x, cont, x, None, 0.95)
    with pytest.raises(RuntimeError, match="lambda_return: expected steps >= 1, got steps = 0"):
        op(x[:0], x[:0], x[:0], None, 0.95)
    with pytest.raises(RuntimeError, match=r"expected reward \[steps, \*columns\], got \[\]"):
        op(x[0, 0], x[0, 0], x[0, 0], None, 0.95)
    with pytest.raises(RuntimeError, match="expected reward of float32 or float64 or bfloat16, got float16"):
        op(x.half(), x.half(), x.half(), None, 0.95)
    with pytest.raises(RuntimeError, match="norm_act: no such activation: 4"):
        torch.ops.fastwm.norm_act(x, torch.ones(3), None, 1e-3, 4)


def test_declarations_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text('[odd]\ninputs = "x [rows] float32!"\noutputs = "y [rows]"\n')
    with pytest.raises(DeclarationError, match="cannot read 'float32!'"):
        load(tmp_path)


def test_a_declaration_is_all_that_python_needs(tmp_path: Path) -> None:
    (tmp_path / "twice.toml").write_text(
        '[twice]\nwhere = ["wide = 2 * width"]\ninputs = "x, b? [*rows, width]; save bool"\n'
        'outputs = "y [*rows, wide]"\nsaved = "s [width, *rows]"\n'
        '[twice.backward]\ninputs = "g_y; x; b; s"\noutputs = "d_x; d_b"\n'
    )
    op = load(tmp_path)[0]["twice"]
    assert op.schema == "twice(Tensor x, Tensor? b, bool save) -> (Tensor, Tensor)"
    y, s = _declared.fake(op, {})(torch.ones(4, 5, 3), None, True)
    assert (y.shape, s.shape) == ((4, 5, 6), (3, 4, 5))
    assert _declared.fake(op, {})(torch.ones(4, 3), None, False)[1].shape == (0, 4)
