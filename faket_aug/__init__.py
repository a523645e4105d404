"""Labelled cryo-electron tomograms, simulated while a particle picker trains on them.

>>> specimens = ShrecSpecimens(["model_0", "model_1"])
>>> style = TiltSeries.read("my_tilts.mrc")                      # (tilt, y, x), unlabelled
>>> features = VGG19Features("vgg19.pth")
>>> simulator = FakETSimulator(
...     tilt_angles=style.tilt_angles,
...     noise=NoiseModel.assume(style.tilts, style.tilt_angles, snr=0.1),
...     style=StyleBank.build(style, features),
...     features=features,
... )
>>> dataset = FakETDataset(specimens, simulator, patch_size=56)
>>> batch = next(iter(DataLoader(dataset, batch_size=25)))       # image (25, 1, 56, 56, 56), label (25, 56, 56, 56)
"""

from faket_aug._checks import CacheError, FileFormatError, SimulationError, WeightsError
from faket_aug._memory import free_memory_budget, keep_memory
from faket_aug.alignment import align_by_neighbours
from faket_aug.augmentation import PatchAugmentation
from faket_aug.ctf import ContrastTransfer
from faket_aug.damage import ExposureDamage
from faket_aug.dataset import FakETDataset
from faket_aug.detector import Detector
from faket_aug.features import VGG19Features
from faket_aug.filaments import FilamentSpecies
from faket_aug.formats.structures import fetch_structure
from faket_aug.formats.tilts import TiltMetadata
from faket_aug.generation import GrandModelGenerator
from faket_aug.imperfections import Imperfections
from faket_aug.membranes import MembraneSpecies
from faket_aug.misalignment import Misalignment
from faket_aug.mixing import LabelledPatches, LabelledTomogram, MixedPatches
from faket_aug.noise import NoiseModel
from faket_aug.projection import backproject, project
from faket_aug.reconstruction import reconstruct
from faket_aug.response import MicroscopeResponse
from faket_aug.simulator import FakETSimulator
from faket_aug.simulator_settings import MODALITIES
from faket_aug.species import FiducialSpecies, IceSlab, ParticleSpecies
from faket_aug.specimen import GrandModel, ParticleTable, ShrecSpecimens
from faket_aug.specimens import CopickSpecimens, FolderSpecimens, PolnetSpecimens, read_specimens
from faket_aug.stepsize import StepChoice, choose_step_size
from faket_aug.style import StyleTargets, stylize
from faket_aug.stylebank import StyleBank
from faket_aug.templates import ParticleTemplate, read_templates
from faket_aug.thonrings import DefocusEstimate, fit_defocus
from faket_aug.tiltseries import TiltSeries
from faket_aug.tomogram import SimulatedTomogram, SimulationRecord

__version__ = "0.1.0"

__all__ = [
    "MODALITIES",
    "CacheError",
    "ContrastTransfer",
    "CopickSpecimens",
    "DefocusEstimate",
    "Detector",
    "ExposureDamage",
    "FakETDataset",
    "FakETSimulator",
    "FiducialSpecies",
    "FilamentSpecies",
    "FileFormatError",
    "FolderSpecimens",
    "GrandModel",
    "GrandModelGenerator",
    "IceSlab",
    "Imperfections",
    "LabelledPatches",
    "LabelledTomogram",
    "MembraneSpecies",
    "MicroscopeResponse",
    "Misalignment",
    "MixedPatches",
    "NoiseModel",
    "ParticleSpecies",
    "ParticleTable",
    "ParticleTemplate",
    "PatchAugmentation",
    "PolnetSpecimens",
    "ShrecSpecimens",
    "SimulatedTomogram",
    "SimulationError",
    "SimulationRecord",
    "StepChoice",
    "StyleBank",
    "StyleTargets",
    "TiltMetadata",
    "TiltSeries",
    "VGG19Features",
    "WeightsError",
    "__version__",
    "align_by_neighbours",
    "backproject",
    "choose_step_size",
    "fetch_structure",
    "fit_defocus",
    "free_memory_budget",
    "keep_memory",
    "project",
    "read_specimens",
    "read_templates",
    "reconstruct",
    "stylize",
]
