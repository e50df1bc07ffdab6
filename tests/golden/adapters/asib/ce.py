"""The B-Step's cross-entropy: weighted where nothing is mixed, else the share-weighted sum over both labels."""

from topic import Topic

from adapters.asib import parts
from kdbench.methods.asib.kl import sample_ce, weighted_mean


def run(case: Topic) -> None:
    """Compare one file."""
    for variant in case.variants():
        hp, logits = variant.hp, variant.leaf("in.s_logit")
        mixed = parts.mix(hp, variant.tensor("in.y_b"))
        ce_vec = sample_ce(logits, variant.tensor("in.y"), hp.get("ce_label_smoothing", 0.0), mixed)
        ce = weighted_mean(ce_vec, variant.tensor("in.w")) if mixed is None else ce_vec.mean()
        variant.out("ce_vec", ce_vec)
        variant.out("ce", ce)
        variant.grads("ce", ce, {"s_logit": logits})
