"""Triton twins of the plain arithmetic of SAEs. Each computes what its reference in `saelab.sae.kernels`,
`saelab.sae.dense` or `saelab.training.rules` computes; `saelab.sae.dispatch` chooses between the two, and
imports these modules only where a twin is wanted."""
