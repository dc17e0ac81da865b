"""Triton twins of the plain arithmetic of SAEs. Each computes what its reference in `saelab.sae.kernels` or
`saelab.sae.dense` computes; `saelab.sae.dispatch` chooses between the two, and
imports these modules only where a twin is wanted."""
