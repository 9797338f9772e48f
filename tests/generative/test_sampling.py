from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.checkpoint import LoadedAgent, hash_agent
from agents.images import to_float_images
from agents.networks import NetworkConfig, make_policy
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from experiment.files import read_json
from generative.checkpoint import LoadedSimulator
from generative.sample_starts import InformedStarts, RandomStarts
from generative.sample_videos import write_sample_videos
from generative.sampling import SamplingConfig, SamplingPlan, record_samples
from generative.simulator import Simulator, SimulatorConfig
from projections.directions import DirectionChoice, Directions
from projections.hidden import HiddenProjection
from projections.interventions import DirectionIntervention, Rule, Swap
from rollouts.schema import DatasetMetadata
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout
from rollouts.video import read_video

NUM_ACTIONS = 15
HIDDEN_DIM = 16
EPISODE_LENGTHS = (2, 7, 3, 5)
NUM_WINDOWS = 5 + 1 + 3
SPEC = EnvironmentSpec(
    adapter="fake",
    name="fake",
    obs_shape=(64, 64, 3),
    num_actions=NUM_ACTIONS,
    action_names=tuple(f"action-{index}" for index in range(NUM_ACTIONS)),
    null_action=4,
    time_limit=None,
)
CONFIG = SamplingConfig(max_samples=6, num_sim_steps=4, batch_size=4, seed=3)


@pytest.fixture(scope="module")
def sampled_agent() -> LoadedAgent:
    torch.manual_seed(0)
    policy = make_policy(
        NetworkConfig(width=0.25, num_features=HIDDEN_DIM, num_actions=NUM_ACTIONS)
    )
    # Larger policy weights: modes that differ from frame to frame.
    torch.nn.init.normal_(policy.policy_head.weight)
    policy.requires_grad_(False).eval()
    return LoadedAgent(policy, SPEC, hash_agent(policy), Path("agent"), 0)


@pytest.fixture(scope="module")
def sampled_simulator(sampled_agent) -> LoadedSimulator:
    torch.manual_seed(1)
    config = SimulatorConfig(
        latent_dim=8,
        deter_dim=16,
        num_categoricals=4,
        num_classes=5,
        hidden_dim=16,
        encoder_channels=(4, 4, 4, 4),
        encoder_rnn_dim=16,
        encoder_mlp=(16,),
        environment_mlp=(16,),
        agent_mlp=(16,),
        action_mlp=(16,),
        head_mlp=(16,),
        embedding_depth=2,
        decoder_depth=2,
    )
    simulator = Simulator(config, sampled_agent.policy).eval()
    return LoadedSimulator(simulator, SPEC, "simulator-hash", Path("simulator"), 0)


class PushAtTheLastStep:
    def __call__(self, previous: torch.Tensor, proposed: torch.Tensor, step: int) -> torch.Tensor:
        return proposed + 5.0 * (step == CONFIG.num_sim_steps - 1)

    def describe(self) -> dict[str, Any]:
        return {"kind": "push"}


def _real_rollout(episode_id: int, length: int) -> Rollout:
    generator = np.random.default_rng(episode_id)
    obs = generator.integers(0, 256, (length, 64, 64, 3), np.uint8)
    obs[:, 0, 0, 0] = episode_id
    obs[:, 0, 0, 1] = np.arange(length)
    return Rollout(
        obs=obs,
        agent_hidden=generator.normal(size=(length, HIDDEN_DIM)).astype(np.float32),
        action_logits=np.zeros((length, NUM_ACTIONS), np.float32),
        value=np.zeros(length, np.float32),
        action=np.zeros(length, np.int32),
        behaviour_log_prob=np.zeros(length, np.float32),
        reward=np.zeros(length, np.float32),
        done=np.arange(length) == length - 1,
        info=EpisodeInfo(episode_id, "agent-hash", np.zeros(HIDDEN_DIM, np.float32), level_seed=0),
    )


def _write_real(folder: Path, lengths: tuple[int, ...], spec: EnvironmentSpec = SPEC) -> None:
    metadata = DatasetMetadata(
        environment=spec,
        agent_hash="agent-hash",
        agent_file="agent",
        state_dim=HIDDEN_DIM,
        hidden_slice=(0, HIDDEN_DIM),
        num_actions=NUM_ACTIONS,
        simulated=None,
        provenance={},
    )
    with RolloutWriter(folder, metadata) as writer:
        for index, length in enumerate(lengths):
            writer.write(_real_rollout(10 + index, length))


