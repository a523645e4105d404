"""Ice of uneven thickness: what passes through it, how maps are drawn, and how they are found in measured tilts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import ContrastTransfer
from faket_aug.microscope.background import SHORTEST, SlowPart, slow_waves
from faket_aug.microscope.ice_map import ThicknessMap
from faket_aug.microscope.interaction import interaction_constant
from faket_aug.microscope.response import Envelope, MicroscopeResponse
from faket_aug.microscope.spectra import RINGS
from faket_aug.microscope.uneven_ice import DrawnIce, UnevenIce

SERIES = np.arange(-60.0, 61.0, 3.0)
#: Pixels (y, x) of 10 Å.
SHAPE = (200, 240)


def _ramp(count: int = 24, low: float = 0.2, high: float = 1.4) -> ThicknessMap:
    """Ice over 1200 Å of y and 2400 Å of x whose depth rises with x."""
    return ThicknessMap.of(np.linspace(low, high, count)[None].repeat(5, axis=0), (1200.0, 2400.0))


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- what passes through ----------------------------------------------------------------------------------------------


def test_transmission_at_places() -> None:
    """At x beside the axis a tilt by θ sees the plane at x / cos θ, through `t / cos θ` of ice."""
    ice = _ramp()
    seen = ice.transmission((60, 241), 10.0, (0.0, 60.0, -60.0))
    # The ramp is straight between the middles of its outer cells, which are 2300 Å apart.
    depth = lambda x: 0.8 + 1.2 * x / 2300  # noqa: E731
    for pixel, x in ((120, 0.0), (170, 500.0), (70, -500.0)):
        assert float(seen[0, 30, pixel]) == pytest.approx(np.exp(-depth(x)), rel=1e-4)
        assert float(seen[1, 30, pixel]) == pytest.approx(np.exp(-2 * depth(2 * x)), rel=1e-4)
    assert torch.equal(seen[1], seen[2])
    # Beyond the map it is as thick as at its edge.
    assert float(seen[1, 0, 240]) == pytest.approx(np.exp(-2 * 1.4), rel=1e-4)
    assert float(seen[1, 0, 0]) == pytest.approx(np.exp(-2 * 0.2), rel=1e-4)


def test_a_wedge_is_monotone() -> None:
    """Through a wedge less passes, the farther one goes; along y all is even."""
    seen = _ramp().transmission((50, 240), 10.0, (-45.0, 0.0, 45.0)).double()
    assert (seen.diff(dim=2) <= 0).all()
    assert (seen.diff(dim=2)[:, :, 100:140] < 0).all()
    assert float(seen.diff(dim=1).abs().max()) < 1e-6
    assert 0 < float(seen.min()) < float(seen.max()) < 1


def test_asymmetric_map_keeps_its_axes() -> None:
    """Thick ice at low y and high x darkens that corner; mirrored maps have it in the other ones."""
    depth = np.full((12, 20), 0.5)
    depth[:3, 15:] = 1.0
    ice = ThicknessMap.of(depth, (1200.0, 2000.0))
    for y, x in ((False, False), (True, False), (False, True), (True, True)):
        seen = ice.mirrored(y=y, x=x).transmission((120, 200), 10.0, (0.0,))[0]
        corner = np.unravel_index(int(seen[5::110, 5::190].argmin()), (2, 2))
        assert corner == (1 if y else 0, 0 if x else 1)


def test_even_ice_passes_evenly() -> None:
    """One cell is ice of one thickness; a pixel size makes no difference."""
    ice = ThicknessMap(extent=(100.0, 100.0), depth=((0.7,),))
    seen = ice.transmission((3, 4), 8.0, (0.0, 60.0, 89.9)).double()
    assert np.allclose(seen[:2].numpy(), np.exp([-0.7, -1.4])[:, None, None], rtol=1e-5)
    # As thick as ten times that, and no more.
    assert np.allclose(seen[2].numpy(), np.exp(-7.0), rtol=1e-5)


def test_within() -> None:
    """The middle of a map, for a smaller image."""
    ice = ThicknessMap.of(np.arange(24.0).reshape(4, 6), (400.0, 600.0))
    assert ice.within((200.0, 200.0)).tolist() == [[8.0, 9.0], [14.0, 15.0]]
    assert ice.within((4000.0, 6000.0)).shape == (4, 6)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_drawn_maps_have_their_mean() -> None:
    """The mean over the image is what was drawn, ice is never of negative thickness, and the map is wide enough."""
    made = UnevenIce(depth=0.6, wedge=(0.5, 2.0), edge=(0.5, 2.0), waves=(0.0, 0.5))
    for seed in range(20):
        ice = made.draw((2000.0, 3000.0), _generator(seed))
        assert ice.extent == (2000.0, 6000.0)
        assert np.asarray(ice.depth).min() >= 0
        seen = -np.log(ice.transmission((200, 300), 10.0, (0.0,)).double().numpy())
        assert seen.mean() == pytest.approx(0.6, rel=0.03)


def test_drawn_numbers_fill_their_ranges() -> None:
    """The same generator draws the same; ranges are kept to."""
    found = [UnevenIce().drawn(_generator(seed)) for seed in range(60)]
    assert found[3] == UnevenIce().drawn(_generator(3))
    for name, low, high in (("depth", 0.4, 1.0), ("wedge", 0, 0.3), ("edge", 0, 0.4), ("waves", 0, 0.1)):
        values = np.array([getattr(one, name) for one in found])
        assert low <= values.min() < low + (high - low) / 4
        assert high - (high - low) / 4 < values.max() <= high
    assert {one.wedge for one in (UnevenIce(wedge=0.2).drawn(_generator(seed)) for seed in range(3))} == {0.2}
    # A range that is set leaves what others draw.
    assert UnevenIce(wedge=0.2).drawn(_generator(3)).edge == found[3].edge


def _drawn(**settings: Any) -> DrawnIce:
    plain = {"depth": 0.5, "wedge": 0.0, "edge": 0.0, "edge_width": 1000.0, "waves": 0.0, "edge_place": 0.0}
    return DrawnIce(**{"wedge_direction": 0.0, "edge_direction": 0.0, "seed": 1} | plain | settings)


@pytest.mark.parametrize(("direction", "axis", "sign"), [(0.0, 1, 1), (90.0, 0, 1), (180.0, 1, -1), (270.0, 0, -1)])
def test_wedge_and_edge_have_a_direction(direction: float, axis: int, sign: int) -> None:
    """From one side of the image to the other a wedge changes by its share; an edge by its, over its width."""
    wedge = np.asarray(_drawn(wedge=0.2, wedge_direction=direction).map((3000.0, 3000.0)).within((3000.0, 3000.0)))
    assert np.abs(np.diff(wedge, axis=1 - axis)).max() < 1e-5
    assert sign * np.ptp(wedge) * np.sign(np.diff(wedge, axis=axis).sum()) > 0
    assert np.ptp(wedge) == pytest.approx(0.1, rel=0.1)
    edge = np.asarray(_drawn(edge=0.4, edge_direction=direction).map((6000.0, 6000.0)).within((6000.0, 6000.0)))
    profile = np.moveaxis(edge, axis, 0)[::sign, 0]
    assert profile[-1] - profile[0] == pytest.approx(0.2, rel=0.02)
    places = (np.arange(len(profile)) + 0.5) * 6000 / len(profile) - 3000
    across = np.interp((-500, 0, 500), places, profile)
    assert across == pytest.approx([0.404, 0.5, 0.596], abs=0.006)


def test_waves_are_slow() -> None:
    """Nothing is shorter than 100 nm, and the standard deviation is what was asked for, over many maps."""
    spread = []
    for seed in range(30):
        depth = np.asarray(_drawn(waves=0.1, seed=seed).map((8000.0, 8000.0)).depth)
        spread.append(depth.std() / 0.5)
        power = np.abs(
            np.fft.rfft2((depth - depth.mean()) * np.hanning(len(depth))[:, None] * np.hanning(depth.shape[1]))
        )
        fast = np.hypot(
            *np.meshgrid(
                *(np.fft.fftfreq(n, e / n) for n, e in zip(depth.shape, (8000, 16000), strict=True)), indexing="ij"
            )
        )
        fast = fast[:, : power.shape[1]] > 1.4 / SHORTEST
        assert (power[fast] ** 2).sum() < 1e-3 * (power**2).sum()
    assert np.sqrt(np.mean(np.square(spread))) == pytest.approx(0.1, rel=0.25)
    # A small image sees a part of a wave.
    small = np.asarray(_drawn(waves=0.1).map((240.0, 320.0)).within((240.0, 320.0)))
    assert 0 < np.ptp(small) < 0.1


# --- tilts ------------------------------------------------------------------------------------------------------------


def _response(intensity: float = 100.0, power: float = 100.0) -> MicroscopeResponse:
    """A response of amplitude contrast alone, whose scale is that of an intensity."""
    scale = 2 * interaction_constant(300.0) * 10.0 * intensity
    return MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=0.0, amplitude_contrast=1.0, spherical_aberration=0.0),
        envelope=Envelope(log_scale=float(np.log(scale))),
        noise=((power,) * len(RINGS),),
        angle_range=(-60.0, 60.0),
    )


def _grain(seed: int = 0, tilts: int = 1) -> Tensor:
    return torch.randn(tilts, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_noise_follows_the_transmission() -> None:
    """Law: without a specimen, the variance of the noise is in proportion to what passes; tilts have a mean of 0."""
    angles = (-60.0, 0.0, 60.0)
    seen = _ramp().transmission(SHAPE, 10.0, angles)
    empty = torch.zeros(3, *SHAPE)
    made = _response().apply(empty, _grain(tilts=3), angles, by_intensity=True, transmission=seen)
    assert float(made.mean(dim=(1, 2)).abs().max()) < 1e-3
    for tilt in range(3):
        relative = seen[tilt] / seen[tilt].mean()
        # Neighbouring rows differ by noise alone.
        rough = made[tilt].diff(dim=0).square() / 2
        for part in (slice(0, 60), slice(90, 150), slice(180, 240)):
            expected = 100.0 * float(relative[:, part].mean())
            assert float(rough[:, part].mean()) == pytest.approx(expected, rel=0.06)


def test_the_slow_part_is_the_intensity() -> None:
    """What changes slowly is the local intensity, in place of the noise's own slow part; finer noise stays."""
    seen = _ramp().transmission(SHAPE, 10.0, (0.0,))
    relative = seen[0] / seen[0].mean()
    empty = torch.zeros(1, *SHAPE)
    made = _response().apply(empty, _grain(), (0.0,), by_intensity=True, transmission=seen)[0]
    slow = SlowPart.of(SHAPE, 10.0, torch.device("cpu"))
    assert torch.allclose(slow(made), slow(100 * relative), atol=1e-3)
    # Only changes within a tilt count, not how much passes in all.
    half = _response().apply(empty, _grain(), (0.0,), by_intensity=True, transmission=seen / 2)[0]
    assert torch.allclose(half, made, atol=1e-4)
    even = _response().apply(empty, _grain(), (0.0,), by_intensity=True, transmission=torch.ones_like(seen))[0]
    plain = _response().apply(empty, _grain(), (0.0,), by_intensity=True)[0]
    assert torch.allclose(even, plain - slow(plain), atol=1e-4)


