"""Analysis of the rows of a run: summaries, comparisons, rankings, selection of layers, warnings."""
