"""The bottleneck's KL, certainty, and the weights made of it."""

import torch
from topic import Topic

from kdbench.methods.asib.bridge import certainty, ib_kl
from kdbench.methods.asib.weights import certainty_in_a, certainty_in_b


def run(case: Topic) -> None:
    """Compare one file."""
    mu, logvar = case.leaf("in.mu"), case.leaf("in.logvar")
    kld = ib_kl(mu, logvar)
    case.out("kld", kld)
    case.out("ib_loss", case.hp["beta"] * kld)
    case.grads("ib_loss", case.hp["beta"] * kld, {"mu": mu, "logvar": logvar})
    # One entry at a time: the mean over one entry is the entry.
    case.out("certainty", torch.stack([certainty(logvar[:, d : d + 1]) for d in range(logvar.shape[1])], 1))
    case.out("c_mean", certainty(logvar))
    for variant in case.variants():
        hp = variant.hp
        variant.out("cw_a", certainty_in_a(logvar, hp["min_cw"]))
        variant.out("cw_b", certainty_in_b(logvar, hp["min_cw"], hp["max_cw"]))
