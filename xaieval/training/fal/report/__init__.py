"""Tables, sentences, figures and the page of an experiment, from its results."""
