"""The crowd: a random density with the spectrum that was asked for, which particles displace."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from _helpers import assert_same_items, dataset, simulator, specimen

from faket_aug import ContrastTransfer, NoiseModel, project
from faket_aug.microscope.crowd import LENGTHS, CrowdField, CrowdTilts, mean_matter, medium, path_factors
from faket_aug.microscope.noise import ResponseNoise
from faket_aug.microscope.response import Envelope, MicroscopeResponse
from faket_aug.microscope.spectra import RINGS, series_spectra

ANGLES = np.arange(-60.0, 61.0, 3.0)


def _field(length: float = 15.0, variance: float = 0.25, **settings: float) -> CrowdField:
    q = np.arange(400) / 6000
    return CrowdField(frequencies=tuple(q.tolist()), power=tuple((variance * medium(q, length)).tolist()), **settings)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(crowd: CrowdField | None) -> ResponseNoise:
    series = NoiseModel.assume(torch.randn(3, 8, 8, generator=_generator()) + 5, (-40, 0, 40)).series
    response = MicroscopeResponse(
        pixel_size=10.0,
        ctf=ContrastTransfer(defocus=3.0),
        envelope=Envelope(log_scale=0.0),
        noise=((1.0,) * len(RINGS),),
        angle_range=(-60.0, 60.0),
    )
    return ResponseNoise(series=series, response=response, crowd=crowd)


def test_variance_and_spectrum() -> None:
    """The field has the variance and the radial spectrum that the crowd says, in V² Å³."""
    crowd = _field()
    assert crowd.std == pytest.approx(0.5, rel=1e-2)
    field = crowd.sample((64, 64, 64), 10.0, _generator())
    assert field.shape == (64, 64, 64)
    assert field.dtype == torch.float32
    assert float(field.std()) == pytest.approx(0.5, rel=0.05)
    power = torch.fft.rfftn(field).abs().square() * 1000 / field.numel()
    z = y = torch.fft.fftfreq(64)[:, None]
    q = torch.sqrt((z**2)[:, None] + (y**2)[None] + torch.fft.rfftfreq(64) ** 2) / 10
    near = (q > 0.003) & (q < 0.015)
    expected = torch.from_numpy(crowd.spectrum(q.double().numpy()))
    assert float(power[near].sum() / expected[near].sum()) == pytest.approx(1, abs=0.1)


def test_top_and_bottom_are_independent() -> None:
    """A periodic field would have the same density at its top and at its bottom."""
    field = _field().sample((40, 96, 96), 10.0, _generator())
    top, bottom, below = (field[i].flatten() for i in (0, -1, 1))
    assert abs(float(torch.corrcoef(torch.stack([top, bottom]))[0, 1])) < 0.1
    assert float(torch.corrcoef(torch.stack([top, below]))[0, 1]) > 0.8


def test_voxel_size_does_not_matter() -> None:
    """The same crowd in voxels of 10 and of 20 Å has the same variance."""
    fine, coarse = (_field(length=30).sample((64, 96, 96), size, _generator()) for size in (10.0, 20.0))
    assert float(coarse.var()) == pytest.approx(float(fine.var()), rel=0.2)


def test_particles_displace_it() -> None:
    """Where matter is solid there is no crowd; the contrast of a particle is that against the crowd's mean."""
    crowd = _field(mean=0.6, solid=3.0)
    density = torch.zeros(40, 48, 48)
    density[15:25, 18:30, 18:30] = 3.0
    around = crowd.around(density, 10.0, _generator())
    assert torch.allclose(around[15:25, 18:30, 18:30], torch.tensor(3.0 - 0.6), atol=1e-5)
    assert torch.equal(around[:, :10], crowd.sample((40, 48, 48), 10.0, _generator())[:, :10])
    assert torch.equal(crowd.around(density, 10.0, _generator(), strength=0.0), density)
    twice = crowd.around(density, 10.0, _generator(), strength=2.0)
    assert float(twice[20, 24, 24]) == pytest.approx(3.0 - 1.2, abs=1e-5)
    assert torch.allclose(twice[:, :10], 2 * around[:, :10], atol=1e-5)
    # Without `solid` nothing is displaced.
    assert torch.allclose(
        _field().around(density, 10.0, _generator()) - density,
        _field().sample((40, 48, 48), 10.0, _generator()),
        atol=1e-5,
    )


