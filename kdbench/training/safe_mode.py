"""Safe settings: how a run is computed the second time. They vary at run time and are no part of its configuration."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import JsonValue

from kdbench.config.schema import Anchor

Settings = Mapping[str, JsonValue]
AS_PLANNED: Settings = {}
SAFE: Settings = {"precision": "fp32", "cudnn": False, "cudnn_benchmark": False, "tf32": False}


def effective(anchor: Anchor, settings: Settings) -> Anchor:
    """Return the protocol as it is computed under settings: with their precision, if they name one.

    Args:
        anchor: What the run follows.
        settings: ``AS_PLANNED``, ``SAFE``, or what an attempt in a record states.
    """
    if "precision" not in settings:
        return anchor
    step = anchor.step.model_copy(update={"precision": settings["precision"], "teacher_precision": None})
    return anchor.model_copy(update={"step": step})


@contextlib.contextmanager
def applied(settings: Settings) -> Iterator[None]:
    """Set the process-wide switches that settings name, and put them back afterwards.

    Args:
        settings: ``cudnn`` and ``cudnn_benchmark`` switch cuDNN and its search for the fastest kernel; ``tf32`` says
            whether float32 products may be rounded to TF32. What is not named stays as it is.
    """
    if not settings:
        yield
        return
    cudnn: Any = torch.backends.cudnn
    with quiet_about_tf32():
        before = (cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision())
    enabled, benchmark, tf32, products = before
    if not settings.get("tf32", True):
        tf32, products = False, "highest"
    try:
        _switch(cudnn, settings.get("cudnn", enabled), settings.get("cudnn_benchmark", benchmark), tf32, products)
        yield
    finally:
        _switch(cudnn, *before)


def _switch(cudnn: Any, enabled: object, benchmark: object, tf32: object, products: str) -> None:
    with quiet_about_tf32():
        cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32 = enabled, benchmark, tf32
        torch.set_float32_matmul_precision(products)


@contextlib.contextmanager
def quiet_about_tf32() -> Iterator[None]:
    """Let PyTorch 2.9 keep to itself that it has newer names for these switches; later releases are quiet again.

    The newer ones may not be mixed with these, which the libraries that are built on PyTorch still ask for.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
        yield
