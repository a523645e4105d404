"""Augmentation: drawn once, applied alike to image and label, and honest about hand and missing wedge."""

from __future__ import annotations

import pickle
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faket_aug import PatchAugmentation
from faket_aug.data.augmentation import AugmentationParameters

SHAPE = (12, 14, 16)
PLAIN = AugmentationParameters(flips=(False,) * 3, half_turns=(False,) * 3, rotation_deg=(0.0, 0.0, 0.0), scale=1.0)
EVERYTHING = PatchAugmentation(
    flips="zyx", half_turns="zyx", rotation_deg=(10.0, 20.0, 30.0), scale=(0.8, 1.25), keep_missing_wedge=False
)


def _parameters(**changes: object) -> AugmentationParameters:
    return AugmentationParameters(**(asdict(PLAIN) | changes))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _blob(center: tuple[float, float, float], shape: tuple[int, int, int] = SHAPE, spread: float = 2.0) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    return torch.exp(-sum((a - c) ** 2 for a, c in zip(axes, center, strict=True)) / (2 * spread**2))


def _middle(volume: Tensor) -> list[float]:
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in volume.shape), indexing="ij")
    return [float((axis * volume).sum() / volume.sum()) for axis in axes]


# --- drawing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_drawn_within_the_settings(seed: int) -> None:
    """Rotations lie within ± their largest, scales within their range."""
    drawn = EVERYTHING.draw(np.random.default_rng(seed))
    assert all(abs(a) <= r for a, r in zip(drawn.rotation_deg, (10.0, 20.0, 30.0), strict=True))
    assert 0.8 <= drawn.scale <= 1.25


def test_every_choice_is_drawn() -> None:
    """Flips and half turns are drawn independently, about half of the time; what was not asked for never."""
    drawn = [EVERYTHING.draw(np.random.default_rng(seed)) for seed in range(600)]
    for name in ("flips", "half_turns"):
        counts = np.array([getattr(d, name) for d in drawn]).sum(axis=0)
        assert (counts > 240).all()
        assert (counts < 360).all()
    assert len({(*d.flips, *d.half_turns) for d in drawn}) == 64
    nothing = [PatchAugmentation().draw(np.random.default_rng(seed)) for seed in range(50)]
    assert set(nothing) == {PLAIN}
    only_x = [PatchAugmentation(flips="x", half_turns="z").draw(np.random.default_rng(seed)) for seed in range(50)]
    assert {d.flips[:2] for d in only_x} == {(False, False)}
    assert {d.half_turns[1:] for d in only_x} == {(False, False)}


def test_settings_do_not_move_other_draws() -> None:
    """The generator is used the same number of times whatever the settings, so that one setting changes one thing."""
    left = []
    for augmentation in (PatchAugmentation(), EVERYTHING, PatchAugmentation(flips="x", scale=(0.5, 0.5))):
        generator = np.random.default_rng(5)
        augmentation.draw(generator)
        left.append(generator.random())
    assert len(set(left)) == 1


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"flips": "xw"}, "expected `flips` to hold axes of 'zyx', got 'xw'"),
        ({"half_turns": "1"}, "expected `half_turns` to hold axes of 'zyx', got '1'"),
        ({"scale": (0.0, 1.0)}, "expected `scale` to be a pair 0 < low <= high"),
        ({"scale": (1.2, 0.8)}, "expected `scale` to be a pair 0 < low <= high"),
        ({"rotation_deg": (0.0, 5.0, 0.0)}, "it would rotate the missing wedge; set `keep_missing_wedge` to False"),
        ({"rotation_deg": (0.0, 0.0, 5.0)}, "expected no rotation with `keep_missing_wedge`"),
    ],
)
def test_bad_settings(settings_: dict[str, object], message: str) -> None:
    """What cannot be, or would turn the missing wedge unasked, is refused."""
    with pytest.raises(ValueError) as caught:
        PatchAugmentation(**settings_)
    assert message in str(caught.value)


def test_rotation_when_asked_for() -> None:
    """With `keep_missing_wedge=False` rotations are drawn."""
    augmentation = PatchAugmentation(rotation_deg=(0.0, 5.0, 0.0), keep_missing_wedge=False)
    drawn = augmentation.draw(np.random.default_rng(0))
    assert drawn.rotation_deg[0] == drawn.rotation_deg[2] == 0
    assert drawn.rotation_deg[1] != 0


