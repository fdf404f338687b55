"""Many prompts: their searches advance independently and share full batches of the device.

`batch` is what users call. `pool` holds the slots, `steps` the compiled programs, `widths` RBF's
waves, `judges` who evaluates, `engine` the loop around them.
"""

from flowsde.packing.batch import Packing, batch
from flowsde.packing.engine import Totals

__all__ = ["Packing", "Totals", "batch"]