@pytest.fixture(scope="module")
def real_dataset(tmp_path_factory) -> RolloutDataset:
    folder = tmp_path_factory.mktemp("real") / "data"
    _write_real(folder, EPISODE_LENGTHS)
    return RolloutDataset(folder)


@pytest.fixture(scope="module")
def informed_plan(sampled_agent, sampled_simulator, real_dataset) -> SamplingPlan:
    source = InformedStarts(real_dataset, sampled_simulator, CONFIG.seed)
    return SamplingPlan(sampled_simulator, sampled_agent, source, CONFIG)


def _intervene(rule: Rule) -> DirectionIntervention:
    states = np.random.default_rng(0).normal(size=(300, HIDDEN_DIM))
    coordinates = HiddenProjection("pca", 4).fit(states).coordinates("pca")
    directions = Directions(coordinates, DirectionChoice("pca"))
    return DirectionIntervention(rule, directions, slice(0, HIDDEN_DIM))


@pytest.fixture(scope="module")
def swap() -> DirectionIntervention:
    return _intervene(Swap((0, 1), (2, None)))


def _episodes(folder: Path) -> dict[int, Rollout]:
    dataset = RolloutDataset(folder)
    rollouts = [dataset.read_episode(index) for index in range(dataset.num_episodes)]
    return {rollout.info.episode_id: rollout for rollout in rollouts}


def _equal(first: NDArray[Any] | None, second: NDArray[Any] | None) -> bool:
    return first is not None and second is not None and np.array_equal(first, second)


@pytest.mark.parametrize("choice", ["mode", "sample"])
def test_replaying_stored_frames_reproduces_the_agent(informed_plan, tmp_path, choice):
    config = replace(CONFIG, latents=choice, agent_actions=choice)
    record_samples(replace(informed_plan, config=config), tmp_path / "samples")
    policy = informed_plan.agent.policy
    for rollout in _episodes(tmp_path / "samples").values():
        state = torch.from_numpy(rollout.info.agent_initial_state)[None]
        for row, frame in enumerate(rollout.obs):
            output = policy.step(to_float_images(frame[None]), state)
            state = output.state
            assert np.allclose(state[0], rollout.agent_hidden[row], atol=1e-5)
            assert np.allclose(output.action_logits[0], rollout.action_logits[row], atol=1e-5)
            assert np.allclose(output.value[0], rollout.value[row], atol=1e-5)


def test_fields_of_a_sample_agree_with_each_other(informed_plan, tmp_path):
    config = replace(CONFIG, latents="sample", agent_actions="sample")
    record_samples(replace(informed_plan, config=config), tmp_path / "samples")
    for rollout in _episodes(tmp_path / "samples").values():
        assert len(rollout) == CONFIG.num_sim_steps
        assert rollout.env_stoch is not None
        assert rollout.env_stoch.max() < 5
        assert rollout.terminal_prob is not None
        assert np.array_equal(rollout.done, rollout.terminal_prob > 0.5)
        log_probs = torch.from_numpy(rollout.action_logits).log_softmax(-1).numpy()
        chosen = log_probs[np.arange(len(rollout)), rollout.action]
        assert np.allclose(rollout.behaviour_log_prob, chosen, atol=1e-5)
        assert rollout.is_simulated


def test_the_mode_is_taken_without_doubt(informed_plan, tmp_path):
    record_samples(informed_plan, tmp_path / "samples")
    for rollout in _episodes(tmp_path / "samples").values():
        assert np.array_equal(rollout.action, rollout.action_logits.argmax(axis=1))
        assert np.all(rollout.behaviour_log_prob == 0.0)


