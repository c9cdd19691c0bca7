"""`ray-align doctor CONFIG.toml`: find problems in data, template and settings before training starts."""
