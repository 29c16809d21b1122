"""Folders, checkpoints, weights and names of strangers: none runs code, leads outside, or takes memory unchecked."""

import io
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import fastwm
from fastwm.agents import DreamerV3Config
from fastwm.agents.world_models import evolve
from fastwm.agents.world_models.arrays import open_npy, read_npz
from fastwm.cli import main
from fastwm.envs import imports_code, make_env
from fastwm.errors import FastwmError
from fastwm.files import check_folder, seal
from fastwm.replay import Replay
from fastwm.runner import checkpoint
from fastwm.runner.config import TrainConfig, read_config, write_config
from fastwm.runner.log import MetricsLog, read_lines
from fastwm.runner.state import pack, unpack
from tests import damage

FACTORY = """import pathlib

import gymnasium

pathlib.Path("ran").touch()


def make():
    return gymnasium.make("Pendulum-v1")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logdir = tmp_path_factory.mktemp("runs") / "run"
    damage.make_run("dreamer_v3", logdir)
    return logdir


@pytest.fixture
def stranger(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run, in a current folder that holds a module `evil`; importing that leaves a file `ran`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    Path("evil.py").write_text(FACTORY)
    shutil.copytree(finished, "run")
    return Path("run")


def rewrite(logdir: Path, **changes: Any) -> None:
    """The settings of a run as a stranger would write them, checksum and all."""
    config = read_config(logdir / "config.yaml", TrainConfig(DreamerV3Config()), "dreamer_v3")
    for key, value in changes.items():
        setattr(config, key, value)
    write_config(logdir / "config.yaml", "dreamer_v3", config)


def reseal(path: Path, **changes: Any) -> None:
    values = json.loads((path / "meta.json").read_text())
    values.pop("checksum")
    (path / "meta.json").write_text(seal(values | changes))


def resum(path: Path) -> None:
    """Checksums that fit, as a stranger would write them."""
    reseal(path, files={file.name: checkpoint.checksum(file) for file in path.iterdir() if file.name != "meta.json"})


def saved_by_torch(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def newest(logdir: Path) -> Path:
    return checkpoint.checkpoints(logdir)[0]


def error_of(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and error.startswith("fastwm: error: "), error
    return error


# Code


@pytest.mark.parametrize("env", ["os:system", "evil:make", "gym:evil:Env-v0", "run.evil:make", "subprocess:call"])
@pytest.mark.parametrize("command", ["eval", "train"])
def test_a_folder_names_no_code(stranger: Path, capsys: Any, env: str, command: str) -> None:
    rewrite(stranger, env=env, env_args={"command": "touch ran", "args": "touch ran"})
    (stranger / "evil.py").write_text(FACTORY)
    arguments = ["eval", str(stranger)] if command == "eval" else ["train", "dreamer_v3", "--logdir", str(stranger)]
    error = error_of(main(arguments), capsys)
    assert f"names the environment '{env}'" in error and "--trust" in error and not Path("ran").exists()
    assert "evil" not in sys.modules and os.getcwd() not in sys.path


def test_trust_and_the_command_line_allow_code(stranger: Path) -> None:
    rewrite(stranger, env="evil:make")
    assert main(["eval", str(stranger), "--episodes", "1", "--trust"]) == 0 and Path("ran").exists()
    os.unlink("ran")
    sys.modules.pop("evil")
    assert main(["train", "dreamer_v3", "--logdir", str(stranger), "--env", "evil:make"]) == 0 and Path("ran").exists()


@pytest.mark.parametrize("value", ["/etc/passwd", "module:name", "../x", "[1, 2]", "{a: b}", "1000000000"])
def test_a_folder_gives_environments_no_paths(stranger: Path, capsys: Any, value: str) -> None:
    rewrite(stranger, env_args={"g": value})
    assert "add --trust" in error_of(main(["eval", str(stranger)]), capsys)


@pytest.mark.parametrize("option", ["base_path", "vzd_path", "cfg_path", "iwad_path", "lmp_save_dir", "xml_file"])
def test_a_folder_gives_environments_no_files(stranger: Path, capsys: Any, option: str) -> None:
    """A plain word is a file too, beside the one who evaluates: EnvPool's `vzd_path` even names a program to run."""
    rewrite(stranger, env_args={option: "run"})
    assert "add --trust" in error_of(main(["eval", str(stranger)]), capsys)


@pytest.mark.parametrize("option", ["size", "img_height", "stack_num", "frame_stack"])
def test_a_folder_asks_for_no_large_pictures(stranger: Path, capsys: Any, option: str) -> None:
    rewrite(stranger, env_args={option: "1025"})
    assert "ask for too much" in error_of(main(["eval", str(stranger)]), capsys)


