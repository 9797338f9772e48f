from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.checkpoint import load_agent
from analysis import jacobian_analysis
from analysis.jacobian_analysis import JacobianClusters, JacobianConfig, make_plan, record_jacobians
from analysis.jacobians import Push, PushSettings, component_jacobians, push_effects
from analysis.results import input_hashes, read_results
from analysis.saliency import perturbed_copies, resimulate
from experiment.errors import UserError
from experiment.report import StageReport
from generative.checkpoint import load_simulator
from generative.types import SimulatedSteps
from projections.hidden import HiddenProjection, TorchProjection
from projections.intervention import InterventionChain
from rollouts.store import RolloutDataset

NUM_STEPS, DETER, STATE, HIDDEN, ACTIONS, COMPONENTS = 5, 4, 4, slice(1, 4), 3, 2
F64 = torch.float64


class LinearWorld:
    """deter' = A deter + B action; state' = D state + E deter'; action = F state."""

    def __init__(self, num_elements=3):
        generator = torch.Generator().manual_seed(1)

        def matrix(rows, columns):
            return torch.randn(rows, columns, generator=generator, dtype=F64) / columns**0.5

        self.A, self.B = matrix(DETER, DETER), matrix(DETER, ACTIONS)
        self.D, self.E, self.F = matrix(STATE, STATE), matrix(STATE, DETER), matrix(ACTIONS, STATE)
        self.initial = matrix(num_elements, DETER).requires_grad_(True)

    def simulate(self, intervention, cut=False, copies=1):
        deter = self.initial.repeat_interleave(copies, 0)
        state = deter.new_zeros(len(deter), STATE)
        action = deter.new_zeros(len(deter), ACTIONS)
        rows = []
        for step in range(NUM_STEPS):
            drive = action.detach() if cut else action
            deter = deter @ self.A.T + drive @ self.B.T
            state = intervention(state, state @ self.D.T + deter @ self.E.T, step)
            action = state @ self.F.T
            names = SimulatedSteps.__dataclass_fields__
            rows.append(dict.fromkeys(names, deter) | {"deter": deter, "agent_state": state})
        return SimulatedSteps(**{name: tuple(row[name] for row in rows) for name in rows[0]})

    def closed_form(self, projection, cut):
        """P (powers of the block matrix of (state, deter)) M."""
        passed = torch.zeros_like(self.B @ self.F) if cut else self.B @ self.F
        block = torch.cat(
            [
                torch.cat([self.D + self.E @ passed, self.E @ self.A], dim=1),
                torch.cat([passed, self.A], dim=1),
            ]
        )
        found = torch.zeros(NUM_STEPS, COMPONENTS, NUM_STEPS, COMPONENTS, dtype=F64)
        for target in range(NUM_STEPS):
            for source in range(target + 1):
                power = torch.linalg.matrix_power(block, target - source)[HIDDEN, HIDDEN]
                onto = projection.linear[:COMPONENTS] @ power @ projection.directions
                found[target, :, source] = onto[:, :COMPONENTS]
        return found


@pytest.fixture
def projection():
    states = np.random.default_rng(3).normal(size=(400, 3)) @ np.diag([1.0, 2.0, 3.0])
    return TorchProjection(HiddenProjection("pca", 3).fit(states), F64)


@pytest.mark.parametrize("cut", [False, True])
def test_jacobians_of_a_linear_world_equal_the_closed_form(projection, cut):
    world = LinearWorld()
    found = component_jacobians(
        lambda i: world.simulate(i, cut), projection, HIDDEN, COMPONENTS, cut
    )
    expected = world.closed_form(projection, cut)
    for element in range(3):
        torch.testing.assert_close(found[element], expected)
    # Without the environment in between, only the agent's own recurrence remains.
    assert torch.allclose(expected, world.closed_form(projection, not cut)) is False


