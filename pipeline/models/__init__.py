"""One frozen model: where it comes from, whether it fits, what it is asked."""