def test_frames_given_end_at_the_source_row(informed_plan, monkeypatch):
    simulator, seen = informed_plan.simulator.simulator, []
    encode = simulator.encode
    monkeypatch.setattr(simulator, "encode", lambda frames: seen.append(frames) or encode(frames))
    starts = informed_plan.source.starts(simulator, np.arange(NUM_WINDOWS))
    episode_ids, rows = seen[0][:, :, 0, 0, 0].numpy(), seen[0][:, :, 0, 0, 1].numpy()
    assert np.array_equal(episode_ids, np.tile(starts.source_episode_id, (3, 1)))
    assert np.array_equal(rows, starts.source_row + np.array([[-2], [-1], [0]]))
    used = set(zip(starts.source_episode_id.tolist(), starts.source_row.tolist(), strict=True))
    expected = {(10 + i, row) for i, n in enumerate(EPISODE_LENGTHS) for row in range(2, n)}
    assert used == expected


def test_batch_size_changes_nothing(informed_plan, tmp_path):
    config = replace(CONFIG, latents="sample", agent_actions="sample")
    for batch_size in (1, 6):
        plan = replace(informed_plan, config=replace(config, batch_size=batch_size))
        record_samples(plan, tmp_path / f"{batch_size}")
    one, six = _episodes(tmp_path / "1"), _episodes(tmp_path / "6")
    for sample_id, rollout in one.items():
        assert np.array_equal(rollout.action, six[sample_id].action)
        assert _equal(rollout.env_stoch, six[sample_id].env_stoch)
        assert np.allclose(rollout.agent_hidden, six[sample_id].agent_hidden, atol=1e-4)


def test_a_continued_recording_equals_one_made_at_once(informed_plan, tmp_path):
    few = replace(informed_plan, config=replace(CONFIG, max_samples=4))
    assert record_samples(few, tmp_path / "grown").samples == 4
    summary = record_samples(informed_plan, tmp_path / "grown")
    assert (summary.samples, summary.earlier_samples) == (6, 4)
    assert record_samples(informed_plan, tmp_path / "grown").frames_per_second == 0.0
    record_samples(informed_plan, tmp_path / "once")
    grown, once = _episodes(tmp_path / "grown"), _episodes(tmp_path / "once")
    assert grown.keys() == once.keys() == set(range(6))
    for sample_id in grown:
        assert np.array_equal(grown[sample_id].action, once[sample_id].action)
        assert np.allclose(grown[sample_id].agent_hidden, once[sample_id].agent_hidden, atol=1e-4)
        assert grown[sample_id].info.source_row == once[sample_id].info.source_row


def test_a_recording_killed_before_its_first_shard_goes_on(informed_plan, tmp_path, monkeypatch):
    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RolloutWriter, "seal", die)
        with pytest.raises(KeyboardInterrupt):
            record_samples(informed_plan, tmp_path / "samples")
    assert (tmp_path / "samples" / "dataset.json").exists()
    assert record_samples(informed_plan, tmp_path / "samples").samples == CONFIG.max_samples


def test_another_recording_in_the_folder_is_refused(informed_plan, tmp_path):
    record_samples(informed_plan, tmp_path / "samples")
    longer = replace(informed_plan, config=replace(CONFIG, num_sim_steps=5))
    with pytest.raises(UserError, match=r"--num_sim_steps: .* recorded with 4, now 5"):
        record_samples(longer, tmp_path / "samples")
    other = replace(informed_plan, simulator=replace(informed_plan.simulator, hash="other"))
    with pytest.raises(
        UserError, match=r"--model_file: .* recorded with simulator-hash, now other"
    ):
        record_samples(other, tmp_path / "samples")


def test_more_samples_than_windows(informed_plan, tmp_path, capsys):
    plan = replace(informed_plan, config=replace(CONFIG, max_samples=1000))
    assert record_samples(plan, tmp_path / "samples").samples == NUM_WINDOWS
    assert f"--max_samples 1000: there are starts for {NUM_WINDOWS}" in capsys.readouterr().out


def test_senseless_counts_are_refused(informed_plan, tmp_path):
    for name in ("max_samples", "num_sim_steps", "batch_size"):
        plan = replace(informed_plan, config=replace(CONFIG, **{name: 0}))
        with pytest.raises(UserError, match=f"--{name} 0: must be at least 1"):
            record_samples(plan, tmp_path / "samples")
    assert not (tmp_path / "samples").exists()


