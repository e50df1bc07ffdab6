"""Safe retry: one more start of a run, from its initial state and with safe settings, where its anchor allows it."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

from kdbench.errors import KdbenchError
from kdbench.records import Attempt
from kdbench.spec import RunSpec
from kdbench.store import RunFolder
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.lane import Lane
from kdbench.training.lock import changed
from kdbench.training.safe_mode import AS_PLANNED, SAFE, Settings
from kdbench.training.trainer import DEVICE_FAULTS

# Device errors that torch raises as plain RuntimeErrors, by what their messages say.
_MEMORY = ("DefaultCPUAllocator", "CUDA out of memory")
_NO_KERNEL = ("valid cuDNN algorithm", "unable to find an engine")
_BROKEN = ("CUDA error", "CUDA driver error", "cuDNN error", "CUDNN_STATUS_", "CUBLAS_STATUS_")


class FreshProcess(KdbenchError):
    """A device error left this process unusable; the run is to be started again in another one."""

    exit_code = 75


def is_device_fault(error: BaseException | None) -> bool:
    """Return whether an error is the device's: out of memory, or a failure of the GPU or its libraries."""
    if isinstance(error, DEVICE_FAULTS):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in (*_MEMORY, *_NO_KERNEL, *_BROKEN))


def needs_fresh_process(error: BaseException | None) -> bool:
    """Return whether a device fault may have spoilt the device for this process.

    Running out of memory, and finding no kernel, do not. After any other error of a GPU each further call may fail.
    """
    if not is_device_fault(error) or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return False
    return not any(words in str(error) for words in (*_MEMORY, *_NO_KERNEL))


def allowed(spec: RunSpec, settings: Settings) -> bool:
    """Return whether a run may be started once more: its anchor says so, and it is not the second time already."""
    return spec.anchor.step.safe_retry and not settings


def wanted(lane: Lane, settings: Settings) -> bool:
    """Return whether a lane that ended under these settings is to be started once more.

    A method's own fault is not retried, nor is a run that learned nothing.
    """
    return allowed(lane.spec, settings) and (bool(lane.diverged) or is_device_fault(lane.failure))


def settings_after(attempts: Sequence[Attempt]) -> Settings:
    """Return the settings of the next attempt: once a retry was asked for, safe ones for good."""
    return SAFE if any(attempt.retry_sha256 for attempt in attempts) else AS_PLANNED


def told(reason: str, attempts: Sequence[Attempt]) -> str:
    """Return why a run is not ok; where it had a safe retry, with what had ended the attempt before it."""
    asked = [attempt.outcome for attempt in attempts if attempt.retry_sha256]
    return f"{reason}; this was the safe retry, the attempt before it ended by: {asked[0]}" if asked else reason


def prepare(spec: RunSpec, folder: RunFolder, attempts: Sequence[Attempt]) -> None:
    """Make a folder ready for the retry: the same configuration, and no checkpoint of the attempt before it.

    A retry that goes on after a kill finds its own checkpoints, and keeps them.

    Raises:
        KdbenchError: If the configuration is not the one whose retry was asked for.
    """
    locked = next(attempt.retry_sha256 for attempt in attempts if attempt.retry_sha256)
    if spec.config_sha256 != locked:
        raise changed(
            spec.run_id, "before its safe retry", f"config_sha256 {locked[:12]} then, {spec.config_sha256[:12]} now"
        )
    checkpoints = CheckpointFolder(folder.checkpoints)
    state = checkpoints.newest()
    if state is not None and state.get("settings") != dict(SAFE):
        checkpoints.remove()


def free_memory(device: torch.device) -> None:
    """Give back what the failed attempt held: its lanes hang in cycles with the error that ended them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
