"""The fit of a response whose scale is known: what specimens do not explain is other matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_positive
from faket_aug.microscope.crowd import LENGTHS, CrowdField, CrowdTilts, interpolation_loss, medium, path_factors
from faket_aug.microscope.ctf import ContrastTransfer
from faket_aug.microscope.intensity import AbsoluteScale
from faket_aug.microscope.power_fit import COMMON, FIT_RANGE, START, Pairs, PowerFit
from faket_aug.microscope.response import ANGLE_UNIT
from faket_aug.microscope.rings import RING_WIDTH, RINGS
from faket_aug.microscope.spectra import SeriesSpectra

#: What an envelope falls by as a rule, and by how much that differs: pixels (linear), pixels² (square). With an
#: absolute scale, a steep envelope with much other matter looks like a flat one with less. Tilts that are
#: aligned to a quarter or a third of a pixel have a square of 1.2 to 2.2 (2 π² times the variance).
_USUAL = {"linear": (0.3, 0.3), "linear_tilt": (0.0, 1.0), "square": (1.5, 3.0)}
#: Standard error of the amplitude contrast, and its range. Programs that fit rings take 0.07 to 0.1 by convention. At
#: 300 kV, what protein scatters inelastically more than ice does makes 0.04; large particles show the difference.
_CONTRAST_ERROR = 0.01
_CONTRASTS = (0.04, 0.1)
#: How often the matter that particles displace is computed anew, and how much of all matter each series has.
_ROUNDS = 4
#: By what fraction the amount of matter differs from one series to the next.
_SHARE_ERROR = 0.3
#: The crowd fills at most this fraction of the volume.
_FULLEST = 0.5
#: 1/Å. Frequencies at which the crowd is compared with the specimens to find its mass. Below them membranes, beads, the
#: edges of cells and the sizes of particles matter more.
_PARTICLES = (0.012, 0.025)


@dataclass(frozen=True, kw_only=True, eq=False)
class Matter:
    """How dense the specimens of a fit are, so that the crowd's density follows from its power.

    Parameters
    ----------
    depth
        Voxels along z.
    thickness
        `(ring,)`, voxels, how deep all matter is at each frequency; at least the specimens' depth.
    solid
        Potential of matter without gaps above ice, V; 0 if it is not known. Then particles do not displace the crowd.
    interpolated
        Whether projections are as `project` makes them, with a loss across the axis.
    reach
        Voxels, how wide the specimens are across the axis, if there is nothing beyond; None if they go on.
    """

    depth: float
    thickness: FloatArray | None = None
    solid: float = 0.0
    interpolated: bool = True
    reach: float | None = None

    def __post_init__(self) -> None:
        check_positive("depth", self.depth)
        check_positive("solid", self.solid, zero=True)

    @property
    def whole(self) -> FloatArray:
        """`(ring,)`, voxels, how deep all matter is."""
        found: FloatArray = np.maximum(
            0.0 if self.thickness is None else self.thickness, np.full(len(RINGS), self.depth)
        )
        return found


class AbsoluteFit(PowerFit):
    """The fit with an absolute scale.

    All matter has the spectrum of the specimens times a factor, and of random media, whose variances are 0 or more. For
    a given gain these amounts follow by linear least squares. What is more than the specimens is the crowd.
    """

    def __init__(
        self,
        data: list[Pairs],
        ctfs: Sequence[ContrastTransfer],
        pixel_size: float,
        *,
        targets: Sequence[SeriesSpectra],
        scales: Sequence[AbsoluteScale],
        widths: Sequence[int],
        matter: Matter,
        specimens: int = 1,
        beads: Sequence[FloatArray] = (),
    ) -> None:
        super().__init__(data, ctfs, pixel_size)
        self._matter = matter
        self._tilt_2, self._tilt_4, self._logs = _common_curve(targets, scales)
        tilts = [
            CrowdTilts.of(one.tilt_angles, pixel_size=pixel_size, depth=matter.whole, width=width, reach=matter.reach)
            for one, width in zip(targets, widths, strict=True)
        ]
        spread = [
            _spread(one, target, matter, pixel_size, width)[pairs.near]
            for one, pairs, target, width in zip(tilts, data, targets, widths, strict=True)
        ]
        #: The power of the specimens' kind, and of each medium with a variance of 1 V²: `(kind, pair, ring)`, ...
        self._shared = [
            np.concatenate([(pairs.clean * own)[None], one.shared[:, pairs.near]])
            for one, pairs, own in zip(tilts, data, spread, strict=True)
        ]
        #: ... and `(kind, tilt, ring)`.
        self._power = [
            np.concatenate([pairs.clean_power[None], one.power]) for one, pairs in zip(tilts, data, strict=True)
        ]
        #: What beads share of the specimens' power, `(pair, ring)`; empty where there are none.
        self._beads = [one[pairs.near] * own for one, pairs, own in zip(beads, data, spread, strict=bool(beads))]
        path = [
            matter.depth * path_factors(one.tilt_angles, matter.depth, width, matter.reach)
            for one, width in zip(targets, widths, strict=True)
        ]
        #: V² Å³, the specimens' spectrum in three dimensions, `(ring,)`.
        self._own = np.mean(
            [(p.clean_power / d[:, None]).mean(axis=0) for p, d in zip(data, path, strict=True)], axis=0
        )
        self._own *= pixel_size**3
        # Tilts at high angles show more of specimens that go on, and of those that end all that any other tilt shows.
        shown = [1.0 if matter.reach is not None else np.cos(np.deg2rad(one.tilt_angles)) for one in targets]
        means = [-float(np.mean(pairs.clean_mean * own)) for pairs, own in zip(data, shown, strict=True)]
        #: Mean potential of the specimens, V.
        self._density = max(float(np.mean(means)) / matter.depth, 0.0)
        #: `(ring,)`, the relative error of the matter's power over the specimens': both are samples of their kind.
        modes = np.mean([one.shared_counts for one in targets], axis=0)
        self._chance = np.sqrt((1 / len(targets) + 1 / max(specimens, 1)) / np.maximum(modes, 1.0))
        self._pixel_size = pixel_size
        self._pairs = sum(len(pairs.u) for pairs in data)

    def solve(self) -> FloatArray:
        offsets = [0.0] if self.known.all() else self._best_starts()
        best: FloatArray = min((self._fit(self._start(one)) for one in offsets), key=lambda fit: float(fit.cost)).x
        return best

    def _start(self, offset: float) -> FloatArray:
        common = dict(zip(COMMON, (*START, self._contrast), strict=True))
        common |= {"tilt_2": self._tilt_2, "tilt_4": self._tilt_4}
        common |= {name: _USUAL[name][0] for name in ("square", "linear")}
        each = [n for pair in zip(self._logs, self._places(offset), strict=True) for n in pair]
        return np.array([*common.values(), *each])

    def _trial(self, offset: float, shape: tuple[float, float]) -> tuple[float, float]:
        """Squared residuals with the best amounts of all matter."""
        start = self._start(offset)
        start[[COMMON.index("square"), COMMON.index("linear")]] = shape
        return float((self._residuals(start, None) ** 2).sum()), 0.0

    def _free(self) -> npt.NDArray[np.bool_]:
        free = super()._free()
        free[[COMMON.index("tilt_2"), COMMON.index("tilt_4")]] = False
        free[len(COMMON) :: 2] = False
        free[len(COMMON) + 1 :: 2] = ~self.known
        return free

    def _limits(self) -> tuple[list[float], list[float], list[float]]:
        low, high, scale = super()._limits()
        place = COMMON.index("amplitude_contrast")
        low[place], high[place] = min(_CONTRASTS[0], self._contrast), max(_CONTRASTS[1], self._contrast)
        return low, high, scale

    def _amounts(self, parameters: FloatArray, left_out: int | None = None) -> tuple[FloatArray, FloatArray]:
        """The factor on the specimens' power and the variance of each medium, V²; how much of all each series has."""
        kinds, series = 1 + len(LENGTHS), len(self._data)
        normal, right = np.zeros((series, kinds, kinds)), np.zeros((series, kinds))
        for index, pairs in enumerate(self._data):
            keep = self._kept(index, left_out)
            error = pairs.error[keep][:, self._rings]
            weight = self._gain(parameters, pairs.u[keep], index) ** 2 / error
            design = (self._shared[index][:, keep][:, :, self._rings] * weight).reshape(kinds, -1)
            normal[index] = design @ design.T
            right[index] = design @ (pairs.shared[keep][:, self._rings] / error).ravel()
        shares = np.ones(series)
        amounts = _least_squares(normal.sum(axis=0), right.sum(axis=0))
        # One matter, more of it here and less of it there: otherwise the defocus of each series would make up for that.
        for _ in range(_ROUNDS if series > 1 else 0):
            weights = normal @ amounts @ amounts
            usual = _SHARE_ERROR**-2
            shares = (right @ amounts + usual) / (weights + usual)
            shares /= shares.mean()
            amounts = _least_squares(np.tensordot(shares**2, normal, 1), shares @ right)
        return amounts, shares

    def _residuals(self, parameters: FloatArray, left_out: int | None) -> FloatArray:
        amounts, shares = self._amounts(parameters, left_out)
        parts = [self._unusual(parameters), (shares - 1) / _SHARE_ERROR]
        for index, pairs in enumerate(self._data):
            keep = self._kept(index, left_out)
            matter = np.tensordot(amounts * shares[index], self._shared[index][:, keep][:, :, self._rings], 1)
            expected = matter * self._gain(parameters, pairs.u[keep], index) ** 2
            parts.append(((expected - pairs.shared[keep][:, self._rings]) / pairs.error[keep][:, self._rings]).ravel())
        return np.concatenate(parts)

    def _unusual(self, parameters: FloatArray) -> FloatArray:
        """What is known beforehand. It counts as often as there are pairs, which share the model's error."""
        off = [(parameters[COMMON.index(name)] - value) / error for name, (value, error) in _USUAL.items()]
        off.append((parameters[COMMON.index("amplitude_contrast")] - self._contrast) / _CONTRAST_ERROR)
        weighed: FloatArray = np.array(off) * np.sqrt(self._pairs)
        return weighed

    def matter_power(self, parameters: FloatArray, series: int) -> FloatArray:
        amounts, shares = self._amounts(parameters)
        power: FloatArray = np.tensordot(amounts * shares[series], self._power[series], 1)
        return power

    # What follows from the parameters --------------------------------------------------------------------------------

    def explained(self, parameters: FloatArray) -> float:
        """How much of the shared power the specimens explain."""
        return 1 / self._excess(parameters)

    def crowd(self, parameters: FloatArray) -> CrowdField | None:
        """What the specimens do not explain: all matter less the specimens, whose contrast in a crowd is lower."""
        media = np.stack([medium(RINGS / self._pixel_size, length) for length in LENGTHS])
        # All matter is as dense above and below the specimens as there, if they have a part of its depth only.
        whole, depth = self._matter.whole, self._matter.depth
        total = self._amounts(parameters)[0] @ np.concatenate([self._own[None] * depth / whole, media])
        excess, displaced, mean = self._excess(parameters), 0.0, 0.0
        excess *= (shallower := float((depth / whole)[self._of_particles()].mean()))
        lighter = self._excess(parameters, without_beads=True) * shallower
        # More crowd takes more contrast from the specimens, which then explain less.
        for _ in range(_ROUNDS):
            mean = (lighter / (1 - displaced) ** 2 - 1) * self._density
            if mean <= 0 or not self._matter.solid:
                break
            displaced = min(mean / self._matter.solid, _FULLEST)
        thinned = self._thinned(total) if excess > 1 else 0.0
        if thinned > displaced:
            displaced, mean = thinned, thinned * self._matter.solid
        # Powers of interpolated projections have lost some: so will the crowd's.
        lost = interpolation_loss(RINGS) if self._matter.interpolated else np.ones(len(RINGS))
        own = (1 - displaced) ** 2 * self._own
        rest = self._beyond_chance(total, own) / lost
        if self._matter.solid:
            # The crowd has less room: where particles are, there is none.
            rest /= 1 - min(self._density / self._matter.solid, _FULLEST)
        if excess <= 1:
            rest[:] = 0.0
        deepest = float(whole.max())
        if deepest == depth and not (rest > 0).any():
            return None
        deeper: dict[str, Any] = {}
        if deepest > depth:
            # What is less deep than the deepest is spread over the same room.
            beyond = total / lost * (whole - depth) / (deepest - depth)
            deeper = {"beyond": tuple(beyond.tolist()), "depth": deepest * self._pixel_size}
        return CrowdField(
            frequencies=tuple((RINGS / self._pixel_size).tolist()),
            power=tuple(rest.tolist()),
            mean=max(mean, 0.0),
            solid=self._matter.solid,
            **deeper,
        )

    def _beyond_chance(self, total: FloatArray, own: FloatArray) -> FloatArray:
        """What all matter has more than the specimens, less what two samples of one kind differ by, `(ring,)`."""
        more = np.maximum(total - own, 0.0)
        error = self._chance * own
        # The positive part of Stein's estimate: what is many times its error stays, what is less is 0.
        beyond = np.divide(error, more, out=np.ones_like(more), where=more > 0)
        result: FloatArray = more * np.maximum(1 - beyond**2, 0.0)
        return result

    def _thinned(self, total: FloatArray) -> float:
        """The contrast that the specimens lose to what is between them, as large structures tell: 0 to `_FULLEST`.

        Particles that are placed by chance have more slow power than a crowded cell, where matter is everywhere.
        """
        low = (FIT_RANGE[0] <= RINGS) & (self._particle_band()[0] > RINGS)
        if not self._matter.solid or not low.any():
            return 0.0
        left = float(total[low].sum()) / max(float(self._own[low].sum()), 1e-300)
        return float(np.clip(1 - np.sqrt(min(left, 1.0)), 0.0, _FULLEST))

    def _excess(self, parameters: FloatArray, *, without_beads: bool = False) -> float:
        """The power of all matter divided by that of the specimens, where particles count.

        Beads are the same few in both, with much power and little mass.
        """
        inside = self._of_particles()
        amounts = self._amounts(parameters)[0]
        total = sum(float(np.tensordot(amounts, one, 1)[:, inside].sum()) for one in self._shared)
        own = sum(float(one[0][:, inside].sum()) for one in self._shared)
        beads = sum(float(one[:, inside].sum()) for one in self._beads) if without_beads else 0.0
        return max(total - beads, 1e-300) / max(own - beads, 0.1 * own, 1e-300)

    def _of_particles(self) -> npt.NDArray[np.bool_]:
        """The rings at which the crowd is compared with the specimens."""
        low, high = self._particle_band()
        inside: npt.NDArray[np.bool_] = (low <= RINGS) & (high >= RINGS)
        return inside

    def _particle_band(self) -> tuple[float, float]:
        low, high = (q * self._pixel_size for q in _PARTICLES)
        band = (max(low, FIT_RANGE[0]), min(high, FIT_RANGE[1]))
        return FIT_RANGE if band[1] - band[0] < 2 * RING_WIDTH else band


