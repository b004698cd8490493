"""Checkpoints: written beside training, restored under any strategy."""
