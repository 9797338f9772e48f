"""The simulator's training objective without batching over time, as the reference system has it.

Every network sees one time step of a batch of windows at a time. The result equals that of
`generative.objective.compute_losses`; a test compares losses and gradients in double precision, and
`benchmarks/simulator.py` compares the speed.
"""

import torch
from torch import Tensor

from agents.images import to_float_images
from generative import losses
from generative.objective import Losses, ObjectiveConfig, TrainingNoise, WindowTensors
from generative.simulator import Simulator
from generative.straight_through import clamp_to_image, onehot_from_logits
from generative.types import EnvironmentState


def stepwise_losses(
    simulator: Simulator, windows: WindowTensors, config: ObjectiveConfig, noise: TrainingNoise
) -> Losses:
    """All terms of non-zero weight, and their weighted sum, one step of time after the other.

    All windows are decoded and shown to the agent: `observed_share` and `agent_share` must be 1.
    """
    weights = config.weights.of_bottleneck(simulator.config.bottleneck)
    distribution = simulator.encode_distribution(windows.initial_frames)
    latent = distribution.draw(noise.latent.to(simulator.dtype))
    terms = {
        "initial_agent_hidden": losses.initial_agent_hidden_loss(
            simulator.initial_agent_state(latent.detach()), windows.initial_agent_state
        ),
        "initial_action": losses.initial_action_loss(
            simulator.initial_action(latent.detach()), windows.initial_action
        ),
    }
    if simulator.config.bottleneck == "sphere":
        terms["spread"] = losses.spread_loss(latent)
    else:
        terms["latent_kl"] = losses.latent_kl_loss(distribution)
    initial = simulator.decode_initial(latent, config.training_latents, noise.initial).environment
    terms |= _Steps(simulator, windows, config, noise).sum_terms(initial)
    weighted = {name: term for name, term in terms.items() if getattr(weights, name)}
    total = torch.stack([getattr(weights, name) * term for name, term in weighted.items()]).sum()
    return Losses(total, weighted)


class _Steps:
    """What is given at every step."""

    def __init__(
        self,
        simulator: Simulator,
        windows: WindowTensors,
        config: ObjectiveConfig,
        noise: TrainingNoise,
    ) -> None:
        self.simulator, self.windows, self.config, self.noise = simulator, windows, config, noise

    def sum_terms(self, initial: EnvironmentState) -> dict[str, Tensor]:
        """Terms of all steps, each a sum over steps."""
        windows, weights = self.windows, self.config.weights
        sums: dict[str, Tensor] = {}
        observed = imagined = initial
        agent_state = imagined_agent_state = windows.initial_agent_state
        action = self.simulator.one_hot_actions(windows.initial_action)
        for step in range(len(windows.valid)):
            previous, (observed, kl_terms) = observed, self._observe(observed, action, step)
            terms = kl_terms | self._environment_terms(previous, observed, step)
            image = self.simulator.decode_images(observed.features)
            terms["image"] = self._image_loss(image, step)
            agent_state = self._watch(image, agent_state)
            terms |= self._agent_terms(agent_state, step)
            if weights.imagined_image:
                imagined = self._imagine(imagined, action, step)
                image = self.simulator.decode_images(imagined.features)
                terms["imagined_image"] = self._image_loss(image, step)
            if weights.imagined_agent_hidden or weights.imagined_action_log_prob:
                imagined_agent_state = self._watch(image, imagined_agent_state)
                watched = self._agent_terms(imagined_agent_state, step)
                terms |= {f"imagined_{name}": term for name, term in watched.items()}
            action = self.simulator.one_hot_actions(windows.action[step])
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
        return sums

    def _valid(self, step: int) -> Tensor:
        return self.windows.valid[step][None]

    def _frame(self, step: int) -> Tensor:
        return to_float_images(self.windows.frames[step]).to(self.simulator.dtype)

    def _observe(
        self, state: EnvironmentState, action: Tensor, step: int
    ) -> tuple[EnvironmentState, dict[str, Tensor]]:
        """The next posterior state, and its divergence from the prior."""
        rssm = self.simulator.rssm
        deter = rssm.transition(state, action)
        simulator = self.simulator
        embedded = simulator.convolve(simulator.frame_encoder, self._frame(step))
        embedding = rssm.project_embedding(embedded)
        posterior = rssm.posterior_logits(deter, embedding)
        stoch = onehot_from_logits(
            posterior, self.config.training_latents, self.noise.posterior[step]
        )
        divergence = losses.balanced_kl_loss(
            posterior[None],
            rssm.prior_logits(deter)[None],
            self._valid(step),
            self.config.kl_balance,
            self.config.kl_free_nats,
        )
        return EnvironmentState(deter, stoch), {"kl": divergence}

    def _imagine(self, state: EnvironmentState, action: Tensor, step: int) -> EnvironmentState:
        deter = self.simulator.rssm.transition(state, action)
        logits = self.simulator.rssm.prior_logits(deter)
        choice, draws = self.config.imagination_latents, self.noise.imagined[step]
        return EnvironmentState(deter, onehot_from_logits(logits, choice, draws))

    def _watch(self, image: Tensor, agent_state: Tensor) -> Tensor:
        agent = self.simulator.agent
        embedding = self.simulator.convolve(agent.embed, clamp_to_image(image))
        return agent.advance(embedding, agent_state)

    def _image_loss(self, image: Tensor, step: int) -> Tensor:
        return losses.image_loss(image[None], self._frame(step)[None], self._valid(step))

    def _environment_terms(
        self, previous: EnvironmentState, state: EnvironmentState, step: int
    ) -> dict[str, Tensor]:
        windows, valid = self.windows, self._valid(step)
        action = self.simulator.one_hot_actions(windows.action[step])
        reward = self.simulator.reward_head(state.features, action)
        terminal = self.simulator.terminal_head(state.features, action)
        return {
            "reward": losses.reward_loss(reward[None], windows.reward[step][None], valid),
            "terminal": losses.terminal_loss(terminal[None], windows.terminal[step][None], valid),
            "env_update": losses.env_update_loss(state.deter[None], previous.deter, valid),
        }

    def _agent_terms(self, agent_state: Tensor, step: int) -> dict[str, Tensor]:
        target, valid = self.windows.agent_state[step][None], self._valid(step)
        read_out = self.simulator.agent.read_out
        logits = read_out(agent_state[None]).action_logits
        return {
            "agent_hidden": losses.agent_hidden_loss(agent_state[None], target, valid),
            "action_log_prob": losses.action_log_prob_loss(
                logits, read_out(target).action_logits, valid
            ),
        }
