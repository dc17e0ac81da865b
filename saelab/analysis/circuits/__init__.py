"""Which heads, MLPs and latents carry a task: patching, circuits, and what they are worth."""
