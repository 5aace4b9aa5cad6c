"""Cardiac magnetic resonance: from the files of a study to stacks of slices over the heartbeat."""