def test_all_matter_is_as_much_as_was_measured() -> None:
    """A specimen with more matter than those of the fit has less crowd, and one with less has more."""
    crowd = replace(_field(mean=0.6, solid=3.0), beside=0.3)
    empty, bead = torch.zeros(40, 48, 48), torch.zeros(40, 48, 48)
    bead[0, 0, :10] = 50.0
    plain = crowd.sample((40, 48, 48), 10.0, _generator())
    for fraction in (0.0, 0.1, 0.2, 0.3, 0.8):
        density = empty.clone()
        density[:, :, 47 - round(47 * fraction) : 47] = 3.0
        share = float((density > 0).float().mean())
        assert mean_matter(density, 3.0) == pytest.approx(3.0 * share)
        left = min(max((0.9 - 3.0 * share) / 0.6, 0.0), 2.0)
        around = crowd.around(density, 10.0, _generator())
        torch.testing.assert_close(around[:, :, :5], plain[:, :, :5] * left**0.5)
        if share:
            assert float(around[20, 20, 46]) == pytest.approx(3.0 - left * 0.6, abs=1e-5)
    # A bead is not that much matter; without `beside` the crowd is the same for all.
    assert mean_matter(bead, 3.0) == pytest.approx(30 / bead.numel())
    same = replace(crowd, beside=0.0).around(empty, 10.0, _generator())
    torch.testing.assert_close(same, plain)


def test_matter_deeper_than_the_specimen() -> None:
    """Above and below the specimen, which stays in the middle, is matter with a spectrum of its own."""
    beyond = _field(variance=1.0).power
    crowd = replace(_field(mean=0.6, solid=3.0), depth=800.0, beyond=beyond)
    density = torch.zeros(40, 48, 48)
    density[15:25, 18:30, 18:30] = 3.0
    around = crowd.around(density, 10.0, _generator())
    assert around.shape == (80, 48, 48)
    assert torch.allclose(around[35:45, 18:30, 18:30], torch.tensor(3.0 - 0.6), atol=1e-5)
    assert float(around[20:60, :12].std()) == pytest.approx(0.5, rel=0.15)
    assert float(around[:20].std()) == pytest.approx(1.0, rel=0.15)
    assert float(around[60:].std()) == pytest.approx(1.0, rel=0.15)
    # The same random numbers: at the border one field is half of the other.
    assert torch.allclose(
        around[20, :8], replace(crowd, beyond=crowd.power).around(density, 10.0, _generator())[20, :8]
    )
    assert replace(crowd, depth=400.0).around(density, 10.0, _generator()).shape == density.shape
    odd = replace(crowd, depth=511.0).around(density, 10.0, _generator())
    assert odd.shape[0] == 52


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"power": (1.0,)}, "power of a crowd at two frequencies or more"),
        ({"power": (1.0, -1.0)}, "`power` of a crowd to be finite and 0 or more"),
        ({"power": (1.0, float("nan"))}, "`power` of a crowd to be finite"),
        ({"frequencies": (0.1, 0.1)}, "increasing `frequencies`"),
        ({"mean": -1.0}, "`mean` of a crowd"),
        ({"depth": float("inf")}, "`depth` of a crowd"),
        ({"beyond": (1.0, 1.0, 1.0)}, "2 powers and 3 beyond at 2 frequencies"),
    ],
)
def test_bad_crowds(values: dict[str, object], message: str) -> None:
    """What cannot be a crowd is refused."""
    with pytest.raises(ValueError, match=message):
        CrowdField(**({"frequencies": (0.0, 0.1), "power": (1.0, 1.0)} | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "reach"), [(LENGTHS[0], None), (LENGTHS[2], None), (LENGTHS[2], 192.0)])
