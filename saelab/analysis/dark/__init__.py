"""Dark matter: what an SAE leaves of its activations, and which parts that has (arXiv 2410.14670)."""