def test_contrast_relative_to_local_intensity() -> None:
    """Law: a particle takes the same share of the local intensity wherever the ice is thick or thin."""
    clean = torch.zeros(1, *SHAPE)
    y, x = (torch.arange(n, dtype=torch.float32) for n in SHAPE)
    places = (40, 200)
    for place in places:
        clean[0] -= 60 * torch.exp(-((y[:, None] - 100) ** 2 + (x - place) ** 2) / 18)
    seen = _ramp().transmission(SHAPE, 10.0, (0.0,))
    relative = (seen[0] / seen[0].mean()).double()
    response, still = _response(), torch.zeros(1, *SHAPE)
    even = response.apply(clean, still, (0.0,), by_intensity=True)[0].double()
    uneven = response.apply(clean, still, (0.0,), by_intensity=True, transmission=seen)[0].double()
    for place in places:
        # The peak against its surroundings 120 Å beside it along y, where the ice is the same.
        own, other = ((one[100, place] - one[[88, 112], place].mean()) for one in (even, uneven))
        assert float(other / relative[100, place]) == pytest.approx(float(own), rel=0.03)
    assert float(relative[100, places[0]] / relative[100, places[1]]) > 1.5


def test_transmission_needs_intensities() -> None:
    """A scale that tells no intensity is refused with what to do, and another shape, too."""
    empty, seen = torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)
    with pytest.raises(
        ValueError, match="expected a gain of an absolute scale for `transmission`, .* fit the response"
    ):
        _response().apply(empty, _grain(), (0.0,), transmission=seen)
    with pytest.raises(ValueError, match="expected `transmission` to have the shape of `clean`"):
        _response().apply(empty, _grain(), (0.0,), by_intensity=True, transmission=seen[:, 1:])


