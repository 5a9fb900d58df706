"""A run on disk: its folder, its journal, the state folded from it, commands to it, and the launch of its worker."""