def test_power_of_projections(length: float, reach: float | None) -> None:
    """The powers that the fit takes are those of projected fields: of each tilt, and shared by neighbours.

    Of fields that go on beyond the image, and of those that end at its sides.
    """
    power = shared = 0.0
    for seed in range(3):
        field = _field(length, 1.0).sample((48, 192, 192), 10.0, _generator(seed))
        spectra = series_spectra(-project(field, ANGLES, extend="zero" if reach else "wrap"), ANGLES)
        power, shared = power + spectra.power / 3, shared + spectra.shared / 3
    tilts = CrowdTilts.of(ANGLES, pixel_size=10.0, depth=48, width=192, reach=reach)
    place, inner = LENGTHS.index(length), (RINGS > 0.03) & (RINGS < 0.1)
    for found, expected in ((power, tilts.power[place]), (shared, tilts.shared[place])):
        ratio = found[:, inner] / expected[:, inner]
        for part in (slice(2, 10), slice(16, 24), slice(30, 38)):
            assert np.median(ratio[part]) == pytest.approx(1, abs=0.15)


def test_ways_through_a_slab() -> None:
    """A slab that goes on is as long as 1 / cos; of a box, tilts at high angles show the sides, and vacuum beside."""
    angles = np.array([-60.0, 0.0, 60.0, 85.0])
    endless = path_factors(angles, 48.0, 192, None)
    np.testing.assert_allclose(endless, 1 / np.cos(np.deg2rad(angles)))
    box = path_factors(angles, 48.0, 192, 192.0)
    assert box[1] == pytest.approx(1)
    assert box[0] == pytest.approx(box[2])
    # The image's faded edges count less than its middle, where the box is seen.
    assert 1 < box[2] < 1.5 < endless[2]
    assert box[3] < endless[3] / 3


def test_json() -> None:
    """Noise with a crowd comes back from its text; a wrong crowd is refused."""
    noise = _noise(_field(mean=0.3, solid=3.0))
    assert NoiseModel.from_json(noise.to_json()) == noise
    assert not {"depth", "beyond"} & set(json.loads(noise.to_json())["crowd"])
    deep = _noise(replace(_field(), depth=900.0, beyond=_field(variance=1.0).power))
    assert NoiseModel.from_json(deep.to_json()) == deep
    assert "crowd" not in json.loads(_noise(None).to_json())
    content = json.loads(noise.to_json()) | {"checksum": None}
    for wrong in ({"crowd": {"power": [1]}}, {"crowd": 1}, {"crowd": content["crowd"] | {"more": 1}}):
        with pytest.raises(
            ValueError, match="expected `frequencies`, `power`, `mean`, `solid`, `depth`, `beyond`, `beside`"
        ):
            NoiseModel.from_json(json.dumps(content | wrong))


def test_simulator_adds_it() -> None:
    """The crowd is the same in all tilts and for the same address, another for another one; labels do not know it."""
    noise, thing = _noise(_field()), specimen(0)
    with_it = simulator("noiseless", noise=noise)
    first, again = (with_it(thing, seed=1, tomogram=2) for _ in range(2))
    other, none = with_it(thing, seed=1, tomogram=3), simulator("noiseless", noise=noise, crowd=0.0)(thing, seed=1)
    assert torch.equal(first.tiltseries, again.tiltseries)
    assert not torch.allclose(first.tiltseries, other.tiltseries)
    assert torch.equal(none.tiltseries, simulator("noiseless", noise=_noise(None))(thing, seed=1).tiltseries)
    assert torch.equal(first.labels, none.labels)
    assert first.record.settings["crowd"] == 1.0
    assert "crowd" not in simulator("noiseless", noise=_noise(None)).settings()
    with pytest.raises(ValueError, match="settings, got others for crowd"):
        simulator("noiseless", noise=noise, crowd=0.5).simulate(thing, first.record)
    with pytest.raises(ValueError, match="`crowd`"):
        simulator("noiseless", noise=noise, crowd=-1.0)


def test_items_are_the_same_in_workers() -> None:
    """A dataset with a crowd gives the same items in workers."""
    from _helpers import loader

    def made() -> object:
        return dataset(simulator("noisy", noise=_noise(_field())))

    assert_same_items(list(made()), list(loader(made(), workers=2, batch_size=None)))  # type: ignore[call-overload,arg-type]
