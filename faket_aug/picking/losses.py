"""DeepFinder's loss, from the Tversky index of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive, check_same_shape

#: Keeps the index of a class defined, as 1, if the class neither occurs nor has any probability. It must be so small
#: that nothing else changes: with 1e-8 a network is rewarded for calling absent classes absent, and learns only that.
EPSILON = 1e-30


def tversky_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """Compute `classes − Σ_c (TP_c + ε) / (TP_c + α FP_c + β FN_c + ε)`, sums over batch and space together.

    TP_c is the sum of the softmax probability of class c inside its label, FP_c the sum outside, and FN_c the sum of 1
    minus the probability inside. Each class counts the same, however few voxels it has.

    Parameters
    ----------
    logits
        `(n, class, z, y, x)`, before the softmax; any floating point type.
    labels
        `(n, z, y, x)`, int64, class numbers.
    alpha, beta
        Weights of false positives and false negatives; one half each as published, which is the Dice index.

    Returns
    -------
    `()`, float32, or float64 for logits of float64; from 0 to the number of classes.

    Raises
    ------
    ValueError
        If the shapes do not match, or a label is not a class number.

    References
    ----------
    Salehi et al., arXiv 1706.05721, equation 2; Moebel et al., Nature Methods 18 (2021), Methods.
    """
    check_ndim("logits", logits, "n class z y x")
    check_same_shape("labels", labels.shape, "logits without its classes", (logits.shape[0], *logits.shape[2:]))
    check_positive("alpha", alpha, zero=True)
    check_positive("beta", beta, zero=True)
    classes = logits.shape[1]
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if low < 0 or high >= classes:
        raise ValueError(f"expected `labels` from 0 to {classes - 1}, got {low} to {high}; set `classes` to match")
    # Sums over many voxels: half precision would lose them.
    probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
    numbers = torch.arange(classes, device=labels.device)[:, None, None, None]
    inside = labels[:, None] == numbers  # (n, class, z, y, x)
    space = (0, 2, 3, 4)
    true_positive = torch.where(inside, probability, 0.0).sum(space)
    false_positive = probability.sum(space) - true_positive
    false_negative = inside.sum(space) - true_positive
    index = (true_positive + EPSILON) / (true_positive + alpha * false_positive + beta * false_negative + EPSILON)
    return classes - index.sum()
