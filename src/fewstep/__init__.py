"""Few-step distillation of diffusion models as a chain of cached, reproducible stages."""
