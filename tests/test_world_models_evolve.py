"""World Models' fitness, evolution and acting. Tests name their traps (docs/traps.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwm.agents.world_models import WorldModels, official
from fastwm.agents.world_models.evolve import EvolveC, Normal, cost
from fastwm.agents.world_models.fitness import Dream, Real
from fastwm.errors import FastwmError
from fastwm.nn import MDNRNN
from fastwm.runner.state import pack, unpack
from tests.test_world_models_stages import CAR, Run, latents, tiny


def dream(agent: WorldModels, **options: Any) -> Dream:
    data = latents()
    mu, logvar = (torch.from_numpy(data[key][data["is_first"]]) for key in ("mu", "logvar"))
    return Dream(agent, mu, logvar, **({"temperature": 1.0, "max_steps": 20} | options))


def test_a_candidates_score_is_its_own() -> None:
    """Score of a candidate.

    Neither its neighbours, nor its place, nor the size of the batch matter; equal ones score the same.
    """
    fitness, torch_seed = dream(tiny(features="zch", bias=False)), 3
    torch.manual_seed(torch_seed)
    vectors = torch.randn(5, fitness.agent.controller.size)
    keys = torch.arange(3).expand(5, 3).contiguous()
    scores = fitness(vectors, keys, 7)
    assert torch.equal(fitness(vectors[3:4], keys[3:4], 7).returns, scores.returns[3:4])
    turned = fitness(vectors.flip(0), keys, 7)
    assert torch.equal(turned.returns.flip(0), scores.returns)
    twins = fitness(vectors[:1].expand(2, -1), keys[:2], 7)
    assert torch.equal(twins.returns[0], twins.returns[1])
    assert not torch.equal(fitness(vectors, keys, 8).returns, scores.returns)


def test_in_the_real_environment() -> None:
    """Score of a candidate: the same up to rounding: V's convolutions sum in an order that depends on the batch."""
    agent = tiny(car=True)
    fitness = Real(agent, CAR, {}, max_steps=30, num_envs=3)
    torch.manual_seed(1)
    vectors, keys = torch.randn(3, agent.controller.size), torch.arange(2).expand(3, 2).contiguous()
    scores = fitness(vectors, keys, 5)
    whole = Real(agent, CAR, {}, max_steps=30, num_envs=6)(vectors, keys, 5)
    torch.testing.assert_close(scores, whole, atol=1e-3, rtol=0)
    torch.testing.assert_close(fitness(vectors[1:2], keys[1:2], 5).returns, scores.returns[1:2], atol=1e-3, rtol=0)
    assert scores.returns.std() > 1


def test_patience_ends_episodes_that_earn_nothing() -> None:
    agent = tiny(car=True)
    vectors = torch.zeros(2, agent.controller.size)
    vectors[0, 1], vectors[1, 1] = 5.0, -20.0  # full gas, none
    scores = Real(agent, CAR, {}, max_steps=30, num_envs=2, patience=4)(vectors, torch.zeros(2, 1).long(), 0)
    assert scores.lengths.tolist() == [[30], [5]]


def test_dreams_count_the_last_step(tmp_path: Path) -> None:
    """t35 and the reward of the final step: an end at once is a return of 1, no end one of the limit."""
    agent = tiny(features="zch", bias=False)
    with torch.no_grad():
        agent.rnn.head.linear.weight.zero_()
        agent.rnn.head.linear.bias.zero_()
        agent.rnn.head.linear.bias[0] = 1.0
    vectors, keys = torch.zeros(1, agent.controller.size), torch.arange(4)[None]
    assert dream(agent)(vectors, keys, 0).returns.tolist() == [[1.0] * 4]
    with torch.no_grad():
        agent.rnn.head.linear.bias[0] = 0.0  # t14: strictly above zero
    assert dream(agent)(vectors, keys, 0).returns.tolist() == [[20.0] * 4]


def test_a_dream_that_cannot_tell_candidates_apart_is_refused() -> None:
    agent = tiny()
    agent.rnn.heads = ()
    with pytest.raises(FastwmError, match="every controller scores the same"):
        dream(agent)
    with pytest.raises(FastwmError, match="linear controllers"):
        dream(tiny(hidden=4))


