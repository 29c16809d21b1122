"""Build an agent of your own from fastwm's parts, and train it with the runner.

    python examples/agent_from_parts.py [--steps 8000] [--logdir runs/parts]

Needs `pip install 'fastwm[agents]'`. The agent is a Dreamer of a hundred lines: encoder, RSSM, decoder, heads and actor
from `fastwm.nn`, imagination and returns from `fastwm.ops`, one Adam. Observations are vectors.
"""

import argparse
from dataclasses import dataclass
from typing import Literal

import torch

import fastwm
from fastwm import nn, ops
from fastwm.agents import AGENTS, Agent, AgentSpec
from fastwm.nn.spaces import decode, encode, row_spaces, total_width
from fastwm.settings import Count, Fraction, Positive, Settings, Weight, Width


@dataclass
class PartsConfig(Settings):
    """Settings: each has a type with its range, and becomes an option of the command line."""

    deter: Width = 64
    """Units of the recurrent state."""
    units: Width = 32
    """Units of all hidden layers."""
    stoch: Width = 8
    """Categorical latents, of eight classes each."""
    horizon: Count = 15
    """Steps of every imagined trajectory."""
    discount: Fraction = 0.99
    """Discount per step."""
    entropy: Weight = 3e-3
    """Weight of the policy's entropy."""
    lr: Positive = 1e-3
    """Learning rate."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Matrix products in float32 or bfloat16."""


class PartsAgent(Agent):
    """World model, actor and critic with one optimiser."""

    batch_keys = ("is_first", "is_terminal")

    def __init__(self, obs_space, act_space, config=None):
        super().__init__()
        self.config = c = config or PartsConfig()
        self.obs_space, self.act_space = row_spaces(obs_space, act_space)
        self.encoder = nn.Encoder(self.obs_space, c.units, layers=2, depth=4, mults=(2, 3, 4, 4), kernel=5)
        self.rssm = nn.RSSM("dreamer_v3", tokens=self.encoder.out_dim, action=total_width(self.act_space),
                            deter=c.deter, hidden=c.units, stoch=c.stoch, classes=8)  # fmt: skip
        self.decoder = nn.Decoder(self.obs_space, c.deter, 8 * c.stoch, c.units, layers=2, depth=4, mults=(2, 3, 4, 4),
                                  kernel=5, blocks=8)  # fmt: skip
        self.reward = nn.TwoHotHead(self.rssm.feat_dim, c.units, 1)
        self.cont = nn.BernoulliHead(self.rssm.feat_dim, c.units, 1)
        self.critic = nn.TwoHotHead(self.rssm.feat_dim, c.units, 2)
        self.actor = nn.Actor(self.rssm.feat_dim, c.units, 2, self.act_space, outscale=0.01)
        self.reset_optimizers()

    def reset_optimizers(self):
        self.adam = torch.optim.Adam(self.parameters(), self.config.lr)

    def optimizers(self):
        return {"adam": self.adam}

    def initial(self, batch):
        deter, stoch = self.rssm.initial(batch)
        return {"deter": deter, "stoch": stoch, "action": deter.new_zeros(batch, total_width(self.act_space))}

    @torch.no_grad()
    def act(self, obs, state=None, mode="train"):
        obs = self.receive(obs, state, mode)
        first = obs["is_first"].bool()
        state = self.initial(len(first)) if state is None else state
        past = nn.State(state["deter"], state["stoch"])
        post, _ = self.rssm.observe_step(past, state["action"], self.encoder(obs), first)
        action = self.random_action(len(first)) if mode == "random" else self.actor(*post.parts).sample()
        state = {"deter": post.deter, "stoch": post.stoch, "action": encode(self.act_space, action)}
        return (action["action"] if list(action) == ["action"] else action), state

    def update(self, batch, *, write_back=None):
        self.check_update(batch)
        states, losses = self.model_losses(batch)
        losses |= self.behaviour_losses(states)
        self.adam.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 10.0)
        self.adam.step()
        return {f"loss/{name}": loss.detach() for name, loss in losses.items()}

    def model_losses(self, batch):
        """Filter the rows [T, B, ...] and predict all of them."""
        rows, prev_action = self.led_to(batch)
        start = self.rssm.initial(prev_action.shape[1])
        states, post = self.rssm.observe(start, prev_action, self.encoder(rows), rows["is_first"].bool())
        dyn, rep = self.rssm.kl(post, self.rssm.prior_logits(states.deter), free_nats=0.1)
        recon = self.decoder(states.deter, states.stoch.flatten(-2))
        live = self.config.discount * (1 - rows["is_terminal"].float())
        return states, {
            "kl": (dyn + 0.1 * rep).mean(),
            "rec": 10 * sum(dist.loss(rows[key]).mean() for key, dist in recon.items()),
            "reward": self.reward(*states.parts).loss(rows["reward"]).mean(),
            "cont": self.cont(*states.parts).loss(live).mean(),
        }

    def behaviour_losses(self, states):
        """Imagine from every state in one call, heads included, and score actor and critic there."""
        c, start = self.config, states.flatten().detach()
        uniform, noise = (
            torch.rand(c.horizon, len(start.deter), c.stoch),
            self.actor.noise(c.horizon + 1, len(start.deter)),
        )
        heads = [head.params for head in (self.reward, self.cont, self.critic)]
        *_, encoded, (policy, reward, cont, value) = ops.rssm_imagine(
            *start, uniform, noise, self.rssm.observe_weights(), self.rssm.prior_weights(), self.actor.params,
            tuple(self.actor.specs.values()), readouts=heads,
        )  # fmt: skip
        policy, critic = self.actor.dist(policy), self.critic.dist(value[:-1])
        reward, cont = self.reward.dist(reward).mean.detach(), self.cont.dist(cont).prob.detach()  # [H+1, N]
        value = self.critic.dist(value).mean.detach()
        returns = ops.lambda_return(reward[1:], cont[1:], value[1:], lam=0.95)  # [H, N]
        weight = cont.cumprod(0)[:-1]
        advantage = (returns - value[:-1]) / (returns.std() + 1)
        score = policy.log_prob(decode(self.act_space, encoded))[:-1] * advantage + c.entropy * policy.entropy()[:-1]
        return {"actor": -(weight * score).mean(), "critic": (weight * critic.loss(returns)).mean()}

    @torch.no_grad()
    def open_loop(self, batch, context):
        rows, actions = self.led_to(batch)
        seen = {key: value[:context] for key, value in rows.items()}
        start = self.rssm.initial(actions.shape[1])
        past, _ = self.rssm.observe(start, actions[:context], self.encoder(seen), seen["is_first"].bool())
        future, _ = self.rssm.open_loop(nn.State(past.deter[-1], past.stoch[-1]), actions[context:])
        deter, stoch = (torch.cat(parts) for parts in zip(past, future))
        return {key: dist.prediction for key, dist in self.decoder(deter, stoch.flatten(-2)).items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--logdir", default="runs/parts")
    options = parser.parse_args()
    AGENTS["parts"] = AgentSpec(PartsAgent, PartsConfig)
    fastwm.train("parts", env="cartpole", logdir=options.logdir, steps=options.steps, num_envs=4, batch_size=16,
                 batch_length=16, train_ratio=64, replay_capacity=50_000)  # fmt: skip
    score = fastwm.evaluate(options.logdir, episodes=8)
    print(f"mean return {score['mean']:.1f} over {score['episodes']} episodes")


if __name__ == "__main__":
    main()
