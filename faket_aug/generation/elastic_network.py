"""Conformers of a structure: its softest normal modes, as an elastic network of its residues has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import coo_array, csc_array
from scipy.sparse.linalg import eigsh
from scipy.spatial import cKDTree

from faket_aug._arrays import FloatArray, IntArray
from faket_aug._checks import check_count, check_positive
from faket_aug._random import numpy_generator
from faket_aug.formats.structures import AtomicStructure

#: Å, within which two residues are joined by a spring.
CUTOFF = 15.0
#: How many of the softest modes move.
MODES = 20
#: Å, root mean square over the residues and the conformers.
AMPLITUDE = 2.0
#: Shifts and turns of the whole, which cost nothing.
_RIGID = 6
#: Nodes; of larger structures every second residue, or third, is one.
_MOST_NODES = 2000
#: Coordinates, up to which all modes are computed at once.
_DENSE = 900
#: A mode softer than this, in units of a spring's constant, costs nothing.
_LOOSE = 1e-6
#: By how much the springs reach farther, and how often, where parts of a structure are loose.
_WIDENED, _TRIES = 1.25, 8
#: An atom moves as the nodes around it, so many of them.
_AROUND = 8
#: Times the root mean square, how far a node moves at most; rounds in which the root mean square is kept, and how many
#: times as far the other nodes move for it at most.
_REACH, _ROUNDS, _MOST = 3.0, 30, 3.0
#: Å, from which on an atom is at a node.
_AT_NODE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class NormalModes:
    """The softest modes of an elastic network, without those of the whole.

    Parameters
    ----------
    stiffness
        `(mode,)`, eigenvalues of the Hessian, from the softest on, in units of a spring's constant.
    shapes
        `(mode, node, 3)`, each of length 1.
    """

    stiffness: FloatArray
    shapes: FloatArray

    def drawn(self, amplitude: float, generator: np.random.Generator) -> FloatArray:
        """Draw displacements of the nodes as heat makes them: a mode's variance is the inverse of its stiffness.

        Parameters
        ----------
        amplitude
            Å, the root mean square over the nodes and over many draws. Loose ends, which the network would throw out
            farther, are held back within three times the draw's own root mean square. The others move farther for it,
            so that it stays, but no more than three times as far: where almost all of the motion is that of a loose
            end, the root mean square is smaller.
        generator
            Of chance. Neither the signs of the modes nor the choice among those of equal stiffness matter.

        Returns
        -------
        `(node, 3)`, Å.
        """
        pushes = generator.standard_normal(self.shapes.shape[1:])
        spread = 1 / np.sqrt(self.stiffness)
        along = np.einsum("mna,na->m", self.shapes, pushes) * spread
        scale = amplitude * np.sqrt(self.shapes.shape[1] / float(spread @ spread))
        return _held_back(scale * np.einsum("m,mna->na", along, self.shapes))


def _held_back(moved: FloatArray) -> FloatArray:
    """Shorten the longest displacements smoothly; the root mean square stays, unless one end is all of the motion.

    The other displacements become longer for it, by a factor of `_MOST` at most.
    """
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    size = float(np.sqrt((lengths**2).mean()))
    if size == 0:
        return moved
    factor, held = 1.0, moved
    for _ in range(_ROUNDS):
        held = factor * moved / np.sqrt(1 + (factor * lengths / (_REACH * size)) ** 2)
        factor = min(factor * size / float(np.sqrt((held**2).sum(axis=1).mean())), _MOST)
    return held


def hessian(positions: FloatArray, cutoff: float = CUTOFF) -> csc_array:
    """Return the Hessian of an anisotropic network: equal springs between all nodes that are near each other.

    Parameters
    ----------
    positions
        `(node, 3)`, Å.
    cutoff
        Å, within which nodes are near.

    Returns
    -------
    `(3 node, 3 node)`, in units of a spring's constant.

    References
    ----------
    A. R. Atilgan, S. R. Durell, R. L. Jernigan, M. C. Demirel, O. Keskin, I. Bahar, Biophys. J. 80 (2001) 505-515,
    equations 5 to 8.
    """
    pairs = cKDTree(positions).query_pairs(cutoff, output_type="ndarray")
    steps = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    lengths = np.einsum("pa,pa->p", steps, steps)
    # Two nodes at one place have no direction between them.
    pairs, steps, lengths = (one[lengths > 0] for one in (pairs, steps, lengths))
    blocks = np.einsum("pa,pb->pab", steps, steps) / lengths[:, None, None]
    first, second = pairs[:, 0], pairs[:, 1]
    rows = np.concatenate([first, second, first, second])
    columns = np.concatenate([second, first, first, second])
    values = np.concatenate([-blocks, -blocks, blocks, blocks])
    axes = np.arange(3)
    at = (3 * rows[:, None, None] + axes[:, None], 3 * columns[:, None, None] + axes[None, :])
    size = 3 * len(positions)
    full = [np.broadcast_to(one, values.shape).ravel() for one in at]
    return coo_array((values.ravel(), tuple(full)), shape=(size, size)).tocsc()


def normal_modes(positions: FloatArray, *, count: int = MODES, cutoff: float = CUTOFF) -> NormalModes:
    """Find the softest modes of an elastic network, without the six of the whole.

    Parameters
    ----------
    positions
        `(node, 3)`, Å.
    count
        How many modes; fewer where there are no more.
    cutoff
        Å, within which nodes are joined. Where parts are loose it is made larger by a quarter, until all hold together.

    Raises
    ------
    ValueError
        If there are fewer than four nodes, or they lie too far apart.
    """
    check_count("modes", count)
    check_positive("cutoff", cutoff)
    if len(positions) < 4:
        raise ValueError(f"expected four nodes or more for normal modes, got {len(positions)}; use the structure alone")
    for _ in range(_TRIES):
        stiffness, shapes = _softest(hessian(positions, cutoff), count + _RIGID)
        loose = int((stiffness < _LOOSE).sum())
        if loose <= _RIGID < len(stiffness):
            modes = shapes[:, loose:].T.reshape(-1, len(positions), 3)
            return NormalModes(stiffness=stiffness[loose:][:count], shapes=modes[:count])
        cutoff *= _WIDENED
    raise ValueError(
        f"expected residues that hold together, got parts farther than {cutoff / _WIDENED:.0f} Å apart; leave out what "
        "is astray, or use the structure alone"
    )


def _softest(matrix: csc_array, count: int) -> tuple[FloatArray, FloatArray]:
    """Return the smallest eigenvalues, and their vectors as columns."""
    size = matrix.shape[0]
    mean = max(float(matrix.diagonal().mean()), 1e-12)
    if size <= _DENSE or count >= size - 1:
        values, vectors = eigh(matrix.toarray(), subset_by_index=(0, min(count, size) - 1))
    else:
        # The start is drawn by itself otherwise, from a global generator.
        start = np.random.default_rng(0).standard_normal(size)
        values, vectors = eigsh(matrix, k=count, sigma=-1e-4 * mean, which="LM", v0=start)
        order = np.argsort(values)
        values, vectors = values[order], vectors[:, order]
    return values, vectors


def conformers(
    structure: AtomicStructure,
    *,
    count: int,
    amplitude: float = AMPLITUDE,
    modes: int = MODES,
    cutoff: float = CUTOFF,
    seed: int = 0,
) -> Iterator[AtomicStructure]:
    """Draw conformers of a structure: it moves along the softest modes of an elastic network of its residues.

    The nodes of the network are Cα and P atoms, or all atoms but hydrogens where there are none. An atom moves as the
    nodes around it.

    Parameters
    ----------
    structure
        From `read_structure`.
    count
        How many conformers.
    amplitude
        Å, how far residues move: the root mean square over all of them and over many conformers. Loose ends are held
        back within three times the conformer's root mean square. Where the motion is almost that of a loose end alone,
        the root mean square then is smaller.
    modes
        How many of the softest modes take part, each as much as heat moves it.
    cutoff
        Å, see `normal_modes`.
    seed
        Of chance. Conformer n is the same for any `count`.

    Yields
    ------
    Structures with other positions.

    Raises
    ------
    ValueError
        If a number is impossible, or the structure has no normal modes, or hydrogens alone.

    References
    ----------
    See `hessian`; the thermal spread of a mode: equation 10 there.
    """
    check_count("count", count)
    check_positive("amplitude", amplitude, zero=True)
    structure.check_heavy()
    nodes = _nodes(structure)
    step = -(-len(nodes) // _MOST_NODES)
    nodes = nodes[::step]
    try:
        found = normal_modes(nodes, count=modes, cutoff=cutoff * step ** (1 / 3))
    except ValueError as error:
        raise ValueError(f"{structure.name}: {error}") from error
    shares, nearest = _carriers(structure.positions, nodes)
    for number in range(count):
        moved = found.drawn(amplitude, numpy_generator(seed, "conformer", tomogram=number))
        yield replace(structure, positions=structure.positions + np.einsum("ak,aki->ai", shares, moved[nearest]))


def _nodes(structure: AtomicStructure) -> FloatArray:
    traced: FloatArray = structure.positions[structure.traced]
    return traced if len(traced) >= 4 else structure.positions[structure.heavy]


def _carriers(places: FloatArray, nodes: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return how much each atom follows which nodes: `(atom, k)` shares and numbers. At a node it counts alone."""
    distances, nearest = cKDTree(nodes).query(places, k=min(_AROUND, len(nodes)))
    # Relative to the nearest, so that nothing overflows.
    closest = np.maximum(distances[:, :1], _AT_NODE)
    shares: FloatArray = (closest / np.maximum(distances, _AT_NODE)) ** 4
    return shares / shares.sum(axis=1, keepdims=True), nearest
