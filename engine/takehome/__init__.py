"""What a run leaves to its user: exports, answers to prompts, a chat. Imports no mlx: worker processes do the computing.

asking.py    one question to a worker process, its answer in JSON lines
choice.py    which of a run's adapters: the best, the last, or a step's
export.py    adapter, fused model, GGUF file: made aside, read back in a fresh process, compared, named
kinds.py     what can be asked of an export, and what it gave
card.py      the model card that lies beside each export
generate.py  prompts answered in one batch by the base and by the tuned model
chat.py      a worker that stays, and answers turn after turn
"""
