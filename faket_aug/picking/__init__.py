"""Picking particles with the network of the published results: training, segmentation, picks and their scores.

Nothing else in the package needs this part. Any network for volumes can be trained on a `FakETDataset`.
"""

from faket_aug.picking.checkpoints import load_weights
from faket_aug.picking.clustering import Picks, pick
from faket_aug.picking.control import Control, ControlCount, compare_with_control, randomize_phases
from faket_aug.picking.distances import DistanceScore, PairedPicks, score_by_distance, score_tomograms
from faket_aug.picking.files import write_picks
from faket_aug.picking.finding import FindSettings, FoundPicks, chosen_thresholds, find_particles
from faket_aug.picking.history import TrainingHistory
from faket_aug.picking.inference import class_probabilities, segment
from faket_aug.picking.locating import locate
from faket_aug.picking.losses import tversky_loss
from faket_aug.picking.matching import MatchPeaks, TemplateMatch, match_template
from faket_aug.picking.network import DeepFinderNet
from faket_aug.picking.peaks import Sphere, find_peaks, spheres_of
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
from faket_aug.picking.thresholds import choose_thresholds, thresholds_by_control
from faket_aug.picking.training import fit

__all__ = [
    "SHREC_CHALLENGE_SKIP",
    "ClassScore",
    "Control",
    "ControlCount",
    "DeepFinderNet",
    "DistanceScore",
    "FindSettings",
    "FoundPicks",
    "MatchPeaks",
    "PairedPicks",
    "Picker",
    "PickerDescription",
    "Picks",
    "Preparation",
    "RankError",
    "ShrecScore",
    "Sphere",
    "TemplateMatch",
    "TrainingHistory",
    "TrainingSettings",
    "choose_min_sizes",
    "choose_thresholds",
    "chosen_thresholds",
    "class_probabilities",
    "compare_with_control",
    "distributed_job",
    "evaluate_shrec",
    "f_beta_score",
    "find_particles",
    "find_peaks",
    "fit",
    "load_picker",
    "load_weights",
    "locate",
    "match_template",
    "pick",
    "randomize_phases",
    "score_by_distance",
    "score_tomograms",
    "segment",
    "set_thresholds",
    "spheres_of",
    "thresholds_by_control",
    "tversky_loss",
    "write_picks",
]
