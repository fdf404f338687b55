"""Ports of published models: one folder a family, what they share in `common`.

`registry` lists the families, `converted` reads the folders that `flowsde convert` writes, and
`load` is what users call.
"""
