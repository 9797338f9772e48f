"""Recurrent agents: networks, PPO, recorder, checkpoints, and the protocol for foreign agents."""
