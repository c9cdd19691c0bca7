"""Everything that needs Ray, and the only folder that imports it."""
