"""Models by name: where one is on this machine, what one says of itself on the hub, and fetching it.

families.py     which families mlx_lm knows, without loading it
places.py       the model on this machine: the hub's cache, LM Studio's folders
remote.py       the model on the hub: refused, described without its weights, or fetched
sources.py      one way from a config's `model` to a folder, and from that to a folder with weights
"""
