"""What measures a network: gradients of samples and domains. The README beside this file says how."""
