"""The maker of each method, one line each; a new one is its file and a line here.

`flowsde.search.METHODS` has every function that is imported here, in this order, by its own name.
"""

# ruff: noqa: F401, I001 - the order is that of the command's help.
from flowsde.search.bon import bon
from flowsde.search.halving import halving
from flowsde.search.zero_order import zero_order
from flowsde.search.lidar import lidar
from flowsde.search.sop import sop
from flowsde.search.evolution import evolution
from flowsde.search.dfs import dfs
from flowsde.search.dts import dts
from flowsde.search.pcn import pcn
from flowsde.search.smc import smc
from flowsde.search.psi import psi
from flowsde.search.code import code
from flowsde.search.svdd import svdd
from flowsde.search.epsilon_greedy import epsilon_greedy
from flowsde.search.rbf import rbf
