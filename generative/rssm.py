"""Recurrent state-space model with categorical latents.

Hafner et al., "Mastering Atari with Discrete World Models" (DreamerV2), 2021. One step is

    x_t     = ELU(LN(W_z z_{t-1} + W_a a_{t-1}))
    h_t     = NormGRU(x_t, h_{t-1})                 deterministic part, `deter`
    prior   = p(z_t | h_t)
    posterior = q(z_t | h_t, embedding of frame t)  where a frame is given

with z, `stoch`, a set of one-hot vectors.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from generative.networks import LAYER_NORM_EPS, NormGRUCell
from generative.types import EnvironmentState


class Rssm(nn.Module):
    """Transition, prior and posterior; state in, state out."""

    def __init__(
        self,
        deter_dim: int,
        num_categoricals: int,
        num_classes: int,
        hidden_dim: int,
        num_actions: int,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self.num_categoricals = num_categoricals
        self.num_classes = num_classes
        stoch_dim = num_categoricals * num_classes
        self.stoch_weights = nn.Linear(stoch_dim, hidden_dim)
        self.action_weights = nn.Linear(num_actions, hidden_dim, bias=False)
        self.input_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.cell = NormGRUCell(hidden_dim, deter_dim)
        self.prior_hidden = nn.Linear(deter_dim, hidden_dim)
        self.prior_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.prior_output = nn.Linear(hidden_dim, stoch_dim)
        self.posterior_hidden = nn.Linear(deter_dim, hidden_dim)
        self.posterior_embedding = nn.Linear(embedding_dim, hidden_dim, bias=False)
        self.posterior_norm = nn.LayerNorm(hidden_dim, eps=LAYER_NORM_EPS)
        self.posterior_output = nn.Linear(hidden_dim, stoch_dim)

    def transition(self, state: EnvironmentState, action: Tensor) -> Tensor:
        """State and (B, num_actions) one-hot action → (B, deter_dim) next deterministic part."""
        drive = self.stoch_weights(state.stoch.flatten(-2)) + self.action_weights(action)
        return self.cell(F.elu(self.input_norm(drive)), state.deter)

    def prior_logits(self, deter: Tensor) -> Tensor:
        """(..., deter_dim) → (..., num_categoricals, num_classes)."""
        return self._logits(self.prior_output(F.elu(self.prior_norm(self.prior_hidden(deter)))))

    def project_embedding(self, embedding: Tensor) -> Tensor:
        """(..., embedding_dim) → (..., hidden_dim): the part of the posterior free of the state.

        Split off so that it runs on all steps in one batch.
        """
        return self.posterior_embedding(embedding)

    def posterior_logits(self, deter: Tensor, projected_embedding: Tensor) -> Tensor:
        """(..., deter_dim), (..., hidden_dim) → (..., num_categoricals, num_classes)."""
        hidden = self.posterior_norm(self.posterior_hidden(deter) + projected_embedding)
        return self._logits(self.posterior_output(F.elu(hidden)))

    def _logits(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.num_categoricals, self.num_classes))
