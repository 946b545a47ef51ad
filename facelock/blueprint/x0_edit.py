"""Editing what a denoising step predicts, so that every solver keeps the edit whole.

A flow model predicts a velocity v at x = (1 - σ)·x0 + σ·noise, so its prediction of the clean latents is
x0 = x - σ·v. Writing an edit into the latents after the step is mostly undone by UniPC, whose corrector starts from
the sample before (diffusers 0.42: 4 to 13 % of it survive). Here the prediction itself is edited and said again as a
velocity, v' = v + (x0 - x0')/σ, before the solver sees it: whatever the solver, it works toward x0'.

::

    scheduler = guided(UniPCMultistepScheduler).from_config(pipe.scheduler.config)
    scheduler.hook = lambda x0, sigma, step: edit(x0)      # on this instance only; None: the plain scheduler

Where an edit changes nothing, the velocity keeps its bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Hook = Callable[[Tensor, float, int], Tensor]
"""``hook(x0, sigma, step)`` → the edited x0, of the same shape; x0 is float32."""


def edited_velocity(velocity: Tensor, x0: Tensor, edited: Tensor, sigma: float | Tensor) -> Tensor:
    """The velocity that predicts ``edited`` where ``velocity`` predicts ``x0``; all of one shape.

    ``sigma`` in (0, 1] is the step's noise level; at 0 nothing is left to be predicted, and the velocity stays.
    """
    level = float(sigma)
    return velocity if level <= 0 else velocity + ((x0 - edited) / level).to(velocity.dtype)


def guided(cls: type[Any]) -> type[Any]:
    """A scheduler class like ``cls`` (UniPC or FlowMatchEuler, predicting flow) whose instances know a ``hook``.

    Without one it gives the same bits as ``cls``. The hook belongs to the instance; copies share it.
    """

    class Guided(cls):  # type: ignore[misc]
        hook: Hook | None = None

        def step(
            self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any
        ) -> Any:
            if self.hook is not None:
                model_output = self._edited(model_output, timestep, sample)
            return super().step(model_output, timestep, sample, *args, **options)

        def _edited(self, velocity: Tensor, timestep: Any, sample: Tensor) -> Tensor:
            if self.step_index is None:
                self._init_step_index(timestep)
            index = int(self.step_index)
            sigma = float(self.sigmas[index])
            x0 = sample.float() - sigma * velocity.float()
            assert self.hook is not None  # noqa: S101 - asked before
            return edited_velocity(velocity, x0, self.hook(x0, sigma, index), sigma)

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            """A hook may hold networks: it is shared, all else is copied."""
            memo[id(self.hook)] = self.hook
            twin = type(self).__new__(type(self))
            memo[id(self)] = twin
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
            return twin

    Guided.__name__ = Guided.__qualname__ = cls.__name__  # what configs are saved under
    return Guided


def steered(
    guide: Any, velocity: Tensor, latents: Tensor, sigma: float | Tensor, step: int, known: int
) -> Tensor:
    """The velocity of a window's new latents after ``guide`` saw the window as it is predicted.

    ``latents`` (1, z, F, h, w) of which the first ``known`` are clean; ``velocity`` (1, z, F - known, h, w).
    """
    x0 = latents.float().clone()
    new = x0[:, :, known:]
    new -= torch.as_tensor(sigma, device=new.device) * velocity
    edited = guide(x0, float(sigma), step, known)
    return edited_velocity(velocity, new, edited[:, :, known:], sigma)
