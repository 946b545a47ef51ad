"""A small classifier that reads the vocabulary's slots off a window of frames: what a clip shows.

::

    reader = learn(lessons, seed=0)                     # true renders, whose labels are known
    read = reader.read(clips)                           # (N, T, 3, 88, 64) → (N, 9) int64
    accuracy(read, labels, "action").value

First a convolutional network learns to read a frame: its slots, and the pose, mouth and light that it was rendered
with. Then a second, small one learns from the course of these readings over a window, because a talking mouth differs
from an open one, and a nod from a tilt, in time alone. The classifier judges generated clips no better than it reads
renders of people that it never saw: state both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from facelock.bench.renders import MOUTH, SIDE, SIGNALS, SLOT, VALUES
from facelock.bootstrap import Estimate, missing

COUNTS = [len(values) for values in VALUES.values()]
LIPS = [COUNTS[SLOT["action"]], 2]
"""What is read off the mouth alone: logits of the action, and how far it opens and smiles."""
MOUTH_SIGNALS = [list(SIGNALS).index(name) for name in ("open", "smile")]
READINGS = sum(COUNTS) + len(SIGNALS) + sum(LIPS)
IN_TIME = [SLOT["action"], SLOT["head motion"]]
"""Slots that a single frame does not tell."""
MIRRORED = torch.tensor([name in ("yaw", "roll", "gaze_x") for name in SIGNALS])
"""Signals that change their sign in a mirror."""
FACE = (slice(14, 54), slice(12, 52))
"""Rows and columns of a frame of 64 pixels between which eyes and mouth lie."""
FEATURES = 32 + 64 + 32
"""Numbers that describe one frame: of all of it, of the face, and of the mouth."""
FACELESS = 0.05
"""Share of the frames that the network learns from without the mouth, as where no face is found."""
SHIFT = 3
"""Most pixels that a frame is moved by while the network learns."""
BATCH, CLIP_BATCH = 64, 64
RATE, CLIP_RATE = 3e-3, 2e-3
EPOCHS, MOUTH_EPOCHS, CLIP_EPOCHS = 4, 2, 40
"""Rounds over all frames; for each, rounds of the mouth's network alone beforehand; rounds over the clips."""
AT_ONCE = 64
"""Clips that are read at once."""

Guesses = Sequence[Tensor]


@dataclass(frozen=True)
class Lessons:
    """What to learn from: N clips of T frames and M of T' frames, of which single frames are looked at only."""

    clips: Tensor
    """(N, T, 3, 88, 64) uint8."""
    labels: Tensor
    """(N, 9) int64; -1 teaches nothing."""
    signals: Tensor
    """(N, T, 13) about [-1, 1]."""
    more: Tensor
    """(M, T', 3, 88, 64) uint8."""
    more_labels: Tensor
    more_signals: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Lessons]) -> Lessons:
        """All of ``parts``."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def frames(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every frame (F, 3, 88, 64), its labels (F, 9) and its signals (F, 13)."""
        sets = ((self.clips, self.labels, self.signals), (self.more, self.more_labels, self.more_signals))
        labels = [each.repeat_interleave(clips.shape[1], 0) for clips, each, _ in sets]
        return (
            torch.cat([clips.flatten(0, 1) for clips, _, _ in sets]),
            torch.cat(labels),
            torch.cat([signals.flatten(0, 1) for _, _, signals in sets]),
        )


def _block(before: int, after: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


class Eye(nn.Module):
    """Reads single frames: the whole one at half the size, the face's part as it is, and the mouth."""

    def __init__(self) -> None:
        super().__init__()
        wide = [*_block(3, 16, 1), *_block(16, 32, 2), *_block(32, 48, 2), *_block(48, 48, 2)]
        near = [*_block(3, 24, 1), *_block(24, 40, 2), *_block(40, 64, 2), *_block(64, 80, 2)]
        self.wide = nn.Sequential(nn.AvgPool2d(2), *wide, nn.Flatten(), nn.Linear(48 * 16, 32))
        self.near = nn.Sequential(*near, nn.Flatten(), nn.Dropout(0.2), nn.Linear(80 * 25, 64))
        mouth = [*_block(3, 16, 1), *_block(16, 32, 2), *_block(32, 48, 2), *_block(48, 64, 1)]
        self.mouth = nn.Sequential(*mouth, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 36, 32))
        self.lips = nn.Linear(32, sum(LIPS))
        self.head = nn.Linear(FEATURES, sum(COUNTS) + len(SIGNALS))

    def features(self, sheets: Tensor) -> Tensor:
        """(F, FEATURES) of (F, 3, 88, 64) sheets in [0, 1] (:func:`facelock.bench.renders.sheets`)."""
        x = sheets * 2 - 1
        frames, mouths = x[:, :, :SIDE], x[:, :, SIDE:, :MOUTH]
        return torch.cat([self.wide(frames), self.near(frames[..., FACE[0], FACE[1]]), self.mouth(mouths)], 1)

    def forward(self, sheets: Tensor) -> Tensor:
        """(F, READINGS): the slots' logits, ``SIGNALS``, and what the mouth alone tells."""
        seen = functional.relu(self.features(sheets))
        return torch.cat([self.head(seen), self.lips(seen[:, -32:])], 1)

    def read_mouths(self, sheets: Tensor) -> Tensor:
        """The last six of what :meth:`forward` returns, at a small part of its cost."""
        return cast(Tensor, self.lips(functional.relu(self.mouth(sheets[:, :, SIDE:, :MOUTH] * 2 - 1))))


