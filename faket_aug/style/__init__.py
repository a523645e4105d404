"""Style transfer: the encoder, the loss and its step, and the style bank."""

from faket_aug.style.bank import StyleBank, StyleSeries
from faket_aug.style.gram import gram_matrix
from faket_aug.style.transfer import (
    AVERAGE_DECAY,
    CONTENT_LAYERS,
    CONTENT_WEIGHT,
    MEMORY_BUDGET,
    STEP_SIZE,
    STYLE_LAYERS,
    STYLE_WEIGHTS,
    Encoder,
    StyleTargets,
    chunks_of_tilts,
    gray_to_rgb,
    style_grams,
    style_weights_for,
    stylize,
)
from faket_aug.style.vgg19 import VGG19Features

__all__ = [
    "AVERAGE_DECAY",
    "CONTENT_LAYERS",
    "CONTENT_WEIGHT",
    "MEMORY_BUDGET",
    "STEP_SIZE",
    "STYLE_LAYERS",
    "STYLE_WEIGHTS",
    "Encoder",
    "StyleBank",
    "StyleSeries",
    "StyleTargets",
    "VGG19Features",
    "chunks_of_tilts",
    "gram_matrix",
    "gray_to_rgb",
    "style_grams",
    "style_weights_for",
    "stylize",
]
