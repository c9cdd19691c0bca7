"""A finished run: talk with its model, and send it to the Hub."""