def test_even_tilts_are_as_before() -> None:
    """Without a transmission nothing changes, bit for bit: neither the sum nor what is drawn."""
    clean = -_grain(1).abs()
    made = _response().apply(clean, _grain(), (0.0,), by_intensity=True)
    again = _response().apply(clean, _grain(), (0.0,), by_intensity=True, transmission=None)
    assert torch.equal(made, again)
    double = _response().apply(
        clean.double(), _grain().double(), (0.0,), by_intensity=True, transmission=torch.ones(1, *SHAPE)
    )
    assert double.dtype == torch.float64


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "zero"), [(1.0, 0.0), (2.0, -90.0), (-1.0, 500.0)])
def test_a_map_is_found(factor: float, zero: float) -> None:
    """Law: counts through a map give it back, with a border that does not count, and whatever gray values are."""
    put = UnevenIce(depth=0.8, wedge=0.3, edge=0.3, waves=0.05).draw((3000.0, 3600.0), _generator(2))
    seen = put.transmission((300, 360), 10.0, SERIES)
    counts = torch.poisson(100 * seen, generator=torch.Generator().manual_seed(0))
    tilts, measured = factor * counts + zero, torch.ones_like(counts, dtype=torch.bool)
    measured[:, :, :25] = False
    measured[::3, :12] = False
    tilts[~measured] = 777.0
    found = ThicknessMap.fit(tilts, SERIES, 10.0, zero=zero, measured=measured)
    assert found is not None
    depths = [-np.log(one.transmission((300, 360), 10.0, (0.0,)).double().numpy()) for one in (put, found)]
    assert depths[1].mean() == pytest.approx(depths[0].mean(), rel=0.02)
    assert np.abs(depths[1] - depths[0]).max() < 0.03
    assert np.sqrt(np.square(depths[1] - depths[0]).mean()) < 0.1 * depths[0].std()
    # Where only high tilts see it, at 2400 Å beside the axis.
    beyond = [-np.log(one.transmission((300, 490), 10.0, (0.0,)).double().numpy()) for one in (put, found)]
    assert np.abs(beyond[1] - beyond[0]).max() < 0.06


