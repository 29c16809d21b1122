"""Stage 5: CMA-ES evolves C."""

import math
import time
from collections.abc import Mapping
from typing import Any

import cma
import numpy as np
import torch
from torch import Tensor, nn

from fastwm.agents.world_models.controller import Controller
from fastwm.agents.world_models.encode import encoded_folders
from fastwm.agents.world_models.fitness import Dream, Fitness, Real, first_latents
from fastwm.agents.world_models.stage import Stage, Stopped, check_same, fingerprint
from fastwm.errors import FastwmError

SECONDS = ("ask", "rollouts", "tell", "evaluate")


class Normal:
    """Standard normal numbers for `cma`, from a generator that is saved with it."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def __call__(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)


class Evolution(nn.Module):
    """The best mean so far as a controller, and the whole state of CMA-ES."""

    def __init__(self, controller: Controller, es: Any):
        super().__init__()
        self.controller, self.es = controller, es

    def get_extra_state(self) -> dict[str, Any]:
        return {"es": {part: numbers_of(_part(self.es, part)) for part in PARTS},
                "rng": self.es.opts["randn"].rng.bit_generator.state}  # fmt: skip

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for part in PARTS:
            set_numbers(_part(self.es, part), state["es"][part])
        self.es.opts["randn"].rng.bit_generator.state = state["rng"]


PARTS = ("", "sm", "adapt_sigma", "sigma_vec", "fit", "_stoptolxstagnation")
"""Parts of `cma`'s object whose arrays and numbers are its state; the rest follows from the settings."""


def _part(es: Any, name: str) -> Any:
    return getattr(es, name) if name else es


def numbers_of(part: Any) -> dict[str, Any]:
    """The arrays, the numbers and the lists of numbers among the attributes of an object; arrays as tensors."""
    values = {key: _number(value) for key, value in vars(part).items()}
    return {key: value for key, value in values.items() if value is not None}


