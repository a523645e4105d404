"""The scores of a validation, and the picture of a training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from faket_aug import LabelledTomogram
from faket_aug._checks import FileFormatError
from faket_aug.picking import PickerDescription, Preparation, TrainingHistory
from faket_aug.picking.checkpoints import set_preparation
from faket_aug.training.picture import SIDE, Shown, draw_training
from faket_aug.training.validation import Validation
from tests._helpers import generator, table

SHAPE = (24, 40, 44)
PLACES = [(8.0, 10.0, 10.0), (12.0, 28.0, 12.0), (14.0, 14.0, 32.0), (10.0, 30.0, 34.0)]
DESCRIPTION = PickerDescription(
    class_names={1: "a", 2: "b"},
    widths=(2, 2, 2),
    voxel_size=10.0,
    filter="hann",
    radii={1: 50.0, 2: 50.0},
    target_radius=0.6,
)


class Seeing(nn.Module):
    """A network that sees spheres: of class 1 where the image is high, of class 2 where it is low."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        set_preparation(self, Preparation(patch_size=(8, 8, 8), normalized=False))

    def forward(self, images: Tensor) -> Tensor:
        """Give logits."""
        image = images[:, 0]
        return torch.stack([torch.zeros_like(image), 20 * (image - 0.5), 20 * (-image - 0.5)], dim=1)


def tomogram(seen: list[int], there: list[int]) -> LabelledTomogram:
    """Spheres of 3 voxels that the network sees as these classes (0: nothing), and particles of other classes."""
    volume = torch.zeros(SHAPE)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    for number, place in zip(seen, PLACES, strict=True):
        ball = torch.from_numpy(((grid - np.array(place)) ** 2).sum(-1) <= 9.0)
        volume[ball] = {0: 0.0, 1: 1.0, 2: -1.0}[number]
    rows = [(number, place) for number, place in zip(there, PLACES, strict=True) if number]
    particles = table([number for number, _ in rows], [place for _, place in rows])
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    return LabelledTomogram(
        tomogram=volume, labels=labels, particles=particles, voxel_size=10.0, class_names={1: "a", 2: "b"}
    )


def validation(*tomograms: LabelledTomogram, **more: object) -> Validation:
    """A validation of these tomograms."""
    given = {"real": (), "precision": "float32", "device": "cpu"} | more
    return Validation(tomograms=tomograms, description=DESCRIPTION, **given)  # type: ignore[arg-type]


def test_scores_of_what_is_seen() -> None:
    """All found; one missed and one too many; nothing found: F1 by class, and 1 less their mean."""
    assert validation(tomogram([1, 1, 2, 2], [1, 1, 2, 2]))(Seeing()) == {"validation": 0.0, "F1 a": 1.0, "F1 b": 1.0}
    found = validation(tomogram([1, 1, 2, 2], [1, 2, 2, 0]))(Seeing())
    # a: one of two picks is right, and all are found. b: one of two picks, one of two found.
    assert found["F1 a"] == pytest.approx(2 / 3)
    assert found["F1 b"] == pytest.approx(0.5)
    assert found["validation"] == pytest.approx(1 - (2 / 3 + 0.5) / 2)
    assert validation(tomogram([0, 0, 0, 0], [1, 2, 1, 2]))(Seeing())["validation"] == 1.0


def test_hits_are_summed_over_tomograms() -> None:
    """Two tomograms count as one; a class that only one has is scored there."""
    both = validation(tomogram([1, 1, 0, 0], [1, 1, 0, 0]), tomogram([0, 0, 2, 0], [1, 1, 2, 0]))
    assert both(Seeing()) == pytest.approx({"validation": 1 - (2 / 3 + 1) / 2, "F1 a": 2 / 3, "F1 b": 1.0})


def test_real_tomograms_count_where_they_are_not_trained_on() -> None:
    """Their scores have a name of their own."""
    good, poor = tomogram([1, 1, 2, 2], [1, 1, 2, 2]), tomogram([0, 0, 0, 0], [1, 1, 2, 2])
    beside = validation(good, real=(poor,))(Seeing())
    assert beside == {"validation": 0.0, "F1 a": 1.0, "F1 b": 1.0, "real F1 a": 0.0, "real F1 b": 0.0}
    assert validation(good, real=(poor,), real_counts=True)(Seeing())["validation"] == 1.0


