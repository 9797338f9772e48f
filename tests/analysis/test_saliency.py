from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.player import full_float32
from analysis.saliency import (
    MIXED,
    PATHS,
    Attributions,
    BackwardPasses,
    CopySettings,
    GradientMethod,
    attribute,
    attribute_paths,
    perturbed_copies,
    resimulate,
)
from analysis.saliency import SimulationChoices as Choices
from analysis.saliency_targets import (
    AgentSteps,
    Target,
    TargetContext,
    greedy_log_prob,
    make_targets,
)
from experiment.errors import UserError
from generative.bottleneck import SphereBottleneck
from generative.gradient_edges import GradientEdges
from generative.types import EnvironmentState, InitialState, SimulatedSteps
from projections.hidden import HiddenProjection, TorchProjection

NUM_STEPS, LATENT, DETER, STATE, ACTIONS, PIXELS = 5, 6, 4, 3, 4, 12
ACTION_NAMES = ("down_left", "left", "up", "noop")


class LinearSimulator:
    """deter' = A deter + B action; image = C deter; state' = D state + E image; action = F state.

    All gradients have closed forms: powers of the blocks below.
    """

    def __init__(self):
        generator = torch.Generator().manual_seed(1)

        def matrix(rows, columns):
            values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            return values / columns**0.5

        self.config = SimpleNamespace(num_categoricals=1)
        self.initial_deter, self.initial_state = matrix(DETER, LATENT), matrix(STATE, LATENT)
        self.A, self.B, self.C = matrix(DETER, DETER), matrix(DETER, ACTIONS), matrix(PIXELS, DETER)
        self.D, self.E, self.F = matrix(STATE, STATE), matrix(STATE, PIXELS), matrix(ACTIONS, STATE)
        self.w = matrix(1, STATE)[0]

    def decode_initial(self, latent, latents="mode", uniform=None):
        deter = latent @ self.initial_deter.T
        stoch = torch.zeros(len(latent), 1, 2, dtype=latent.dtype)
        state = latent @ self.initial_state.T
        return InitialState(EnvironmentState(deter, stoch), state, state @ self.F.T)

    def simulate(self, initial, num_steps, *, cut_environment_gradient=False, edges=None, **_):
        edges = GradientEdges() if edges is None else edges
        deter, state, action = initial.environment.deter, initial.agent_state, initial.action
        rows = []
        for _ in range(num_steps):
            drive = edges.action(action.detach() if cut_environment_gradient else action)
            deter = deter @ self.A.T + drive @ self.B.T
            stoch = deter[:, None, :2] * 1.0
            image = (deter @ self.C.T).reshape(-1, 3, 2, 2)
            state = edges.memory(state) @ self.D.T + image.flatten(1) @ self.E.T
            action = state @ self.F.T
            rows.append(
                {
                    "deter": deter,
                    "stoch": stoch,
                    "images": image,
                    "agent_state": state,
                    "action_logits": action,
                    "value": state @ self.w,
                    "action": action,
                    "reward": deter.sum(-1),
                    "terminal_logit": deter.sum(-1),
                }
            )
        return SimulatedSteps(**{name: tuple(row[name] for row in rows) for name in rows[0]})

    def state_gradients(self, row, t, cut, forget=False):
        """d (row · state_t) / d state_k, deter_k and image_k for k = 0..t, by hand.

        `cut` takes the edge from action to environment away, `forget` the agent's memory.
        """
        onto_state, onto_deter = row, torch.zeros(DETER, dtype=row.dtype)
        found = []
        for _ in range(t + 1):
            image = onto_state @ self.E
            total_deter = onto_deter + image @ self.C
            found.append((onto_state, total_deter, image))
            back = torch.zeros_like(onto_state) if cut else total_deter @ self.B @ self.F
            remembered = torch.zeros_like(onto_state) if forget else onto_state @ self.D
            onto_state = remembered + back
            onto_deter = total_deter @ self.A
        return found[::-1]


