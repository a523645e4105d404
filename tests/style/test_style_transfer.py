"""The style transfer as one object: what it does to tilts, and what it refuses."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faket_aug import FakETSimulator, StyleBank
from faket_aug.microscope.file import MicroscopeFile, write_microscope
from faket_aug.microscope.spectra import match_spectrum
from faket_aug.statistics import match_mean_std, mean_std
from faket_aug.style import style_transfer
from faket_aug.style.style_transfer import StyleTransfer
from faket_aug.style.transfer import StyleTargets, stylize
from tests._helpers import ANGLES, STYLE_LAYERS, generator, narrow_vgg, noise_model, specimen, style_series


def _transfer(folder: Path, **settings: Any) -> StyleTransfer:
    features = narrow_vgg(folder)
    bank = StyleBank.build([style_series(0), style_series(1)], features, style_layers=STYLE_LAYERS)
    return StyleTransfer(bank=bank, features=features, **settings)


def _tilts() -> tuple[Tensor, Tensor]:
    content = torch.randn(5, 24, 32, generator=generator(1))
    return content, content + torch.randn(content.shape, generator=generator(2))


def test_tilts_take_the_style_of_a_series(tmp_path: Path) -> None:
    """The result is `stylize` towards the chosen series, with mean and standard deviation of its nearest tilts."""
    made, (content, noisy) = _transfer(tmp_path, step_size=0.05, iterations=2), _tilts()
    for series in (0, 1):
        found = made(content, noisy, ANGLES, series=series)
        style = made.bank.select(ANGLES, series=series)
        expected = stylize(content, noisy, style, features=made.features, step_size=0.05, iterations=2)
        assert torch.equal(found, match_mean_std(expected, style.mean, style.std))
        np.testing.assert_allclose(mean_std(found)[1], style.std, rtol=1e-4)


def test_tilts_keep_their_own_statistics(tmp_path: Path) -> None:
    """With statistics or a spectrum of their own, tilts keep the noisy tilts' mean and standard deviation."""
    content, noisy = _tilts()
    plain, kept = _transfer(tmp_path), _transfer(tmp_path, keep_spectrum=True)
    own = plain(content, noisy, ANGLES, own_statistics=True)
    spectrum = kept(content, noisy, ANGLES)
    for found in (own, spectrum):
        for one, other in zip(mean_std(found), mean_std(noisy), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    style = plain.bank.select(ANGLES)
    raw = match_spectrum(stylize(content, noisy, style, features=plain.features), noisy)
    assert torch.equal(spectrum, match_mean_std(raw, *mean_std(noisy)))
    assert not torch.allclose(own, spectrum, atol=0.1)


def test_a_step_of_0_changes_nothing(tmp_path: Path) -> None:
    """Without a step there is no transfer: the noisy tilts themselves come back."""
    content, noisy = _tilts()
    assert _transfer(tmp_path, step_size=0.0)(content, noisy, ANGLES) is noisy


def test_it_pickles(tmp_path: Path) -> None:
    """A copy in another process gives the same tilts."""
    made, (content, noisy) = _transfer(tmp_path), _tilts()
    again = pickle.loads(pickle.dumps(made))
    assert torch.equal(again(content, noisy, ANGLES), made(content, noisy, ANGLES))


def test_other_features_are_refused(tmp_path: Path) -> None:
    """The bank and the encoder belong together."""
    made = _transfer(tmp_path)
    with pytest.raises(ValueError, match="expected the `features` that `style` was built with, got others"):
        StyleTransfer(bank=made.bank, features=narrow_vgg(tmp_path, seed=1))


def test_a_setting_is_said_once(tmp_path: Path) -> None:
    """A simulator with a `StyleTransfer` refuses another value for one of its settings, and takes the same one."""
    made = _transfer(tmp_path, step_size=0.05)
    given: dict[str, Any] = {"tilt_angles": ANGLES, "noise": noise_model(), "style": made}
    assert FakETSimulator(**given).step_size == 0.05
    assert FakETSimulator(**given, step_size=0.05, features=made.features).step_size == 0.05
    for name, value in (("step_size", 0.1), ("iterations", 3), ("features", narrow_vgg(tmp_path, seed=1))):
        with pytest.raises(ValueError, match=f"expected `{name}` of the `StyleTransfer` only, got another"):
            FakETSimulator(**given, **{name: value})


def test_a_fitted_microscope_with_a_style_transfer(tmp_path: Path) -> None:
    """A `StyleTransfer` has its own step, which goes before the step of the file."""
    path = tmp_path / "microscope.json"
    style = {"step_size": 0.02, "keep_spectrum": True}
    write_microscope(path, MicroscopeFile(noise=noise_model(), tilt_angles=ANGLES, style=style))
    made = FakETSimulator.from_file(path, style=_transfer(tmp_path, step_size=0.05))
    assert (made.modality, made.step_size, made.keep_spectrum) == ("faket", 0.05, False)
    assert made(specimen(0), seed=1).tiltseries.shape == (5, 24, 32)


# --- GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_targets_stay_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets of a series are selected once; where others take more than the limit, those used last stay."""
    made, (content, noisy) = _transfer(tmp_path), [tilts.cuda() for tilts in _tilts()]
    selected: list[int] = []
    select = StyleBank.select

    def watched(bank: StyleBank, tilt_angles: Any, *, series: int = 0) -> StyleTargets:
        selected.append(series)
        return select(bank, tilt_angles, series=series)

    monkeypatch.setattr(StyleBank, "select", watched)
    first = made(content, noisy, ANGLES, series=0)
    assert torch.equal(made(content, noisy, ANGLES, series=0), first)
    made(content, noisy, ANGLES, series=1)
    made(content, noisy, ANGLES, series=0)
    assert selected == [0, 1]
    monkeypatch.setattr(style_transfer, "KEPT_TARGETS", select(made.bank, ANGLES).nbytes)
    for series in (1, 1, 0):
        made(content, noisy, ANGLES, series=series)
    assert selected == [0, 1, 0]
    # Simulators whose settings are drawn have style transfers of their own, with the same encoder and bank.
    replace(made, step_size=0.1)(content, noisy, ANGLES, series=0)
    assert selected == [0, 1, 0]
    assert style_transfer._kept_of(pickle.loads(pickle.dumps(made)).features)._kept == {}
