"""Which search for a model, a reward, prompts and a budget? Settings race each other.

`space` has the settings, `screen` leaves out what a diagnosis says cannot help, `split` sets aside
what nothing is chosen on, `race` chooses, `measure` runs and `ledger` keeps; `tuned` is the answer,
which `report` says in words and `figure` draws.
"""
