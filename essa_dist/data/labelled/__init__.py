"""Labelled images: which are trained on, how they are changed and mixed, and in what batches they come."""