def test_exposures_that_differ() -> None:
    """Exposures of single tilts change the mean depth a little, and the map without its mean not at all."""
    put = UnevenIce(depth=0.8, wedge=0.3, edge=0.0, waves=0.05).draw((2000.0, 2400.0), _generator(5))
    seen = put.transmission(SHAPE, 10.0, SERIES)
    exposure = torch.from_numpy(_generator(1).uniform(0.9, 1.1, len(SERIES))).float()[:, None, None]
    found = [ThicknessMap.fit(100 * seen * e, SERIES, 10.0) for e in (1.0, exposure)]
    assert found[0] is not None
    assert found[1] is not None
    depths = [np.asarray(one.depth) for one in found]  # type: ignore[union-attr]
    assert np.allclose(depths[0] - depths[0].mean(), depths[1] - depths[1].mean(), atol=2e-3)
    assert depths[1].mean() == pytest.approx(depths[0].mean(), abs=0.15)


def test_intensities_that_tell_no_ice() -> None:
    """Too few tilts, low ones only, or intensities that do not fall with the angle: there is no map."""
    flat = 100 + _grain(tilts=len(SERIES))
    assert ThicknessMap.fit(flat, SERIES, 10.0) is None
    seen = 100 * ThicknessMap(extent=(100.0, 100.0), depth=((0.7,),)).transmission(SHAPE, 10.0, SERIES)
    assert ThicknessMap.fit(seen, SERIES, 10.0) is not None
    assert ThicknessMap.fit(seen[19:22], SERIES[19:22], 10.0) is None
    assert ThicknessMap.fit(seen[15:26], SERIES[15:26], 10.0) is None
    # A small image, which no slow wave fits in, has even ice.
    small = ThicknessMap.fit(seen[:, :20, :20], SERIES, 10.0)
    assert small is not None
    assert np.asarray(small.depth).ravel() == pytest.approx(np.full(np.asarray(small.depth).size, 0.7), abs=1e-3)


