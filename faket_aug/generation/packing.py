"""Finding room in a crowd: where random places are hardly ever free, all places of a block are tested at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.fft
import torch
from torch import Tensor

from faket_aug._arrays import IntArray
from faket_aug.generation.placement import FREE, Room
from faket_aug.generation.stamp import Mask, flat_indices

#: What is done with particles that find no room at random places: `"dense"` places them, and the large ones anew, close
#: to each other, where correlation tells that there is room; `"random"` leaves them out.
PACKINGS = ("dense", "random")
#: Voxels along a cell: correlations are computed with cells, and what they find is tested voxel by voxel.
_CELL = 2
#: Cells along a block whose places are tested at once.
_BLOCK = 64
#: A block in which so many particles of a template in a row have found no room is not searched for it again.
_FULL = 8
#: Places of the lowest rank that are tested in one block.
_TESTED = 400
#: Voxels that are tested before the others: mostly one of them is free.
_FIRST = 1000
#: Cells around a mask in which neighbours count as near, and what an overlap of cells costs beside a near cell.
_NEAR_CELLS, _COST = 3, 4.0
#: Steps from the place of a cell to those of its voxels and the next ones.
_NEAR = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


class Crowd:
    """The room that is left in a specimen, as cells of several voxels.

    Parameters
    ----------
    room
        The voxels that are taken. What is taken later has to be told by `update`.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self._heights = room.slab.heights(room.shape)
        self.shape = np.array([-(-n // _CELL) for n in room.shape])
        self._cells = np.empty(self.shape, np.float32)
        for z in range(len(self._cells)):
            self._cells[z] = self._share(np.array([z, 0, 0]), np.array([z + 1, *self.shape[1:]]))[0]

    def _share(self, low: IntArray, high: IntArray) -> npt.NDArray[np.float32]:
        """Compute which share of the cells from `low` to `high` is taken, or lies outside of the ice."""
        first, last = low * _CELL, np.minimum(high * _CELL, self.room.shape)
        part = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        z, y, x = self._heights
        outside = np.abs(z[part[0]] + y[:, part[1]] + x[:, :, part[2]]) > self.room.slab.half
        full = np.ones((high - low) * _CELL, np.float32)
        taken = self.room.taken.reshape(self.room.shape)[part] != FREE
        full[tuple(slice(n) for n in last - first)] = taken | outside
        nz, ny, nx = high - low
        shares: npt.NDArray[np.float32] = full.reshape(nz, _CELL, ny, _CELL, nx, _CELL).mean(axis=(1, 3, 5))
        return shares

    def update(self, voxels: IntArray, margin: int) -> None:
        """Take over that voxels `(3, n)`, and those up to a margin around them, are taken now."""
        low = np.maximum((voxels.min(axis=1) - margin) // _CELL, 0)
        high = np.minimum((voxels.max(axis=1) + margin) // _CELL + 1, self.shape)
        part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        self._cells[part] = self._share(low, high)

    def block(self, first: IntArray, size: Sequence[int], *, outside: float) -> Tensor:
        """Return the Fourier transform of the cells of a block; those beyond the specimen hold `outside`."""
        low, high = np.maximum(first, 0), np.minimum(first + size, self.shape)
        cells = np.full(size, outside, np.float32)
        into = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
        cells[into] = self._cells[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        spectrum: Tensor = torch.fft.rfftn(torch.from_numpy(cells))
        return spectrum


class Search:
    """A search for the places of one template's particles, block by block.

    Parameters
    ----------
    crowd
        The room that is left.
    reach
        Voxels from a particle's centre to the farthest of its mask.
    generator
        Of the order of the blocks.
    near
        Look for places near what is there already; otherwise far from it.
    """

    def __init__(self, crowd: Crowd, reach: float, generator: np.random.Generator, *, near: bool = False) -> None:
        self.crowd, self._generator = crowd, generator
        self._margin = int(np.ceil(reach / _CELL)) + 1 + _NEAR_CELLS // 2 * near
        wanted = crowd.shape + 2 * self._margin
        largest = max(_BLOCK, 4 * self._margin)
        self._size = tuple(scipy.fft.next_fast_len(min(int(n), largest), real=True) for n in wanted)
        steps = np.array(self._size) - 2 * self._margin
        starts = [np.arange(0, n, step) for n, step in zip(crowd.shape, steps, strict=True)]
        self._firsts = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 3) - self._margin
        #: The Fourier transform of the cells around a cell, where places near others are looked for.
        self._around = torch.fft.rfftn(self._cube(_NEAR_CELLS)) / _NEAR_CELLS**2 if near else None
        #: How many particles in a row have found no room in a block.
        self._failed = np.zeros(len(self._firsts), np.int64)

    @property
    def is_over(self) -> bool:
        """Whether there is no block left that may have room."""
        return bool((self._failed >= _FULL).all())

    def find(self, mask: Mask) -> IntArray | None:
        """Find a free centre `(3,)` for a mask; None if there is none in the blocks that are searched."""
        cells = torch.fft.rfftn(self._cells_of(mask)).conj()
        for number in self._generator.permutation(np.flatnonzero(self._failed < _FULL)):
            first = self._firsts[number]
            rank = self.crowd.block(first, self._size, outside=1.0)
            if self._around is not None:
                # The faces of the specimen are no neighbours.
                rank = _COST * rank - self.crowd.block(first, self._size, outside=0.0) * self._around
            found = self._free(self._candidates(torch.fft.irfftn(rank * cells, s=self._size), first), mask)
            if found is not None:
                self._failed[number] = 0
                return found
            self._failed[number] += 1
        return None

    def _cube(self, side: int) -> Tensor:
        """Make a cube of ones around cell 0; negative cells come from behind."""
        cube = torch.zeros(self._size)
        steps = torch.arange(-(side // 2), side // 2 + 1)
        cube[steps[:, None, None], steps[:, None], steps] = 1.0
        return cube

    def _cells_of(self, mask: Mask) -> Tensor:
        """Count the voxels of a mask in each cell, around cell 0; negative cells come from behind."""
        cells = (mask.offsets // _CELL) % np.array(self._size)[:, None]
        counts = np.bincount(flat_indices(cells, self._size), minlength=int(np.prod(self._size)))
        return torch.from_numpy(counts.reshape(self._size).astype(np.float32))

    def _candidates(self, rank: Tensor, first: IntArray) -> IntArray:
        """Find centres `(n, 3)`, in voxels, that may be free, the lowest rank first."""
        inside = tuple(
            slice(self._margin, min(n - self._margin, int(end)))
            for n, end in zip(self._size, self.crowd.shape - first, strict=True)
        )
        # So rounded, sums of eighths of a voxel are the same for any number of threads.
        own = (rank[inside] * _CELL**3).round().to(torch.int32)
        best = own.flatten().sort(stable=True).indices[:_TESTED].numpy()
        low = np.stack(np.unravel_index(best, tuple(own.shape)), axis=-1)
        return np.asarray((low + first + self._margin) * _CELL)

    def _free(self, centers: IntArray, mask: Mask) -> IntArray | None:
        """Find the first of several centres, or of the voxels around each, where the mask is free."""
        room = self.crowd.room
        near = (centers[:, None] + _NEAR).reshape(-1, 3)
        low, high = room.limits(mask)
        floor, ceiling = room.heights(mask)
        near = near[((near >= low) & (near <= high)).all(axis=1)]
        height = room.slab.height(near)
        near = near[(height >= floor) & (height <= ceiling)]
        for part in (near[:_FIRST], near[_FIRST:]):
            found = room.first_free(flat_indices(part.T, room.shape), mask.steps)
            if found is not None:
                return np.array(np.unravel_index(found, room.shape))
        return None
