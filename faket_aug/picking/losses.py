"""DeepFinder's loss: Tversky's index of every class."""

from __future__ import annotations

import torch
from torch import Tensor

from faket_aug._checks import check_ndim, check_positive, check_same_shape

#: Keeps the index defined where a class neither occurs nor has any probability: it is 1. So small that nothing else
#: sees it: with 1e-8 a network gains by being certain that absent classes are absent, and stays blind to all.
EPSILON = 1e-30


def tversky_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """Compute `classes − Σ_c (TP_c + ε) / (TP_c + α FP_c + β FN_c + ε)`, sums over batch and space together.

    TP_c, FP_c and FN_c are the softmax probability of class c inside its label, the same outside, and what is missing
    of 1 inside. Every class has the same say, however few its voxels.

    Parameters
    ----------
    logits
        `(n, class, z, y, x)`, before the softmax; any floating point type.
    labels
        `(n, z, y, x)`, int64, class numbers.
    alpha, beta
        Weights of false positives and false negatives; one half each (Dice's index) as published.

    Returns
    -------
    `()`, float32 (float64 for such logits), from 0 to the number of classes.

    Raises
    ------
    ValueError
        If shapes do not go together, or a label is not among the classes.

    References
    ----------
    Salehi et al., arXiv 1706.05721, equation 2; Moebel et al., Nature Methods 18 (2021), Methods.
    """
    check_ndim("logits", logits, "n class z y x")
    check_same_shape("labels", labels.shape, "logits without its classes", (logits.shape[0], *logits.shape[2:]))
    check_positive("alpha", alpha, zero=True)
    check_positive("beta", beta, zero=True)
    classes = logits.shape[1]
    low, high = (int(value) for value in torch.aminmax(labels))
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
