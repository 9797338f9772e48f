import numpy as np
import pytest
import torch

from agents.execution import (
    CPU_ACTIVATION_BYTES,
    CPU_FRAMES_PER_BACKWARD,
    GPU_FRAMES_PER_BACKWARD,
    Execution,
    cpu_frames_at_once,
)
from agents.networks import NetworkConfig, RecurrentPolicy


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return RecurrentPolicy(NetworkConfig(width=0.25, num_features=8))


@pytest.fixture
def frames():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 64, 64, 3), np.uint8))


def test_parts_of_frames_give_what_all_of_them_give_gradients_included(policy, frames):
    first = torch.zeros(6, 3, dtype=torch.bool)
    first[2, 1] = True

    def outcome(frames_at_once):
        execution = Execution(policy, "float32")
        execution.frames_at_once = frames_at_once
        output = execution.unroll(frames, policy.initial_state(3), first)
        policy.zero_grad()
        (output.action_logits.square().sum() + output.value.sum()).backward()
        gradients = torch.cat([p.grad.flatten() for p in policy.parameters()])
        return torch.cat([output.action_logits.flatten(), output.value.flatten()]), gradients

    for found, expected in zip(outcome(5), outcome(1000), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_playing_and_learning_compute_the_same(policy, frames, precision):
    """The ratio of the policies begins at 1 up to rounding in either precision."""
    execution = Execution(policy, precision)
    first = torch.zeros(6, 3, dtype=torch.bool)
    first[3, 0] = True
    state, log_probs = policy.initial_state(3), []
    with torch.inference_mode():
        for t in range(6):
            output = execution.step(frames[t], state, first[t])
            state = output.state
            log_probs.append(output.action_logits.log_softmax(-1))
    unrolled = execution.unroll(frames, policy.initial_state(3), first)
    assert unrolled.state.dtype == unrolled.action_logits.dtype == torch.float32
    learnt = unrolled.action_logits.log_softmax(-1).detach()
    torch.testing.assert_close(learnt, torch.stack(log_probs), rtol=0, atol=1e-4)


def test_bf16_rounds_and_float32_is_what_a_cpu_does_by_itself(policy, frames):
    outputs = {
        precision: Execution(policy, precision).embed(frames[0]).detach()
        for precision in ("auto", "float32", "bf16")
    }
    assert torch.equal(outputs["auto"], outputs["float32"])
    assert not torch.equal(outputs["bf16"], outputs["float32"])
    torch.testing.assert_close(outputs["bf16"], outputs["float32"], rtol=0.05, atol=0.05)


def test_no_activation_of_a_part_exceeds_the_limit(policy):
    channels, frame = 4, 64 * 64
    assert cpu_frames_at_once(policy) * channels * frame * 4 <= CPU_ACTIVATION_BYTES
    wide = RecurrentPolicy(NetworkConfig(width=1.0, obs_shape=(512, 512, 3)))
    assert cpu_frames_at_once(wide) == 1


def test_a_cpu_learns_from_fewer_frames_at_a_time_and_a_gpu_from_as_many_as_it_holds(
    policy, monkeypatch
):
    execution = Execution(policy)
    assert execution.frames_per_backward(10_000) == CPU_FRAMES_PER_BACKWARD
    assert execution.frames_per_backward(100) == 100
    execution.device = torch.device("cuda")
    # In float32, 4 channels of 64 × 64 pixels, 8,192 frames of 50 bytes each: 6.7 GB, half of 13.5.
    for free, expected in ((14e9, GPU_FRAMES_PER_BACKWARD), (13e9, 100)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (int(free), 0))
        assert execution.frames_per_backward(100) == expected
        assert execution.frames_per_backward(20_000) == 20_000
