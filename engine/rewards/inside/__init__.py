"""What runs inside the sandbox of engine.rewards.sandbox: sent there as text, so it needs nothing but Python.

boot.py sets the limits of every process in there. script.py runs a program on its standard input. candidate.py and tester.py
are two ends of one conversation (wire.py): the program that is judged, and the tests that judge it, each in a sandbox of its
own. enclose.py builds the sandbox where bubblewrap is not installed.
"""