def test_a_large_image_has_longer_waves() -> None:
    """Over several square micrometres as many waves are fitted as over one half: time and memory are bounded."""
    put = UnevenIce(depth=0.8, wedge=0.3, edge=0.0, waves=0.0).draw((20000.0, 24000.0), _generator(5))
    found = ThicknessMap.fit(100 * put.transmission((100, 120), 200.0, SERIES), SERIES, 200.0)
    assert found is not None
    assert np.asarray(found.depth).size < 1500
    depths = [-np.log(one.transmission((100, 120), 200.0, (0.0,)).double().numpy()) for one in (put, found)]
    assert np.abs(depths[1] - depths[0]).max() < 0.03


def test_slow_waves() -> None:
    """None is constant, none is shorter than 100 nm, all longer ones are there."""
    slow = slow_waves((2000.0, 3000.0))
    assert slow.lengths.min() >= SHORTEST
    assert [0, 0] not in slow.counts.tolist()
    assert {(0, 1), (4, 0), (0, 6), (2, 3)} <= {(int(y), int(x)) for y, x in slow.counts}
    assert (4, 6) not in {(int(y), int(x)) for y, x in slow.counts}
    assert slow_waves((100.0, 100.0)).counts.shape == (0, 2)


# --- files and errors -------------------------------------------------------------------------------------------------


