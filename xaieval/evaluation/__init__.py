"""From a loader to `Scores`."""
