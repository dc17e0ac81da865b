"""Maps of the latents of a store: two coordinates each, how far they can be trusted, and named clusters."""
