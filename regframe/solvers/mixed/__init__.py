"""Points against an image."""
