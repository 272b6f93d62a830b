"""What attention at a level changes: the outcome of each run, differences between arms, and effects of the levels."""
