import numpy as np
import pytest

from agents.card import bootstrap_mean, portable_provenance
from agents.evaluation import evaluate
from agents.scripted import HeldAction, run_right_and_jump
from environments.factory import EnvironmentConfig, environment_spec, make_environment


def test_the_bootstrap_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).choice([0.0, 10.0], 1000, p=[0.3, 0.7])
    found = bootstrap_mean(values)
    standard_error = values.std() / np.sqrt(len(values))
    assert found.mean == values.mean()
    assert found.low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.02)
    assert found.high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.02)


def test_the_interval_of_equal_values_is_a_point():
    found = bootstrap_mean(np.full(7, 3.0))
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))


def test_a_held_action_is_the_only_one_taken():
    environment = make_environment(EnvironmentConfig(env_name="fake"), 2, seed=0)
    sent = []
    send = environment.send
    environment.send = lambda actions: (sent.append(actions.copy()), send(actions))[1]
    num_actions = environment.spec.num_actions
    evaluation = evaluate(HeldAction(1, num_actions), environment, range(10**9, 10**9 + 2), seed=0)
    assert evaluation.lengths.min() > 0
    # Both slots start together, so both act until the shorter episode ends.
    assert all((actions == 1).all() for actions in sent[: evaluation.lengths.min()])


def test_the_script_presses_right_and_up():
    script = run_right_and_jump(environment_spec(EnvironmentConfig()))
    assert script.action == 8


def test_provenance_to_ship_names_no_folder_of_this_machine():
    flags = ["--cuda_graphs", "--seed", "1", "--run-dir", "/here", "--report=/there", "--greedy"]
    provenance = {
        "command": ["train.py", "--no-cuda_graphs", *flags, "--no-recurrent"],
        "config": {"seed": 1, "run_dir": "/here", "environment": {"env_name": "x", "threads": 2}},
        "seed": 1,
    }
    of_machine = ("run_dir", "report", "cuda_graphs", "environment.threads")
    shipped = portable_provenance(provenance, of_machine)
    assert shipped["command"] == ["train.py", "--seed", "1", "--greedy", "--no-recurrent"]
    assert shipped["config"] == {"seed": 1, "environment": {"env_name": "x"}}
    assert provenance["config"]["run_dir"] == "/here"
