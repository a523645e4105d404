"""Picking particles: the network that the published results were made with, and its loss.

Nothing else in the package needs this part; any network for volumes trains on a `FakETDataset`.
"""

from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.network import DeepFinderNet

__all__ = ["DeepFinderNet", "tversky_loss"]