def test_the_same_step_is_the_identity_and_later_sources_are_zero(projection):
    world = LinearWorld()
    found = component_jacobians(world.simulate, projection, HIDDEN, COMPONENTS)
    for target in range(NUM_STEPS):
        torch.testing.assert_close(found[0, target, :, target], torch.eye(COMPONENTS, dtype=F64))
        assert torch.count_nonzero(found[:, target, :, target + 1 :]) == 0


def test_pushes_of_a_linear_world_do_what_the_jacobian_says(projection):
    world = LinearWorld()
    jacobian = component_jacobians(world.simulate, projection, HIDDEN, COMPONENTS)
    settings = PushSettings(step=1, size=0.7, num_components=COMPONENTS)
    found = push_effects(
        lambda i: world.simulate(i, copies=2 * COMPONENTS), projection, STATE, HIDDEN, settings
    )
    torch.testing.assert_close(found, jacobian[:, :, :, 1])
    assert torch.count_nonzero(found[:, 0]) == 0


@pytest.fixture(scope="module")
def tiny(simulated_chain):
    """The tiny simulator in double precision, a projection, two latents."""
    agent = load_agent(simulated_chain / "agent")
    simulator = load_simulator(simulated_chain / "simulator", agent).simulator.double().eval()
    simulator.requires_grad_(False)
    projection = HiddenProjection.load(simulated_chain / "projection")
    torch_projection = TorchProjection(projection, F64)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, simulator.config.latent_dim, generator=generator, dtype=F64)
    latent = simulator.bottleneck.project(latent).requires_grad_(True)
    return simulator, torch_projection, latent


class CoordinateShift:
    """Adds M ε to the hidden state of every step: what the Jacobians are derivatives of."""

    def __init__(self, projection, hidden, shift):
        self.projection, self.hidden, self.shift = projection, hidden, shift

    def __call__(self, previous, proposed, step):
        offset = self.shift[step] @ self.projection.directions[:, : self.shift.shape[1]].T
        padding = (self.hidden.start, proposed.shape[1] - self.hidden.stop)
        return proposed + torch.nn.functional.pad(offset, padding)

    def describe(self):
        return {}


@pytest.mark.parametrize("cut", [False, True])
def test_jacobians_of_the_simulator_equal_those_of_torch_func(tiny, cut):
    simulator, projection, latent = tiny
    hidden, num_components, num_steps = simulator.agent.hidden_slice, 3, 4

    def simulate(intervention, element=slice(None)):
        return simulator.simulate(
            simulator.decode_initial(latent[element]), num_steps,
            intervention=intervention, cut_environment_gradient=cut,
        )  # fmt: skip

    found = component_jacobians(simulate, projection, hidden, num_components, cut)

    for element in range(2):

        def coordinates(shift, element=element):
            intervention = CoordinateShift(projection, hidden, shift)
            states = simulate(intervention, slice(element, element + 1)).agent_state
            hidden_states = torch.stack([state[0, hidden] for state in states])
            return projection.transform(hidden_states)[:, :num_components]

        zero = torch.zeros(num_steps, num_components, dtype=F64)
        expected = torch.func.jacrev(coordinates)(zero)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found[element], expected, rtol=1e-6, atol=1e-9)


def test_an_own_intervention_acts_before_the_cut(tiny):
    simulator, projection, latent = tiny
    hidden = simulator.agent.hidden_slice

    class Halve:
        def __call__(self, previous, proposed, step):
            return proposed * 0.5

        def describe(self):
            return {}

    def simulate(intervention, own=()):
        chain = InterventionChain([*own, intervention])
        return simulator.simulate(
            simulator.decode_initial(latent), 2,
            intervention=chain, cut_environment_gradient=True,
        )  # fmt: skip

    plain = component_jacobians(simulate, projection, hidden, 3, True)
    halved = component_jacobians(lambda i: simulate(i, (Halve(),)), projection, hidden, 3, True)
    assert not torch.allclose(plain[:, 1, :, 0], halved[:, 1, :, 0])


