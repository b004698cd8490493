"""Building a run, training it, and keeping it safe."""
