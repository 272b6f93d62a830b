"""What a run leaves on the disk: rows, manifest, checkpoints."""