def test_a_push_moves_one_step_only():
    push = Push(2, torch.ones(2, 3))
    state = torch.zeros(4, 3)
    assert torch.equal(push(state, state, 1), state)
    assert torch.equal(push(state, state, 2), torch.ones(4, 3))


@pytest.fixture(scope="module")
def config(simulated_chain, tmp_path_factory):
    return JacobianConfig(
        model_file=simulated_chain / "simulator",
        agent_file=str(simulated_chain / "agent"),
        generated_data_dir=simulated_chain / "samples",
        projection=simulated_chain / "projection",
        output_dir=tmp_path_factory.mktemp("jacobians"),
        num_samples=3,
        num_components=9,
        num_sim_steps=5,
        num_copies=2,
        clusters=JacobianClusters(
            grad_timestep=1, num_pca=2, num_clusters=2, num_cluster_neighbours=2, embedding="pca"
        ),
        device="cpu",
    )


def run(config, **changes):
    path = record_jacobians(make_plan(replace(config, **changes)), StageReport("jacobians"))
    with read_results(path) as results:
        return results.load()


@pytest.mark.medium
def test_the_result_file_holds_every_pair_of_steps(config, capsys):
    clusters = replace(config.clusters, num_pca=99, num_clusters=99)
    results = run(config, clusters=clusters)
    printed = capsys.readouterr().out
    assert "--num_components 9: only 3 exist" in printed
    assert "--num_pca 99: only 3 exist" in printed
    assert "--num_clusters 99: only 3 exist" in printed
    assert results.sizes == {
        **results.sizes,
        **{"sample": 3, "environment_gradient": 2, "target_step": 5, "source": 3},
    }
    # Another batch size than at recording rounds a pixel the other way now and then.
    assert results["frames_reproduced"].mean() > 0.8
    same = results["jacobian"].isel(target_step=2, source_step=2)
    np.testing.assert_allclose(same, np.broadcast_to(np.eye(3), same.shape), atol=1e-5)
    pushed = results["push_effect"].isel(target_step=1)
    np.testing.assert_allclose(pushed, np.broadcast_to(np.eye(3), pushed.shape), atol=1e-4)
    assert set(input_hashes(results)) >= {"agent", "simulator", "generated_dataset"}


@pytest.mark.medium
def test_what_is_clustered_is_the_jacobian_of_one_step_with_the_environment(config, tmp_path):
    """It is laid out by its first two principal components, every entry being standardised."""
    results = run(config, num_samples=6, output_dir=tmp_path, push_size=0.0)
    one_step = results["jacobian"].sel(environment_gradient="passed", source_step=1, target_step=2)
    values = one_step.values.astype(np.float64).reshape(6, -1)
    left, size, _ = np.linalg.svd((values - values.mean(axis=0)) / values.std(axis=0))
    np.testing.assert_allclose(
        np.abs(results["embedding"]), np.abs(left[:, :2] * size[:2]), rtol=1e-2, atol=1e-3
    )


@pytest.mark.medium
def test_lengths_are_those_of_the_recorded_samples(config, tmp_path):
    changes = {"num_samples": 6, "output_dir": tmp_path, "push_size": 0.0}
    samples = RolloutDataset(config.generated_data_dir)
    rollouts = [samples.read_episode(index) for index in range(samples.num_episodes)]
    lengths = [int(r.done.argmax()) + 1 if r.done.any() else len(r) for r in rollouts]
    assert min(lengths) < 5
    assert run(config, **changes)["length"].values.tolist() == lengths
    assert run(config, **changes, heed_ends=False)["length"].values.tolist() == [5] * 6