def _least_squares(normal: FloatArray, right: FloatArray) -> FloatArray:
    """Solve normal equations for numbers that are not negative."""
    # A Cholesky factor of the normal equations has the same least squares as all rows.
    scale = np.sqrt(np.diag(normal)).clip(1e-300)
    upper = np.linalg.cholesky(normal / scale / scale[:, None] + 1e-9 * np.eye(len(normal))).T
    found: FloatArray = nnls(upper, np.linalg.solve(upper.T, right / scale))[0] / scale
    return found


def _spread(tilts: CrowdTilts, target: SeriesSpectra, matter: Matter, pixel_size: float, width: int) -> FloatArray:
    """How much less neighbours share if the same matter is spread over the whole depth, `(tilt - 1, ring)`."""
    whole = tilts.shared[0]
    if (matter.whole == matter.depth).all():
        return np.ones_like(whole)
    angles = target.tilt_angles
    own = CrowdTilts.of(angles, pixel_size=pixel_size, depth=matter.depth, width=width, reach=matter.reach).shared[0]
    ratio: FloatArray = np.divide(whole, own, out=np.ones_like(whole), where=own > 0) * matter.depth / matter.whole
    return ratio


def _common_curve(
    targets: Sequence[SeriesSpectra], scales: Sequence[AbsoluteScale]
) -> tuple[float, float, list[float]]:
    """Fit `log_scale + tilt_2 u² + tilt_4 u⁴` to the gains: the series share all but the first."""
    curves, logs = [], []
    for target, scale in zip(targets, scales, strict=True):
        u = target.tilt_angles / ANGLE_UNIT
        curves.append(np.stack([u**2, u**4], axis=1))
        logs.append(np.log(scale.gain))
    centred = np.concatenate([curve - curve.mean(axis=0) for curve in curves])
    rest = np.concatenate([log - log.mean() for log in logs])
    common = np.linalg.lstsq(centred, rest, rcond=1e-6)[0]
    each = [float((log - curve @ common).mean()) for curve, log in zip(curves, logs, strict=True)]
    return float(common[0]), float(common[1]), each