@pytest.fixture
def linear():
    return LinearSimulator()


@pytest.fixture
def projection():
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(STATE, STATE))
    states = rng.laplace(size=(400, STATE)) @ mixing.T
    return HiddenProjection("ica", STATE, tol=1e-4).fit(states)


def context(projection=None):
    torch_copy = None if projection is None else TorchProjection(projection, torch.float64)
    return TargetContext(ACTION_NAMES, slice(0, STATE), torch_copy)


def latents(num_samples, num_copies=1, scale=0.0, seed=0):
    generator = torch.Generator().manual_seed(4)
    raw = torch.randn(num_samples, LATENT, generator=generator, dtype=torch.float64)
    latent = torch.nn.functional.normalize(raw, dim=-1)
    ids = np.arange(num_samples)
    copies = perturbed_copies(
        SphereBottleneck(LATENT), latent, ids, CopySettings(num_copies, scale), seed
    )
    return copies.requires_grad_(True)


def gradients(simulator, latent, kinds, target_steps=(3,), num_copies=1, cut=False, **options):
    steps = resimulate(
        simulator,
        latent,
        np.arange(len(latent)) // num_copies,
        NUM_STEPS,
        Choices(),
        cut_environment_gradient=cut,
    )
    made = make_targets(kinds, [0, 1, 2], context(options.pop("projection", None)))
    return attribute(steps, latent, made, target_steps, num_copies, **options)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("method", ["loop", "batched"])
def test_value_gradients_equal_the_closed_form(linear, cut, method):
    found = gradients(linear, latents(2), ["value"], cut=cut, passes=BackwardPasses(method))
    expected = linear.state_gradients(linear.w, t=3, cut=cut)
    for step, (state, deter, image) in enumerate(expected):
        for sample in range(2):
            row = sample, 0, 0, step
            torch.testing.assert_close(found.agent_state[row], state)
            torch.testing.assert_close(found.env_deter[row], deter)
            torch.testing.assert_close(found.images[row].flatten(), image)


CLOSED_EDGES = {"passed": (0, 0), "cut": (1, 0), "only": (0, 1), "neither": (1, 1)}
"""By path: whether the action no longer reaches the environment, whether the agent forgets."""


def path_gradients(simulator, paths, method: GradientMethod = "loop"):
    latent, edges = latents(2), GradientEdges()
    steps = resimulate(simulator, latent, np.arange(2), NUM_STEPS, Choices(), edges=edges)
    targets = make_targets(["value"], [], context())
    found = attribute_paths(
        edges, paths, lambda: attribute(steps, latent, targets, (3,), 1, BackwardPasses(method))
    )
    return dict(zip(paths, found, strict=True))


@pytest.mark.parametrize("method", ["loop", "batched"])
def test_every_path_has_its_closed_form_on_one_simulation(linear, method):
    found = path_gradients(linear, (*PATHS, MIXED), method)
    expected = {
        path: linear.state_gradients(linear.w, 3, *closed) for path, closed in CLOSED_EDGES.items()
    }
    for step in range(4):
        for position, name in enumerate(("agent_state", "env_deter", "images")):
            by_hand = {path: rows[step][position] for path, rows in expected.items()}
            by_hand[MIXED] = by_hand["passed"] - by_hand["cut"] - by_hand["only"]
            for path, gradient in by_hand.items():
                got = getattr(found[path], name)[1, 0, 0, step].flatten()
                torch.testing.assert_close(got, gradient)
    # Through both edges: what is mixed, without the direct part that was subtracted twice.
    through_both = found[MIXED].agent_state + found["neither"].agent_state
    assert through_both[0, 0, 0, 0].abs().max() > 1e-3
    assert through_both[0, 0, 0, 2:].abs().max() < 1e-12


