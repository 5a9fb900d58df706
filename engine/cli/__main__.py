"""`python -m engine.cli VERB`: the headless command line by itself, with the text view where the app would open."""

from engine.cli.app import main

main()
