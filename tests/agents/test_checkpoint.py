import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import agents.__main__
from agents.checkpoint import (
    LoadedAgent,
    import_agent,
    load_agent,
    newest_agent,
    require_recurrent_policy,
    save_agent,
)
from agents.networks import NetworkConfig, RecurrentPolicy
from environments.fake import fake_spec
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from experiment.files import hash_file

SPEC = EnvironmentSpec(
    "fake", "fake", (16, 16, 3), 5, ("a", "b", "c", "d", "e"), 4, 100, {"mode": "easy"}
)
SMALL = NetworkConfig(width=0.25, num_features=8, obs_shape=(16, 16, 3), num_actions=5)


class ReferenceBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv2(F.relu(self.conv1(F.relu(x)))) + x


class ReferenceStage(nn.Module):
    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.res1 = ReferenceBlock(channels_out)
        self.res2 = ReferenceBlock(channels_out)

    def forward(self, x):
        x = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)(self.conv(x))
        return self.res2(self.res1(x))


class ReferenceAgent(nn.Module):
    """The reference architecture, written out with torch's own GRU."""

    def __init__(self, num_features=64, recurrent=True):
        super().__init__()
        self.embedder = nn.Module()
        self.embedder.block1 = ReferenceStage(3, 16)
        self.embedder.block2 = ReferenceStage(16, 32)
        self.embedder.block3 = ReferenceStage(32, 32)
        self.embedder.fc = nn.Linear(2048, num_features)
        self.fc_policy = nn.Linear(num_features, 15)
        self.fc_value = nn.Linear(num_features, 1)
        if recurrent:
            self.init_hx = nn.Parameter(torch.randn(num_features))
            self.gru = nn.Module()
            self.gru.gru = nn.GRU(num_features, num_features)

    def forward(self, images, state):
        """(T, B, 3, 64, 64), (B, F) -> states, log-probabilities and values over time."""
        x = images.flatten(0, 1)
        for block in (self.embedder.block1, self.embedder.block2, self.embedder.block3):
            x = block(x)  # type: ignore[operator]
        x = F.relu(self.embedder.fc(F.relu(x).flatten(1))).unflatten(0, images.shape[:2])  # type: ignore[operator]
        if hasattr(self, "gru"):
            x, _ = self.gru.gru(x, state[None])  # type: ignore[operator]
        return x, F.log_softmax(self.fc_policy(x), -1), self.fc_value(x).squeeze(-1)


def our_policy(agent: LoadedAgent) -> RecurrentPolicy:
    return require_recurrent_policy(agent, "test")


def write_reference(file: Path, num_features=64, recurrent=True) -> ReferenceAgent:
    torch.manual_seed(1)
    reference = ReferenceAgent(num_features, recurrent)
    content = {"model_state_dict": reference.state_dict(), "optimizer_state_dict": {"state": {}}}
    torch.save(content, file)
    return reference


def assert_computes_the_same(policy: RecurrentPolicy, reference: ReferenceAgent) -> None:
    num_features = policy.state_dim
    images, state = torch.rand(3, 2, 3, 64, 64), torch.randn(2, num_features)
    with torch.no_grad():
        states, log_probs, values = reference(images, state)
        output = policy.unroll(images, state)
    torch.testing.assert_close(output.state, states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.value, values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        F.log_softmax(output.action_logits, -1), log_probs, rtol=1e-4, atol=1e-5
    )


@pytest.fixture
def saved_agent(tmp_path):
    torch.manual_seed(0)
    policy = RecurrentPolicy(SMALL)
    save_agent(tmp_path / "model_12", policy, SPEC, {"seed": 3}, env_steps=12)
    return policy, tmp_path / "model_12"


def test_round_trip(saved_agent):
    policy, folder = saved_agent
    loaded = load_agent(folder)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, our_policy(loaded).state_dict()[name])
    assert (loaded.environment, loaded.env_steps, loaded.path) == (SPEC, 12, folder)
    assert not any(p.requires_grad for p in our_policy(loaded).parameters())
    assert json.loads((folder / "agent.json").read_text())["provenance"] == {"seed": 3}


