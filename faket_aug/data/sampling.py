"""Drawing labelled patches from a tomogram."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faket_aug._arrays import FloatArray
from faket_aug._checks import check_choice, check_count, check_flag, check_fraction, is_number
from faket_aug._random import numpy_generator
from faket_aug._runtime.threads import concrete_device
from faket_aug._runtime.transfers import moved
from faket_aug.data.augmentation import AugmentationParameters, PatchAugmentation, turn_of
from faket_aug.data.drawn import Patch
from faket_aug.data.labelled import LabelledTomogram
from faket_aug.data.patches import Size, clamp_center, cut, normalize, normalize_as, sphere_labels
from faket_aug.data.targets import PatchTargets, Picked, Placement, draw_targets, number_instances
from faket_aug.geometry import half_turn_about_tilt_axis
from faket_aug.simulation.tomogram import Companions, SimulatedTomogram
from faket_aug.specimens.particles import Labelled, ParticleTable

TARGETS = ("shape", "sphere")
#: Keys of an item: the other half of a pair, and the image without noise.
OTHER_HALF, CLEAN = "image_other", "clean"
#: Keys of what every item holds.
_IMAGE, _LABEL = "image", "label"


def check_radii(radii: Mapping[int | str, float] | None, target: str, targets: PatchTargets) -> None:
    """Raise a `ValueError` unless `radii` are given where spheres or heatmaps are, and each is more than 0 Å."""
    if targets.with_radii and radii is None:
        raise ValueError(f"expected `radii`, in Å, with `targets` {', '.join(targets.with_radii)}, got None")
    if not targets.with_radii and (target == "sphere") != (radii is not None):
        raise ValueError(
            'expected `radii` with `target="sphere"`, or with spheres or heatmaps among `targets`, and only then, got '
            f"{radii!r} with {target!r}"
        )
    if radii is None:
        return
    if not isinstance(radii, Mapping) or not radii:
        raise ValueError(f"expected `radii` to be a mapping from class numbers or names to Å, got {radii!r}")
    for key, radius in radii.items():
        known = isinstance(key, str) or (isinstance(key, Integral) and not isinstance(key, bool) and key > 0)
        if not known or not is_number(radius) or radius <= 0:
            raise ValueError(f"expected `radii` of more than 0 Å for classes other than 0, got {radius!r} for {key!r}")


def radii_of_classes(
    radii: Mapping[int | str, float], class_names: Mapping[int, str], elsewhere: Mapping[int, str], voxel_size: float
) -> dict[int, float]:
    """Return the radius of each class of a specimen in voxels, by number.

    Numbers of classes that only other specimens have (`elsewhere`) are left out.

    Raises
    ------
    ValueError
        If no specimen has a class, or one is given by its number and its name.
    """
    numbers = {name: number for number, name in class_names.items()}
    found: dict[int, float] = {}
    for key, radius in radii.items():
        number = numbers.get(key) if isinstance(key, str) else int(key)
        if number is not None and number in elsewhere and number not in class_names:
            continue
        if number is None or (class_names and number not in class_names):
            listed = ", ".join(f"{n} {name}" for n, name in class_names.items())
            raise ValueError(f"expected `radii` for classes among {listed}, got {key!r}")
        if number in found:
            raise ValueError(f"expected each class of `radii` once, got {number} and {class_names[number]!r}")
        found[number] = radius / voxel_size
    return found


def check_labels(labelled: Labelled, targets: PatchTargets, target: str, *, class_balanced: bool) -> None:
    """Refuse, or warn of, settings that ask for instances or a particle table that a specimen does not have."""
    drawn, spheres = targets.with_particles, target == "sphere" and "labels" in targets
    asks = spheres or drawn or class_balanced
    if "instances" in targets and labelled.instances is None:
        raise ValueError(
            "expected instances for `targets` with instances, got none; read `instances` (SHREC's occupancy mask), "
            "or leave them out of `targets`"
        )
    if not asks or len(labelled.particles) or not bool(labelled.labels.any()):
        return
    if drawn:
        raise ValueError(
            f"expected a particle table for `targets` {', '.join(drawn)}, got labels without one; read `picks` or "
            "`particles`, or leave them out of `targets`"
        )
    if spheres:
        raise ValueError(
            'expected a particle table for `target="sphere"`, got labels without one: all would be background; '
            'read `picks` or `particles`, or set `target="shape"`'
        )
    warnings.warn(
        f"{labelled.name}: expected a particle table for `class_balanced`, got labels without one; its patches are "
        "cut at random positions",
        stacklevel=3,
    )


@dataclass(frozen=True, kw_only=True)
class LiveTomogram:
    """A tomogram that patches are cut from.

    Parameters
    ----------
    tomogram, labels
        `(z, y, x)`.
    particles
        The particle table.
    centers
        `(n,)`, rows of the particles that patches are centred on. Their centres lie in the volume. Membranes are not
        among them.
    radii
        Radius of each class in voxels, for spheres as targets.
    picked
        The particles that targets are drawn from.
    instances
        `(z, y, x)`, where they are a target.
    beside
        More volumes `(z, y, x)`, floating point, that are cut and turned as the tomogram is, by their keys in an item.
    channels
        More volumes `(z, y, x)` that are further channels of the image.
    specimen
        The name of the specimen, or of the tomogram.
    """

    tomogram: Tensor
    labels: Tensor
    particles: ParticleTable
    centers: npt.NDArray[np.int64]
    radii: Mapping[int, float]
    picked: Picked
    instances: Tensor | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    channels: tuple[Tensor, ...] = ()
    specimen: str = ""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what patches are cut from."""
        instances = () if self.instances is None else (self.instances,)
        return self.tomogram, self.labels, *instances, *self.beside.values(), *self.channels

    @classmethod
    def of(
        cls,
        made: SimulatedTomogram | LabelledTomogram,
        *,
        radii: Mapping[int, float],
        instances: bool = False,
        channels: int = 0,
        companions: Companions | None = None,
    ) -> Self:
        """Keep what patches need of a tomogram; `instances` and the `channels` of heatmaps where they are targets.

        With halves among the `companions` the first half takes the tomogram's place, with flavours the first flavour.
        """
        more = Companions() if companions is None else companions
        first, *more_channels = [made.flavours[name] for name in more.flavours] or [made.tomogram]
        image, other = (first, None) if more.halves is None or made.halves is None else made.halves
        beside = {OTHER_HALF: other, CLEAN: made.clean if more.clean else None}
        nearest = np.rint(made.particles.positions)
        inside = ((nearest >= 0) & (nearest < np.array(made.labels.shape))).all(axis=1)
        # The centre of a vesicle is no particle.
        inside &= ~np.isin(made.particles.classes, sorted(made.not_particles))
        return cls(
            tomogram=image,
            labels=made.labels,
            particles=made.particles,
            centers=np.flatnonzero(inside),
            radii=radii,
            picked=Picked.of(made.particles, made.not_particles, radii, channels),
            instances=made.instances if instances else None,
            beside={key: volume for key, volume in beside.items() if volume is not None},
            channels=tuple(more_channels),
            specimen=made.name,
        )


