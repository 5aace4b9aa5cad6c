"""What everything else rests on: registry, configuration, checkpoints, schedules, errors."""
