"""An agent's update as a CUDA graph: bitwise the plain update, on either side of a checkpoint."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fastwm import _lib
from fastwm.errors import FastwmError
from fastwm.runner import checkpoint
from fastwm.runner.graph import WARM_UP, GraphedUpdate, fastest_update, plain_update
from tests.agents_under_test import make_batch, names, tiny

needs_native = pytest.mark.skipif(not _lib.has_cpu, reason="not built")
same = partial(assert_close, atol=0, rtol=0)

Batch = dict[str, Tensor]


def run(update: Callable[..., Batch], batches: list[Batch]) -> list[Batch]:
    """The metrics of every update, and the rows it wrote back."""
    torch.manual_seed(7)
    results = []
    for batch in batches:
        written: Batch = {}
        metrics = update(batch, write_back=lambda index, latents, to=written: to.update(latents, index=index))
        results.append({key: value.to("cpu", copy=True) for key, value in (metrics | written).items()})
    return results


def trained(updates: int, precision: str = "fp32", name: str = "dreamer_v3") -> Any:
    """An agent on the CPU after some plain updates, none of which stands still."""
    options: dict[str, Any] = {"warmup": 0, "lr": 1e-2} if name == "dreamer_v3" else {}
    agent = tiny(name, precision=precision, **options)
    run(agent.update, [make_batch(agent) for _ in range(updates)])
    return agent


def resumed(state: dict[str, Any], device: str, precision: str = "fp32", name: str = "dreamer_v3") -> Any:
    agent = trained(0, precision, name).to(device)
    agent.load_state_dict(state)
    return agent


def everything(agent: Any) -> dict[str, Any]:
    """Weights, buffers, the optimisers' moments and their step."""
    state = agent.state_dict()
    extra = state.pop(checkpoint.EXTRA)
    optimizers = [extra.pop(name) for name in agent.optimizers()]
    counters = [optimizer["param_groups"][0] for optimizer in optimizers]
    step = sorted({int(group["step" if "step" in group else "steps"]) for group in counters})
    return {**state, **extra, "moments": [optimizer["state"] for optimizer in optimizers], "step": step}


