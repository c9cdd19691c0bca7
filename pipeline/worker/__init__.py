"""One rank of the training group. No ray: what it needs of the cluster comes in as plain callables."""
