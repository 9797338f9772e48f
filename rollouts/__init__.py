"""The data contract: what a rollout is, how it is stored, and how windows are drawn from it."""