@pytest.mark.parametrize("name", names())
def test_on_the_cpu_it_is_the_plain_update(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, plain = tiny(name), tiny(name)
    batch, seen = make_batch(agent), []
    update = agent.update
    monkeypatch.setattr(agent, "update", lambda rows, **rest: seen.append(rows) or update(rows, **rest))
    fastest = fastest_update(agent)
    assert not isinstance(fastest, GraphedUpdate)
    same(run(fastest, [batch] * 2), run(plain.update, [batch] * 2))
    assert all(rows[key] is batch[key] for rows in seen for key in batch)  # nothing is copied or moved
    assert not any(group.get("capturable") for optimizer in agent.optimizers().values()
                   for group in optimizer.param_groups)  # fmt: skip


class OneDevice(TorchDispatchMode):
    """Refuses what takes tensors from one device to another, as a graph under capture does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in pytree.tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        assert len({x.device for x in tensors if x.ndim or x.device.type != "cpu"}) <= 1, func
        return out


CAPTURABLE = [name for name in names() if tiny(name).capturable]


def host_numbers(agent: Any) -> list[dict[str, Any]]:
    holders = [vars(agent), *(optimizer.param_groups[0] for optimizer in agent.optimizers().values())]
    return [{key: x for key, x in held.items() if isinstance(x, (int, float))} for held in holders]


def test_which_agents_a_graph_may_hold() -> None:
    assert CAPTURABLE == ["planet", "dreamer_v1", "dreamer_v2", "dreamer_v3"]


@pytest.mark.parametrize("name", CAPTURABLE)
def test_an_update_asks_nothing_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values stand for those of a GPU: no number is read from them, nothing is brought to them."""
    agent = tiny(name)
    batch = {key: value.to("meta") for key, value in make_batch(agent).items()}
    agent = agent.to("meta")
    agent.reset_optimizers()  # the parameters are others now
    monkeypatch.setattr(agent, "autocast", nullcontext)
    for optimizer in agent.optimizers().values():
        optimizer.param_groups[0]["capturable"] = True
    agent.update(batch)  # makes the optimiser's state, as the warm-up does
    before = host_numbers(agent)
    with OneDevice():
        metrics = agent.update(batch)
    with pytest.raises(RuntimeError, match="meta"):  # as every reading of a number would have
        next(iter(metrics.values())).item()
    assert host_numbers(agent) == before, "a graph would not count these"


@needs_native
@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_step_on_the_device_continues_on_the_cpu_as_a_number_does(name: str) -> None:
    """As a graphed update saves it. To the bit for DreamerV3, whose kernel reads both as one integer."""
    agent = trained(3, name=name)
    state = agent.state_dict()
    saved = deepcopy(state)
    step = "step" if name == "dreamer_v3" else "steps"
    for key in agent.optimizers():
        saved[checkpoint.EXTRA][key]["param_groups"][0].update({"capturable": True, step: torch.tensor(3)})
    number, tensor = resumed(state, "cpu", name=name), resumed(saved, "cpu", name=name)
    batches = [make_batch(agent) for _ in range(2)]
    equal = same if name == "dreamer_v3" else partial(assert_close, atol=1e-6, rtol=1e-5)
    equal(run(tensor.update, batches), run(number.update, batches))
    equal(everything(tensor), everything(number))
    for optimizer in tensor.optimizers().values():
        assert isinstance(optimizer.param_groups[0][step], Tensor)
    assert everything(tensor)["step"] == [5]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("before", [0, 2], ids=["fresh", "resumed"])
@pytest.mark.parametrize("name", CAPTURABLE)
def test_replays_are_the_plain_updates(name: str, before: int, precision: str) -> None:
    """Metrics, latents written back and all state; also behind a checkpoint of the CPU."""
    start = trained(before, name=name)
    graphed, plain = (resumed(start.state_dict(), "cuda", precision, name) for _ in range(2))
    batches = [make_batch(start) for _ in range(WARM_UP + 3)]
    update = fastest_update(graphed)
    assert isinstance(update, GraphedUpdate)
    got, want = run(update, batches), run(partial(plain_update, plain), batches)
    assert update.graph is not None
    assert name != "dreamer_v3" or {"deter", "stoch", "index"} <= got[-1].keys()
    same(got, want)
    same(everything(graphed), everything(plain))
    assert everything(graphed)["step"] == [before + len(batches)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_replay_that_is_not_finite_changes_nothing_and_is_named(name: str) -> None:
    start = trained(0, name=name)
    agent = resumed(start.state_dict(), "cuda", name=name)
    update, batch = fastest_update(agent), make_batch(start)
    run(update, [batch] * (WARM_UP + 1))
    before = deepcopy(everything(agent))
    run(update, [batch | {"pos": batch["pos"] * float("nan")}])
    same(everything(agent), before)
    with pytest.raises(FastwmError, match=f"update {WARM_UP + 2} of this process: the loss .* is not finite"):
        agent.check_finite()
    run(update, [batch])
    agent.check_finite()


@pytest.mark.gpu
def test_a_batch_of_another_shape_is_refused() -> None:
    agent = trained(0).cuda()
    update = fastest_update(agent)
    run(update, [make_batch(agent) for _ in range(WARM_UP + 1)])
    before = deepcopy(everything(agent))
    with pytest.raises(ValueError, match=r"expected \w+ \[6, 3.*\] as recorded, got \[6, 2"):
        update(make_batch(agent, batch=2))
    same(everything(agent), before)


@pytest.mark.gpu
def test_a_checkpoint_of_graphed_updates_continues_on_the_cpu(tmp_path: Path) -> None:
    """By its state dict, whose tensors lie on the GPU, and by its files."""
    agent = trained(0).cuda()
    run(fastest_update(agent), [make_batch(agent) for _ in range(WARM_UP + 2)])
    by_state, by_files = resumed(agent.state_dict(), "cpu"), trained(0)
    checkpoint.load_agent(checkpoint.save(tmp_path, 1, agent, {}, {"oldest_row": 0}), by_files)
    same(everything(by_state), everything(agent), check_device=False)
    batches = [make_batch(by_state) for _ in range(2)]
    results = run(by_state.update, batches)
    assert all(value.isfinite().all() for value in results[-1].values())
    same(results, run(by_files.update, batches))
    same(everything(by_state), everything(by_files))
    assert by_state.optimizer.param_groups[0]["step"].device.type == "cpu"
    assert everything(by_state)["step"] == [WARM_UP + 4]
