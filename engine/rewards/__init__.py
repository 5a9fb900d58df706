"""Rewards: built-in functions, users' files, and the process that runs them. Imports no array library."""
