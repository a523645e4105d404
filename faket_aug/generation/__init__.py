"""Endless specimens: particles, membranes, filaments and gold beads, and the generator that places them."""

from faket_aug.generation.filaments import FilamentSpecies
from faket_aug.generation.generator import MAX_OCCUPANCY, GrandModelGenerator
from faket_aug.generation.ice import IceSlab
from faket_aug.generation.membranes import MembraneSpecies
from faket_aug.generation.species import FiducialSpecies, ParticleSpecies
from faket_aug.generation.templates import ParticleTemplate, read_templates

__all__ = [
    "MAX_OCCUPANCY",
    "FiducialSpecies",
    "FilamentSpecies",
    "GrandModelGenerator",
    "IceSlab",
    "MembraneSpecies",
    "ParticleSpecies",
    "ParticleTemplate",
    "read_templates",
]
