"""One rank of the training group. Imports no ray: it gets access to the cluster as plain callables."""
