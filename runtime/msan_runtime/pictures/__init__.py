"""Picture files: one module for each thing that must be done to get pixels out of them and in again."""
