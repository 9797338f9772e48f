from pathlib import Path

import numpy as np
import pytest
import torch

from experiment.errors import UserError
from projections.controls import MeasuredNorm
from projections.intervention import descriptions_of
from projections.intervention_flags import (
    InterventionConfig,
    make_control,
    make_intervention,
    require_steps_within,
    twin_folder,
)
from projections.steps import (
    StepList,
    StepRange,
    parse_steps,
    steps_from_description,
)

HIDDEN_SLICE = slice(0, 12)


@pytest.fixture
def projection(ica_projection, tmp_path) -> Path:
    ica_projection.save(tmp_path / "projection")
    return tmp_path / "projection"


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("", StepRange()),
        ("2 to 5", StepRange(2, 5)),
        ("2 to end", StepRange(2)),
        ("2 5", StepList((2, 5))),
        ("0", StepList((0,))),
    ],
)
def test_steps_are_read(words, steps):
    assert parse_steps(words.split(), "--intervention_steps") == steps
    assert steps_from_description(steps.describe()) == steps


def test_a_range_excludes_its_end():
    assert [step for step in range(8) if step in StepRange(2, 5)] == [2, 3, 4]
    assert 10**9 in StepRange(2)
    assert 1 not in StepRange(2)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("2 to", "expected steps, e.g. 2 5, or a range"),
        ("2 to five", "expected steps"),
        ("end", "expected steps"),
        ("end to 5", "expected steps"),
        ("-1", "expected steps"),
        ("2 2", "a step is named twice"),
        ("5 to 5", "holds no step"),
        ("5 to 2", "holds no step"),
    ],
)
def test_senseless_steps_are_refused(words, complaint):
    with pytest.raises(UserError, match=f"--intervention_steps {words}: {complaint}"):
        parse_steps(words.split(), "--intervention_steps")


def test_without_flags_there_is_no_intervention():
    assert make_intervention(InterventionConfig(), HIDDEN_SLICE) is None


def test_rules_act_in_the_documented_order(projection):
    config = InterventionConfig(
        clamp_directions=(3,),
        clamp_values=(1.0,),
        add_directions=(2,),
        add_amounts=(0.5,),
        add_once=True,
        scale_directions=(1,),
        scale_factors=(2.0,),
        scale_on="states",
        swap_directions_from=(0,),
        swap_directions_to=(None,),
        intervention_steps=("4", "2"),
        projection=projection,
    )
    links = descriptions_of(make_intervention(config, HIDDEN_SLICE))
    assert [link["kind"] for link in links] == ["swap", "scale", "add", "clamp"]
    assert [link["steps"] for link in links] == [[4, 2], [4, 2], [2], [4, 2]]
    assert [link.get("acts_on") for link in links] == ["updates", "states", None, None]
    assert {link["of_directions"]["projection"] for link in links} == {str(projection)}


def test_units_need_no_projection():
    config = InterventionConfig(
        add_directions=(7,), add_amounts=(0.5,), amount_unit="coordinate", direction_type="unit"
    )
    intervention = make_intervention(config, HIDDEN_SLICE)
    assert intervention is not None
    state = torch.zeros(1, 12)
    assert torch.equal(intervention(state, state, 0), 0.5 * torch.eye(12)[7:8])


@pytest.mark.parametrize("control", ["sign_flip", "random", "random_like_states"])
def test_controls_take_the_place_of_the_intervention(projection, control):
    config = InterventionConfig(
        swap_directions_from=(0,),
        swap_directions_to=(None,),
        projection=projection,
        intervention_control=control,
        control_seed=3,
    )
    tested = make_intervention(config, HIDDEN_SLICE)
    assert tested is not None
    (link,) = descriptions_of(tested)
    norm = MeasuredNorm(0.1, "hash") if control != "sign_flip" else None
    (description,) = descriptions_of(make_control(config, tested, HIDDEN_SLICE, norm))
    assert description["kind"] == ("sign_flip" if control == "sign_flip" else "random_directions")
    assert description["of"] == [link]
    if control != "sign_flip":
        assert (description["seed"], description["norm"]["mean"]) == (3, 0.1)
        components = description["principal_components"]
        assert (components is not None) == (control == "random_like_states")


SWAP = {"swap_directions_from": (0,), "swap_directions_to": (None,)}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"intervention_steps": ("2",)}, "--intervention_steps: no intervention is asked for"),
        ({"direction_type": "pca"}, "--direction_type: no intervention is asked for"),
        ({"intervention_control": "random"}, "--intervention_control: no intervention"),
        ({"swap_directions_from": (1,)}, "--swap_directions_from has 1 directions"),
        ({"scale_factors": (1.0,)}, "--scale_directions has 0 directions, --scale_factors 1"),
        ({**SWAP, "add_once": True}, "--add_once: goes with --add_directions"),
        ({**SWAP, "control_norm_of": Path("x")}, "--control_norm_of: goes with .* found none"),
        (
            {**SWAP, "control_norm_of": Path("x"), "intervention_control": "sign_flip"},
            "--control_norm_of: goes with .* found sign_flip",
        ),
        ({**SWAP, "directions_file": Path("x.npy")}, "x.npy: goes with --direction_type file"),
        ({**SWAP, "projection": Path("absent")}, "--projection .*absent: no such projection"),
    ],
)
def test_flags_that_do_not_go_together(projection, flags, complaint):
    if "swap_directions_from" in flags or "scale_factors" in flags:
        flags = {"projection": projection, **flags}
    with pytest.raises(UserError, match=complaint):
        make_intervention(InterventionConfig(**flags), HIDDEN_SLICE)


def test_how_states_vary_must_be_known(tmp_path):
    np.save(tmp_path / "directions.npy", np.eye(12)[:2])
    config = InterventionConfig(
        **SWAP,
        direction_type="file",
        directions_file=tmp_path / "directions.npy",
        intervention_control="random_like_states",
    )
    tested = make_intervention(config, HIDDEN_SLICE)
    assert tested is not None
    with pytest.raises(UserError, match="random_like_states: needs a --projection"):
        make_control(config, tested, HIDDEN_SLICE)


def test_steps_beyond_the_recording_are_refused():
    config = InterventionConfig(intervention_steps=("2", "10"))
    require_steps_within(config, 11, "--num_sim_steps 11")
    require_steps_within(config, None, "")
    with pytest.raises(UserError, match=r"step 10 does not exist, rows are 0 to 9 \(--num_sim"):
        require_steps_within(config, 10, "--num_sim_steps 10")


def test_the_twin_lies_beside_whatever_folder_is_named(tmp_path, monkeypatch) -> None:
    assert twin_folder(Path("a/b")) == Path("a/b_twin")
    (tmp_path / "here/deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/deeper")
    assert twin_folder(Path(".")) == tmp_path / "here/deeper_twin"
    assert twin_folder(Path("..")) == tmp_path / "here_twin"
