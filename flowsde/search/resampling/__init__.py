"""Resampling schemes: which particles go on, and how often; one file a scheme.

Each is ``scheme(key, log_weights, n) -> ancestors``: log weights [N], not necessarily normalised,
-inf for weight zero, at least one finite; ancestors int32 [N], of which the first n <= N are drawn.
Particle i has n w_i copies among them on average, where w are the normalised weights, and a
particle of weight zero has none: with the weights behind n zero, N is only room. The schemes
differ in the variance of the numbers of copies (Douc and Cappé, 2005, arXiv cs/0507025; Gerber,
Chopin and Whiteley, 2019, arXiv 1708.01207).
"""

from flowsde.search.resampling.multinomial import multinomial
from flowsde.search.resampling.residual import residual
from flowsde.search.resampling.ssp import ssp
from flowsde.search.resampling.stratified import stratified
from flowsde.search.resampling.systematic import systematic

SCHEMES = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
}
"""By name."""

__all__ = ["SCHEMES", "multinomial", "residual", "ssp", "stratified", "systematic"]
