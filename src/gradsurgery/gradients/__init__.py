"""What measures a network: gradients of samples and of domains (README.md beside this file)."""
