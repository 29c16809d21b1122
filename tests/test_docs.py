"""What the documents show runs as shown."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_operator_example_runs() -> None:
    results = doctest.testfile(str(ROOT / "docs/operators.md"), module_relative=False)
    assert results.attempted > 20
    assert results.failed == 0


def test_the_readme_drop_in_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    kernel = next(block for block in blocks if "lambda_return" in block)
    names: dict[str, object] = {}
    exec(kernel, names)
    assert names["returns"].shape == (15, 1024)  # type: ignore[attr-defined]
