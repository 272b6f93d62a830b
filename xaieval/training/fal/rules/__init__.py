"""Rules that select levels by what an FPN shows of them, and how well they foretell what attention changes."""
