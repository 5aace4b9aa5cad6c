"""Weight files: reading, renaming, strict loading."""
