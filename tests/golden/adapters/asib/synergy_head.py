"""The synergy head, plain and with a temperature, and with a given dropout mask."""

from topic import Topic

from adapters.asib import parts


def run(case: Topic) -> None:
    """Compare one file."""
    for variant in case.variants():
        p = variant.hp["p"]
        module, leaves = parts.head(variant, p)
        assert (module.log_temp is not None) == variant.hp["learnable_temp"]
        code = variant.leaf("in.x")
        logits = module.eval()(code)
        value = (variant.tensor("in.r") * logits).sum()
        variant.out("logits", logits)
        variant.out("J", value)
        variant.grads("J", value, {**leaves, "x": code})
        kept = variant.tensor("in.mask") / (1 - p)
        variant.out("logits_dropmask", module.classify(kept * module.activate(code)))
