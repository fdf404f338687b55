"""What carries a search out: it evaluates, counts, saves, and spreads over devices.

`run` is what users call. It checks its arguments in `arguments`, asks and tells in the compiled
`rounds`, evaluates in `evaluate`, and gives a `result`; `mesh` and `exchange` spread that over
devices, `saved` writes it, `packed` does it for many prompts.
"""
