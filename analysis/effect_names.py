"""What the recordings and measures of an intervention's effects are called.

On their own, so that those who only read a result need not load what makes one.
"""

from typing import Literal

World = Literal["simulated", "real"]
WORLDS: tuple[World, ...] = ("simulated", "real")
TESTED, TWIN, SIGN_FLIP = "tested", "twin", "sign_flip"
RANDOM_PREFIX = "random_"

VALUE, POLICY_KL, RETURN, DONE = "value", "policy_kl", "return", "done"
ACTION_PREFIX, COMPONENT_PREFIX, CLUSTER_PREFIX = "action:", "component:", "cluster:"
UNSIGNED = (POLICY_KL,)
"""Measures that cannot fall below zero, so that zero is no control of theirs."""
