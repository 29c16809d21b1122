"""The registry of operators: how arguments are made, and what is promised. tests/test_contract.py tests it."""

from tests.cases import models, pointwise, recurrent  # noqa: F401  (they fill the registry)
from tests.cases.case import CASES, Case, Draw

__all__ = ["CASES", "Case", "Draw"]