def test_hash_tells_agents_apart_and_survives_saving(saved_agent, tmp_path):
    policy, folder = saved_agent
    loaded = load_agent(folder)
    save_agent(tmp_path / "again", our_policy(loaded), None, {}, env_steps=99)
    assert load_agent(tmp_path / "again").hash == loaded.hash
    with torch.no_grad():
        policy.value_head.bias += 1e-6
    save_agent(tmp_path / "other", policy, SPEC, {}, env_steps=12)
    assert load_agent(tmp_path / "other").hash != loaded.hash


@pytest.mark.parametrize("num_features", [64, 256])
@pytest.mark.parametrize("recurrent", [True, False])
def test_reference_checkpoint_computes_the_same(tmp_path, num_features, recurrent):
    file = tmp_path / "model_200.pth"
    reference = write_reference(file, num_features, recurrent)
    loaded = load_agent(file)
    policy = our_policy(loaded)
    assert policy.config == NetworkConfig(num_features=num_features, recurrent=recurrent)
    assert loaded.env_steps == 200
    assert_computes_the_same(policy, reference)
    imported = import_agent(file, tmp_path / "imported")
    assert imported.hash == loaded.hash
    assert_computes_the_same(our_policy(imported), reference)


def run_command(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr("sys.argv", ["agents", *map(str, arguments)])
    agents.__main__.main()
    return capsys.readouterr().out


def test_import_command_writes_a_folder_that_knows_its_origin(tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "model_200.pth", tmp_path / "agent"
    write_reference(file)
    printed = run_command(monkeypatch, capsys, "import", file, "--out", out, "--env_name", "fake")
    description = json.loads((out / "agent.json").read_text())
    assert description["provenance"]["inputs"] == {"checkpoint": hash_file(file)}
    assert load_agent(out).environment == fake_spec()
    assert description["hash"] in printed
    assert run_command(monkeypatch, capsys, "info", out) == printed
    facts = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert facts["network"] == "IMPALA of width 1, 64 features, GRU of 64, for frames 64 × 64 × 3"
    assert facts["parameters"] == str(
        sum(p.numel() for name, p in ReferenceAgent().named_parameters() if name != "init_hx")
    )
    assert (facts["environment"], facts["steps"]) == ("fake", "200")
    about_file = run_command(monkeypatch, capsys, "info", file)
    assert "environment  unknown" in about_file


def test_import_command_is_told_what_the_levels_looked_like(tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "model_200.pth", tmp_path / "agent"
    write_reference(file)
    flags = ("--env_name", "coinrun", "--distribution_mode", "hard", "--use_backgrounds")
    printed = run_command(monkeypatch, capsys, "import", file, "--out", out, *flags)
    assert "coinrun (distribution_mode hard, use_backgrounds True, restrict_themes False" in printed
    environment = load_agent(out).environment
    assert environment is not None
    assert environment.options["use_backgrounds"] is True
    assert environment.options["restrict_themes"] is False


@pytest.mark.parametrize(
    "flags", [("--use_backgrounds",), ("--distribution_mode", "hard")], ids=lambda flags: flags[0]
)
@pytest.mark.parametrize("task", ["import", "info"])
def test_what_a_game_looks_like_is_not_taken_without_its_name(
    tmp_path, monkeypatch, capsys, task, flags
):
    file, out = tmp_path / "model_200.pth", tmp_path / "agent"
    write_reference(file)
    target = ("--out", out) if task == "import" else ()
    with pytest.raises(UserError, match=f"{flags[0]}: says more of a game that --env_name names"):
        run_command(monkeypatch, capsys, task, file, *target, *flags)
    assert not out.exists()


def test_import_replaces_nothing_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "model.pth", tmp_path / "agent"
    write_reference(file)
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.raises(UserError, match=r"model\.pth: not a readable PyTorch checkpoint"):
        run_command(monkeypatch, capsys, "import", file, "--out", out)
    write_reference(file)
    with pytest.raises(UserError, match="unknown"):
        run_command(monkeypatch, capsys, "import", file, "--out", out, "--env_name", "unknown")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth"]
    out.mkdir()
    with pytest.raises(UserError, match=f"--out {out}: is there already"):
        run_command(monkeypatch, capsys, "import", file, "--out", out)
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        run_command(monkeypatch, capsys, "import", "absent.pth", "--out", "new")


class Touching:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["top", "weights", "optimiser"])
def test_code_pickled_into_a_checkpoint_is_never_run(tmp_path, place, zipped):
    file, trace = tmp_path / "model.pth", tmp_path / "trace"
    weights = ReferenceAgent().state_dict()
    content = {
        "top": Touching(trace),
        "weights": {"model_state_dict": {**weights, "extra": Touching(trace)}},
        "optimiser": {"model_state_dict": weights, "optimizer_state_dict": Touching(trace)},
    }[place]
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert_refused(file, "not a readable PyTorch checkpoint")
    with pytest.raises(UserError):
        import_agent(file, tmp_path / "agent")
    assert not trace.exists()
    assert not (tmp_path / "agent").exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "the trap itself does not work"


def test_a_bare_pickle_is_never_run(tmp_path):
    file, trace = tmp_path / "model.pth", tmp_path / "trace"
    file.write_bytes(pickle.dumps({"model_state_dict": Touching(trace)}, protocol=2))
    assert_refused(file, "not a readable PyTorch checkpoint")
    assert not trace.exists()


def assert_refused(path, pattern):
    with pytest.raises(UserError, match=pattern) as refusal:
        load_agent(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_missing_agent_is_refused(tmp_path):
    assert_refused(tmp_path / "nothing", "no such agent")


def test_foreign_files_are_refused(tmp_path):
    text = tmp_path / "a.pth"
    text.write_text("hello")
    assert_refused(text, "not a readable PyTorch checkpoint")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "b.pth")
    assert_refused(tmp_path / "b.pth", "no model_state_dict")
    torch.save({"model_state_dict": {"fc.weight": torch.zeros(2)}}, tmp_path / "c.pth")
    assert_refused(tmp_path / "c.pth", r"embedder\.fc\.weight is missing")


@pytest.mark.parametrize("value", [torch.zeros(3), 3], ids=["shape", "type"])
def test_weights_of_another_kind_are_refused(tmp_path, value):
    weights = {**ReferenceAgent().state_dict(), "embedder.fc.weight": value}
    torch.save({"model_state_dict": weights}, tmp_path / "model.pth")
    assert_refused(tmp_path / "model.pth", r"what is embedder\.fc\.weight\?")


def test_truncated_checkpoint_is_refused(tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"model_state_dict": ReferenceAgent().state_dict()}, file)
    file.write_bytes(file.read_bytes()[:50_000])
    assert_refused(file, "not a readable PyTorch checkpoint")


def test_reference_checkpoint_with_a_missing_layer_is_refused(tmp_path):
    weights = ReferenceAgent().state_dict()
    del weights["embedder.block2.res1.conv1.bias"]
    torch.save({"model_state_dict": weights}, tmp_path / "model.pth")
    assert_refused(tmp_path / "model.pth", "do not fit")


def test_foreign_folder_is_refused(tmp_path):
    assert_refused(tmp_path, "not an agent folder")
    (tmp_path / "agent.json").write_text('{"format": "dreamscope-simulator"}')
    assert_refused(tmp_path, "not the description of an agent")


def test_damaged_folders_are_refused(saved_agent):
    _, folder = saved_agent
    weights = (folder / "weights.safetensors").read_bytes()
    changed = bytearray(weights)
    changed[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(changed)
    assert_refused(folder, "damaged agent")
    (folder / "weights.safetensors").write_bytes(weights[:-100])
    assert_refused(folder, "damaged weights")
    (folder / "weights.safetensors").unlink()
    assert_refused(folder, "incomplete")
    (folder / "agent.json").write_text("{")
    assert_refused(folder, "not valid JSON")


def test_unknown_version_is_refused(saved_agent):
    _, folder = saved_agent
    description = json.loads((folder / "agent.json").read_text())
    (folder / "agent.json").write_text(json.dumps({**description, "version": 99}))
    assert_refused(folder, "version 99")


def test_newest_agent_is_the_one_written_last(tmp_path):
    experiment = tmp_path / "procgen" / "coinrun" / "test"
    for number, name in enumerate(("seed_1_b/model_900", "seed_2_a/model_40", "seed_2_a/model_50")):
        folder = save_agent(experiment / name, RecurrentPolicy(SMALL), SPEC, {}, 0)
        os.utime(folder, (1000 + number // 2, 1000 + number // 2))
    os.utime(experiment / "seed_2_a/model_40", (1001, 1001))
    assert newest_agent("coinrun", "test", tmp_path) == experiment / "seed_2_a/model_50"
    with pytest.raises(UserError, match="holds no agent"):
        newest_agent("coinrun", "other", tmp_path)
