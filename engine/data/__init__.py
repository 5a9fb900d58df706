"""Data files: reading rows, turning them into examples, chat templates and validation. Imports no array library."""
