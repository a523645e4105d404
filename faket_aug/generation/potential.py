"""The electrostatic potential of atoms in ice, on a grid of voxels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_positive
from faket_aug._runtime.numerics import own_device
from faket_aug.generation.density import low_pass

#: h² / (2π m e), V Å²: from an electron scattering factor in Å to the integral of its potential in V Å³.
VOLTS_PER_FORM_FACTOR = 47.878
#: V; mean inner potential of vitreous ice of 0.93 g/cm³ as a sum of isolated atoms (Vulović et al., J. Struct. Biol.
#: 183, 2013): the particles' atoms are computed in the same way.
ICE_POTENTIAL = 4.53

#: Å³ of water that an atom displaces (Fraser, MacRae and Suzuki, J. Appl. Cryst. 11, 1978; the values of Svergun,
#: Barberato and Koch, J. Appl. Cryst. 28, 1995). The sum over a protein is 1.27 Å³/Da, over RNA 0.9 Å³/Da.
_DISPLACED_VOLUMES = {"H": 5.15, "D": 5.15, "C": 16.44, "N": 2.49, "O": 9.13, "P": 5.73, "S": 19.86}

#: Order of the B-splines that spread atoms over the grid, and how much finer than the voxels that grid is. Aliasing is
#: then below 2e-3 at the highest frequency that is kept, and much less in the pass band of the low-pass.
_SPLINE_ORDER = 6
_OVERSAMPLING = 2


def displaced_volumes(elements: Sequence[str]) -> FloatArray:
    """Look up the volume of water that atoms displace.

    Parameters
    ----------
    elements
        `(n,)`, symbols such as `"C"`.

    Returns
    -------
    `(n,)`, Å³. Elements that are not in the table of Fraser, MacRae and Suzuki have the volume of their van der Waals
    sphere.
    """
    import gemmi

    def volume(element: str) -> float:
        sphere = 4 / 3 * math.pi * float(gemmi.Element(element).vdw_r) ** 3
        return _DISPLACED_VOLUMES.get(element, sphere)

    kinds, which = np.unique(np.asarray(elements, dtype=np.str_), return_inverse=True)
    return np.array([volume(str(kind)) for kind in kinds], dtype=np.float64)[which]


@lru_cache(maxsize=256)
def form_factor(element: str, *, solvent: bool = True) -> tuple[FloatArray, FloatArray]:
    """Return the Fourier transform of an atom's potential as a sum of Gaussians, `Σ a exp(-b k² / 4)`.

    Parameters
    ----------
    element
        Symbol, such as `"C"`; the atom is neutral.
    solvent
        Subtract the ice that the atom displaces: a Gaussian of the atom's volume times the potential of ice. The result
        is then a potential above ice.

    Returns
    -------
    `a` in V Å³ and `b` in Å², for spatial frequencies k in 1/Å.

    Raises
    ------
    ValueError
        If there are no scattering factors for the element.

    References
    ----------
    L.-M. Peng, G. Ren, S. L. Dudarev, M. J. Whelan, Acta Cryst. A52 (1996) 257-276, which is table 4.3.2.2 of the
    International Tables for Crystallography C (gemmi holds it). R. D. B. Fraser, T. P. MacRae, E. Suzuki, J. Appl.
    Cryst. 11 (1978) 693-694, for the displaced solvent.
    """
    import gemmi

    coefficients = gemmi.Element(element).c4322
    if element == "X" or coefficients is None:
        raise ValueError(f"expected an element with electron scattering factors, got {element!r}")
    amplitudes = VOLTS_PER_FORM_FACTOR * np.array(coefficients.a, dtype=np.float64)
    widths = np.array(coefficients.b, dtype=np.float64)
    if not solvent:
        return amplitudes, widths
    volume = float(displaced_volumes([element])[0])
    # A Gaussian exp(-π r² / V^(2/3)) of integral V has the transform V exp(-π k² V^(2/3)).
    return np.append(amplitudes, -ICE_POTENTIAL * volume), np.append(widths, 4 * math.pi * volume ** (2 / 3))


@own_device()
def coulomb_potential(
    positions: FloatArray,
    elements: Sequence[str],
    *,
    shape: Sequence[int],
    voxel_size: float,
    resolution: float | None = None,
    occupancies: FloatArray | None = None,
    b_factors: FloatArray | None = None,
    solvent: bool = True,
) -> Tensor:
    """Compute the electrostatic potential of atoms, low-passed, on a grid of voxels.

    The atoms of an element are spread over a grid twice as fine by B-splines, and multiplied in Fourier space with the
    element's form factor and the low-pass. A crop of the spectrum gives the voxels: their values are those of the
    band-limited potential at their centres, and their sum times the volume of a voxel is its integral.

    Parameters
    ----------
    positions
        `(n, 3)`, (z, y, x) in Å from the centre of voxel (0, 0, 0), within the grid.
    elements
        `(n,)`, symbols.
    shape
        Voxels along z, y, x.
    voxel_size
        Å.
    resolution
        Å, where the Gaussian low-pass falls to 1/e; by default `2 · voxel_size`, the finest that the grid holds.
    occupancies
        `(n,)`; 1 by default. It may be more than 1, for example for two hydrogens at the position of their carbon.
    b_factors
        `(n,)`, Å²; 0 by default. Negative values count as 0.
    solvent
        Subtract the displaced ice; see `form_factor`.

    Returns
    -------
    `shape`, float32, volts (above ice where `solvent`).

    Raises
    ------
    ValueError
        If the arrays do not fit together, there are no atoms, or an element has no scattering factors.
    """
    count = len(elements)
    weights = np.ones(count) if occupancies is None else np.asarray(occupancies, dtype=np.float64)
    blurs = np.zeros(count) if b_factors is None else np.asarray(b_factors, dtype=np.float64).clip(min=0)
    _check_atoms(positions, count, weights, blurs)
    check_positive("voxel_size", voxel_size)
    resolution = 2 * voxel_size if resolution is None else resolution
    # Density that the low-pass spreads beyond one face would come back at the other.
    guard = math.ceil(2 * max(resolution / voxel_size, 2))
    padded = [scipy.fft.next_fast_len(int(n) + guard, real=True) for n in shape]
    k2 = _squared_frequencies(padded, voxel_size)
    places = positions / (voxel_size / _OVERSAMPLING)
    spectrum = torch.zeros(k2.shape, dtype=torch.complex64)
    for element, factor_width, members, shares in _groups(np.asarray(elements, np.str_), weights, blurs, voxel_size):
        grid = _spread(places[members], shares, [n * _OVERSAMPLING for n in padded])
        spectrum += _band(torch.fft.rfftn(grid), padded) * _gaussians(element, factor_width, k2, solvent)
    spectrum *= low_pass(k2, voxel_size=voxel_size, resolution=resolution) / _spline_spectrum(padded) / voxel_size**3
    volume: Tensor = torch.fft.irfftn(spectrum, s=padded)
    depth, height, width = (int(n) for n in shape)
    return volume[:depth, :height, :width].contiguous()


def _check_atoms(positions: FloatArray, count: int, weights: FloatArray, blurs: FloatArray) -> None:
    shapes = (positions.shape, weights.shape, blurs.shape)
    if count == 0 or shapes != ((count, 3), (count,), (count,)):
        raise ValueError(f"expected positions, occupancies and B factors of one or more atoms, got arrays of {shapes}")
    if not all(np.isfinite(values).all() for values in (positions, weights, blurs)):
        raise ValueError("expected finite positions, occupancies and B factors of atoms, got NaN or infinite ones")


def _squared_frequencies(shape: Sequence[int], voxel_size: float) -> Tensor:
    z, y = (torch.fft.fftfreq(n, voxel_size) for n in shape[:2])
    x = torch.fft.rfftfreq(shape[2], voxel_size)
    squared: Tensor = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    return squared


def _gaussians(element: str, width: float, k2: Tensor, solvent: bool) -> Tensor:
    amplitudes, widths = form_factor(element, solvent=solvent)
    total = torch.zeros_like(k2)
    for a, b in zip(amplitudes, widths, strict=True):
        total += float(a) * torch.exp(k2 * (-float(b + width) / 4))
    return total


def _groups(
    elements: npt.NDArray[np.str_],
    weights: FloatArray,
    blurs: FloatArray,
    voxel_size: float,
) -> Iterator[tuple[str, float, npt.NDArray[np.intp], FloatArray]]:
    """Yield the atoms that share a form factor: element, B factor, indices of the atoms, their weights."""
    for element in np.unique(elements):
        members = np.flatnonzero((elements == element) & (weights != 0))
        if len(members) == 0:
            continue
        nodes = _blur_nodes(blurs[members], voxel_size)
        # An atom is divided between two nodes: exp(-B k² / 4) is interpolated in B.
        places = np.interp(blurs[members], nodes, np.arange(len(nodes)))
        for i, node in enumerate(nodes):
            share = weights[members] * (1 - np.abs(places - i)).clip(min=0)
            near = share != 0
            if near.any():
                yield str(element), float(node), members[near], share[near]


def _blur_nodes(blurs: FloatArray, voxel_size: float) -> FloatArray:
    """Choose B factors between which others are interpolated, within about 1 % at the Nyquist frequency."""
    low, high = float(blurs.min()), float(blurs.max())
    # In units of `scale` a step is a change of exp(-B k² / 4) by a third or so; steps grow with what is left of it.
    scale = 10 * voxel_size**2
    steps = math.ceil(math.log((high + scale) / (low + scale)) / math.log(1.3) - 1e-9)
    if high == low:
        return np.array([low])
    nodes: FloatArray = np.geomspace(low + scale, high + scale, max(steps, 1) + 1) - scale
    nodes[0], nodes[-1] = low, high
    return nodes


def _spread(places: FloatArray, weights: FloatArray, shape: Sequence[int]) -> Tensor:
    """Add points to a periodic grid by B-splines.

    Parameters
    ----------
    places
        `(n, 3)`, (z, y, x) in nodes of the grid.
    weights
        `(n,)`.
    shape
        Shape of the grid.
    """
    # (axis, n, node): which nodes, and how much each gets.
    nodes, shares = (np.moveaxis(values, 1, 0) for values in _spline_weights(places))
    z, y, x = (torch.from_numpy(nodes[i] % n) for i, n in enumerate(shape))
    at_z, at_y, at_x = (torch.from_numpy(np.ascontiguousarray(axis)).float() for axis in shares)
    at_z = at_z * torch.from_numpy(weights).float()[:, None]
    grid = torch.zeros(math.prod(shape))
    for i in range(_SPLINE_ORDER):
        for j in range(_SPLINE_ORDER):
            index = ((z[:, i] * shape[1] + y[:, j]) * shape[2])[:, None] + x
            share = (at_z[:, i] * at_y[:, j])[:, None] * at_x
            grid.index_add_(0, index.reshape(-1), share.reshape(-1))
    return grid.reshape(*shape)


def _spline_weights(
    places: FloatArray,
) -> tuple[IntArray, FloatArray]:
    """Compute the nodes around each position and the values of the B-spline there, both `(n, 3, order)`."""
    start = np.floor(places)
    offset = np.arange(_SPLINE_ORDER)
    # Cox and de Boor: M_n(u) = (u M_{n-1}(u) + (n - u) M_{n-1}(u - 1)) / (n - 1), at u = fraction + 0, 1, ...
    u = (places - start)[..., None] + offset
    values = np.where(offset == 0, 1.0, np.zeros_like(u))
    for n in range(2, _SPLINE_ORDER + 1):
        previous = np.concatenate([np.zeros_like(values[..., :1]), values[..., :-1]], axis=-1)
        values = (u * values + (n - u) * previous) / (n - 1)
    return start.astype(np.int64)[..., None] + _SPLINE_ORDER // 2 - offset, values


def _spline_spectrum(shape: Sequence[int]) -> Tensor:
    """Compute the factors by which the B-splines change the spectrum, so that they can be undone."""
    z, y = (torch.sinc(torch.fft.fftfreq(n) / _OVERSAMPLING) ** _SPLINE_ORDER for n in shape[:2])
    x = torch.sinc(torch.fft.rfftfreq(shape[2]) / _OVERSAMPLING) ** _SPLINE_ORDER
    return z[:, None, None] * y[:, None] * x


def _band(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    """Keep the frequencies that a grid of `shape` holds."""
    z, y = (
        torch.from_numpy(np.rint(np.fft.fftfreq(n, 1 / n)).astype(np.int64) % (n * _OVERSAMPLING)) for n in shape[:2]
    )
    return spectrum[..., : shape[2] // 2 + 1].index_select(0, z).index_select(1, y)
