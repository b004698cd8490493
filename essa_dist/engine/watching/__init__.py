"""What can go wrong in a run, noticed: signals, hung and slow ranks, numbers that are not finite, collapse."""
