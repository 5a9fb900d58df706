"""The Hugging Face hub: what fetching data sets and models have in common.

refusals.py     what can go wrong on the way, in plain words; asking only where the user lets us
repository.py   what a repository has at a commit, asked of the hub or of its cache on this machine
fetching.py     files into that cache, taken up where they broke off, checked; or some bytes of one
"""

ONLINE = "DROID_TUNE_HUB"  # in a worker's environment, whose libraries are offline: "online" where its user is not
