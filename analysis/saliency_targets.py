"""Scalars of a simulated rollout whose gradients are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from experiment.errors import UserError
from projections.hidden import TorchProjection

DIRECTION_PREFIX = "hx_direction"
ACTION_GROUPS = {
    "leftwards": ("downleft", "left", "upleft"),
    "jumping_up": ("up",),
    "jumping_right": ("upright",),
}
"""Targets that are mean log-probabilities, by the names of their actions."""

VALUE_DELTA = "value_delta"
TARGET_KINDS = ("value", "action", *ACTION_GROUPS, VALUE_DELTA, DIRECTION_PREFIX)
LOGIT_PREFIX, UNIT_PREFIX = "logit_", "hidden_unit_"
"""What the names of single actions' logits and of single hidden units begin with."""


def steps_read(target: str) -> int:
    """How many steps, its own the last, a target of this name reads itself."""
    return 2 if target == VALUE_DELTA else 1


class AgentSteps(Protocol):
    """What targets read: the agent's side of simulated steps, or of frames that it watched."""

    @property
    def agent_state(self) -> tuple[Tensor, ...]:
        """K × (B, state_dim)"""
        ...

    @property
    def action_logits(self) -> tuple[Tensor, ...]:
        """K × (B, num_actions)"""
        ...

    @property
    def value(self) -> tuple[Tensor, ...]:
        """K × (B,)"""
        ...


@dataclass(frozen=True)
class Target:
    """A scalar per batch element, read at one step."""

    name: str
    compute: Callable[[AgentSteps, int, int], Tensor]
    """(steps, target step, copies of each sample in the batch) → (B,)"""
    first_step: int = 0
    """The earliest step at which it is defined."""


@dataclass(frozen=True)
class TargetContext:
    """What targets need to know of agent and batch."""

    action_names: tuple[str, ...]
    hidden_slice: slice
    """The part of the agent's state that directions live in."""
    projection: TorchProjection | None
    """Needed for directions only."""


def make_targets(
    kinds: Sequence[str], direction_ids: Sequence[int], context: TargetContext
) -> list[Target]:
    """Targets by name; `hx_direction` stands for one target per direction id.

    A target that the environment has no actions for is left out, and a line says so; so are
    directions beyond those of the projection.

    Raises:
        UserError: an unknown name, one given twice, or none of the targets is possible.
    """
    targets: list[Target] = []
    for kind in kinds:
        if kind.startswith(LOGIT_PREFIX):
            targets.append(_logit_target(kind, context))
        elif kind.startswith(UNIT_PREFIX):
            targets.append(_unit_target(kind, context))
        elif kind not in TARGET_KINDS:
            raise UserError(
                f"--saliency_func_type: unknown target {kind!r}; expected {', '.join(TARGET_KINDS)}"
                f", {LOGIT_PREFIX}ACTION or {UNIT_PREFIX}NUMBER"
            )
        elif kind == DIRECTION_PREFIX:
            targets += _direction_targets(direction_ids, context)
        elif kind in ACTION_GROUPS:
            targets += _action_group_target(kind, context)
        else:
            targets.append(_single_target(kind))
    if not targets:
        raise UserError(f"--saliency_func_type {' '.join(kinds)}: no such target is possible here")
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--saliency_func_type {' '.join(kinds)}: {twice} is named twice")
    return targets


def _single_target(kind: str) -> Target:
    if kind == "value":
        return Target(kind, lambda steps, t, _: steps.value[t])
    if kind == VALUE_DELTA:
        earliest = steps_read(kind) - 1
        return Target(kind, lambda steps, t, _: steps.value[t] - steps.value[t - 1], earliest)
    return Target(
        kind, lambda steps, t, num_copies: greedy_log_prob(steps.action_logits[t], num_copies)
    )


def greedy_log_prob(action_logits: Tensor, num_copies: int) -> Tensor:
    """(B, num_actions) logits → (B,) log-probability of the clean copy's most probable action.

    All copies of a sample answer for the same action; else the average would mix actions.
    """
    clean = action_logits.unflatten(0, (-1, num_copies))[:, 0]
    greedy = clean.argmax(dim=-1).repeat_interleave(num_copies)
    log_probs = action_logits.log_softmax(dim=-1)
    return log_probs.gather(-1, greedy[:, None])[:, 0]


def _action_group_target(kind: str, context: TargetContext) -> list[Target]:
    members = ACTION_GROUPS[kind]
    chosen = [i for i, name in enumerate(context.action_names) if _plain(name) in members]
    if not chosen:
        print(f"target {kind}: the environment has no action called {', '.join(members)}; left out")
        return []

    def mean_log_prob(steps: AgentSteps, t: int, _: int) -> Tensor:
        return steps.action_logits[t].log_softmax(dim=-1)[:, chosen].mean(dim=-1)

    return [Target(kind, mean_log_prob)]


def _logit_target(kind: str, context: TargetContext) -> Target:
    wanted, names = kind.removeprefix(LOGIT_PREFIX), context.action_names
    found = [
        i for i, name in enumerate(names) if wanted == str(i) or _plain(wanted) == _plain(name)
    ]
    if len(found) != 1:
        raise UserError(
            f"--saliency_func_type {kind}: {len(found)} actions are called {wanted!r}; expected an "
            f"index below {len(names)}, or one of {', '.join(names)}"
        )
    return Target(kind, lambda steps, t, _: steps.action_logits[t][:, found[0]])


def _unit_target(kind: str, context: TargetContext) -> Target:
    word, hidden = kind.removeprefix(UNIT_PREFIX), context.hidden_slice
    num_units = hidden.stop - hidden.start
    if not word.isdecimal() or int(word) >= num_units:
        raise UserError(
            f"--saliency_func_type {kind}: expected {UNIT_PREFIX}0 to {UNIT_PREFIX}{num_units - 1}"
        )
    return Target(kind, lambda steps, t, _: steps.agent_state[t][:, hidden.start + int(word)])


def _plain(action_name: str) -> str:
    return action_name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _direction_targets(direction_ids: Sequence[int], context: TargetContext) -> list[Target]:
    projection = context.projection
    if projection is None:
        raise UserError(
            "--saliency_func_type hx_direction: needs a projection; make it with: "
            "python analysis/hidden_analysis_precompute.py"
        )
    available = len(projection.linear)
    existing = [d for d in direction_ids if 0 <= d < available]
    if len(existing) < len(direction_ids):
        print(f"--saliency_direction_ids: the projection has {available}; using {len(existing)}")
    return [_direction_target(d, projection, context.hidden_slice) for d in existing]


def _direction_target(direction: int, projection: TorchProjection, hidden_slice: slice) -> Target:
    def coordinate(steps: AgentSteps, t: int, _: int) -> Tensor:
        return projection.transform(steps.agent_state[t][:, hidden_slice])[:, direction]

    return Target(f"{DIRECTION_PREFIX}_{direction}", coordinate)


def evaluate_targets(
    targets: Sequence[Target], steps: AgentSteps, t: int, num_copies: int
) -> Tensor:
    """(Q, B) all targets at step t.

    Copies of a sample, `num_copies` of each, are adjacent in the batch, the clean one first.
    """
    return torch.stack([target.compute(steps, t, num_copies) for target in targets])