class SlotReader(nn.Module):
    """The classifier: an :class:`Eye`, and what reads its readings over time."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = Eye()
        layers = [nn.Linear(6 * READINGS, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, sum(COUNTS))]
        self.clip = nn.Sequential(nn.BatchNorm1d(6 * READINGS), *layers)

    @torch.no_grad()
    def course(self, clips: Tensor) -> Tensor:
        """(N, 6 · READINGS) of (N, T, 3, 88, 64) uint8 clips, T ≥ 2: how the readings of the frames run."""
        self.eval()
        parts = [
            self.eye(_floats(some.flatten(0, 1))).view(*some.shape[:2], -1) for some in clips.split(AT_ONCE)
        ]
        seen = torch.cat(parts)
        ends = (seen[:, -1] - seen[:, 0]).abs()
        runs = [seen.mean(1), seen.std(1), seen.diff(dim=1).abs().mean(1), seen.amax(1), seen.amin(1), ends]
        return torch.cat(runs, 1)

    @torch.no_grad()
    def read(self, clips: Tensor) -> Tensor:
        """(N, 9) labels of what (N, T, 3, 88, 64) uint8 clips show."""
        logits = self.clip(self.course(clips)).split(COUNTS, 1)
        return torch.stack([guess.argmax(1) for guess in logits], 1)

    @torch.no_grad()
    def describe(self, clips: Tensor) -> Tensor:
        """(N, T, FEATURES) features of each frame, for the Fréchet distance."""
        self.eval()
        parts = [self.eye.features(_floats(some.flatten(0, 1))) for some in clips.split(AT_ONCE)]
        return torch.cat(parts).view(*clips.shape[:2], -1)


def _floats(frames: Tensor) -> Tensor:
    return frames.float() / 255


def learn(
    lessons: Lessons, seed: int, epochs: int = EPOCHS, told: Callable[[int], None] = lambda _: None
) -> SlotReader:
    """Train on ``lessons``; ``told(epoch)`` after each round over all frames.

    The same arguments give the same classifier on the same machine with as many threads.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model, frames = SlotReader(), lessons.frames()
        _learn_frames(_mouth_loss, model.eye, frames, MOUTH_EPOCHS * epochs, lambda _: None)
        _learn_frames(_frame_loss, model.eye, frames, epochs, told)
        _learn_clips(model, lessons)
    return model.eval()


def _batches(count: int, size: int) -> Iterator[Tensor]:
    """Shuffled indices; no batch of one, which batch norm cannot take."""
    return (index for index in torch.randperm(count).split(size) if len(index) > 1)


