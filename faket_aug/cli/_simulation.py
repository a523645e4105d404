"""What `faket-aug simulate` does: specimens and a simulator, and a set of tomograms on disk that they fill."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faket_aug._checks import FileFormatError, check_count, check_same_size
from faket_aug._reading import read_table
from faket_aug._runtime.threads import intra_op_threads, usable_device
from faket_aug._settings import as_json
from faket_aug.cli._angles import TILT_ANGLES, parse_angles
from faket_aug.cli._digests import digest_of_file, digest_of_series
from faket_aug.cli._look import draw_look, look_at
from faket_aug.cli._options import OF_STYLE, SETTINGS, Options
from faket_aug.cli._series_checks import read_series
from faket_aug.cli._sets import (
    COPICK_PROJECT,
    PREVIEW_FILE,
    SETTINGS_FILE,
    Shard,
    missing,
    noting_a_stop,
    open_set,
    read_settings,
    stopped_early,
    tomogram_folder,
)
from faket_aug.cli._source import Source, make_source
from faket_aug.figures import save_figure
from faket_aug.formats._atomic import ABANDONED, remove_parts
from faket_aug.formats.angles import read_tilt_angles
from faket_aug.generation.recipe import BEFORE
from faket_aug.microscope.file import MicroscopeFile, read_microscope
from faket_aug.microscope.imperfections import Imperfections
from faket_aug.microscope.noise import NoiseModel
from faket_aug.simulation.plain_settings import MIXTURE, VARIATION, WEIGHT, schedules_of
from faket_aug.simulation.saving import check_names, is_whole
from faket_aug.simulation.simulator import RENAMED, FakETSimulator
from faket_aug.simulation.tomogram import Companions
from faket_aug.simulation.varied import ScheduledWeight, Simulator, VariedSimulator, mixture_of
from faket_aug.style.bank import StyleBank
from faket_aug.style.vgg19 import VGG19Features
from faket_aug.tilts.series import TiltSeries

#: Within the folder of a set: hidden, so that nothing in it is taken for a specimen of the set.
STYLE_CACHE = ".style_cache"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one run has to do.

    Parameters
    ----------
    folder
        Of the set.
    options
        What the tomograms are like.
    count
        How many; by default one for each specimen from a file, or one.
    shard
        Which of them are this run's.
    """

    folder: Path
    options: Options
    count: int | None
    shard: Shard


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of it: the tomograms of this shard, how many of them were made now, and the picture."""

    of: int
    made: int
    preview: Path | None


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a simulator is made of, before the style is encoded, which takes its time.

    Parameters
    ----------
    unstyled
        A simulator without style, with all other settings.
    style, features
        For the modality `"faket"` only.
    noise_digest
        What the noise was made from.
    """

    unstyled: FakETSimulator
    style: tuple[TiltSeries, ...]
    features: VGG19Features | None
    noise_digest: str | None

    def settings(self, options: Options) -> dict[str, Any]:
        """Return what the tilts depend on, as JSON types; long things by their hash."""
        found = self.unstyled.settings() | {"modality": options.modality}
        del found["features"]
        found["noise"] = self.noise_digest
        found["style"] = [digest_of_series(series) for series in self.style]
        found["weights"] = None if self.features is None else self.features.fingerprint
        return found

    def plain(self, options: Options, cache: Path) -> FakETSimulator:
        """Make the simulator whose settings are the same for all tomograms."""
        if self.features is None:
            return replace(self.unstyled, modality=options.modality)
        settings: dict[str, Any] = {"cache": cache, "device": self.unstyled.device} | options.of("StyleBank.build")
        bank = StyleBank.build(self.style, self.features, **settings)
        return replace(self.unstyled, modality=options.modality, style=bank, features=self.features)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The simulators that one is drawn of for each tomogram; mostly there is only one.

    Parameters
    ----------
    options
        Of all of them.
    parts
        What each is made of.
    """

    options: Options
    parts: Sequence[Parts]

    def settings(self) -> dict[str, Any]:
        """Return what the tilts depend on, as JSON types; long things by their hash."""
        told = zip(self.options.simulators, self.parts, strict=True)
        if not self.options[MIXTURE]:
            return self.parts[0].settings(self.options)
        own = [options.without_paths() | parts.settings(options) for options, parts in told]
        weights = [{WEIGHT: as_json(weight)} for weight in self.weights]
        return {MIXTURE: [weight | one for weight, one in zip(weights, own, strict=True)]}

    @property
    def weights(self) -> list[ScheduledWeight]:
        """How often each is drawn, in proportion."""
        alone: dict[str, Any] = {}
        return [own.get(WEIGHT, 1.0) for own in self.options[MIXTURE] or (alone,)]

    def check_companions(self, more: Companions) -> None:
        """Raise a `ValueError` if one of the simulators cannot make halves, a clean tomogram, or flavours."""
        for parts in self.parts:
            parts.unstyled.check_companions(more)

    def simulator(self, cache: Path) -> Simulator:
        """Make the simulator, encoding styles or reading them from the cache."""
        each = self.options.simulators
        plain = [parts.plain(options, cache) for options, parts in zip(each, self.parts, strict=True)]
        return mixture_of(plain, [options[VARIATION] for options in each], self.weights)


def make_mixture(options: Options) -> Mixture:
    """Read and make what all simulators need, see `make_parts`; the message says which simulator an error is of."""
    made = []
    for number, own in enumerate(options.simulators):
        try:
            made.append(make_parts(own))
            _check_voxels(own, made[-1])
        except FileFormatError:
            raise
        except ValueError as error:
            raise ValueError(f"mixture[{number}]: {error}" if options[MIXTURE] else str(error)) from error
    return Mixture(options=options, parts=made)


def _check_voxels(options: Options, parts: Parts) -> None:
    """Refuse generated specimens whose voxels are not of the pixels of what they are to look like."""
    if not options.recipe:
        return
    response = parts.unstyled.response
    known = {} if response is None else {str(options["noise"]): response.pixel_size}
    for name, size in (known | {series.name: series.pixel_size for series in parts.style}).items():
        advice = f"set --voxel-size {size:g}"
        check_same_size("generated specimens", options.voxel_size, name, size, advice=advice)


def styled_by_microscope(options: Options) -> Options:
    """Take from the file of the microscope what its step was chosen with: style, weights and layers.

    Nothing is taken where the file holds no step, or one of 0, or the modality asks for no style. Of a mixture, each
    simulator has a microscope of its own.

    Warns
    -----
    UserWarning
        If the step cannot be used, because the tilt-series are not there.
    """
    if not options[MIXTURE]:
        return options.but(**_style_of_microscope(options))
    each = zip(options[MIXTURE], options.simulators, strict=True)
    return options.but(**{MIXTURE: [dict(own) | _style_of_microscope(simulator) for own, simulator in each]})


def _style_of_microscope(options: Options) -> dict[str, Any]:
    if options["noise"] is None or options["modality"] not in (None, "faket"):
        return {}
    fitted = read_microscope(options["noise"])
    told = fitted.about.get("options")
    step = fitted.style.get("step_size") if options["step_size"] is None else options["step_size"]
    if not fitted.style or not step or not isinstance(told, Mapping):
        return {}
    found = {name: told[name] for name in OF_STYLE if told.get(name) is not None and options[name] is None}
    if not options["style"]:
        series = [str(path) for path in told.get("style", ())]
        missing = [path for path in series if not Path(path).exists()]
        if missing or not series:
            warnings.warn(
                f"{options['noise']}: the step of the style transfer is left out, since the tilt-series that it was "
                f"chosen for, {', '.join(missing) or 'which the file does not name'}, is not there; set --style, or "
                "--modality noisy",
                stacklevel=2,
            )
            return {}
        found["style"] = series
    return read_table(SETTINGS, found, "")


def make_parts(options: Options) -> Parts:
    """Read the style, assume or read the noise, and make what else a simulator needs.

    Raises
    ------
    ValueError, FileNotFoundError, FileFormatError, WeightsError
        If files are missing or wrong, or settings do not go together.
    """
    style = tuple(read_series(path) for path in options["style"] or ())
    fitted = None if options["noise"] is None else read_microscope(options["noise"])
    angles = _tilt_angles(options, style, fitted)
    noisy, styled = options.modality != "noiseless", options.modality == "faket"
    known: dict[str, Any] = fitted.style_settings(options["step_size"]) if styled and fitted is not None else {}
    known |= {"extend": fitted.extend} if fitted is not None and fitted.extend else {}
    given = options.of("FakETSimulator") | {"imperfections": Imperfections(**options.of("Imperfections"))}
    own = {"tilt_angles": angles, "modality": "noisy" if noisy else "noiseless"}
    usable_device(given.get("device", FakETSimulator.device))
    return Parts(
        unstyled=FakETSimulator(
            **(known | given | own), noise=_noise(options, style, angles, fitted) if noisy else None
        ),
        style=style if styled else (),
        features=VGG19Features(**options.of("VGG19Features")) if styled else None,
        noise_digest=_noise_digest(options, style) if noisy else None,
    )


def _tilt_angles(options: Options, style: tuple[TiltSeries, ...], fitted: MicroscopeFile | None) -> Any:
    given = options["tilt_angles"]
    if given is None and fitted is not None and fitted.tilt_angles:
        return fitted.tilt_angles
    if given is None:
        return style[0].tilt_angles if style else parse_angles(TILT_ANGLES)
    return read_tilt_angles(given) if isinstance(given, str) else given


def _noise(options: Options, style: tuple[TiltSeries, ...], angles: Any, fitted: MicroscopeFile | None) -> NoiseModel:
    """Take the fitted noise, or assume one; without measured tilts, of tilts with mean 0 and standard deviation 1."""
    if fitted is not None:
        return fitted.noise
    settings = options.of("NoiseModel.assume")
    if not style:
        settings.pop("quantiles", None)
    measured: list[Any] = [(series.tilts, series.tilt_angles, series.measured) for series in style]
    if not measured:
        # Two pixels are enough to say that mean and standard deviation are 0 and 1.
        measured = [(torch.tensor([[-1.0, 1.0]]).expand(len(angles), 1, 2), np.asarray(angles), None)]
    models = [NoiseModel.assume(tilts, own, measured=mask, **settings) for tilts, own, mask in measured]
    return replace(models[0], series=tuple(series for model in models for series in model.series))


def _noise_digest(options: Options, style: tuple[TiltSeries, ...]) -> str:
    """Hash what the noise is made from: another machine's sums differ in the last bits."""
    if options["noise"] is not None:
        return digest_of_file(Path(options["noise"]))
    inputs = [[digest_of_series(series) for series in style], options["snr"], options["quantiles"]]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def run(work: Work, progress: Callable[[int, int], None]) -> Done:
    """Make the tomograms of a shard that are missing, and the picture of the set's first one.

    Parameters
    ----------
    work
        What is to be done.
    progress
        Is told how many tomograms of how many are there.
    """
    options = _gone_on_with(work)
    work = replace(work, options=options)
    changing = schedules_of(options.given)
    if changing:
        raise ValueError(
            f"expected the same {changing[0]} for all tomograms of a set, got one by epoch, which is for "
            "`faket-aug train`; say it once"
        )
    # What is computed before the simulator's own threads are set has to be the same for every machine, too.
    threads = options.value("threads")
    check_count("threads", threads)
    with intra_op_threads(threads):
        return _run(work, progress, make_source(options), make_mixture(options))


