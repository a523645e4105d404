# ruff: noqa: E501 - samples are as their programs write them
"""Small valid files of every format that is read: how each is made, and how it is read."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from faket_aug import Detector, TiltSeries
from faket_aug.formats.angles import read_shrec_alignment, read_simulation_meta, read_tlt
from faket_aug.formats.aretomo import read_aln, read_aretomo_ctf
from faket_aug.formats.deepfinder import read_object_list, write_object_list
from faket_aug.formats.imod import read_defocus, read_xf
from faket_aug.formats.mrc import read_mrc, write_mrc
from faket_aug.formats.particles import ParticleList, read_particles_csv
from faket_aug.formats.polnet import read_motif_list
from faket_aug.formats.relion_tilts import read_relion
from faket_aug.formats.serialem import read_serialem
from faket_aug.formats.shrec import (
    read_class_conversion_table,
    read_particle_locations,
    write_class_conversion_table,
    write_particle_locations,
)
from faket_aug.formats.star import read_particles_star, write_particles_star
from faket_aug.formats.structures import read_structure
from faket_aug.formats.warp import read_tomostar, read_warp_xml

ANGLES = np.array([-6.0, -3.0, 0.0, 3.0, 6.0])


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A kind of file.

    Parameters
    ----------
    file
        Its name.
    make
        Writes a valid one to a path.
    read
        Reads it.
    text
        Whether it is text.
    checksum
        Whether it tells damage from other content.
    error
        What an error has to name: the file, or what it is a part of.
    """

    file: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    text: bool = True
    checksum: bool = False
    error: Callable[[Path], str] = lambda path: path.name


def _text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content)


def _particles(count: int = 4) -> ParticleList:
    chance = np.random.default_rng(1)
    rotations = Rotation.random(count, random_state=chance).as_matrix()
    return ParticleList(tuple(["alpha", "beta"] * (count // 2)), chance.uniform(2, 20, (count, 3)).round(2), rotations)


NUMBERS = {"alpha": 1, "beta": 2}


def _star(version: int) -> Callable[[Path], Any]:
    return lambda path: write_particles_star(
        path, {"TS_1": _particles()}, voxel_size=10.0, shape=(24, 32, 32), version=version, class_numbers=NUMBERS
    )


def _gzipped(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        plain = path.with_suffix(".plain.mrc")
        make(plain)
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))

    return write


def _volume(path: Path) -> None:
    write_mrc(path, torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)), voxel_size=10.0)


def _series(path: Path) -> None:
    write_mrc(path, torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0)), voxel_size=10.0)
    path.with_suffix(".tlt").write_text("".join(f"{a}\n" for a in ANGLES))