def _learn_frames(
    loss: Callable[[Eye, Tensor, Tensor, Tensor], Tensor],
    eye: Eye,
    frames: tuple[Tensor, Tensor, Tensor],
    epochs: int,
    told: Callable[[int], None],
) -> None:
    """Bring ``loss(eye, sheets, labels, signals)`` down."""
    pictures, labels, signals = frames
    optimiser = torch.optim.AdamW(eye.parameters(), RATE, weight_decay=2e-2)
    steps = max(2, epochs * -(-len(pictures) // BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for epoch in range(epochs):
        eye.train()
        for index in _batches(len(pictures), BATCH):
            optimiser.zero_grad()
            loss(eye, *_varied(_floats(pictures[index]), labels[index], signals[index])).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        told(epoch + 1)


def _frame_loss(eye: Eye, sheets: Tensor, labels: Tensor, signals: Tensor) -> Tensor:
    """Slots and signals of whole sheets, and what the mouth alone tells."""
    *slots, guess, action, mouth = eye(sheets).split([*COUNTS, len(SIGNALS), *LIPS], 1)
    error = (guess - signals).square().mean(0).sum()
    return entropy(slots, labels, IN_TIME) + 4 * error + _lips_loss(action, mouth, labels, signals)


def _mouth_loss(eye: Eye, sheets: Tensor, labels: Tensor, signals: Tensor) -> Tensor:
    """What the mouth alone tells, of the mouth alone."""
    action, mouth = eye.read_mouths(sheets).split(LIPS, 1)
    return _lips_loss(action, mouth, labels, signals)


def _lips_loss(action: Tensor, mouth: Tensor, labels: Tensor, signals: Tensor) -> Tensor:
    error = (mouth - signals[:, MOUTH_SIGNALS]).square().mean(0).sum()
    column = SLOT["action"]
    return entropy([action], labels[:, column : column + 1]) + 4 * error


def _learn_clips(model: SlotReader, lessons: Lessons) -> None:
    course = model.course(lessons.clips)
    optimiser = torch.optim.AdamW(model.clip.parameters(), CLIP_RATE, weight_decay=0.1)
    for _ in range(CLIP_EPOCHS):
        model.clip.train()
        for index in _batches(len(course), CLIP_BATCH):
            optimiser.zero_grad()
            entropy(model.clip(course[index]).split(COUNTS, 1), lessons.labels[index]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def _varied(sheets: Tensor, labels: Tensor, signals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A batch moved, and perhaps mirrored or softened, with a little noise, so that nothing is learned by heart."""
    frames, mouths = sheets[:, :, :SIDE], sheets[:, :, SIDE:, :MOUTH]
    if float(torch.rand(())) < 0.5:
        frames, mouths = frames.flip(-1), mouths.flip(-1)
        signals = torch.where(MIRRORED, -signals, signals)
    frames = _moved(frames, SHIFT)
    if float(torch.rand(())) < 0.5:
        frames, mouths = _softened(frames), _softened(mouths)
    mouths = mouths * (torch.rand(len(mouths), 1, 1, 1) > FACELESS)
    below = functional.pad(_moved(mouths, 1), [0, SIDE - MOUTH])
    out = torch.cat([frames, below], 2)
    return out + 0.02 * torch.rand(len(out), 1, 1, 1) * torch.randn(out.shape), labels, signals


def _moved(pictures: Tensor, most: int) -> Tensor:
    """By up to ``most`` pixels down and across, all alike."""
    high, wide = pictures.shape[-2:]
    down, right = torch.randint(2 * most + 1, (2,)).tolist()
    padded = functional.pad(pictures, [most] * 4, mode="replicate")
    return padded[..., down : down + high, right : right + wide]


def _softened(pictures: Tensor) -> Tensor:
    return 0.4 * pictures + 0.6 * functional.avg_pool2d(
        functional.pad(pictures, [1] * 4, mode="replicate"), 3, 1
    )


def entropy(guesses: Guesses, labels: Tensor, but: Sequence[int] = ()) -> Tensor:
    """Cross entropy of (N, K) logits per slot, summed over the slots other than ``but``, of what has a label."""
    total = guesses[0].sum() * 0
    for column, guess in enumerate(guesses):
        keep = labels[:, column] >= 0
        if column not in but and bool(keep.any()):
            total = total + functional.cross_entropy(guess[keep], labels[keep, column])
    return total


def accuracy(read: Tensor, labels: Tensor, slot: str) -> Estimate:
    """Share of the (N, 9) clips whose ``slot`` is read as labelled, where it has a label."""
    truth, own = labels[:, SLOT[slot]], read[:, SLOT[slot]]
    return share((own == truth)[truth >= 0])


def share(right: Tensor) -> Estimate:
    """Of (N,) bool, with Wilson's 95 % interval (1927), which stays within 0 and 1."""
    n = len(right)
    if not n:
        return missing("no clip has such a label")
    value, z = float(right.float().mean()), 1.96
    middle, width = (value + z * z / (2 * n)), z * math.sqrt(value * (1 - value) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + side * width) / (1 + z * z / n) for side in (-1, 1))
    return Estimate(value=value, low=max(0.0, low), high=min(1.0, high))


def by_word(read: Tensor, labels: Tensor, slot: str) -> dict[str, float]:
    """The same for each word that some clip has."""
    truth, right = labels[:, SLOT[slot]], read[:, SLOT[slot]] == labels[:, SLOT[slot]]
    return {
        word: float(right[truth == value].float().mean())
        for value, word in enumerate(VALUES[slot])
        if bool((truth == value).any())
    }


def chance(labels: Tensor, slot: str) -> float:
    """Accuracy of always naming the commonest word of ``slot`` in (N, 9) labels; 0 where none has one."""
    truth = labels[:, SLOT[slot]]
    truth = truth[truth >= 0]
    return float(torch.bincount(truth).max() / len(truth)) if len(truth) else 0.0