def _gone_on_with(work: Work) -> Options:
    """Return the options; a set that is older than a setting goes on as it was made."""
    path, options = work.folder / SETTINGS_FILE, work.options
    styled = styled_by_microscope(options)
    if not path.is_file() or stopped_early(work.folder):
        return styled
    kept = read_settings(path)
    made = styled.without_paths() | {"modality": styled.modality}
    if all(kept.get(name, made[name]) == made[name] for name in ("modality", *OF_STYLE) if name in made):
        options = styled
    if not options.recipe:
        return options
    unknown = {name: old for name, old in BEFORE.items() if name not in kept and name not in options.given}
    return options.but(**unknown)


def _run(work: Work, progress: Callable[[int, int], None], source: Source, mixture: Mixture) -> Done:
    options, folder = work.options, work.folder
    count = work.count or source.count or 1
    named = {number: name for number, name in source.class_names.items() if number > 0}
    check_names(named, options.value("formats"), tomogram=tomogram_folder(folder, 0).name)
    mixture.check_companions(Companions(halves=options["halves"]))
    defaults = Options.defaults() | (BEFORE if options.recipe else {})
    open_set(folder, _settings(options, source, mixture), options.to_json(), defaults=defaults, renamed=RENAMED)
    remove_parts(folder / STYLE_CACHE, older_than=ABANDONED)
    mine = work.shard.indices(count)
    left = missing(folder, count=count, shard=work.shard)
    progress(len(mine) - len(left), len(mine))
    with noting_a_stop(folder, work.shard):
        maker = _Maker(work=work, source=source, simulator=mixture.simulator(folder / STYLE_CACHE)) if left else None
        for number, index in enumerate(left, start=1):
            assert maker is not None, "there is something to make"
            maker.make(index)
            progress(len(mine) - len(left) + number, len(mine))
    return Done(of=len(mine), made=len(left), preview=_preview(folder) if 0 in mine else None)


