"""One page for all runs: a notebook that Voila shows, and the server behind it."""
