"""The B-Step's feature term."""

from topic import Topic

from kdbench.methods.asib.features import feature_distance
from kdbench.methods.asib.kl import weighted_mean
from kdbench.methods.asib.weights import certainty_in_b


def run(case: Topic) -> None:
    """Compare one file."""
    for variant in case.variants():
        hp, feature = variant.hp, variant.leaf("in.s_feat")
        clip, huber = hp.get("feat_kd_clip"), hp.get("feat_kd_huber_beta")
        distance = feature_distance(feature, variant.tensor("in.mu"), clip, huber)
        weights = certainty_in_b(variant.tensor("in.logvar"), hp.get("min_cw", 0.5), hp.get("max_cw", 1.5))
        value = weighted_mean(distance, weights)
        variant.out("diff", distance)
        variant.out("feat", value)
        variant.grads("feat", value, {"s_feat": feature})
