"""Choosing, calibrating and measuring edits: `select_latents`, `calibrate_gate`, `effect`."""