@pytest.mark.parametrize("value", ["[&a [x, x], &b [*a, *a]]", '!!int ""', "!!bool x", "!!timestamp x", "!!set [1]"])
def test_options_are_plain_values(stranger: Path, capsys: Any, value: str) -> None:
    """Nine lists of nine aliases each, one in the other, are 400 million words once they are shown."""
    rewrite(stranger, env_args={"g": value})
    assert "which is no value in YAML" in error_of(main(["eval", str(stranger)]), capsys)


def test_new_processes_do_not_search_the_current_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("selectors", "socket", "ctypes", "envpool"):
        Path(f"{name}.py").write_text("import pathlib\npathlib.Path('ran').touch()")
    code = (
        "import sys, os; sys.path = [p for p in sys.path if p]; from fastwm.envs import make_env, envpool\n"
        "if __name__ == '__main__':\n"
        "    env = make_env('gym:CartPole-v1', 1, async_=True); env.reset(); env.close()\n"
        "    try: envpool.check_rendering('Any')\n"
        "    except Exception as error: print(error)\n"
        "    assert 'PYTHONSAFEPATH' not in os.environ\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(fastwm.__file__).parents[1])}
    environment.pop("PYTHONSAFEPATH", None)
    run = [sys.executable, "-P", "-c", code]
    subprocess.run(run, env=environment, check=True, capture_output=True, timeout=120)
    assert not Path("ran").exists()


def test_pictures_take_no_settings_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    code = "import fastwm.runner.plots, matplotlib; assert not matplotlib.rcParams['text.usetex']"
    environment = os.environ | {"PYTHONPATH": str(Path(fastwm.__file__).parents[1])}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "subprocess:call", "pathlib:Path", "json:loads"])
def test_only_environments_are_made(name: str) -> None:
    """Even the user's own command line: what is called with stored arguments has to be a factory."""
    with pytest.raises(FastwmError, match="neither a Gymnasium environment"):
        make_env(name, command="true", args="true")


def test_who_imports_code() -> None:
    for name in ("cartpole", "dmc:walker_walk", "gym:CartPole-v1", "envpool:Pong-v5", "atari:Pong", "crafter:reward"):
        assert not imports_code(name), name
    for name in ("a:b", "gym:a:B-v0", "a.b:c"):
        assert imports_code(name), name


def test_the_current_folder_is_not_searched(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A `tyro.py` lying there is not imported, not even after a factory of there was asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != ""])
    for name in ("tyro", "yaml", "cma"):
        Path(f"{name}.py").write_text("raise SystemExit('stolen')")
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["--help"]) == 0 and os.getcwd() not in sys.path
    with pytest.raises(FastwmError):
        make_env("no_such_module:make")
    import tyro

    assert sys.path[-1] == os.getcwd() and not str(tyro.__file__).startswith(os.getcwd())


class Attack:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_no_pickle_is_read(stranger: Path, capsys: Any) -> None:
    for name in (checkpoint.WEIGHTS, checkpoint.STATE, checkpoint.STATE_TENSORS, "tail.safetensors"):
        path = newest(stranger)
        kept = (path / name).read_bytes()
        for attack in (pickle.dumps(Attack()), saved_by_torch(Attack())):
            (path / name).write_bytes(attack)
            resum(path)
            assert main(["dream", str(stranger)]) == 2 and not Path("ran").exists()
            capsys.readouterr()
        (path / name).write_bytes(kept)


def test_evolution_takes_numbers_alone(tmp_path: Path) -> None:
    """CMA-ES evaluates its options, which are strings: neither they nor methods can be set, nor arrays resized."""
    from tests.test_world_models_evolve import Run, tiny

    stage = evolve.EvolveC(Run(tmp_path / "c"), tiny(features="z", bias=False, population=6), [tmp_path])
    stage.restore()
    es = stage.evolution.es
    size = len(es.mean)
    for bad in (
        {"opts": {"popsize": "ran()"}},
        {"ask": 1.0},
        {"mean": "ran()"},
        {"tell": [1.0]},
        {"sp": Attack()},
        {"mean": torch.zeros(size + 1)},
        {"pc": torch.zeros(1 << 20)},
        {"C": ["x"]},
        {"__class__": 1},
    ):
        with pytest.raises(ValueError, match="CMA-ES does not fit"):
            evolve.set_numbers(es, bad)
    for part in stage.evolution.get_extra_state()["es"].values():
        for value in part.values():
            assert isinstance(value, (bool, int, float, torch.Tensor, list)), value


