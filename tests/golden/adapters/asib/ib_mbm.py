"""The bridge's forward pass and its gradients, for every form of the tokens."""

from topic import Topic

from adapters.asib import parts
from kdbench.methods.asib.bridge import ask


def run(case: Topic) -> None:
    """Compare one file."""
    for variant in case.variants():
        hp = variant.hp
        module, leaves = parts.bridge(variant, "flat." if hp["kv"] == "flat" else "", hp)
        query, tokens = variant.leaf("in.q"), variant.leaf("in.kv")
        given = {"tokens": tokens, "flat": tokens, "first2d": tokens[:, 0]}[hp["kv"]]
        noise = variant.tensor("in.eps") if hp["sample"] else None
        found = ask(module, query, given, hp.get("ib_mbm_feature_norm", "none"), noise=noise)
        variant.out("z", found.z)
        variant.out("mu", found.mu)
        variant.out("logvar", found.logvar)
        variant.out("std", module.std(found.logvar))
        value = (variant.tensor("in.rz") * found.z).sum() + (variant.tensor("in.rl") * found.logvar).sum()
        variant.out("J", value)
        variant.grads("J", value, {**leaves, **{k.removeprefix("flat."): v for k, v in leaves.items()}, "q": query,
                                   "kv": tokens})  # fmt: skip