def test_settings_pickle() -> None:
    """Settings and parameters are the same after pickling."""
    assert pickle.loads(pickle.dumps(EVERYTHING)) == EVERYTHING
    drawn = EVERYTHING.draw(np.random.default_rng(0))
    assert pickle.loads(pickle.dumps(drawn)) == drawn


# --- flips and half turns ---------------------------------------------------------------------------------------------


def test_nothing_drawn_changes_nothing() -> None:
    """Without flips, turns and scale, image and label come back bit for bit."""
    image, label = _random(*SHAPE), torch.randint(0, 4, SHAPE, generator=torch.Generator().manual_seed(1))
    found = PatchAugmentation().apply(image, label, PLAIN)
    assert torch.equal(found[0], image)
    assert torch.equal(found[1], label)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_mirrors_one_axis(axis: int) -> None:
    """A flip runs one axis backwards, in image and label."""
    image = _random(*SHAPE)
    flips = tuple(i == axis for i in range(3))
    found, label = PatchAugmentation().apply(image, (image > 0).long(), _parameters(flips=flips))
    assert np.array_equal(found.numpy(), np.flip(image.numpy(), axis))
    assert torch.equal(label, (found > 0).long())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_half_turn_is_a_rotation(axis: int) -> None:
    """A half turn about an axis is two quarter turns in the plane across it: it keeps the hand."""
    image = _random(*SHAPE)
    turns = tuple(i == axis for i in range(3))
    found, label = PatchAugmentation().apply(image, (image > 0).long(), _parameters(half_turns=turns))
    plane = tuple(i for i in range(3) if i != axis)
    assert np.array_equal(found.numpy(), np.rot90(image.numpy(), 2, plane))
    assert torch.equal(label, (found > 0).long())


def test_all_half_turns_cancel() -> None:
    """Half turns about all three axes are none at all, and a flip with itself is none."""
    image = _random(*SHAPE)
    found, _ = PatchAugmentation().apply(image, image.long(), _parameters(half_turns=(True,) * 3))
    assert torch.equal(found, image)
    both, _ = PatchAugmentation().apply(image, image.long(), _parameters(flips=(True, False, False)))
    again, _ = PatchAugmentation().apply(both, image.long(), _parameters(flips=(True, False, False)))
    assert torch.equal(again, image)


@settings(max_examples=64, deadline=None)
@given(flips=st.tuples(*[st.booleans()] * 3), turns=st.tuples(*[st.booleans()] * 3))
def test_hand(flips: tuple[bool, bool, bool], turns: tuple[bool, bool, bool]) -> None:
    """The hand changes with an odd number of flips, and never with half turns."""
    blobs = [(2.0, 4.0, 5.0), (9.0, 4.0, 5.0), (2.0, 10.0, 5.0), (2.0, 4.0, 12.0)]
    images = [_blob(center, spread=1.0) for center in blobs]
    parameters = _parameters(flips=flips, half_turns=turns)
    moved = [_middle(PatchAugmentation().apply(image, image.long(), parameters)[0]) for image in images]
    arms = np.array(moved[1:]) - np.array(moved[0])
    assert np.sign(np.linalg.det(arms)) == (-1) ** sum(flips)


@pytest.mark.parametrize(
    "parameters",
    [_parameters(flips=f) for f in ((True, False, False), (False, True, False), (False, False, True))]
    + [_parameters(half_turns=t) for t in ((True, False, False), (False, True, False), (False, False, True))],
)
def test_missing_wedge_stays(parameters: AugmentationParameters) -> None:
    """Flips and half turns leave the missing wedge where it is: about z, in the plane across the tilt axis y."""
    image = _random(16, 16, 16).double()
    kz, _, kx = torch.meshgrid(*[torch.fft.fftfreq(16, dtype=torch.float64)] * 3, indexing="ij")
    missing = kz.abs() > 1.7 * kx.abs() + 1e-9
    wedged = torch.fft.ifftn(torch.fft.fftn(image) * ~missing).real
    found, _ = PatchAugmentation().apply(wedged, wedged.long(), parameters)
    spectrum = torch.fft.fftn(found).abs()
    assert spectrum[missing].max() < 1e-9 * spectrum.max()


