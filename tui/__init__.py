"""The terminal app and the console script. Imports no mlx, mlx_lm or transformers: it shows runs, it never computes one."""
