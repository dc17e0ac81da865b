"""What an SAE's latents tell of labels: probes of few latents, absorption, what removing them takes away."""