def test_thresholds_part_what_is_seen_from_nothing() -> None:
    """They lie between 0 and the score of a sphere on its own."""
    found = validation(tomogram([1, 1, 2, 2], [1, 1, 2, 2])).choose_thresholds(Seeing())
    assert set(found) == {1, 2}
    assert all(0.05 <= value < 1.0 for value in found.values())


def test_a_validation_without_particles() -> None:
    """It can score nothing, and says so."""
    with pytest.raises(FileFormatError, match="expected particles of a, b in the validation's tomograms"):
        validation(tomogram([1, 1, 2, 2], [0, 0, 0, 0]))(Seeing())


# --- the picture ------------------------------------------------------------------------------------------------------


def test_what_is_shown() -> None:
    """The middle section of a tomogram, or the richest of labels; two are cropped to one size about their middles."""
    volume = torch.randn(40, 300, 260, generator=generator(1))
    labels = torch.zeros(40, 300, 260, dtype=torch.uint8)
    labels[30, 100:200, 100:200] = 1
    plain, labelled = (Shown.of(volume, name="mine", voxel_size=10.0, labels=given) for given in (None, labels))
    assert plain.title == "mine, z = 20"
    assert tuple(plain.image.shape) == tuple(plain.slab.shape[1:]) == (SIDE, SIDE)
    assert torch.equal(plain.slab[plain.place], volume[20, 54:246, 34:226])
    assert labelled.title == "mine, z = 30"
    assert labelled.labels is not None
    assert int(labelled.labels.sum()) == 100 * 100
    assert torch.equal(labelled.slab[labelled.place], volume[30, 54:246, 34:226])
    small = labelled.cropped(100, 90)
    assert torch.equal(small.image, labelled.image[46:146, 51:141])
    # Smoothed, a section of noise keeps little of its deviation.
    assert float(plain.image.std()) < 0.2


def test_probabilities_of_the_section() -> None:
    """The network's probabilities in the section that is shown."""
    made = tomogram([1, 1, 2, 2], [1, 1, 2, 2])
    shown = Shown.of(made.tomogram, name="mine", voxel_size=10.0)
    found = shown.probabilities(Seeing(), precision="float32", device="cpu")
    assert tuple(found.shape) == (2, 40, 44)
    assert torch.equal(found[0] > 0.5, made.tomogram[12] > 0.5)
    assert torch.equal(found[1] > 0.5, made.tomogram[12] < -0.5)


@pytest.mark.parametrize("real", [False, True])
def test_the_picture(real: bool) -> None:
    """Loss, scores by class, three sections and a legend of the classes."""
    made = tomogram([1, 1, 2, 2], [1, 1, 2, 2])
    labels = (made.tomogram.abs() > 0.5).to(torch.uint8)
    simulated = Shown.of(made.tomogram, name="simulated", voxel_size=10.0, labels=labels)
    mine = Shown.of(made.tomogram, name="mine.mrc", voxel_size=10.0) if real else None
    history = TrainingHistory(
        losses=[2.0, 1.5, 1.0, 0.8],
        validations=[(2, 0.5), (4, 0.25)],
        scores=[(2, {"F1 a": 0.5, "real F1 a": 0.2}), (4, {"F1 a": 0.75, "real F1 a": 0.4})],
    )
    seen = (mine or simulated).probabilities(Seeing(), precision="float32", device="cpu")
    figure = draw_training(history, class_names={1: "a", 2: "b"}, simulated=simulated, real=mine, seen=seen, steps=10)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["training loss, 4 of 10 steps", "validation, F1 of the picks"]
    assert titles[3] == ("mine.mrc, z = 12" if real else "its labels")
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in figure.axes[1].lines}
    assert lines["a"] == [0.5, 0.75]
    assert lines["a, real"] == [0.2, 0.4]
    assert "best, step 4" in lines
    overlay = np.asarray(figure.axes[4].images[-1].get_array())
    # Colour where a sphere is, none elsewhere.
    shown = mine or simulated
    assert np.array_equal(overlay[..., 3] > 0.3, (shown.slab[shown.place].abs() > 0.5).numpy())
