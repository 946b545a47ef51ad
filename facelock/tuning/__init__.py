"""Speed and memory of a backbone: what a recipe's ``[speed]`` and ``[memory]`` tables choose.

::

    speed = Speed(attention="native", cache=StepCache("first_block", threshold=0.08))
    place = Placement(torch.device("cuda:0"), speed, plan=None, steps=50)
    backbone = SkyReelsV2(folder, ..., place=place)      # hands over its modules, loaded on the CPU

:mod:`facelock.tuning.options` holds the choices and :mod:`facelock.tuning.plan` the arithmetic of memory; neither
knows torch, so that a recipe and the command line can check them at once. The rest works on modules.
"""

from __future__ import annotations

from facelock.tuning.options import Speed, StepCache

__all__ = ["Speed", "StepCache"]