ALN = """# AreTomo Alignment / Priims bprmMn
# RawSize = 40 30 5
# NumPatches = 0
# DarkFrame =     4    4    9.00
# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE     TILT
    0    85.2000    1.00000    -1.500      2.250     1.00     1.00     1.00     0.00     -6.00
    1    85.2000    1.00000     0.500      1.250     1.00     1.00     1.00     0.00     -3.00
    2    85.2000    1.00000     0.000      0.000     1.00     1.00     1.00     0.00      0.00
    3    85.2000    1.00000     1.500     -0.250     1.00     1.00     1.00     0.00      3.00
"""
CTF = "# Columns\n" + "".join(
    f"{i}  {20000 + 10 * i}.00 {19000 + 10 * i}.00 45.0 0.0 0.1 10.0 1\n" for i in range(1, 6)
)
MDOC = (
    "PixelSpacing = 2.17\nVoltage = 300\nImageFile = a.mrc\nImageSize = 32 24\nDataMode = 1\n\n[T = SerialEM: tests]\n"
    + "".join(
        f"\n[ZValue = {i}]\nTiltAngle = {a}\nStagePosition = 1 2\nRotationAngle = 85.3\nExposureDose = 3.0\nPriorRecordDose = {3.0 * i}\n"
        f"Defocus = -2.5\nDateTime = 12-Mar-21  10:0{i}:00\nSubFramePath = f{i}.tif\n"
        for i, a in enumerate(ANGLES)
    )
)
XF = "".join(f"   0.9962000  -0.0872000   0.0872000   0.9962000  {i}.100  -2.300\n" for i in range(5))
DEFOCUS = "".join(f"{i}\t{i}\t{a:.2f}\t{a:.2f}\t{2500 + i}\n" for i, a in enumerate(ANGLES, start=1)).replace(
    "2501\n", "2501  2\n", 1
)
TOMOSTAR = "\ndata_\n\nloop_\n_wrpMovieName #1\n_wrpAngleTilt #2\n_wrpAxisAngle #3\n_wrpDose #4\n" + "".join(
    f"f{i}.tif {a:.2f} 85.3 {3 * i}\n" for i, a in enumerate(ANGLES)
)
RELION = (
    "\ndata_TS_1\n\nloop_\n_rlnMicrographName #1\n_rlnTomoNominalStageTiltAngle #2\n_rlnMicrographPreExposure #3\n"
    "_rlnTomoXTilt #4\n_rlnTomoYTilt #5\n_rlnTomoZRot #6\n_rlnTomoXShiftAngst #7\n_rlnTomoYShiftAngst #8\n"
    "_rlnDefocusU #9\n_rlnDefocusV #10\n_rlnDefocusAngle #11\n"
    + "".join(f"{i + 1:06d}@a.mrc {a} {3 * i} 0.0 {a} 85.3 {i}.5 -2.0 25000 24000 40\n" for i, a in enumerate(ANGLES))
)
_COLUMN = "\n".join(f"{a:g}" for a in ANGLES)
WARP = (
    '<?xml version="1.0" encoding="utf-8"?>\n<TiltSeries DataDirectory="" AreAnglesInverted="False" PlaneNormal="0, 0, 1" '
    f'UnselectManual="null">\n  <Angles>{_COLUMN}</Angles>\n  <Dose>{_COLUMN.replace("-", "")}</Dose>\n'
    "  <UseTilt>True\nTrue\nTrue\nTrue\nTrue</UseTilt>\n"
    f"  <AxisAngle>{chr(10).join(['85.3'] * 5)}</AxisAngle>\n  <AxisOffsetX>{_COLUMN}</AxisOffsetX>\n"
    f"  <AxisOffsetY>{_COLUMN}</AxisOffsetY>\n</TiltSeries>\n"
)
SIMULATION = "".join(
    f"3.31 3.30 0.0 300.0 2.7 0.08 0.0 10.0 {a} -0.29 0.20 {3.0 * i + 1.5} {i}\n" for i, a in enumerate(ANGLES)
)
SHREC_ALIGNMENT = "".join(f"# {c}\n" for c in "XYTIMF") + "".join(
    f"     0.000      0.000    {a:.3f}      0.000      1.000 projections_{i:02d}.mrc\n" for i, a in enumerate(ANGLES)
)
CSV = "class,x,y,z,rot,tilt,psi\nalpha,3,5,5,0,10,20\nbeta,7,5,6,,,\nalpha,9.5,3,2,30,40,50\n"
MOTIFS = "Density\tMicrotubule\tPolyData\tType\tLabel\tCode\tPolymer\tX\tY\tZ\tQ1\tQ2\tQ3\tQ4\n" + "".join(
    f"tomo_den_0.mrc\ta\tb\tsawlc\t{i}\t1bxn\t0\t{30 + i}0.5\t40.0\t50.0\t1.0\t0.0\t0.0\t0.0\n" for i in (1, 2, 3)
)
MTF = "\ndata_\n\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n" + "".join(
    f"{f:.2f} {1 - f:.3f}\n" for f in np.linspace(0, 0.5, 11)
)
_ATOM = "ATOM  {:5d}  {:<3s} ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           {}  \n"
PDB = (
    "HEADER    TEST\n"
    + "".join(
        _ATOM.format(4 * i + j + 1, name, i + 1, 3.8 * i + j, 1.5 * j, 0.5 * i, name[0])
        for i in range(8)
        for j, name in enumerate(("N", "CA", "C", "O"))
    )
    + "TER\nEND\n"
)
_CIF_COLUMNS = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
CIF = (
    "data_TEST\n#\nloop_\n"
    + "".join(f"_atom_site.{c}\n" for c in _CIF_COLUMNS.split())
    + "".join(
        f"ATOM {4 * i + j + 1} {name[0]} {name} . ALA A 1 {i + 1} {3.8 * i + j:.3f} {1.5 * j:.3f} {0.5 * i:.3f} 1.0 20.0 {i + 1} A 1\n"
        for i in range(8)
        for j, name in enumerate(("N", "CA", "C", "O"))
    )
    + "#\n"
)

