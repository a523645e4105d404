"""Picking particles with the network of the published results: training, segmentation, picks and their scores.

Nothing else in the package needs this part. Any network for volumes can be trained on a `FakETDataset`.
"""

from faket_aug.picking.checkpoints import load_weights
from faket_aug.picking.clustering import Picks, pick
from faket_aug.picking.distances import DistanceScore, PairedPicks, score_by_distance
from faket_aug.picking.files import write_picks
from faket_aug.picking.history import TrainingHistory
from faket_aug.picking.inference import segment
from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.matching import MatchPeaks, TemplateMatch, match_template
from faket_aug.picking.network import DeepFinderNet
from faket_aug.picking.picker import Picker, PickerDescription, load_picker, set_thresholds
from faket_aug.picking.preparation import Preparation
from faket_aug.picking.ranks import RankError, distributed_job
from faket_aug.picking.scoring import (
    SHREC_CHALLENGE_SKIP,
    ClassScore,
    ShrecScore,
    choose_min_sizes,
    evaluate_shrec,
    f_beta_score,
)
from faket_aug.picking.settings import TrainingSettings
from faket_aug.picking.training import fit

__all__ = [
    "SHREC_CHALLENGE_SKIP",
    "ClassScore",
    "DeepFinderNet",
    "DistanceScore",
    "MatchPeaks",
    "PairedPicks",
    "Picker",
    "PickerDescription",
    "Picks",
    "Preparation",
    "RankError",
    "ShrecScore",
    "TemplateMatch",
    "TrainingHistory",
    "TrainingSettings",
    "choose_min_sizes",
    "distributed_job",
    "evaluate_shrec",
    "f_beta_score",
    "fit",
    "load_picker",
    "load_weights",
    "match_template",
    "pick",
    "score_by_distance",
    "segment",
    "set_thresholds",
    "tversky_loss",
    "write_picks",
]