# Places


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "/dev/zero", ".hidden", "a/b", "", "x" * 200])
def test_names_are_plain(stranger: Path, name: str) -> None:
    path = newest(stranger)
    reseal(path, files=checkpoint.describe(path)["files"] | {name: 0})
    with pytest.raises(FastwmError, match="names a file outside"):
        checkpoint.read_meta(path)


@pytest.mark.parametrize("name", ["eval.json", "metrics.jsonl", "config.yaml", "plots", "checkpoints/x"])
@pytest.mark.parametrize("target", ["secret", "/dev/zero", "nowhere"])
def test_no_link_leads_out(stranger: Path, capsys: Any, name: str, target: str) -> None:
    Path("secret").write_text("mine")
    shutil.rmtree(stranger / name) if (stranger / name).is_dir() else (stranger / name).unlink(missing_ok=True)
    (stranger / name).symlink_to(Path(target).absolute())
    arguments = (["eval", str(stranger)], ["dream", str(stranger)], ["train", "dreamer_v3", "--logdir", str(stranger)])
    for command in arguments if name in ("eval.json", "config.yaml") else arguments[:1]:
        error = error_of(main(command), capsys)
        assert "link out of" in error or "it has no config.yaml" in error or "no environment given" in error
    assert Path("secret").read_text() == "mine"


def test_links_inside_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "b").symlink_to("a")
    check_folder(tmp_path)
    os.mkfifo(tmp_path / "c")
    with pytest.raises(FastwmError, match="neither a file nor a folder"):
        check_folder(tmp_path, trust=True)


def test_the_lock_is_no_other_file(stranger: Path, capsys: Any) -> None:
    Path("secret").write_text("mine")
    os.link("secret", stranger / "lock")
    assert "by a hard link: remove it" in error_of(main(["train", "dreamer_v3", "--logdir", str(stranger)]), capsys)
    assert Path("secret").read_text() == "mine"


# Sizes


@contextmanager
def state_of(path: Path) -> Iterator[dict[str, Any]]:
    """The state of a checkpoint, to be changed as a stranger would, checksums and all."""
    state = unpack(json.loads((path / checkpoint.STATE).read_text()), load_file(path / checkpoint.STATE_TENSORS))
    yield state
    tree, tensors = pack(state)
    (path / checkpoint.STATE).write_text(json.dumps(tree))
    save_file(tensors, path / checkpoint.STATE_TENSORS)
    resum(path)


@pytest.mark.parametrize(
    "change", [{"added": 10**12, "chunk_rows": 1}, {"chunk_rows": 0}, {"rows": 0}, {"queue": ["x"]}, {"added": 10**30}]
)
def test_numbers_of_a_replay_are_checked(stranger: Path, capsys: Any, change: dict[str, Any]) -> None:
    with state_of(newest(stranger)) as state:
        state["more"] |= change
    assert "is damaged" in error_of(main(["dream", str(stranger)]), capsys)


@pytest.mark.parametrize("moment", [torch.zeros(3), torch.tensor(0.0), "nu"])
def test_moments_of_an_optimiser_are_checked(stranger: Path, capsys: Any, moment: Any) -> None:
    with state_of(newest(stranger)) as state:
        state["extra"]["optimizer"]["state"][0]["nu"] = moment
    error = error_of(main(["train", "dreamer_v3", "--logdir", str(stranger), "--steps", "500"]), capsys)
    assert "nu of optimiser optimizer is" in error


def test_settings_take_no_memory_before_they_fit(stranger: Path, capsys: Any) -> None:
    agent = read_config(stranger / "config.yaml", TrainConfig(DreamerV3Config()), "dreamer_v3").agent
    agent.deter, agent.units = 2**17, 2**17
    rewrite(stranger, agent=agent)
    for arguments in (["eval", str(stranger)], ["train", "dreamer_v3", "--logdir", str(stranger)]):
        assert "does not fit the settings" in error_of(main(arguments), capsys)


