"""Run folders, provenance, seeding, checkpoints, logs and devices: what every stage needs."""
