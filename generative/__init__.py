"""The simulator: agent and environment together, as one differentiable latent-variable model."""