def test_larger_weights_cost_more() -> None:
    """Sign of the penalty."""
    vectors = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    costs = cost(torch.tensor([5.0, 5.0], dtype=torch.float64), vectors, 0.01)
    assert costs.tolist() == pytest.approx([-4.99, -4.96])


class Parabola:
    """Best where all parameters are 0.5; noisy enough that samples beat the mean."""

    def __call__(self, vectors: torch.Tensor, keys: torch.Tensor, seed: int) -> Any:
        value = -(vectors.double() - 0.5).square().sum(1, keepdim=True).expand(-1, keys.shape[1])
        return type("Scores", (), {"returns": value, "lengths": torch.ones_like(value)})


@pytest.mark.parametrize("diagonal", [False, True])
def test_evolution_keeps_the_mean(tmp_path: Path, diagonal: bool) -> None:
    """Mean of the evolution."""
    agent = tiny(features="z", bias=False, population=8, rollouts=2, generations=60, evaluate_every=10,
                 evaluate_rollouts=4, seeds="common", diagonal=diagonal)  # fmt: skip
    stage = EvolveC(Run(tmp_path / "c"), agent, [tmp_path])
    stage.fitness = Parabola  # type: ignore[method-assign, assignment]
    stage.restore()
    stage.work()
    mean = torch.from_numpy(stage.evolution.es.result.xfavorite).float()
    torch.testing.assert_close(agent.controller.vector(), mean)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5), atol=0.05, rtol=0)
    evaluations = [values for _, values in stage.run.logged if "evaluation/mean" in values]  # type: ignore[attr-defined]
    assert len(evaluations) == 6 and evaluations[-1]["evaluation/best"] > evaluations[0]["evaluation/best"]
    assert abs(sum(value for key, value in evaluations[-1].items() if key.startswith("share/")) - 1) < 1e-6


