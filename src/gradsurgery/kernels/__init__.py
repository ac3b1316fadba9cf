"""The few loops that are compiled, and what does the same for accelerators without Triton."""
