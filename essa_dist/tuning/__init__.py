"""Sweeps over the settings of runs with Ray Tune; each trial is a distributed job of its own."""
