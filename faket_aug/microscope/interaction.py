"""How strongly a potential shifts the phase of electrons."""

from __future__ import annotations

import math

from faket_aug._checks import check_positive

_REST_ENERGY = 510.99895  # of the electron, keV
_PLANCK_C = 12.398419843  # keV Å


def interaction_constant(voltage: float) -> float:
    """Compute σ_e, the phase shift of an electron per volt and ångström, in rad/(V Å).

    Parameters
    ----------
    voltage
        kV.

    Returns
    -------
    0.000653 at 300 kV, 0.000729 at 200 kV.

    References
    ----------
    Kirkland, Advanced Computing in Electron Microscopy (2010), eq. 5.6.
    """
    check_positive("voltage", voltage)
    total = _REST_ENERGY + voltage
    wavelength = _PLANCK_C / math.sqrt(voltage * (2 * _REST_ENERGY + voltage))
    return 2 * math.pi * total / (wavelength * voltage * (_REST_ENERGY + total)) / 1e3