def test_paths_can_be_asked_for_alone_and_leave_the_edges_open(linear):
    everything = path_gradients(linear, (*PATHS, MIXED))
    for path in (*PATHS, MIXED):
        alone = path_gradients(linear, (path,))[path]
        torch.testing.assert_close(alone.images, everything[path].images)
    edges = GradientEdges()

    def fail() -> Attributions:
        raise ArithmeticError("no gradient")

    with pytest.raises(ArithmeticError):
        attribute_paths(edges, ("neither",), fail)
    assert edges == GradientEdges(True, True)


@pytest.mark.parametrize("method", ["loop", "batched"])
@pytest.mark.parametrize(("precision", "is_rounded"), [("float32", False), ("tf32", True)])
def test_only_backward_passes_may_be_rounded(linear, method, precision, is_rounded):
    latent, flags = latents(1), torch.backends.cudnn
    steps = resimulate(linear, latent, np.arange(1), NUM_STEPS, Choices())
    in_target, backward = [], []

    def compute(steps: AgentSteps, t: int, _: int) -> torch.Tensor:
        in_target.append(flags.allow_tf32)
        return steps.value[t]

    steps.images[0].register_hook(lambda _: backward.append(flags.allow_tf32))
    with full_float32():
        targets = [Target("value", compute)]
        attribute(steps, latent, targets, (3,), 1, BackwardPasses(method, precision))
        assert not flags.allow_tf32
    assert in_target == [False]
    assert backward == [is_rounded]


def test_rows_that_were_not_simulated_are_zero(linear):
    targets, latent = make_targets(["value"], [], context()), latents(1)
    found = []
    for num_steps in (4, NUM_STEPS):
        steps = resimulate(linear, latent, np.arange(1), num_steps, Choices())
        found.append(attribute(steps, latent, targets, (3,), 1, num_rows=NUM_STEPS))
    short, whole = found
    torch.testing.assert_close(short.images, whole.images, rtol=0, atol=0)


def test_rows_after_the_target_step_are_exactly_zero(linear):
    found = gradients(linear, latents(2), ["value", "action"], target_steps=(1, 3))
    for index, t in enumerate((1, 3)):
        for name in ("images", "agent_state", "env_deter", "env_stoch"):
            gradient = getattr(found, name)[:, :, index]
            assert torch.count_nonzero(gradient[:, :, t + 1 :]) == 0
    assert torch.count_nonzero(found.agent_state[:, :, 1, :4]) > 0


def test_the_cut_changes_earlier_steps_only(linear):
    passed, cut = (gradients(linear, latents(1), ["value"], cut=c) for c in (False, True))
    for name in ("images", "agent_state", "env_deter"):
        a, b = getattr(passed, name)[0, 0, 0], getattr(cut, name)[0, 0, 0]
        torch.testing.assert_close(a[3], b[3], rtol=0, atol=0)
    assert not torch.allclose(passed.agent_state[0, 0, 0, 2], cut.agent_state[0, 0, 0, 2])


@pytest.mark.parametrize("method", ["loop", "batched"])
def test_identical_copies_average_to_the_single_gradient(linear, method):
    kinds = ["value", "action", "value_delta"]
    single = gradients(linear, latents(3), kinds)
    copied = gradients(linear, latents(3, 9), kinds, num_copies=9, passes=BackwardPasses(method))
    for name in ("images", "agent_state", "env_deter", "latent", "target_values"):
        torch.testing.assert_close(getattr(copied, name), getattr(single, name))


def test_direction_pulls_back_to_its_own_unit_vector(linear, projection):
    found = gradients(linear, latents(2), ["hx_direction"], projection=projection)
    for direction in range(STATE):
        pulled = projection.pullback(found.agent_state[:, direction, 0, 3].numpy())
        np.testing.assert_allclose(pulled, np.eye(STATE)[[direction] * 2], atol=1e-10)