SAMPLES: dict[str, Sample] = {
    "IMOD .tlt": Sample(file="a.tlt", make=_text("".join(f"{a:.2f}\n" for a in ANGLES)), read=read_tlt),
    "IMOD .xf": Sample(file="a.xf", make=_text(XF), read=read_xf),
    "IMOD .defocus": Sample(file="a.defocus", make=_text(DEFOCUS), read=lambda p: read_defocus(p, tilt_angles=ANGLES)),
    "SerialEM .mdoc": Sample(file="a.mdoc", make=_text(MDOC), read=read_serialem),
    "AreTomo .aln": Sample(file="a.aln", make=_text(ALN), read=read_aln),
    "AreTomo CTF": Sample(file="a_CTF.txt", make=_text(CTF), read=read_aretomo_ctf),
    "RELION 5 tilt-series": Sample(file="a.star", make=_text(RELION), read=read_relion),
    "Warp .xml": Sample(file="a.xml", make=_text(WARP), read=read_warp_xml),
    "Warp .tomostar": Sample(file="a.tomostar", make=_text(TOMOSTAR), read=read_tomostar),
    "SHREC alignment": Sample(file="alignment_simulated.txt", make=_text(SHREC_ALIGNMENT), read=read_shrec_alignment),
    "SHREC simulation": Sample(file="simulation_meta.txt", make=_text(SIMULATION), read=read_simulation_meta),
    "SHREC locations": Sample(
        file="particle_locations.txt",
        make=lambda p: write_particle_locations(p, _particles()),
        read=read_particle_locations,
    ),
    "SHREC classes": Sample(
        file="class_conversion_table.txt",
        make=lambda p: write_class_conversion_table(p, {1: "alpha", 2: "beta"}),
        read=read_class_conversion_table,
    ),
    "DeepFinder": Sample(
        file="a_objl.xml",
        make=lambda p: write_object_list(p, _particles(), class_numbers=NUMBERS),
        read=read_object_list,
    ),
    "particles .csv": Sample(file="a.csv", make=_text(CSV), read=read_particles_csv),
    "PolNet motifs": Sample(
        file="tomos_motif_list.csv",
        make=_text(MOTIFS),
        read=lambda p: read_motif_list(p, voxel_size=10.0, density="tomo_den_0.mrc"),
    ),
    "PDB": Sample(file="a.pdb", make=_text(PDB), read=read_structure),
    "mmCIF": Sample(file="a.cif", make=_text(CIF), read=read_structure),
    "detector .star": Sample(file="mtf.star", make=_text(MTF), read=Detector.read),
    "MRC": Sample(file="a.mrc", make=_volume, read=read_mrc, text=False),
    "MRC .gz": Sample(file="a.mrc.gz", make=_gzipped(_volume), read=read_mrc, text=False),
    "tilt-series": Sample(file="a.mrc", make=_series, read=TiltSeries.read, text=False),
} | {
    f"RELION {version} particles": Sample(
        file=f"particles{version}.star",
        make=_star(version),
        read=lambda p: read_particles_star(p, voxel_size=10.0, shape=(24, 32, 32)),
    )
    for version in (3, 4, 5)
}
