"""What the probe analysis calls the simulator's states and their baselines.

On their own, so that those who only read a result need not load what makes one.
"""

SIMULATOR_STATES = {
    "env_state": ("simulated_pixels", "simulated_untrained"),
    "latent": ("window_pixels", "window_untrained"),
    "simulated_hidden": ("simulated_pixels", "simulated_untrained"),
    "real_hidden": ("real_pixels", "real_untrained"),
}
"""What is asked of the simulator, each with its own baselines: pixels, and an untrained agent.

`simulated_` ones are of the simulated frame of the same step, `real_` ones of the recorded frame
that it imitates, `window_` ones of the last frame that set the sample up, whatever the step: what
a latent, which is one for all steps, could be replaced by."""
SIMULATOR_BASELINES = (
    "real_hidden",
    *dict.fromkeys(name for names in SIMULATOR_STATES.values() for name in names),
)
