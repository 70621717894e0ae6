"""The commands of the export room, one module each."""
