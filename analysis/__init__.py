"""Precompute-then-plot analyses of real and simulated rollouts."""