def test_json_of_maps_and_of_what_was_drawn() -> None:
    """They come back from JSON; others are refused."""
    ice, drawn = _ramp(), UnevenIce().drawn(_generator())
    assert ThicknessMap.from_dict(json.loads(json.dumps(ice.to_dict()))) == ice
    assert DrawnIce.from_dict(json.loads(json.dumps(drawn.to_dict()))) == drawn
    assert UnevenIce(**json.loads(json.dumps(UnevenIce().to_dict()))) == UnevenIce()
    for wrong in ({}, ice.to_dict() | {"more": 1}, {"extent": 1, "depth": [[1]]}, {"extent": [1, 1], "depth": 3}):
        with pytest.raises(ValueError, match="expected `extent`, `depth` of a map of ice"):
            ThicknessMap.from_dict(wrong)
    with pytest.raises(ValueError, match="expected `depth`, `wedge`, .* of drawn ice, got"):
        DrawnIce.from_dict({"seed": 1})
    with pytest.raises(ValueError, match="expected a finite number for `wedge` of drawn ice, got nan"):
        DrawnIce.from_dict(drawn.to_dict() | {"wedge": float("nan")})


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (((1.0, 2.0), (1.0,)), "expected as many depths in each row of a map of ice"),
        (((-1.0, 2.0),), r"expected finite depths \(y, x\) of 0 or more for a map of ice, .* from -1 to 2"),
        (((float("inf"),),), "expected finite depths"),
        ((), "expected finite depths"),
    ],
)
def test_wrong_maps(depth: Any, message: str) -> None:
    """A map is checked when it is made."""
    with pytest.raises(ValueError, match=message):
        ThicknessMap(extent=(10.0, 10.0), depth=depth)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0.0}, "expected `depth` to be more than 0, got 0.0"),
        ({"wedge": (0.3, 0.1)}, r"expected `wedge` to be one number or a pair \(lowest, highest\), got \(0.3, 0.1\)"),
        ({"edge": (0.1, 0.2, 0.3)}, r"expected `edge` to be one number or a pair \(lowest, highest\)"),
        ({"edge": 2.5}, "expected `edge` to be at most 2, a share of the mean, got 2.5"),
        ({"edge_width": 0.0}, "expected `edge_width` to be more than 0"),
        ({"waves": (-0.1, 0.1)}, "expected `waves` to be 0 or more, got -0.1"),
        ({"depth": "thick"}, r"expected `depth` to be one number or a pair \(lowest, highest\), got 'thick'"),
    ],
)
def test_wrong_ranges(settings: dict[str, Any], message: str) -> None:
    """Ranges are checked when they are given."""
    with pytest.raises(ValueError, match=message):
        UnevenIce(**settings)


def test_lengths_are_no_depths() -> None:
    """200 is a thickness in nm, not over the mean free path; numbers may be NumPy's."""
    with pytest.raises(
        ValueError, match="expected `depth` of at most 5, got 200; it is the thickness over the mean free"
    ):
        UnevenIce(depth=200.0)
    assert UnevenIce(wedge=np.float32(0.25)).wedge == (0.25, 0.25)  # type: ignore[arg-type]
    for wrong in (("a", "b"), (None, 1), (0.1, 0.2, 0.3), True):
        with pytest.raises(ValueError, match="expected `wedge` to be one number or"):
            UnevenIce(wedge=wrong)  # type: ignore[arg-type]


def test_blank_and_unmeasured_tilts_tell_nothing() -> None:
    """The mean depth is that of the tilts that electrons have reached."""
    angles = np.arange(-60.0, 61.0, 6.0)
    passing = torch.from_numpy(np.exp(-0.8 / np.cos(np.deg2rad(angles)))).float()
    tilts = 1000 * passing[:, None, None] + torch.randn(21, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(tilts.shape, dtype=torch.bool)
    for spoil in ("blank", "masked"):
        spoiled, kept = tilts.clone(), mask.clone()
        if spoil == "blank":
            spoiled[[0, 20]] = 0.01 * torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(1))
        else:
            kept[[0, 1]] = False
        found = ThicknessMap.fit(spoiled, angles, 30.0, measured=kept)
        assert found is not None
        assert np.mean(found.depth) == pytest.approx(0.8, rel=0.05), spoil


def test_exposures_that_grow_with_the_angle_leave_the_changes() -> None:
    """Then the mean is too low, but nothing of the map is cut off."""
    angles = np.arange(-60.0, 61.0, 6.0)
    wedge = UnevenIce(depth=0.8, wedge=0.8, edge=0.0, waves=0.0).draw((3000.0, 3000.0), np.random.default_rng(0))
    exposure = torch.from_numpy(np.exp(0.75 / np.cos(np.deg2rad(angles)))).float()
    tilts = 1000 * wedge.transmission((100, 100), 30.0, angles) * exposure[:, None, None]
    found = ThicknessMap.fit(tilts, angles, 30.0)
    assert found is not None
    inside, true = found.within((2400.0, 2400.0)), wedge.within((2400.0, 2400.0))
    assert np.ptp(inside) == pytest.approx(np.ptp(true), rel=0.15)
