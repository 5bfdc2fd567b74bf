"""The torch side of the optimizers: parameter groups, decoupled decay, and one class for every rule of the form

    w <- (1 - rate * lambda) w - rate * direction(gradient, state of w)

Muon, SWAN, Shampoo, SOAP and Lion are such directions, written beside their settings. They are our own: no package has
all of them in one object beside AdamW, restores them bit for bit, or has SWAN at all (pytorch-optimizer 4.1 does not,
torch has Muon from 2.9 on). The tests hold them against torch's own, where there is one, and against the formulas.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from optim.groups import STANDARD, Group, OptimizerSettings
from optim.mup import Growth
from optim.plan import Plan

Direction = Callable[[Tensor, dict[str, Any]], Tensor]
"""(gradient, what the rule keeps of this parameter between steps) -> what is subtracted, times the rate"""


def param_groups(
    settings: OptimizerSettings,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    plan: Plan,
    growth: Growth = STANDARD,
) -> list[dict[str, Any]]:
    """torch's parameter groups: `lr_scale` is read by the loop, `decay` and `decay_lr` by `decay_weights`."""
    named = dict(named_parameters)
    groups = settings.groups({name: tuple(parameter.shape) for name, parameter in named.items()}, plan, growth)
    return [_torch_group(group, [named[name] for name in group.names]) for group in groups]


def _torch_group(group: Group, parameters: Sequence[torch.nn.Parameter]) -> dict[str, Any]:
    return {
        "params": list(parameters),
        "optimizer": group.optimizer,
        "lr_scale": group.lr_scale,
        "decay": group.weight_decay,
        "decay_lr": group.decay_lr,
    }


def adamw(groups: list[dict[str, Any]], beta1: float, beta2: float, eps: float) -> torch.optim.AdamW:
    """torch's AdamW at rate 0; it decays the weights by itself where the decay follows the schedule."""
    for group in groups:
        follows = group["decay_lr"] is None
        group["weight_decay"] = group["decay"] if follows else 0.0
        group["decay"] = 0.0 if follows else group["decay"]
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=eps, fused=True)


def configured(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """`optimizer`, which from now on decays its weights and takes state, but no settings, from a checkpoint."""
    optimizer.register_step_pre_hook(decay_weights)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    def keep_settings(loaded: torch.optim.Optimizer) -> None:
        for group, kept in zip(loaded.param_groups, settings, strict=True):
            group.update(kept)

    optimizer.register_load_state_dict_post_hook(keep_settings)
    return optimizer


@torch.no_grad()
def decay_weights(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        if group["decay"]:
            rate = group["lr"] if group["decay_lr"] is None else group["decay_lr"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - rate * group["decay"])


class DirectionOptimizer(torch.optim.Optimizer):
    """Updates its groups along `direction`, and those of `rest` by torch's AdamW, with one state for both."""

    def __init__(
        self, groups: list[dict[str, Any]], direction: Direction, rest: torch.optim.AdamW | None = None
    ) -> None:
        self.direction, self.rest = direction, rest
        super().__init__([*groups, *(rest.param_groups if rest else [])], {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        own = [group for group in self.param_groups if group["optimizer"] != "AdamW"]
        for group in own:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self.direction(parameter.grad, self.state[parameter])
                    parameter.add_(update, alpha=-group["lr"])
        if self.rest is not None:  # groups and state are new objects after load_state_dict
            self.rest.param_groups = [group for group in self.param_groups if group["optimizer"] == "AdamW"]
            self.rest.state = self.state
            self.rest.step()
