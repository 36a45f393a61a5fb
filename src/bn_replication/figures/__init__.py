"""Figures: tidy frames of records on matplotlib axes, in one style, each with the numbers it was drawn from.

:mod:`style` says how things look; :mod:`frames` makes tidy tables of records; :mod:`paths` and :mod:`outcomes` draw
them on axes, over training and at its end; :mod:`files` holds and writes a finished figure; :mod:`general`,
:mod:`particular` and :mod:`beyond` lay out whole ones; :mod:`studies` decides which of them a study's records can
feed. Each imports only those named before it. ``python -m bn_replication.figures`` draws every figure.
"""

from bn_replication.figures.files import Drawing, one_style, render, save, slim
from bn_replication.figures.frames import (
    axes_of,
    ends,
    fig3_table,
    layer_bands,
    speed_at_best_rates,
    steps_to_plain_best,
    swept,
    trained,
    tuning,
    typical_units,
    unit_percentiles,
    usable_rates,
    usable_rule,
)
from bn_replication.figures.general import draw_curves, draw_depth, draw_effect, draw_layers, draw_response
from bn_replication.figures.outcomes import effect, response
from bn_replication.figures.particular import draw_fig1bc, draw_fig2
from bn_replication.figures.paths import detached, fig1a, fig2, learning_curves, sigmoid_inputs
from bn_replication.figures.studies import draw_study
from bn_replication.figures.style import (
    BLUE,
    CHANGES,
    CHOSEN,
    GREEN,
    INPUTS,
    NORMS,
    ORANGE,
    RINGS,
    SKY,
    VARIANTS,
    VERMILLION,
    Frame,
    Look,
    looks,
    short,
    styled,
)

__all__ = [
    "BLUE",
    "CHANGES",
    "CHOSEN",
    "GREEN",
    "INPUTS",
    "NORMS",
    "ORANGE",
    "RINGS",
    "SKY",
    "VARIANTS",
    "VERMILLION",
    "Drawing",
    "Frame",
    "Look",
    "axes_of",
    "detached",
    "draw_curves",
    "draw_depth",
    "draw_effect",
    "draw_fig1bc",
    "draw_fig2",
    "draw_layers",
    "draw_response",
    "draw_study",
    "effect",
    "ends",
    "fig1a",
    "fig2",
    "fig3_table",
    "layer_bands",
    "learning_curves",
    "looks",
    "one_style",
    "render",
    "response",
    "save",
    "short",
    "sigmoid_inputs",
    "slim",
    "speed_at_best_rates",
    "steps_to_plain_best",
    "styled",
    "swept",
    "trained",
    "tuning",
    "typical_units",
    "unit_percentiles",
    "usable_rates",
    "usable_rule",
]
