"""Specimens with their labels: grandmodels, tilts that were simulated elsewhere, and the readers of both."""

from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.particles import ParticleTable
from faket_aug.specimens.readers import (
    CopickSpecimens,
    FileSpecimens,
    FolderSpecimens,
    Paths,
    PolnetSpecimens,
    ShrecSpecimens,
    Source,
    read_specimens,
    renumbered,
)
from faket_aug.specimens.tilted import Specimen, TiltedSpecimen

__all__ = [
    "CopickSpecimens",
    "FileSpecimens",
    "FolderSpecimens",
    "GrandModel",
    "ParticleTable",
    "Paths",
    "PolnetSpecimens",
    "ShrecSpecimens",
    "Source",
    "Specimen",
    "TiltedSpecimen",
    "read_specimens",
    "renumbered",
]
