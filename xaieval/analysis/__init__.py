"""Questions asked of rows: summaries, comparisons, rankings, selections."""