def _number(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "bif":
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is list:
        numbers = [_number(v) for v in value]
        return numbers if all(isinstance(v, (bool, int, float)) for v in numbers) else None
    return value if isinstance(value, (bool, int, float)) else None


def set_numbers(part: Any, values: Mapping[str, Any]) -> None:
    """The inverse of `numbers_of`. Only numbers are taken, no method is replaced, and no array changes its size."""
    for key, value in values.items():
        if isinstance(value, Tensor):
            value = value.cpu().numpy().copy()
        old = getattr(part, key, None)
        resized = isinstance(old, np.ndarray) and old.ndim > 0 and np.shape(value) != old.shape
        if _number(value) is None or hasattr(type(part), key) or resized:
            raise ValueError(f"the state of CMA-ES does not fit: {key}")
        setattr(part, key, value)


class EvolveC(Stage):
    """Population in, mean returns out. What acts afterwards is the best of the distribution's means, not a sample.

    Cost of a candidate: minus its mean return, plus `weight_decay` times the mean of its squared parameters.
    """

    name = "c"

    def restore(self) -> bool:
        c, controller = self.config.c, self.agent.controller
        options = {
            "popsize": c.population, "seed": math.nan, "randn": Normal(self.rng()), "verbose": -9,
            "CMA_diagonal": c.diagonal,
        }  # fmt: skip
        start = np.zeros(controller.size)
        if self.iteration:
            start = controller.vector().cpu().double().numpy()
        self.evolution = Evolution(controller, cma.CMAEvolutionStrategy(start, c.sigma, options))
        state = self.run.restore(self.evolution)
        self.generation, self.best, self.seconds = 0, -math.inf, dict.fromkeys(SECONDS, 0.0)
        self.mark = fingerprint(self.agent.rnn)
        if state:
            check_same(self.name, "M", state["m"], self.mark, self.run.folder)
            self.generation, self.best, self.seconds = state["generation"], state["best"], state["seconds"]
        return self.finished

    @property
    def finished(self) -> bool:
        return self.generation >= self.config.c.generations or (self.late and self.best > -math.inf)

    @property
    def late(self) -> bool:
        minutes = self.config.c.minutes
        return minutes > 0 and sum(self.seconds.values()) >= 60 * minutes

    def fitness(self) -> Fitness:
        c = self.config.c
        if c.fitness == "real":
            return Real(self.agent, self.run.env, self.run.env_args, c.max_steps, c.num_envs, c.patience)
        mu, logvar = first_latents(encoded_folders(self), self.run.seed)
        return Dream(self.agent, mu, logvar, c.temperature, c.max_steps)

    def work(self) -> None:
        c, fitness = self.config.c, self.fitness()
        self.run.say(
            f"C: {self.agent.controller.size:,} parameters, {'diagonal' if c.diagonal else 'full'} covariance; "
            f"{c.generations:,} generations of {c.population} x {c.rollouts} episodes of at most {c.max_steps} steps, "
            f"{'in the dream at temperature ' + format(c.temperature, 'g') if c.fitness == 'dream' else 'real ones'}"
            f"{f', at most {c.minutes:g} minutes' if c.minutes else ''}; {self.generation:,} done"
        )
        while not self.finished:
            values = self.evolve(fitness)
            if self.generation % c.evaluate_every == 0 or self.generation >= c.generations or self.late:
                values |= self.evaluate(fitness)
            self.tell(values)
            if self.run.stopping() or self.run.due("save") or self.finished:
                self.save()
                if self.run.stopping() and not self.finished:
                    raise Stopped
        self.run.publish(self.agent, self.generation)

    def evolve(self, fitness: Fitness) -> dict[str, float]:
        """One generation."""
        c, es = self.config.c, self.evolution.es
        clock = Clock(self.seconds)
        candidates = es.ask()
        clock.lap("ask")
        vectors = torch.from_numpy(np.stack(candidates))
        scores = fitness(vectors, self.keys(), self.seed_of(self.generation))
        clock.lap("rollouts")
        mean = scores.returns.double().mean(1)
        for candidate in (~mean.isfinite()).nonzero()[:1, 0].tolist():
            self.refuse(f"candidate {candidate} of generation {self.generation + 1:,}", float(mean[candidate]))
        if mean.max() > mean.min():
            es.tell(candidates, cost(mean, vectors, c.weight_decay).tolist())
        else:  # nothing to learn from, and CMA-ES would only shrink
            self.run.show(
                f"C: generation {self.generation + 1:,}: all candidates scored {float(mean[0]):g}"
                + (": M has not learnt what ends an episode; more --agent.m.steps" if c.fitness == "dream" else "")
            )
        clock.lap("tell")
        self.generation += 1
        steps = float(scores.lengths.sum())
        laps = clock.laps
        return {
            "return/mean": float(mean.mean()), "return/best": float(mean.max()), "return/worst": float(mean.min()),
            "length/mean": float(scores.lengths.double().mean()), "sigma": float(es.sigma),
            "seconds/ask": laps["ask"], "seconds/rollouts": laps["rollouts"], "seconds/tell": laps["tell"],
            "steps_per_second": steps / max(laps["rollouts"], 1e-9),
            "generations_per_minute": 60 / max(sum(laps.values()), 1e-9),
        }  # fmt: skip

    def evaluate(self, fitness: Fitness) -> dict[str, float]:
        """Score the distribution's mean on episodes that no candidate saw; keep it if it is the best so far."""
        clock, vector = Clock(self.seconds), torch.from_numpy(np.asarray(self.evolution.es.result.xfavorite))
        keys = torch.arange(self.config.c.evaluate_rollouts)[None]
        returns = fitness(vector[None], keys, self.seed_of(-1)).returns.double()[0]
        mean = float(returns.mean())
        if not math.isfinite(mean):
            self.refuse(f"the mean controller of generation {self.generation:,}", mean)
        if mean > self.best:
            self.best = mean
            self.agent.controller.load_vector(vector.float().to(self.device))
            self.run.publish(self.agent, self.generation)
        clock.lap("evaluate")
        error = float(returns.std() / len(returns) ** 0.5) if len(returns) > 1 else 0.0
        return {"evaluation/mean": mean, "evaluation/stderr": error, "evaluation/best": self.best}

    def refuse(self, controller: str, value: float) -> None:
        """CMA-ES ranks returns: one that is not a number has no rank."""
        dream = "M's dream, so M has diverged: train M again with a smaller --agent.m.lr"
        origin = dream if self.config.c.fitness == "dream" else f"the environment {self.run.env}: see its rewards"
        raise FastwmError(f"C: {controller} has a return of {value} in {origin}; nothing was learnt from it")

    def keys(self) -> Tensor:
        """Numbers of the episodes [P, R]: candidates of equal rows meet the same luck."""
        c = self.config.c
        own = torch.arange(c.population)
        candidate = {"own": own, "antithetic": own % (c.population // 2), "common": torch.zeros_like(own)}[c.seeds]
        return candidate[:, None] * c.rollouts + torch.arange(c.rollouts)

    def seed_of(self, generation: int) -> int:
        """A seed for a generation's episodes; -1 is the evaluations', always the same."""
        return int(self.rng(2, generation + 1).integers(2**62))

    def tell(self, values: dict[str, float]) -> None:
        total = sum(self.seconds.values())
        shares = {f"share/{name}": seconds / max(total, 1e-9) for name, seconds in self.seconds.items()}
        self.run.log(self.generation, values | shares | {"seconds": total})
        text = (
            f"C: generation {self.generation:,}/{self.config.c.generations:,}  mean {values['return/mean']:.1f}  "
            f"best {values['return/best']:.1f}  steps {values['length/mean']:.0f}  sigma {values['sigma']:.3g}  "
            f"{values['generations_per_minute']:.1f} generations/min  {values['steps_per_second']:,.0f} steps/s  "
            f"{total:.0f} s"
        )
        if "evaluation/mean" in values:
            self.run.say(
                f"{text}  mean controller {values['evaluation/mean']:.1f} +- {values['evaluation/stderr']:.1f}"
            )
        else:
            self.run.show(text)

    def save(self) -> None:
        state = {"generation": self.generation, "best": self.best, "seconds": self.seconds, "m": self.mark}
        self.run.save(self.generation, self.evolution, state)


class Clock:
    """Seconds since the last lap, added to running totals."""

    def __init__(self, totals: dict[str, float]):
        self.totals, self.laps, self.at = totals, dict[str, float](), time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self.at = now - self.at, now
        self.totals[name] += self.laps[name]


def cost(returns: Tensor, vectors: Tensor, weight_decay: float) -> Tensor:
    """Cost per candidate [P]: negative return plus an L2 penalty."""
    return -returns + weight_decay * vectors.square().mean(1)
