"""One row of replay: an observation, what came with it, and the action chosen at it."""

OWN_KEYS = ("reward", "is_first", "is_last", "is_terminal", "index")
"""Keys of every row beside observations, actions and latents; sampling adds `index`."""
