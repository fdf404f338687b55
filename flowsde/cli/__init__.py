"""The `flowsde` command."""

COMMANDS = {
    "sample": "search for a picture of a prompt",
    "batch": "search for pictures of a long list of prompts, in full batches",
    "compare": "compare methods on the same prompts and seeds",
    "diagnose": "measure at which times a reward is worth asking",
    "tune": "find the best search for a model, a reward, prompts and a budget",
    "score": "score pictures in files by a reward",
    "rewards": "list the rewards that there are, and what each needs",
    "train": "train the embedded networks",
    "serve-reward": "serve a reward to searches elsewhere",
    "convert": "convert a PyTorch checkpoint, or a converted one back",
}
