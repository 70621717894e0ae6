"""Native engines: built from a bundle's graph, judged, kept for the next time."""
