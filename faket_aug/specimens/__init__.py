"""Specimens with their labels: grandmodels, tilts that another program simulated, and the readers of both."""

from faket_aug.specimens.grandmodel import GrandModel
from faket_aug.specimens.lazy import FileSpecimens, LazySpecimens, ShrecSpecimens, Source, renumbered
from faket_aug.specimens.particles import Labelled, ParticleTable
from faket_aug.specimens.readers import CopickSpecimens, FolderSpecimens, Paths, PolnetSpecimens, read_specimens
from faket_aug.specimens.tilted import Specimen, TiltedSpecimen

__all__ = [
    "CopickSpecimens",
    "FileSpecimens",
    "FolderSpecimens",
    "GrandModel",
    "Labelled",
    "LazySpecimens",
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
