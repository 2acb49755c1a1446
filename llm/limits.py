"""Sizes that bound what passes through a model hold, for those who plan it without loading one."""

LOGITS = 2**22  # held at a time by a policy: 16 MB
SHORT = 128  # tokens up to which, on a CPU and outside autograd, plain attention is faster than the fused kernel
TOKENS = 2**15  # in one pass outside autograd, padding included
