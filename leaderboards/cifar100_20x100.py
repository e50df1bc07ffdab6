"""Cut the dataset of the board cifar100-20x100-res20_res8: ``python cifar100_20x100.py CIFAR100.npz OUT.npz``.

The first 20 classes, 100 training and 100 test images of each, drawn with seed 0; every 2x2 pixels are averaged to one.
The input has ``train_images`` (N, 32, 32, 3), ``train_labels``, the same for ``test``, and ``classes``. The board's had
the first 200 training images of each class by file name, and all test images; others give another fingerprint.
"""

import sys

import numpy as np

CLASSES, IMAGES = 20, 100


def main(source: str, target: str) -> None:
    """Read one file and write the other."""
    whole, draws, parts = np.load(source), np.random.default_rng(0), {}
    for split in ("train", "test"):
        labels = whole[f"{split}_labels"]
        drawn = [draws.permutation(np.flatnonzero(labels == label))[:IMAGES] for label in range(CLASSES)]
        at = np.sort(np.concatenate(drawn))
        small = whole[f"{split}_images"][at].reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).round().astype(np.uint8)
        parts |= {f"{split}_images": small, f"{split}_labels": labels[at]}
    np.savez_compressed(target, classes=whole["classes"][:CLASSES], **parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
