"""Rewards that are computed elsewhere: a client, a server, and what they say to each other.

A request is one POST of a safetensors body, and so is its answer (`wire`, `messages`); what goes
wrong is an HTTP status with a JSON problem (`problems`). The server (`server`, `batching`,
`served`) and the client (`client`, `replicas`, `connection`) import neither JAX nor anything that
does, so that a reward can be served from an environment of its own. `flowsde.rewards.remote` is
the door to the client, `flowsde serve-reward` that to the server.
"""
