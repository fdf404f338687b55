"""The maker of each kernel that searches can use, one line each; a new one is its file and a line.

`flowsde.kernels.KERNELS` has every function that is imported here, in this order, by its own name.
"""

# ruff: noqa: F401, I001 - the order is that of the command's help.
from flowsde.kernels.euler import euler_maruyama
from flowsde.kernels.posterior import ddim
from flowsde.kernels.posterior import cps
from flowsde.kernels.correlated import exact
from flowsde.kernels.correlated import correlated
from flowsde.kernels.glass import glass
from flowsde.kernels.euler import ode_euler
from flowsde.kernels.multistep import ode_adams
from flowsde.kernels.multistep import dpm_solver_2m
from flowsde.kernels.multistep import uni_pc
