"""The boards that the benchmarks of sharing train: three pairs, eight rows of methods on logits alone."""

from __future__ import annotations

from workbench import Place, Row, network, random_split

from kdbench.config.loading import load_anchor
from kdbench.registry import Registry

PAIRS = ("res32x4_res8x4", "wrn40_2_wrn16_2", "res50_mbv2")

# Three methods need nothing of the teacher but its logits; rows that differ in options make them eight. A row costs the
# same whatever its options are.
ROWS = (
    Row("vanilla_kd"),
    Row("dkd"),
    Row("dkd", ("beta=1",)),
    Row("dkd", ("beta=2",)),
    Row("dkd", ("beta=4",)),
    Row("dist"),
    Row("dist", ("beta=2",)),
    Row("dist", ("gamma=2",)),
)
ABOUT_ROWS = "eight rows that need the teacher's logits alone: vanilla_kd, dkd with four settings, dist with three"


def place(registry: Registry, pair: str, *, precision: str = "fp32", batch_size: int | None = None) -> Place:
    """Return a pair under the published protocol, its teacher with random weights, on random images.

    Args:
        registry: Plugins.
        pair: Its name.
        precision: The anchor's precision key.
        batch_size: Images per step; None = the anchor's.
    """
    anchor = load_anchor("crd", registry.anchors.as_mapping())
    step = anchor.step.model_copy(update={"precision": precision})
    data = anchor.data.model_copy(update={"batch_size": batch_size or anchor.data.batch_size})
    teacher = network(registry, registry.pairs[pair].teachers[0]).eval().requires_grad_(requires_grad=False)
    anchor = anchor.model_copy(update={"step": step, "data": data})
    return Place(registry, anchor, registry.pairs[pair], random_split(10_240), teacher)
