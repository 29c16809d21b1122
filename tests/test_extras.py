"""Without the extra `agents`, operators and modules work and everything else names the extra in one line."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from fastwm.extras import EXTRAS

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = {"pyyaml": "yaml"}  # distribution -> module, where they differ

WITHOUT = f"""
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS["agents"]}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def without_agents(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a child that cannot import what the extra installs."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", WITHOUT + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_extra_installs_the_modules_that_are_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, modules in EXTRAS.items():
        names = [re.split(r"[><=; ]", each)[0] for each in project["optional-dependencies"][extra]]
        assert {DISTRIBUTIONS.get(name, name) for name in names} - {"fastwm[agents]"} == set(modules)
    assert all(re.match(r"fastwm\[agents[,\]]", extra[0]) for name, extra in project["optional-dependencies"].items()
               if name != "agents")  # fmt: skip


def test_operators_and_modules_need_no_extra() -> None:
    done = without_agents("""
import torch, fastwm, fastwm.ops, fastwm.nn, fastwm.optim
reward = torch.rand(15, 8, requires_grad=True)
fastwm.ops.lambda_return(reward, torch.rand(15, 8), torch.rand(15, 8), lam=0.95).sum().backward()
assert reward.grad is not None
rssm = fastwm.nn.RSSM("planet", tokens=8, action=2, deter=16, hidden=16, stoch=4)
first = torch.zeros(3, 2, dtype=torch.bool)
rssm.observe(rssm.initial(2), torch.zeros(3, 2, 2), torch.zeros(3, 2, 8), first)
fastwm.nn.MDNRNN(latents=4, actions=2, hidden=8)
from fastwm.cli import main
assert main(["doctor"]) == 0
""")
    assert done.returncode == 0, done.stderr


PARTS = {
    "import fastwm.agents": "fastwm.agents",
    "from fastwm.agents.planet import PlaNet": "fastwm.agents",
    "import fastwm.envs": "fastwm.envs",
    "import fastwm.runner": r"fastwm\.\w+",
    "import fastwm.replay": "fastwm.replay",
    "fastwm.train": r"fastwm\.\w+",
    "fastwm.load": r"fastwm\.\w+",
    "fastwm.evaluate": r"fastwm\.\w+",
    "fastwm.make_env": "fastwm.envs",
    "nn.Actor(8, 8, 1, {'action': torch.zeros(2)})": "a network of observations or actions",
}


def test_what_needs_the_extra_says_so() -> None:
    done = without_agents(f"""
import torch
import fastwm
from fastwm import nn
for code in {list(PARTS)}:
    try:
        exec(code)
    except ImportError as error:
        print(type(error).__name__, error)
    else:
        print("nothing", code)
""")
    lines = done.stdout.splitlines()
    assert len(lines) == len(PARTS), done.stderr
    for line, part in zip(lines, PARTS.values()):
        assert re.fullmatch(rf"MissingExtra {part} needs \w+: pip install 'fastwm\[agents\]'", line)


COMMANDS = ("train planet --env pendulum", "eval runs/x", "dream runs/x", "bench update", "--help",
            "compare --env pendulum --agents planet --steps 1 --logdir x")  # fmt: skip


def test_the_command_line_says_so_in_one_line() -> None:
    done = without_agents(f"""
from fastwm.cli import main
print([main(command.split()) for command in {COMMANDS}])
""")
    assert done.stdout == f"{[2] * len(COMMANDS)}\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(COMMANDS)
    assert all(re.fullmatch(r"fastwm: error: .* needs \w+: pip install 'fastwm\[agents\]'", line) for line in lines)


def test_other_missing_modules_stay_what_they_are() -> None:
    done = without_agents("""
from fastwm.extras import needs
try:
    with needs("agents", "x"):
        import no_such_module
except ImportError as error:
    assert type(error) is ModuleNotFoundError
else:
    raise AssertionError
""")
    assert done.returncode == 0, done.stderr
