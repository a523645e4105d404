"""Picking particles: the network that the published results were made with, its loss, and the scores of picks.

Nothing else in the package needs this part; any network for volumes trains on a `FakETDataset`.
"""

from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.network import DeepFinderNet
from faket_aug.picking.scoring import SHREC_CHALLENGE_SKIP, ClassScore, ShrecScore, evaluate_shrec, f_beta_score

__all__ = [
    "SHREC_CHALLENGE_SKIP",
    "ClassScore",
    "DeepFinderNet",
    "ShrecScore",
    "evaluate_shrec",
    "f_beta_score",
    "tversky_loss",
]
