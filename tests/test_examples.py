"""The programs in examples/ run, and say at their head what they are and how they are called."""

import ast
import json
import re
import runpy
from pathlib import Path

import pytest

from fastwm.agents import AGENTS

EXAMPLES = Path(__file__).parent.parent / "examples"
CALLS = {
    "drop_in_kernel": ([], r"lambda_return: largest difference \d\.\de-0[6-9]\n.*of the gradient \d\.\de-(0[6-9]|1)"),
    "load_official_weights": ([], r"loaded 16,462 parameters\naction: \[\["),
    "own_environment": (["--steps", "220"], r"mean return -\d+.* over 8 episodes\ndistance after five actions"),
    "own_loop": (["--steps", "60"], r"\d+ episodes, mean return \d+.*\nlast update: reconstruction \d"),
    "own_encoder": (["--steps", "500"], r"Fourier: mean return \d+.* over 8 episodes"),
    "sweep": (["--steps", "300", "--seeds", "1"], r"( +\d+\.\d  lr=\S+-imag_length=\d+  \(1 seeds\)\n){4}"),
    "agent_from_parts": (["--steps", "340"], r"mean return \d+.* over 8 episodes"),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = CALLS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, *arguments])
    before = set(AGENTS)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    for added in set(AGENTS) - before:
        del AGENTS[added]
    assert re.search(expected, capsys.readouterr().out)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, with fewer steps, and without the plots' windows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    names: dict[str, object] = {"__name__": "notebook", "display": lambda *shown: None}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "clear the outputs"
            exec(source.replace("STEPS = 18_000", "STEPS = 700"), names)
    assert (tmp_path / "runs/tour/plots/imagination.png").is_file()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_its_head_says_what_it_is(path: Path) -> None:
    assert path.stem in CALLS
    head = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python examples/{path.name}" in head
    assert "Needs `pip install" in head