@pytest.mark.parametrize("text", ["threads: 1000000000", "steps: [1]", "agent: *a", "env_args: {a: *a}", "seed: 1e999"])
def test_settings_are_checked(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(f"agent_name: dreamer_v3\nx: &a [1, 1]\n{text}\n")
    with pytest.raises(FastwmError):
        read_config(tmp_path / "config.yaml", TrainConfig(DreamerV3Config()), "dreamer_v3")


@pytest.mark.parametrize("space", [
    {"box": [2**40], "dtype": "float32"}, {"box": [2**20, 2**20], "dtype": "uint8"}, {"box": [-1], "dtype": "uint8"},
    {"box": [3], "dtype": "object"}, {"box": [3], "dtype": "f4,O"}, {"box": "3", "dtype": "float32"}, {"box": [0.5]},
    {"discrete": 2**62}, {"discrete": 0}, {"discrete": "3"}, {"multidiscrete": [[1], [1, 2]]}, {"multidiscrete": []},
    {}, [], None, {"dict": [1]}, {"dict": {"a": {"box": [2**40], "dtype": "float32"}}},
])  # fmt: skip
def test_spaces_are_checked(space: Any) -> None:
    with pytest.raises(FastwmError, match="no space"):
        checkpoint.space_from_json(space)


def npz(path: Path, name: str = "x.npy", compression: int = zipfile.ZIP_STORED, data: bytes | None = None) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
    lie = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, lie if data is None else data)


def test_arrays_are_checked(tmp_path: Path) -> None:
    path, spec = tmp_path / "x.npz", {"x": ("float32", (-1,))}
    np.savez(path, x=np.arange(3, dtype=np.float32))
    assert read_npz(path, spec)["x"].tolist() == [0, 1, 2]
    damages: list[Callable[[], Any]] = [
        lambda: np.savez(path, x=np.array([Attack()], dtype=object)),
        lambda: np.savez(path, x=np.zeros((2, 2), np.float32)),
        lambda: np.savez(path, y=np.zeros(3, np.float32)),
        lambda: np.savez_compressed(path, x=np.zeros(1 << 22, np.float32)),
        lambda: npz(path), lambda: npz(path, data=pickle.dumps(Attack())),
        lambda: npz(path, compression=zipfile.ZIP_LZMA), lambda: path.write_bytes(b"PK\x05\x06"),
    ]  # fmt: skip
    for make in damages:
        make()
        with pytest.raises(FastwmError, match="is damaged"):
            read_npz(path, spec)
    for make in damages:
        make()
        with pytest.raises(FastwmError, match="is damaged"):
            open_npy(path, "float32", (-1,))
    assert not Path("ran").exists()


class Small(nn.Module):
    def __init__(self, width: int = 2):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def get_extra_state(self) -> dict[str, Any]:
        return {"optimizer": {0: (1.0, 2), "lr": torch.ones(2)}}

    def set_extra_state(self, state: Any) -> None:
        self.loaded = state


def test_weights_are_checked(tmp_path: Path) -> None:
    """Other shapes, and a header that lies about types, sizes and offsets."""
    path = checkpoint.save(tmp_path, 1, Small(), {}, {})
    checkpoint.check_fits(path, Small)
    with pytest.raises(FastwmError, match="does not fit the settings"):
        checkpoint.check_fits(path, lambda: Small(3))
    with pytest.raises(FastwmError, match="does not fit the settings"):
        checkpoint.load_agent(path, Small(3))
    for entry in (
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2**62, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "X", "shape": [1]},
        [],
    ):
        header = json.dumps({"linear.weight": entry}).encode()
        (path / checkpoint.WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(FastwmError):
            checkpoint.load_agent(path, Small())
        with pytest.raises(FastwmError):
            checkpoint.check_fits(path, Small)
    (path / checkpoint.WEIGHTS).write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    with pytest.raises(FastwmError):
        checkpoint.load_agent(path, Small())


# Damage


def test_states_return_as_they_were() -> None:
    shared = torch.arange(6.0)
    state = {"a": [1, 2.5, None, True, "x"], 3: (1, {"t": shared[::2]}), "same": [shared, shared], "nan": float("inf")}
    tree, tensors = pack(state)
    back = unpack(json.loads(json.dumps(tree)), tensors)
    assert str(back) == str(state) and list(back) == list(state)
    with pytest.raises(TypeError):
        pack({"a": Attack()})
    for bad in ({"tensor": "9"}, {"tensor": 0}, {"x": 1}, {"dict": [[1]]}, {"dict": {"a": 1}}, {"dict": [[[], 1]]}, {}):
        with pytest.raises(FastwmError, match="damaged"):
            unpack([bad], tensors)


def test_every_flipped_bit_of_a_meta_is_seen(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, Small(), {}, {"agent": "planet", "oldest_row": 5})
    file = path / "meta.json"
    data, expected = file.read_bytes(), checkpoint.describe(path)
    silent = []
    for at in range(8 * len(data)):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        file.write_bytes(broken)
        try:
            if checkpoint.describe(path) != expected:
                silent.append(at)
        except FastwmError:
            pass
    assert not silent


def test_a_broken_meta_gives_way_and_costs_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, Small(), {}, {"oldest_row": step})
    (newest(tmp_path) / "meta.json").write_text("{")
    assert checkpoint.newest(tmp_path, lambda path: path.name) == "000000000001"
    assert checkpoint.oldest_row(tmp_path) == 1


