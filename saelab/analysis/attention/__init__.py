"""What heads write: attribution of latents to heads and source tokens, one step or many, and its proofs."""
