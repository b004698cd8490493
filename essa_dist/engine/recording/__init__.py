"""What a run leaves: its folder, metrics, trackers, the canary's looks, profiles."""