# --- rotations and scales ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rotation_deg", "plane"), [((90.0, 0, 0), (0, 1)), ((0, 90.0, 0), (0, 2)), ((0, 0, 90.0), (1, 2))]
)
def test_quarter_turns(rotation_deg: tuple[float, float, float], plane: tuple[int, int]) -> None:
    """A rotation of 90° about x, y or z turns the plane across it, and nothing else."""
    image = _random(9, 9, 9)
    found, _ = PatchAugmentation().apply(image, image.long(), _parameters(rotation_deg=rotation_deg))
    candidates = [torch.from_numpy(np.rot90(image.numpy(), k, plane).copy()) for k in (1, 3)]
    assert min(float((found - candidate).abs().max()) for candidate in candidates) < 1e-3


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25, 2.0])
def test_scale_magnifies(scale: float) -> None:
    """A scale above 1 makes a particle larger, about the patch's middle."""
    shape = (31, 31, 31)
    image = _blob((15.0, 15.0, 17.0), shape, spread=1.5)
    found, _ = PatchAugmentation().apply(image, image.long(), _parameters(scale=scale))
    volume = float(found.sum() / image.sum())
    assert volume == pytest.approx(scale**3, rel=0.05)
    np.testing.assert_allclose(_middle(found.double()), [15, 15, 15 + 2 * scale], atol=0.05)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_label_follows_the_image(seed: int) -> None:
    """The label of a smooth blob, taken before or after, is the same but for voxels on its surface."""
    shape = (20, 22, 24)
    image = _blob((10.0, 11.0, 13.0), shape, spread=4.0)
    label = (image > 0.5).long()
    drawn = EVERYTHING.draw(np.random.default_rng(seed))
    found, moved = EVERYTHING.apply(image, label, drawn)
    expected = found > 0.5
    overlap = 2 * float((expected & (moved > 0)).sum()) / float(expected.sum() + (moved > 0).sum())
    assert overlap > 0.88
    np.testing.assert_allclose(_middle(moved.double()), _middle(expected.double()), atol=0.4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_nearest_keeps_the_set_of_labels(seed: int) -> None:
    """Labels are never blended: what comes out was there, or is the background that comes in from outside."""
    labels = torch.tensor([0, 3, 7, 250])[torch.randint(0, 4, SHAPE, generator=torch.Generator().manual_seed(seed))]
    _, found = EVERYTHING.apply(_random(*SHAPE), labels, EVERYTHING.draw(np.random.default_rng(seed)))
    assert set(found.unique().tolist()) <= {0, 3, 7, 250}


@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("parameters", [_parameters(flips=(True, False, False)), _parameters(scale=1.1)])
def test_shapes_and_dtypes_stay(label_dtype: torch.dtype, parameters: AugmentationParameters) -> None:
    """Image and label keep their shapes and dtypes."""
    image, label = PatchAugmentation().apply(_random(*SHAPE), torch.ones(SHAPE, dtype=label_dtype), parameters)
    assert image.shape == label.shape == SHAPE
    assert image.dtype == torch.float32
    assert label.dtype == label_dtype


@pytest.mark.parametrize("parameters", [_parameters(half_turns=(True, False, False)), _parameters(scale=1.1)])
def test_double_precision(parameters: AugmentationParameters) -> None:
    """An image in double precision comes back in double precision."""
    image, _ = PatchAugmentation().apply(_random(*SHAPE).double(), torch.ones(SHAPE, dtype=torch.int64), parameters)
    assert image.dtype == torch.float64


def test_input_is_left_alone() -> None:
    """Applying changes neither image nor label."""
    image, label = _random(*SHAPE), torch.ones(SHAPE, dtype=torch.int64)
    before = image.clone()
    EVERYTHING.apply(image, label, EVERYTHING.draw(np.random.default_rng(1)))
    assert torch.equal(image, before)
    assert label.min() == 1


def test_same_parameters_same_result() -> None:
    """Parameters say all: applied twice they give the same, bit for bit, whoever applies them."""
    image, label = _random(*SHAPE), (_random(*SHAPE, seed=1) > 0).long()
    drawn = EVERYTHING.draw(np.random.default_rng(3))
    first, second = EVERYTHING.apply(image, label, drawn), PatchAugmentation().apply(image, label, drawn)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_wrong_shapes() -> None:
    """An image is (z, y, x)."""
    with pytest.raises(ValueError, match=r"expected `image` of shape \(z, y, x\), got \(1, 12, 14, 16\)"):
        EVERYTHING.apply(_random(1, *SHAPE), torch.zeros(SHAPE), PLAIN)
