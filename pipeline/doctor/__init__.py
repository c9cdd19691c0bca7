"""What will hurt a run, told before a GPU is rented: `ray-align doctor CONFIG.toml`."""
