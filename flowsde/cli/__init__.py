"""The `flowsde` command."""