def _settings(options: Options, source: Source, mixture: Mixture) -> dict[str, Any]:
    """Return all that a tomogram of the set depends on, and in which files it is written, by the options' names."""
    return options.without_paths() | source.settings | mixture.settings()


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """Makes and writes one tomogram after the other."""

    work: Work
    source: Source
    simulator: Simulator

    def make(self, index: int) -> None:
        """Make tomogram `index` of the set and write it."""
        options, path = self.work.options, tomogram_folder(self.work.folder, index)
        given = self.source.make(index)
        # Under the name of the folder it can be found, read and simulated again.
        specimen = replace(given, name=path.name)
        made = self.simulator(specimen, seed=options.seed, tomogram=index, halves=options["halves"])
        noiseless = None
        if options["noiseless"]:
            noiseless = _noiseless(self.simulator)(specimen, seed=options.seed, tomogram=index).tomogram
        made.save(
            path,
            formats=options.value("formats"),
            specimen=specimen if options.value("density") else None,
            noiseless=noiseless,
            copick_project=self.work.folder / COPICK_PROJECT,
            origin={"specimen": given.name} | self.source.settings | {"options": options.to_json()},
        )


def _noiseless(simulator: Simulator) -> Simulator:
    if isinstance(simulator, VariedSimulator):
        return simulator.with_settings(modality="noiseless")
    return replace(simulator, modality="noiseless")


def _preview(folder: Path) -> Path | None:
    """Draw the first tomogram from its files, once."""
    path, first = folder / PREVIEW_FILE, tomogram_folder(folder, 0)
    if not path.is_file() and is_whole(first):
        remove_parts(folder, pattern=f".{PREVIEW_FILE}.*.part")
        save_figure(draw_look(look_at(first)), path)
    return path if path.is_file() else None