def test_a_config_is_whole_or_refused(tmp_path: Path) -> None:
    file, config = tmp_path / "config.yaml", TrainConfig(DreamerV3Config(), env="cartpole", env_args={"repeat": "2"})
    write_config(file, "dreamer_v3", config)
    lines = file.read_text().splitlines(keepends=True)

    def read(text: str) -> Any:
        file.write_text(text)
        return read_config(file, TrainConfig(DreamerV3Config()), "dreamer_v3")

    assert read("".join(lines)) == config
    for count in range(len(lines) - 1):
        with pytest.raises(FastwmError, match=r"config\.yaml"):
            read("".join(lines[:count]))
    edited = "".join(lines).replace("steps: 1000000", "steps: 1000")
    with pytest.raises(FastwmError, match="if you edited it, remove its last line"):
        read(edited)
    assert read(re.sub("checksum.*\n", "", edited)).steps == 1000
    with pytest.raises(FastwmError, match=r"agent\.lr is missing: the file was cut short, or add"):
        read(re.sub("checksum.*\n|  lr: .*\n", "", edited))
    with pytest.raises(FastwmError, match="only be given on the command line"):
        read(re.sub("checksum.*\n", "trust: true\n", edited))
    assert "trust" not in yaml.safe_load("".join(lines))


def test_unreadable_metrics_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ['{"step": 1, "a": 2.0}', "[1]", "3", '{"a": 1}', '{"step": "x"}', '{"step": 2, "a": "b"}', "\xff{",
             "[" * 9999, '{"step": 3}', '{"torn']  # fmt: skip
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 2.0}, {"step": 3}]
    assert "8 of 10 lines cannot be read" in caplog.text
    MetricsLog(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 2.0}\n'


def test_a_run_goes_on_without_a_damaged_replay(stranger: Path, capsys: Any) -> None:
    path = newest(stranger)
    damage.flip(random.Random(0), path / "tail.safetensors", path)
    resum(path)
    command = ["train", "dreamer_v3", "--logdir", str(stranger), "--steps", "100"]
    assert "add --fresh-replay" in error_of(main(command), capsys)
    assert main([*command, "--fresh-replay"]) == 0
    said = capsys.readouterr().out
    assert "continuing at step 80" in said and newest(stranger).name.endswith("100")
    assert main(command) == 0 and "fresh_replay" not in (stranger / "config.yaml").read_text()


def test_stored_rows_of_another_kind_are_one_line(stranger: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A stranger's checksums can be right, and his rows wrong."""
    load = Replay.load

    def load_other_rows(self: Replay, *args: Any) -> None:
        load(self, *args)
        self._data["reward"] = self._data["reward"].double()

    monkeypatch.setattr(Replay, "load", load_other_rows)
    error = error_of(main(["train", "dreamer_v3", "--logdir", str(stranger), "--steps", "100"]), capsys)
    assert "the saved replay does not fit" in error and "'reward' is torch.float32" in error
    assert "add --fresh-replay" in error


def test_a_folder_that_cannot_be_written_is_one_line(stranger: Path, capsys: Any, caplog: Any) -> None:
    shutil.rmtree(stranger / "plots", ignore_errors=True)
    (stranger / "plots").write_text("")
    (stranger / "eval.json").mkdir()
    assert main(["eval", str(stranger), "--episodes", "1"]) == 0
    assert "mean return" in capsys.readouterr().out and "cannot write run/eval.json" in caplog.text
    assert "cannot write run/plots" in error_of(main(["dream", str(stranger)]), capsys)


def test_an_unsafe_checkpoint_is_not_loaded_from_python(stranger: Path) -> None:
    save_file({"a": torch.zeros(2)}, newest(stranger) / checkpoint.WEIGHTS)
    fastwm.load(stranger)  # the one before
    (stranger / "x").symlink_to("/etc/passwd")
    with pytest.raises(FastwmError, match="link out of"):
        fastwm.load(stranger)
    assert fastwm.load(stranger, trust=True) is not None


def test_random_damage(tmp_path: Path) -> None:
    """The short form of `python -m tests.damage`."""
    counts, failures = damage.try_all(15, 0, tmp_path)
    assert not failures and sum(counts.values()) == 15
