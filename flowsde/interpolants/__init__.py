"""Interpolants x_t = alpha(t) x0 + sigma(t) x1, from data (t = 0) to noise (t = 1).

An interpolant is a curve in the (alpha, sigma) quarter plane, written in polar form

    alpha = r cos(angle),   sigma = r sin(angle),

where the angle rises from 0 (data) towards pi / 2 (noise). The angle is the
signal-to-noise ratio in a form that is finite at both ends, and converting one
interpolant into another is: match the angle, rescale by the radius r
(`match_time`). Kim et al., 2025, arXiv 2503.19385, section 3.2, write the same map with
t' and c'; Albergo et al., 2023, arXiv 2303.08797, call the curves stochastic interpolants.

All methods act elementwise on float arrays of times in [0, 1], keep their dtype, and
are differentiable where the curve is. Instances are frozen and hash by value, by all that they
keep, so they can be static arguments of compiled functions.
"""

from flowsde.interpolants.base import Interpolant
from flowsde.interpolants.curves import (
    VP,
    Cosine,
    Linear,
    LinearVP,
    Polynomial,
    cosine,
    linear,
    linear_vp,
    polynomial,
    vp,
)
from flowsde.interpolants.functions import FromFunctions, from_functions
from flowsde.interpolants.match import match_time

__all__ = [
    "VP",
    "Cosine",
    "FromFunctions",
    "Interpolant",
    "Linear",
    "LinearVP",
    "Polynomial",
    "cosine",
    "from_functions",
    "linear",
    "linear_vp",
    "match_time",
    "polynomial",
    "vp",
]