@pytest.mark.medium
def test_jacobians_are_averaged_over_copies(config, tmp_path):
    """Copies as different as samples are: their mean is none of them."""
    changed = replace(
        config, num_copies=3, perturbation_scale=0.3, batch_size=3, output_dir=tmp_path, push_size=0
    )
    plan = make_plan(changed)
    found = run(changed)["jacobian"].sel(environment_gradient="passed").values
    (batch,) = plan.batches()
    simulator = plan.source.simulator.simulator
    latent = perturbed_copies(simulator.bottleneck, batch.latent, batch.ids, changed.copies, 0)

    def simulate(intervention):
        ids = batch.ids.repeat(3)
        return resimulate(
            simulator, latent.requires_grad_(True), ids, 5, plan.source.choices, intervention
        )

    each = component_jacobians(simulate, plan.torch_projection, plan.source.hidden_slice, 3)
    each = each.unflatten(0, (3, 3)).numpy()
    np.testing.assert_allclose(found, each.mean(axis=1), atol=1e-4)
    assert np.abs(each - each.mean(axis=1, keepdims=True)).max() > 1e-2


@pytest.mark.medium
def test_without_the_environment_pushed_copies_act_as_the_sample_did(config, tmp_path, monkeypatch):
    """Their frames hardly depend on actions in this world; so what they are told is looked at."""
    given = []

    def watched(simulator, latent, *args, **choices):
        if len(latent) == 3 * 6:
            given.append(choices["actions"])
        return resimulate(simulator, latent, *args, **choices)

    monkeypatch.setattr(jacobian_analysis, "resimulate", watched)
    run(replace(config, batch_size=3, output_dir=tmp_path))
    samples = RolloutDataset(config.generated_data_dir)
    taken = np.stack([samples.read_episode(index).action[:5] for index in range(3)], axis=1)
    passed, cut = given
    assert passed is None
    np.testing.assert_array_equal(cut.numpy(), taken.repeat(6, axis=1))


@pytest.mark.medium
def test_the_layout_is_judged_where_there_are_neighbourhoods(config, tmp_path):
    assert "embedding_trustworthiness" not in run(config, output_dir=tmp_path).attrs
    attributes = run(config, num_samples=6, output_dir=tmp_path, push_size=0.0).attrs
    # Two components are all that was kept, so their layout keeps every neighbour.
    assert attributes["embedding_trustworthiness"] == pytest.approx(1.0)
    assert attributes["embedding_trustworthiness_of_shuffled"] < 1.0


@pytest.mark.medium
def test_the_batch_size_changes_nothing(config, tmp_path):
    one, three = (run(config, batch_size=size, output_dir=tmp_path / str(size)) for size in (1, 3))
    for name in ("jacobian", "push_effect", "component"):
        # In float32 the order of summation depends on the size of the batch.
        np.testing.assert_allclose(one[name], three[name], atol=5e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "--num_samples 0"),
        ({"num_sim_steps": 1}, "--num_sim_steps 1"),
        ({"clusters": JacobianClusters(grad_timestep=4)}, "--grad_timestep 4"),
        ({"env_name": "starpilot"}, "--env_name starpilot"),
    ],
)
def test_bad_input_is_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        make_plan(replace(config, **changes))


@pytest.mark.medium
def test_given_actions_are_all_the_steps_that_there_are(config, told_samples, tmp_path, capsys):
    changes = {"generated_data_dir": told_samples, "output_dir": tmp_path, "push_size": 0.0}
    results = run(config, num_sim_steps=9, **changes)
    assert "--num_sim_steps 9: only 5 exist, all of them are used" in capsys.readouterr().out
    assert results.sizes["target_step"] == results.sizes["source_step"] == 5
    np.testing.assert_array_equal(results["jacobian"], run(config, **changes)["jacobian"])
    assert "--num_sim_steps" not in capsys.readouterr().out


def test_a_source_step_beyond_given_actions_is_refused(config, told_samples):
    clusters = replace(config.clusters, grad_timestep=4)
    changed = replace(config, generated_data_dir=told_samples, num_sim_steps=9, clusters=clusters)
    message = r"--grad_timestep 4: expected a step from 0 to 3, .*actions end with step 4\)"
    with pytest.raises(UserError, match=message):
        make_plan(changed)


def test_a_missing_projection_is_named(config, tmp_path):
    with pytest.raises(UserError, match=r"hidden_analysis_precompute\.py"):
        make_plan(replace(config, projection=tmp_path))
