"""An agent's update as a CUDA graph: bitwise the plain update, on either side of a checkpoint."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm import _lib
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


def trained(updates: int, precision: str = "fp32") -> Any:
    """DreamerV3 on the CPU after some plain updates, none of which stands still."""
    agent = tiny("dreamerv3", warmup=0, lr=1e-2, precision=precision)
    run(agent.update, [make_batch(agent) for _ in range(updates)])
    return agent


def resumed(state: dict[str, Any], device: str, precision: str = "fp32") -> Any:
    agent = trained(0, precision).to(device)
    agent.load_state_dict(state)
    return agent


def everything(agent: Any) -> dict[str, Any]:
    """Weights, buffers, the optimiser's moments and its step."""
    state = agent.state_dict()
    optimizer = state.pop(checkpoint.EXTRA)["optimizer"]
    return {**state, "moments": optimizer["state"], "step": int(optimizer["param_groups"][0]["step"])}


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


@needs_native
def test_a_step_on_the_device_continues_on_the_cpu_as_a_number_does() -> None:
    """As a graphed update saves it: to the bit, since the kernel reads both as one integer."""
    agent = trained(3)
    state = agent.state_dict()
    saved = deepcopy(state)
    saved[checkpoint.EXTRA]["optimizer"]["param_groups"][0].update(capturable=True, step=torch.tensor(3))
    number, tensor = resumed(state, "cpu"), resumed(saved, "cpu")
    batches = [make_batch(agent) for _ in range(2)]
    same(run(tensor.update, batches), run(number.update, batches))
    same(everything(tensor), everything(number))
    assert isinstance(tensor.optimizer.param_groups[0]["step"], Tensor) and everything(tensor)["step"] == 5


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("before", [0, 2], ids=["fresh", "resumed"])
def test_replays_are_the_plain_updates(before: int, precision: str) -> None:
    """Metrics, latents written back and all state; also behind a checkpoint of the CPU."""
    start = trained(before)
    graphed, plain = (resumed(start.state_dict(), "cuda", precision) for _ in range(2))
    batches = [make_batch(start) for _ in range(WARM_UP + 3)]
    update = fastest_update(graphed)
    assert isinstance(update, GraphedUpdate)
    got, want = run(update, batches), run(partial(plain_update, plain), batches)
    assert update.graph is not None
    assert {"deter", "stoch", "index"} <= got[-1].keys()
    same(got, want)
    same(everything(graphed), everything(plain))
    assert everything(graphed)["step"] == before + len(batches)


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
    assert everything(by_state)["step"] == WARM_UP + 4
