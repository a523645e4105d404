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
from faket_aug._runtime.memory import free_memory_budget, keep_memory
from faket_aug.data.augmentation import PatchAugmentation
from faket_aug.data.dataset import FakETDataset, LabelledPatches, PatchDataset
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.mixing import MixedPatches
from faket_aug.data.targets import PatchTargets
from faket_aug.data.tilt_dataset import TiltDataset
from faket_aug.formats.structures import fetch_structure
from faket_aug.formats.tilt_metadata import TiltMetadata
from faket_aug.generation.filaments import FilamentSpecies
from faket_aug.generation.generator import GrandModelGenerator
from faket_aug.generation.ice import IceSlab
from faket_aug.generation.membranes import MembraneSpecies
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.templates import ParticleTemplate, read_templates
from faket_aug.microscope.bad_tilts import BadTilt
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.damage import ExposureDamage
from faket_aug.microscope.defocus import DefocusEstimate, fit_defocus
from faket_aug.microscope.detector import Detector
from faket_aug.microscope.flavours import Deconvolution
from faket_aug.microscope.imperfections import Imperfections
from faket_aug.microscope.misalignment import Misalignment
from faket_aug.microscope.noise import NoiseModel
from faket_aug.microscope.response import MicroscopeResponse
from faket_aug.microscope.uneven_ice import UnevenIce
from faket_aug.simulation.fit_microscope import FittedMicroscope, fit_microscope
from faket_aug.simulation.own_parts import TiltReconstruction, TomogramSimulator
from faket_aug.simulation.simulator import MODALITIES, FakETSimulator
from faket_aug.simulation.step_size import StepChoice, choose_step_size
from faket_aug.simulation.tomogram import SimulatedTomogram, SimulationRecord
from faket_aug.simulation.variation import Variation
from faket_aug.simulation.varied import VariedSimulator
from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.lazy import ShrecSpecimens
from faket_aug.specimens.particles import ParticleTable
from faket_aug.specimens.readers import CopickSpecimens, FolderSpecimens, PolnetSpecimens, read_specimens
from faket_aug.specimens.tilted import TiltedSpecimen
from faket_aug.style.bank import StyleBank
from faket_aug.style.encoder import StyleEncoder
from faket_aug.style.transfer import StyleTargets, stylize
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tilts.alignment import align_by_neighbours
from faket_aug.tilts.series import TiltSeries
from faket_aug.tomography.projection import backproject, project
from faket_aug.tomography.reconstruction import reconstruct

__version__ = "0.1.0"

__all__ = [
    "MODALITIES",
    "BadTilt",
    "CacheError",
    "ContrastTransfer",
    "CopickSpecimens",
    "Deconvolution",
    "DefocusEstimate",
    "Detector",
    "ExposureDamage",
    "FakETDataset",
    "FakETSimulator",
    "FiducialSpecies",
    "FilamentSpecies",
    "FileFormatError",
    "FittedMicroscope",
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
    "PatchDataset",
    "PatchTargets",
    "PolnetSpecimens",
    "ShrecSpecimens",
    "SimulatedTomogram",
    "SimulationError",
    "SimulationRecord",
    "StepChoice",
    "StyleBank",
    "StyleEncoder",
    "StyleTargets",
    "TiltDataset",
    "TiltMetadata",
    "TiltReconstruction",
    "TiltSeries",
    "TiltedSpecimen",
    "TomogramSimulator",
    "UnevenIce",
    "VGG19Features",
    "Variation",
    "VariedSimulator",
    "WeightsError",
    "__version__",
    "align_by_neighbours",
    "backproject",
    "choose_step_size",
    "fetch_structure",
    "fit_defocus",
    "fit_microscope",
    "free_memory_budget",
    "keep_memory",
    "project",
    "read_specimens",
    "read_templates",
    "reconstruct",
    "stylize",
]
