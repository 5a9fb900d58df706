"""GGUF files: read strictly, and made into a folder that mlx_lm loads. Imports no mlx; numpy only where weights are repacked.

header.py        what a file says of itself, every claim checked against the file's size
tensor_types.py  ggml's tensor types, and those that are read here
plan.py          which tensors a family has, what they are called in mlx_lm, its config.json
rope.py          the scaling of rotary embeddings
vocabulary.py    tokens, their kinds, and the special ids
tokenizer.py     tokenizer.json and tokenizer_config.json
blocks.py        weights repacked, a few rows at a time
shards.py        safetensors files written as the weights come
folder.py        the cache: made once, whole or not at all
"""