def test_equal_scores_teach_nothing(tmp_path: Path) -> None:
    """Where every candidate lives to the end, the distribution stays as it is."""

    class Flat(Parabola):
        def __call__(self, vectors: torch.Tensor, keys: torch.Tensor, seed: int) -> Any:
            return super().__call__(torch.zeros_like(vectors), keys, seed)

    stage = EvolveC(Run(tmp_path / "c"), tiny(features="z", bias=False, population=6), [tmp_path])
    stage.restore()
    for _ in range(5):
        stage.evolve(Flat())
    assert stage.evolution.es.sigma == 0.1 and stage.generation == 5
    stage.evolve(Parabola())
    assert stage.evolution.es.sigma != 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_return_that_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    """It has no rank: CMA-ES would take all candidates for equal, or move to it."""

    class Broken(Parabola):
        def __call__(self, vectors: torch.Tensor, keys: torch.Tensor, seed: int) -> Any:
            scores = super().__call__(vectors, keys, seed)
            scores.returns = scores.returns.clone()
            scores.returns[len(vectors) // 2, 0] = value
            return scores

    stage = EvolveC(Run(tmp_path / "c"), tiny(features="z", bias=False, population=6), [tmp_path])
    stage.restore()
    before = stage.evolution.es.mean.copy()
    with pytest.raises(FastwmError, match=rf"candidate 3 of generation 1 has a return of {value} in the environment"):
        stage.evolve(Broken())
    stage.config.c.fitness = "dream"
    with pytest.raises(FastwmError, match=rf"the mean controller of generation 0 has a return of {value} in M's dream"):
        stage.evaluate(Broken())
    assert np.array_equal(stage.evolution.es.mean, before) and stage.generation == 0 and stage.evolution.es.sigma == 0.1


def test_a_population_of_one_is_refused() -> None:
    with pytest.raises(FastwmError, match="population"):
        tiny(population=1)


def test_seeds_of_candidates(tmp_path: Path) -> None:
    def keys(seeds: str) -> list[list[int]]:
        agent = tiny(population=4, rollouts=2, seeds=seeds)
        stage = EvolveC(Run(tmp_path / "c"), agent, [tmp_path])
        return stage.keys().tolist()

    assert keys("own") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert keys("antithetic") == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert keys("common") == [[0, 1]] * 4


@pytest.mark.parametrize("diagonal", [False, True])
def test_evolution_resumes_exactly(tmp_path: Path, diagonal: bool) -> None:
    """A new CMA-ES with the saved arrays and numbers asks for the very same candidates, for many generations."""
    stages = []
    for name in "ab":
        agent = tiny(features="z", bias=False, population=6, generations=99, diagonal=diagonal)
        stages.append(EvolveC(Run(tmp_path / name), agent, [tmp_path]))
        stages[-1].restore()
    straight, resumed = stages
    for saved_at in (0, 3, 24):
        while straight.generation < saved_at:
            straight.evolve(Parabola())
        tree, tensors = pack(straight.evolution.get_extra_state())
        resumed.evolution.set_extra_state(unpack(json.loads(json.dumps(tree)), tensors))
        resumed.generation = saved_at
        for _ in range(12):
            for stage in stages:
                stage.evolve(Parabola())
            assert np.array_equal(straight.evolution.es.mean, resumed.evolution.es.mean)
            assert straight.evolution.es.sigma == resumed.evolution.es.sigma
    assert Normal(np.random.default_rng(0))(2, 3).shape == (2, 3)


def test_the_act_of_an_agent_follows_the_order_of_the_paper() -> None:
    """C sees M's state from before z; M takes z and the continuous action (t37); a first row starts from zeros."""
    agent = tiny(features="zch", bias=False)
    agent.config.sample = False
    torch.manual_seed(2)
    agent.controller.load_vector(torch.randn(agent.controller.size))
    image = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    first = np.ones(2, bool)
    _, state = agent.act({"image": image.numpy(), "is_first": first})
    action, state2 = agent.choose({"image": image, "is_first": ~first}, state)
    mu = agent.encode(image).mu
    with torch.no_grad():
        expected = agent.controller(mu, state["h"], state["c"])
        h, c = agent.rnn.advance(mu, expected, (state["h"], state["c"]), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(action, expected)
    torch.testing.assert_close((state2["h"], state2["c"]), (h, c))
    again, _ = agent.choose({"image": image, "is_first": first}, state)
    torch.testing.assert_close(again, agent.choose({"image": image, "is_first": first})[0])


def test_imagination(tmp_path: Path) -> None:
    """Given rows up to the context, then M's own; the frames stand side by side."""
    agent = tiny()
    image = torch.randint(0, 255, (6, 1, 64, 64, 3), dtype=torch.uint8)
    batch = {"image": image, "action": torch.zeros(6, 1, 1), "is_first": torch.zeros(6, 1, dtype=torch.bool)}
    z = torch.randn(6, 1, 4)
    path = agent.dream(z, batch["action"], batch["is_first"], 3)
    assert torch.equal(path[:3], z[:3]) and not torch.isclose(path[3:], z[3:]).any()
    video = agent.imagine_video(batch, 3)["image"]
    assert video.shape == (6, 1, 64, 192, 3) and torch.equal(video[..., :64, :], image)
    with pytest.raises(FastwmError, match="stages"):
        agent.update({})


def test_published_files_are_read(tmp_path: Path) -> None:
    """Integers, the values times 10,000: head, then LSTM; wrong sizes and wrong files are told."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9999, 9999, shape) for shape in ((8, 60), (60,), (4 + 3 + 8, 32), (32,))]
    path = tmp_path / "rnn.json"
    path.write_text(json.dumps([a.tolist() for a in arrays]))
    rnn = MDNRNN(4, 3, 8)
    official.load_rnn(rnn, official.read_json(path))
    torch.testing.assert_close(rnn.head.linear.weight.detach().mT.double(), torch.from_numpy(arrays[0] / 10_000))
    j_columns = torch.from_numpy(arrays[2][:7, 8:16] / 10_000)  # theirs i, j, f, o; ours i, f, g, o
    torch.testing.assert_close(rnn.lstm.weight_ih_l0[16:24].detach().mT.double(), j_columns)
    with pytest.raises(FastwmError, match="M: array 0 is .* expected"):
        official.load_rnn(MDNRNN(4, 3, 9), official.read_json(path))
    path.write_text("{}x")
    with pytest.raises(FastwmError, match="not a list of arrays"):
        official.read_json(path)