def test_value_delta_is_the_change_since_the_step_before(linear):
    found = gradients(linear, latents(1), ["value", "value_delta"], target_steps=(0, 2, 3))
    value, delta = found.agent_state[0, 0], found.agent_state[0, 1]
    torch.testing.assert_close(delta[2], value[2] - value[1])
    assert torch.isnan(found.target_values[0, 1, 0])
    # A zero would say that nothing matters; here there is nothing to matter to.
    assert torch.isnan(delta[0]).all()
    assert torch.isfinite(value).all()
    difference = found.target_values[0, 0, 2] - found.target_values[0, 0, 1]
    torch.testing.assert_close(found.target_values[0, 1, 2], difference)


def test_action_target_follows_the_clean_copys_action():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [5.0, 0.0]])
    found = greedy_log_prob(logits, num_copies=2)
    log_probs = logits.log_softmax(-1)
    expected = torch.stack([log_probs[0, 0], log_probs[1, 0], log_probs[2, 1], log_probs[3, 1]])
    torch.testing.assert_close(found, expected)


def test_action_groups_go_by_name(linear, capsys):
    found = gradients(linear, latents(1), ["leftwards", "jumping_up"])
    steps = resimulate(linear, latents(1), np.arange(1), NUM_STEPS, Choices())
    log_probs = steps.action_logits[3].log_softmax(-1)[0]
    torch.testing.assert_close(found.target_values[0, 0, 0], log_probs[:2].mean().detach())
    torch.testing.assert_close(found.target_values[0, 1, 0], log_probs[2].detach())
    assert make_targets(["value", "jumping_right"], [], context())[0].name == "value"
    assert "no action called upright" in capsys.readouterr().out


def test_single_actions_and_units_are_targets(linear):
    kinds = ["logit_up", "logit_3", "hidden_unit_1"]
    found = gradients(linear, latents(1), kinds, target_steps=(3,))
    at_target = found.agent_state[0, :, 0, 3]
    expected = torch.stack([linear.F[2], linear.F[3], torch.eye(STATE, dtype=torch.float64)[1]])
    torch.testing.assert_close(at_target, expected)


@pytest.mark.parametrize("kind", ["logit_fly", "logit_4", "hidden_unit_3", "hidden_unit_-1"])
def test_unknown_actions_and_units_are_refused(kind):
    with pytest.raises(UserError, match=f"--saliency_func_type {kind}: .*expected"):
        make_targets([kind], [], context())


def test_impossible_targets_are_refused(projection, capsys):
    with pytest.raises(UserError, match="unknown target 'velocity'"):
        make_targets(["velocity"], [], context())
    with pytest.raises(UserError, match=r"hidden_analysis_precompute\.py"):
        make_targets(["hx_direction"], [0], context())
    with pytest.raises(UserError, match="no such target is possible"):
        make_targets(["jumping_right"], [], context())
    made = make_targets(["hx_direction"], range(16), context(projection))
    assert [target.name for target in made] == [f"hx_direction_{d}" for d in range(STATE)]
    assert "the projection has 3; using 3" in capsys.readouterr().out


def test_copies_are_perturbed_by_sample_not_by_batch():
    settings, ids = CopySettings(4, 1e-3), np.array([7, 2, 9])
    latent = torch.nn.functional.normalize(torch.randn(3, 2000, dtype=torch.float64), dim=-1)
    together = perturbed_copies(SphereBottleneck(2000), latent, ids, settings, seed=1).unflatten(
        0, (3, 4)
    )
    alone = perturbed_copies(SphereBottleneck(2000), latent[1:2], ids[1:2], settings, seed=1)
    torch.testing.assert_close(together[1], alone, rtol=0, atol=0)
    torch.testing.assert_close(together[:, 0], latent, rtol=0, atol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3, 4, dtype=torch.float64))
    unnormalised_norm = (1 + 2000 * 1e-6) ** 0.5
    noise = together[:, 1:] * unnormalised_norm - latent[:, None]
    assert noise.std() == pytest.approx(1e-3, rel=0.1)
