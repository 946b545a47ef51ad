"""Every error that FaceLock raises on purpose.

::

    FaceLockError                 exit 1
    ├── InputError                exit 2   a file, a picture, a number or a name the user gave
    │   └── ConfigError           exit 2   a recipe or an option
    ├── EnvironmentFailure        exit 3   the machine: missing model, no GPU, disk full, no encoder
    │   ├── ModelError            exit 3   weights that are missing, damaged or of the wrong kind
    │   ├── DeviceError           exit 3   a device that is absent or silently not used
    │   ├── EncoderError          exit 3   ffmpeg is missing or died
    │   └── StorageError          exit 3   disk full or a failing disk; what was finished is kept
    ├── NotFiniteError            exit 1   a network of stage 1 gave NaN or infinity, and no second try helped
    ├── IdentityMissedError       exit 4   finished, but the identity target was missed
    ├── OutputBusyError           exit 5   another run holds the output
    └── InterruptedRunError       exit 130 stopped by a signal; the same command resumes

A message is one sentence or two: what happened, with what was found, then what to do::

    try:
        facelock.generate(...).save("clip.mp4")
    except facelock.FaceLockError as error:
        print(error)  # "<what>. <what to do>."
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class FaceLockError(Exception):
    """Base of every deliberate error; ``exit_code`` is what the CLI returns."""

    exit_code = 1


class InputError(FaceLockError):
    """Something the user gave cannot be used: a file, a picture, a number, a name."""

    exit_code = 2


class ConfigError(InputError):
    """A recipe or an option is wrong."""


class EnvironmentFailure(FaceLockError):
    """The machine cannot do it: a missing model, device, encoder, or room on the disk."""

    exit_code = 3


class ModelError(EnvironmentFailure):
    """Weights are missing, damaged, or not of the kind the recipe names."""


class DeviceError(EnvironmentFailure):
    """The device asked for is absent, out of memory, or silently not the one in use."""


class EncoderError(EnvironmentFailure):
    """ffmpeg is missing, or died while it encoded or joined."""


class StorageError(EnvironmentFailure):
    """The disk is full or failing; everything finished before it is intact."""


class NotFiniteError(FaceLockError):
    """A network of stage 1 gave NaN or infinity; what was made before it is kept."""


class IdentityMissedError(FaceLockError):
    """The clip is finished and kept, but fewer frames than asked match the identity."""

    exit_code = 4


class OutputBusyError(FaceLockError):
    """Another process is writing the same output."""

    exit_code = 5


class InterruptedRunError(FaceLockError):
    """A signal stopped the run between two steps; the same command resumes it."""

    exit_code = 130


def first_line(error: BaseException, most: int = 200) -> str:
    """What a library's error says, for the middle of a sentence of ours: its first line, ``most`` characters of it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most].rstrip(":. ")


def together(what: str, errors: Sequence[FaceLockError]) -> FaceLockError:
    """One error of at least one: itself, or a list of all their sentences after ``what``.

    Its exit code is 2 where a recipe or an option has to be mended, else 3.
    """
    unique = [error for place, error in enumerate(errors) if str(error) not in map(str, errors[:place])]
    if len(unique) == 1:
        return unique[0]
    kinds = {type(error) for error in unique}
    listed = "\n  ".join(str(error) for error in unique)
    kind = ConfigError if any(isinstance(error, InputError) for error in unique) else EnvironmentFailure
    return (kinds.pop() if len(kinds) == 1 else kind)(f"{what}: {len(unique)} mistakes.\n  {listed}")


def caught(*checks: Callable[[], object]) -> list[FaceLockError]:
    """What each of ``checks`` raises, if it does."""
    found: list[FaceLockError] = []
    for check in checks:
        try:
            check()
        except FaceLockError as error:
            found.append(error)
    return found