@dataclass(frozen=True, kw_only=True)
class PatchSampler:
    """How patches are drawn; see `FakETDataset` for what each setting means."""

    patch_size: Size
    shift: int
    class_balanced: bool
    background_fraction: float
    half_turn: bool
    augmentation: PatchAugmentation | None
    normalize: bool
    target: str
    targets: PatchTargets = PatchTargets()  # noqa: RUF009 - frozen
    halves: str | None = None
    flavours: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", PatchTargets.of(self.targets))
        if self.halves is not None and len(self.companions.flavours) > 1:
            raise ValueError(f"expected at most one of `flavours` with `halves`, got {', '.join(self.flavours)}")
        for name in ("class_balanced", "half_turn", "normalize"):
            check_flag(name, getattr(self, name))
        check_count("shift", self.shift, zero=True)
        check_fraction("background_fraction", self.background_fraction)
        check_choice("target", self.target, TARGETS)

    @property
    def companions(self) -> Companions:
        """What tomograms have to bring beside themselves."""
        return Companions(halves=self.halves, clean=CLEAN in self.targets, flavours=self.flavours)

    def check_companions(self, made: SimulatedTomogram | LabelledTomogram) -> None:
        """Raise a `ValueError` if a tomogram lacks its halves, or the clean one, where they are asked for."""
        lacking = [("halves", "set `halves` to None")] if self.halves is not None and made.halves is None else []
        if CLEAN in self.targets and made.clean is None:
            lacking.append((CLEAN, f"leave {CLEAN!r} out of `targets`"))
        for name in set(self.companions.flavours) - set(made.flavours):
            lacking.append((f"flavours[{name!r}]", "leave it out of `flavours`"))
        for name, advice in lacking:
            raise ValueError(f"expected a tomogram with `{name}`, got one without; give them, or {advice}")

    def check(self, labelled: Labelled) -> None:
        """Refuse, or warn of, settings that ask for instances or a particle table that a specimen does not have."""
        check_labels(labelled, self.targets, self.target, class_balanced=self.class_balanced)

    def sample(
        self,
        live: LiveTomogram,
        *,
        seed: int,
        epoch: int,
        tomogram: int,
        patch: int,
        device: torch.device | str = "cpu",
    ) -> Patch:
        """Draw the patch of an address, and put it on a device.

        The work is done where the tomogram lies, and the patch is copied once. If both are on the same GPU, nothing
        waits for it. There are two exceptions: what is drawn from the particle table is drawn on the CPU, and
        augmentation that interpolates runs on the CPU.
        """
        generator = numpy_generator(seed, "patch", epoch=epoch, tomogram=tomogram, patch=patch)
        center, particle_class = self._choose_center(live, generator)
        turned = bool(generator.random() < 0.5) and self.half_turn
        # kornia, which interpolates, is given patches on the CPU.
        warped = self.augmentation is not None and self.augmentation.interpolates
        where = "cpu" if warped else live.tomogram.device
        image = cut(live.tomogram, center, self.patch_size).to(where, torch.float32)
        label = self._label(live, center)
        label = label.cpu() if warped else label
        beside = {key: cut(one, center, self.patch_size).to(where, torch.float32) for key, one in live.beside.items()}
        channels = [cut(one, center, self.patch_size).to(where, torch.float32) for one in live.channels]
        if turned:
            image, label = half_turn_about_tilt_axis(image), half_turn_about_tilt_axis(label)
            channels = [half_turn_about_tilt_axis(one) for one in channels]
            beside = {key: half_turn_about_tilt_axis(one) for key, one in beside.items()}
        if self.normalize:
            # One scale for all: what is not the image would otherwise be scaled by its own noise.
            beside = {key: normalize_as(one, image) for key, one in beside.items()}
            image, channels = normalize(image), [normalize(one) for one in channels]
        parameters = None
        if self.augmentation is not None:
            drawn = numpy_generator(seed, "augmentation", epoch=epoch, tomogram=tomogram, patch=patch)
            parameters = self.augmentation.draw(drawn)
            image, label = self.augmentation.apply(image, label, parameters)
            beside = {key: self.augmentation.apply_to_image(one, parameters) for key, one in beside.items()}
            channels = [self.augmentation.apply_to_image(one, parameters) for one in channels]
            if self.normalize and self.augmentation.interpolates:
                beside = {key: normalize_as(one, image) for key, one in beside.items()}
                # It was normalised before, too, so that the interpolation fills in the mean at the border.
                image, channels = normalize(image), [normalize(one) for one in channels]
        targets = self._more_targets(live, center, turned, parameters)
        # Copies of their own: views would keep the whole tomogram alive.
        tensors = {key: one[None].clone(memory_format=torch.contiguous_format) for key, one in beside.items()}
        tensors |= {key: one for key, one in targets.items() if isinstance(one, Tensor)}
        tensors[_IMAGE] = torch.stack([image, *channels])
        if "labels" in self.targets:
            tensors[_LABEL] = label
        tensors = moved(tensors, concrete_device(device))
        return Patch(
            image=tensors.pop(_IMAGE),
            label=_as_item(tensors.pop(_LABEL)) if _LABEL in tensors else None,
            position=center,
            particle_class=particle_class,
            targets=targets | tensors,
        )

    def _more_targets(
        self,
        live: LiveTomogram,
        center: npt.NDArray[np.int64],
        turned: bool,
        parameters: AugmentationParameters | None,
    ) -> dict[str, Any]:
        """Make the targets other than the label, turned as the image is."""
        placement = Placement(
            origin=center - np.array(self.patch_size) // 2,
            size=self.patch_size,
            turn=_turn(turned, parameters),
            scale=1.0 if parameters is None else parameters.scale,
            interpolated=self.augmentation is not None and self.augmentation.interpolates,
        )
        try:
            made = draw_targets(self.targets, live.picked, placement)
        except ValueError as error:
            raise ValueError(f"{live.specimen}: {error}") from error
        if "instances" in self.targets:
            assert live.instances is not None, "a source checks it"
            instances = cut(live.instances, center, self.patch_size)
            instances = half_turn_about_tilt_axis(instances) if turned else instances
            if self.augmentation is not None and parameters is not None:
                # kornia, which interpolates, is given patches on the CPU.
                instances = instances.cpu() if self.augmentation.interpolates else instances
                instances = self.augmentation.apply_to_labels(instances, parameters)
            made["instances"] = number_instances(instances, live.picked, placement)
        if "half_turn" in self.targets:
            made["half_turn"] = turned
        if "specimen" in self.targets:
            made["specimen"] = live.specimen
        return made

    def _choose_center(self, live: LiveTomogram, generator: np.random.Generator) -> tuple[npt.NDArray[np.int64], int]:
        shape, particles = live.tomogram.shape, live.particles
        background = generator.random() < self.background_fraction
        place, offset = generator.random(3), generator.integers(-self.shift, self.shift + 1, 3)
        if background or len(live.centers) == 0:
            # Evenly over the centres that a patch can have, so that positions do not pile up at the edges.
            size = np.array(self.patch_size)
            anywhere = size // 2 + np.floor(place * (np.array(shape) - size + 1))
            return clamp_center(anywhere, self.patch_size, shape), 0
        candidates = live.centers
        if self.class_balanced:
            classes = particles.classes[candidates]
            candidates = candidates[classes == generator.choice(np.unique(classes))]
        chosen = generator.choice(candidates)
        center = clamp_center(particles.positions[chosen] + offset, self.patch_size, shape)
        return center, int(particles.classes[chosen])

    def _label(self, live: LiveTomogram, center: npt.NDArray[np.int64]) -> Tensor:
        if self.target == "shape":
            return cut(live.labels, center, self.patch_size)
        origin = center - np.array(self.patch_size) // 2
        spheres = sphere_labels(self.patch_size, origin, live.particles.classes, live.particles.positions, live.radii)
        # Labels travel as bytes.
        return spheres.to(torch.uint8) if max(live.radii, default=0) <= torch.iinfo(torch.uint8).max else spheres


def _as_item(label: Tensor) -> Tensor:
    """Return a copy of a label as items have it."""
    return label.to(torch.int64, copy=True, memory_format=torch.contiguous_format)


def _turn(half_turn: bool, parameters: AugmentationParameters | None) -> FloatArray:
    """Return what the half turn about y and, after it, the augmentation do to directions (x, y, z)."""
    turn: FloatArray = np.diag([-1.0, 1.0, -1.0]) if half_turn else np.eye(3)
    return turn if parameters is None else turn_of(parameters) @ turn
