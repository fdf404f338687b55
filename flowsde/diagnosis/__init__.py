"""When is a reward worth asking? What a few hundred trajectories of a model say of it.

`trajectories` measures, `statistics` estimates, `record` keeps, and `advice` says it in words.
"""