def test_random_starts_lie_on_the_unit_sphere(informed_plan, tmp_path):
    config = replace(CONFIG, max_samples=40, num_sim_steps=1, recording_rand_init=True)
    plan = replace(informed_plan, source=RandomStarts(0), config=config)
    record_samples(plan, tmp_path / "samples")
    infos = [rollout.info for rollout in _episodes(tmp_path / "samples").values()]
    latents = np.stack([info.latent for info in infos if info.latent is not None])
    assert latents.shape == (40, 8)
    assert np.allclose(np.linalg.norm(latents, axis=1), 1.0, atol=1e-6)
    assert np.abs(latents.mean(axis=0)).max() < 0.3
    assert {(i.initialisation, i.source_episode_id, i.source_row) for i in infos} == {
        ("random", -1, -1)
    }


def test_an_intervened_recording_shares_start_and_noise_with_its_twin(
    informed_plan, swap, tmp_path
):
    config = replace(CONFIG, latents="sample")
    twin = replace(informed_plan, config=config)
    intervened = replace(twin, intervention=swap, twin_dataset="clean")
    record_samples(twin, tmp_path / "clean")
    record_samples(intervened, tmp_path / "swapped")
    clean, swapped = _episodes(tmp_path / "clean"), _episodes(tmp_path / "swapped")
    for sample_id, rollout in swapped.items():
        partner = clean[rollout.info.twin_of]
        assert rollout.info.interventions == (swap.describe(),)
        assert partner.info.interventions == ()
        assert partner.info.episode_id == sample_id
        assert _equal(rollout.info.latent, partner.info.latent)
        # Step 0 comes from the latent alone: the intervention has not acted yet.
        assert np.array_equal(rollout.obs[0], partner.obs[0])
        assert not np.allclose(rollout.agent_hidden[0], partner.agent_hidden[0], atol=1e-3)


def test_a_swap_without_pairs_changes_no_bit(informed_plan, tmp_path):
    idle = _intervene(Swap((), ()))
    record_samples(informed_plan, tmp_path / "clean")
    record_samples(replace(informed_plan, intervention=idle), tmp_path / "idle")
    clean, idle_episodes = _episodes(tmp_path / "clean"), _episodes(tmp_path / "idle")
    for sample_id, rollout in clean.items():
        for name in ("obs", "agent_hidden", "action_logits", "value", "env_deter"):
            other = getattr(idle_episodes[sample_id], name)
            assert np.array_equal(getattr(rollout, name), other)


def test_heads_read_the_modified_state(informed_plan, swap, tmp_path):
    record_samples(replace(informed_plan, intervention=swap), tmp_path / "samples")
    policy = informed_plan.agent.policy
    for rollout in _episodes(tmp_path / "samples").values():
        readout = policy.read_out(torch.from_numpy(rollout.agent_hidden))
        assert np.allclose(readout.action_logits, rollout.action_logits, atol=1e-5)
        assert np.allclose(readout.value, rollout.value, atol=1e-5)


def test_share_outside_the_unit_box_is_counted(informed_plan, tmp_path):
    plan = replace(informed_plan, intervention=PushAtTheLastStep())
    summary = record_samples(plan, tmp_path / "samples")
    assert summary.share_of_steps_outside_unit_box == 0.25
    stored = read_json(tmp_path / "samples" / "recording.json")
    assert stored["share_of_steps_outside_unit_box"] == 0.25
    assert record_samples(informed_plan, tmp_path / "clean").share_of_steps_outside_unit_box == 0.0


def test_videos_show_the_first_samples(informed_plan, tmp_path):
    record_samples(informed_plan, tmp_path / "samples")
    paths = write_sample_videos(tmp_path / "samples", 2)
    assert [path.name for path in paths] == ["sample_00000.mp4", "sample_00001.mp4"]
    assert read_video(paths[1]).shape == (CONFIG.num_sim_steps, 256, 256, 3)


def test_unusable_datasets_are_refused(sampled_simulator, tmp_path):
    _write_real(tmp_path / "short", (2, 1))
    with pytest.raises(UserError, match="none of the 2 episodes has the 3 frames"):
        InformedStarts(RolloutDataset(tmp_path / "short"), sampled_simulator, 0)
    _write_real(tmp_path / "foreign", (5,), replace(SPEC, name="maze"))
    with pytest.raises(UserError, match="rollouts of maze"):
        InformedStarts(RolloutDataset(tmp_path / "foreign"), sampled_simulator, 0)
