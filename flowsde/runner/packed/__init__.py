"""Many prompts: their searches advance independently and share full batches of the device.

`batch` is what users call. `pool` holds the slots, `steps` the compiled programs, `widths` RBF's
waves, `evaluators` who evaluates, `engine` the loop around them.
"""
